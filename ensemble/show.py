"""How does a decision look to a person? Tables for the terminal; numbers that are there to be compared."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeVar

from ensemble.records import Decision, Forecast, Wishes

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Item = TypeVar("Item")
NARROWED = {  # by reason, why the choice was not free
    "session": "the session keeps its member",
    "fallback": "asked once another had failed",
    "hedge": "asked while another was silent",
}
WIDTH = 120  # columns where the output goes to a file or a pipe


def console() -> Console:
    """Standard output, wide enough for a table also where it is not a terminal; brackets are no markup."""
    from rich.console import Console

    shown = Console(markup=False, emoji=False)
    return shown if shown.is_terminal else Console(width=WIDTH, markup=False, emoji=False)


def tracked(items: Iterator[Item], total: int | None, label: str) -> Iterator[Item]:
    """The same items, with a bar on standard error that tells how many have come, and of how many."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield from progress.track(items, total=total, description=label)


def decision_table(decision: Decision) -> Table:
    """Every member, best first, those who were not eligible last."""
    from rich.table import Table

    caption = "\n".join(decision.warnings)
    table = Table(title=explain(decision), title_justify="left", caption=caption, caption_justify="left")
    table.add_column("member", overflow="fold")
    for heading in ("reward", "tokens", "USD", _utility_heading(decision), "chance"):
        table.add_column(heading, justify="right")
    table.add_column("why")
    place = {name: i for i, name in enumerate(decision.ranking)}
    for forecast in sorted(decision, key=lambda f: place.get(f.member, math.inf)):
        chosen = forecast.member == decision.member
        table.add_row(
            forecast.member,
            f"{forecast.reward:.3f} ± {forecast.reward_std:.3f}",
            f"{forecast.output_tokens:,.0f}",
            usd(forecast.cost_usd),
            "-" if forecast.ineligible_because else f"{forecast.utility:.5f}",
            f"{forecast.probability:.3f}",
            _why(forecast, decision),
            style="bold" if chosen else "dim" if forecast.ineligible_because else None,
        )
    return table


def explain(decision: Decision) -> str:
    """One line: who, and for what reason."""
    chosen, best = decision.chosen, decision[decision.ranking[0]]
    expects = f"expected reward {chosen.reward:.3f} for {usd(chosen.cost_usd)} USD"
    if decision.reason in NARROWED:
        why = NARROWED[decision.reason]
    elif not decision.randomized:
        why = "the session has moved to it"
    elif chosen.member != best.member:
        why = f"exploring: a rival of {best.member}, taken with probability {decision.propensity:.3f}"
    else:
        why = f"best of {len(decision.ranking)} eligible where {_worth(decision.wishes)}"
    return f"{decision.member}: {expects}; {why}"


def _worth(wishes: Wishes) -> str:
    dial, price = wishes.willingness_to_pay_usd, wishes.spend_price
    if math.isinf(dial):
        return "reward first"
    counts = f" and, for the budget, a USD of cost counts {price:.3g} times" if price > 1 else ""
    return f"one unit of reward is worth {dial:g} USD{counts}"


def usd(amount: float) -> str:
    """Three significant digits, never in powers of ten above a millionth."""
    if amount == 0 or abs(amount) >= 0.1:
        return f"{amount:.3f}"
    return (
        f"{amount:.{max(3, 2 - math.floor(math.log10(abs(amount))))}f}"
        if abs(amount) >= 1e-7
        else f"{amount:.2e}"
    )


def _utility_heading(decision: Decision) -> str:
    return "utility" if math.isinf(decision.wishes.willingness_to_pay_usd) else "utility, USD"


def _why(forecast: Forecast, decision: Decision) -> str:
    if forecast.ineligible_because:
        return f"not eligible: {forecast.ineligible_because}"
    notes = ["chosen"] if forecast.member == decision.member else []
    return ", ".join(notes + ([] if forecast.measured else ["unmeasured"]))

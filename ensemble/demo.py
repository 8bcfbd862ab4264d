"""``ensemble demo``: the whole line on a dozen prompts, with no API key and no network.

Router, pool, policy, dispatch and log are the real ones. Only the far end is not: each member is served
by a litellm provider inside this process, whose answers say that they are canned.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ensemble import bundle, config
from ensemble.cli import json_option, print_json
from ensemble.engine import Ensemble
from ensemble.outcomes import OutcomeLog
from ensemble.pool import Pool
from ensemble.records import Decision, Deployment
from ensemble.router import Router
from ensemble.show import console, usd

DIALS = (0.001, 0.02, 0.5)  # USD one unit of reward is worth: thrifty, even, generous
PROMPTS = (
    "A bakery sells rolls at 3 for 2 euros. How much do 18 rolls cost?",
    "What is the remainder when 7^100 is divided by 13?",
    "Find all real x with x^4 - 5x^2 + 4 = 0 and explain each step.",
    "Prove that the square root of 2 is irrational.",
    "What does this print?\n\ndef f(s):\n    return ''.join(sorted(set(s)))\nprint(f('banana'))",
    "Write a Python function that returns the n-th Fibonacci number without recursion.",
    "Which organelle makes most of a cell's ATP?\nA. nucleus\nB. ribosome\nC. mitochondrion\nD. lysosome",
    "A 45-year-old has crushing chest pain and ST elevation in leads II, III and aVF. Which artery is most "
    "likely blocked?\nA. left anterior descending\nB. right coronary\nC. circumflex\nD. left main",
    "Under the common law, is silence ever acceptance of an offer? Give the rule and its main exception.",
    "If the central bank raises its rate, what happens to the price of existing bonds, and why?",
    "Who wrote the novel 'One Hundred Years of Solitude'?",
    "Summarize in one sentence why the sky is blue.",
)


def canned_pool(pool: Pool) -> Pool:
    """The same members at the same prices, each served inside this process."""
    _install_provider()
    return Pool(
        [dataclasses.replace(m, deployments=(Deployment(f"canned/{m.name}"),)) for m in pool],
        willingness_to_pay_usd=pool.defaults.willingness_to_pay_usd,
    )


def _install_provider() -> None:
    import os

    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    import litellm
    from litellm.types.utils import ModelResponse

    class Canned(litellm.CustomLLM):  # type: ignore[misc]
        def completion(self, *args: Any, **kwargs: Any) -> Any:
            model, messages = kwargs["model"], kwargs["messages"]
            answer = f"[canned answer in place of {model}; no model was called]"
            tokens_in, tokens_out = sum(len(str(m["content"])) for m in messages) // 4, len(answer) // 4
            return ModelResponse(
                model=model,
                choices=[{"message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}],
                usage={
                    "prompt_tokens": tokens_in,
                    "completion_tokens": tokens_out,
                    "total_tokens": tokens_in + tokens_out,
                },
            )

    others = [entry for entry in litellm.custom_provider_map if entry["provider"] != "canned"]
    litellm.custom_provider_map = [*others, {"provider": "canned", "custom_handler": Canned()}]


@dataclass(frozen=True)
class Setting:
    """The decisions at one dial, with the whole pool and without its strongest member."""

    dial: float
    decisions: Sequence[Decision]
    without: Sequence[Decision]

    def summary(self, strongest: str) -> dict[str, Any]:
        """Means over the prompts; USD are expected ones, per 1,000 prompts."""
        always = [decision[strongest] for decision in self.decisions]
        moved = Counter(
            after.member
            for before, after in zip(self.decisions, self.without, strict=True)
            if after.member != before.member
        )
        return {
            "willingness_to_pay_usd": self.dial,
            "reward": _mean(d.chosen.reward for d in self.decisions),
            "usd_per_1000": 1000 * _mean(d.chosen.cost_usd for d in self.decisions),
            "always_strongest_reward": _mean(f.reward for f in always),
            "always_strongest_usd_per_1000": 1000 * _mean(f.cost_usd for f in always),
            "without_strongest_reward": _mean(d.chosen.reward for d in self.without),
            "without_strongest_usd_per_1000": 1000 * _mean(d.chosen.cost_usd for d in self.without),
            "moved_to": dict(moved.most_common()),
        }


def run(log: Path) -> tuple[str, list[Setting], int]:
    """The strongest member, the decisions at every dial, and how many of their outcomes the log holds."""
    router = Router.load()
    pool = canned_pool(Pool.load(bundle.shipped_folder() / "pool.toml"))
    with Ensemble(router=router, pool=pool, log=log) as full:
        replies = {dial: [full.complete(p, willingness_to_pay_usd=dial) for p in PROMPTS] for dial in DIALS}
    decisions = {dial: [reply.decision for reply in some] for dial, some in replies.items()}
    strongest = max(pool.names, key=lambda name: _mean(d[name].reward for d in decisions[DIALS[0]]))
    rest = Ensemble(router=router, pool=pool.without(strongest), log=False)
    settings = [
        Setting(dial, decisions[dial], [rest.route(p, willingness_to_pay_usd=dial) for p in PROMPTS])
        for dial in DIALS
    ]
    made = [decision.id for some in decisions.values() for decision in some]
    with OutcomeLog.open(log) as opened:  # read back: an earlier demo may be in there too
        n_outcomes = sum((opened.decision(id) or {}).get("served_member") is not None for id in made)
    return strongest, settings, n_outcomes


@click.command()
@click.option(
    "--log",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where the outcomes go. [default: demo.db in the user's state folder]",
)
@json_option
def demo(log: Path | None, as_json: bool) -> None:
    """Route a dozen prompts at three dials through the whole line; needs no API key and no network."""
    place = log or config.state_folder() / "demo.db"
    strongest, settings, n_outcomes = run(place)
    if as_json:
        choices = [[d.member for d in s.decisions] for s in settings]
        summaries = [s.summary(strongest) for s in settings]
        print_json(
            {
                "strongest": strongest,
                "prompts": PROMPTS,
                "members": choices,
                "dials": summaries,
                "n_outcomes": n_outcomes,
            }
        )
        return
    _print(strongest, settings)
    click.echo(f"\n{n_outcomes} calls answered (canned), each with its decision and outcome in {place}")
    click.echo('Next: set an API key and ask for real: .venv/bin/ensemble ask "..." (see README)')


def _print(strongest: str, settings: Sequence[Setting]) -> None:
    from rich.table import Table

    who = Table(
        title="Who answers, by what one unit of reward is worth: expected reward, USD", title_justify="left"
    )
    who.add_column("prompt", max_width=34, no_wrap=True)
    for setting in settings:
        who.add_column(f"{setting.dial:g} USD")
    for i, prompt in enumerate(PROMPTS):
        cells = []
        for setting in settings:
            decision = setting.decisions[i]
            cells.append(f"{decision.member}\n{decision.chosen.reward:.2f}, {usd(decision.chosen.cost_usd)}")
        who.add_row(prompt.splitlines()[0], *cells)
    output = console()
    output.print(who)
    output.print(_against(strongest, [setting.summary(strongest) for setting in settings]))


def _against(strongest: str, rows: Sequence[Mapping[str, Any]]) -> Any:
    from rich.table import Table

    table = Table(
        title=f"Against always calling {strongest}, and if it were gone (means; USD per 1,000 prompts)",
        title_justify="left",
    )
    for head in (
        "dial",
        "reward, USD",
        f"always {strongest}",
        "cost",
        f"without {strongest}",
        "its prompts go to",
    ):
        table.add_column(head)
    for row in rows:
        ratio = row["usd_per_1000"] / row["always_strongest_usd_per_1000"]
        moved = ", ".join(f"{n} to {name}" for name, n in row["moved_to"].items())
        table.add_row(
            f"{row['willingness_to_pay_usd']:g}",
            f"{row['reward']:.3f}, {row['usd_per_1000']:.2f}",
            f"{row['always_strongest_reward']:.3f}, {row['always_strongest_usd_per_1000']:.2f}",
            f"{ratio:.0%}",
            f"{row['without_strongest_reward']:.3f}, {row['without_strongest_usd_per_1000']:.2f}",
            moved or "(it had none)",
        )
    return table


def _mean(values: Any) -> float:
    listed = list(values)
    return float(sum(listed) / len(listed))

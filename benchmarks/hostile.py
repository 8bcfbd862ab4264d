"""What does each hostile input get? Bundles, pools, settings, calls and prompts made to do harm.

    python -m benchmarks.hostile

In two minutes or so. An input is held if it got the error that it should, with a text that says what is
wrong, or was served unharmed where it does no harm; a text that pushes the router, if what it adds to the
expected cost keeps within the bound (see gadgets.py).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import gadgets, hostile_bundles, hostile_calls, hostile_pools
from ensemble.bundle import shipped_folder
from ensemble.encoder import TOKENIZER
from ensemble.engine import Ensemble

CASES = (*hostile_bundles.CASES, *hostile_pools.CASES, *hostile_calls.CASES)
MOST_USD = 2e-4  # the cap that is tried, below what the dearest of the pool may cost
PADDED_CHARACTERS = 560_000  # some 140,000 tokens: more than most windows hold


def rows() -> list[dict[str, Any]]:
    """One for each input: ``what`` it is, what it ``got``, and whether that ``held``."""
    found = []
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            got, held = case.got(Path(folder))
        found.append({"what": case.what, "got": got, "held": held})
    return found + list(_texts())


def _texts() -> Iterator[dict[str, Any]]:
    """Prompts that push the shipped router, over the shipped pool, to its dear members."""
    with Ensemble(log=False) as ensemble:
        target = gadgets.Target(ensemble)
        for push in gadgets.pushes(target, _words(ensemble)):
            got = (
                f"{push.dearer:.0%} to a dearer member, {push.usd_before:.2g} -> {push.usd_after:.2g} USD "
                f"a call (x{push.inflation:.2f}, of which x{push.usd_longer / push.usd_before:.2f} by its "
                f"length); at most {push.most_above:.2f} dials above the cheapest, the bound is 1"
            )
            yield {
                "what": f"{push.what}, at a dial of {push.dial:g} USD",
                "got": got,
                "held": push.most_above <= 1 + 1e-9,
            }
        yield _capped(target)
        yield _padded(ensemble)


def _capped(target: gadgets.Target) -> dict[str, Any]:
    texts = [f"{gadgets.PHRASES[2]}\n{text}" for text in gadgets.prompts()]
    made = target.decisions(texts, float("inf"), max_cost_usd=MOST_USD)
    usd = max(decision.chosen.cost_usd_p95 for decision in made)
    free = max(decision.chosen.cost_usd_p95 for decision in target.decisions(texts, float("inf")))
    got = f"no member that may cost over {usd:.2g} USD (95 %) was chosen; without the cap up to {free:.2g}"
    what = f"a phrase at a dial without end, max_cost_usd={MOST_USD:g}"
    return {"what": what, "got": got, "held": usd <= MOST_USD < free}


def _padded(ensemble: Ensemble) -> dict[str, Any]:
    """So much text that the small windows are full: the choice is among the rest, and bound by them."""
    decision = ensemble.route("word " * (PADDED_CHARACTERS // 5))
    left = sum(line.ineligible_because is None for line in decision.forecasts)
    above = gadgets.above_cheapest(decision) / decision.wishes.willingness_to_pay_usd
    got = (
        f"{left} of {len(decision.forecasts)} members can read it, {decision.member} was chosen: "
        f"{decision.chosen.cost_usd:.2g} USD, {above:.2f} dials above the cheapest of them"
    )
    return {"what": "140,000 tokens of padding", "got": got, "held": above <= 1 + 1e-9}


def _words(ensemble: Ensemble) -> list[str]:
    """The plain words that the router's encoder reads as one token each."""
    place = shipped_folder() / "encoders" / ensemble.router.encoder.id / TOKENIZER
    known = json.loads(place.read_text(encoding="utf-8"))["model"]["vocab"]
    return [word for word in known if len(word) > 2 and word.isascii() and word.isalpha()]


def main() -> None:
    found = rows()
    table = Table("hostile input", "got", "held", title="What each hostile input got")
    for row in found:
        table.add_row(row["what"], row["got"], "yes" if row["held"] else "NO")
    console = Console(width=200, markup=False)
    console.print(table)
    console.print(f"{sum(row['held'] for row in found)} of {len(found)} held")


if __name__ == "__main__":
    main()

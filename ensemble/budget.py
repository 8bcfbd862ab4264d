"""How much may be spent, and what does that make a USD of spend worth? Budgets per day, and their price.

A budget should not answer well until noon and not at all from then on. So it puts a price on spend, which
rises as the money runs out ahead of the day: the policy counts a USD for so many, and the dial turns down by
itself:

    price = max(1, share of the day that is left / share of the money that is left) ** STEEPNESS

At 1, spend keeps pace and nothing changes; with the money gone the cheapest members that can serve answer,
unless the dial is infinite, which no price can turn.
This is the price that belongs to the constraint, its dual variable, corrected as the day goes (adaptive
pacing: Balseiro and Gur 2019, Management Science 65). A day is one of UTC.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

from ensemble.errors import BudgetSpentError, ConfigError, InputError
from ensemble.records import Wishes

STEEPNESS = (
    2  # of simulated days, even ones and with bursts, a higher one serves the even better, the others worse
)
HIGHEST_PRICE = 1e9  # more than any finite dial is worth
FRESH_S = 1.0  # for so long is what was read of the log believed
MOST_USD = 1e9
MOST_KEPT = 10_000  # of budgets' values, what was spent
DAY_S = 86_400.0

Spent = Callable[[float, Mapping[str, Any] | None], float]  # USD since a time, under such metadata


@dataclass(frozen=True)
class Budget:
    """``usd_per_day`` for all calls, or with ``per`` for each value of that name in their ``metadata``.

    ``hard``: a call that might exceed it is not made; by then what was in flight may have. Otherwise spend
    only gets dearer, and a day can end over it. Raises ConfigError.
    """

    usd_per_day: float
    per: str | None = None
    hard: bool = False

    def __post_init__(self) -> None:
        usd = self.usd_per_day
        if not isinstance(usd, Real) or isinstance(usd, bool) or not 0 < usd <= MOST_USD:
            raise ConfigError(
                f"budget: usd_per_day: expected a number above 0, up to {MOST_USD:g}, found {usd!r:.80}. "
                "Correct it."
            )
        if self.per is not None and (not isinstance(self.per, str) or not self.per):
            raise ConfigError(f"budget: per: expected a name in metadata, found {self.per!r}. Correct it.")
        if not isinstance(self.hard, bool):
            raise ConfigError(f"budget: hard: expected true or false, found {self.hard!r}. Correct it.")


class Budgets:
    """All that are in force. Thread-safe. ``spent`` reads the log, as ``OutcomeLog.spend_usd`` does."""

    def __init__(self, budgets: Iterable[Budget], spent: Spent, clock: Callable[[], float]) -> None:
        self._budgets, self._spent, self._clock = tuple(budgets), spent, clock
        self._known: dict[tuple[str | None, str], tuple[float, float]] = {}  # when read, USD

    def under(self, wishes: Wishes, metadata: Mapping[str, Any] | None) -> Wishes:
        """The same wishes at the highest price of the budgets that such a call falls under, and below what
        the hard ones have left.

        Raises BudgetSpentError where a hard one has nothing left, InputError for a call that no value of its
        metadata puts under a budget which is kept by value.
        """
        for budget in self._budgets:
            wishes = self._under(budget, wishes, metadata or {})
        return wishes

    def _under(self, budget: Budget, wishes: Wishes, metadata: Mapping[str, Any]) -> Wishes:
        now = self._clock()
        if budget.per is not None and budget.per not in metadata:
            raise InputError(
                f"metadata: expected {budget.per!r} among it, by whose value a budget is kept; found "
                f"{', '.join(map(repr, metadata)) or 'nothing'}. Pass metadata={{{budget.per!r}: ...}}, or "
                f"--metadata {budget.per}=... to ensemble ask."
            )
        spent = self._spent_today(budget, metadata, now)
        price = max(wishes.spend_price, spend_price(spent / budget.usd_per_day, now % DAY_S / DAY_S))
        wishes = dataclasses.replace(wishes, spend_price=price) if price > wishes.spend_price else wishes
        if not budget.hard:
            return wishes
        left = budget.usd_per_day - spent
        if left <= 0:
            whose = "" if budget.per is None else f" for {budget.per}={metadata[budget.per]!r}"
            raise BudgetSpentError(
                f"a hard budget of {budget.usd_per_day:g} USD a day{whose} is spent: {spent:.6g} USD since "
                "midnight UTC. Raise it, or wait for the next day."
            )
        cap = left if wishes.max_cost_usd is None else min(left, wishes.max_cost_usd)
        return dataclasses.replace(wishes, max_cost_usd=cap)

    def _spent_today(self, budget: Budget, metadata: Mapping[str, Any], now: float) -> float:
        labels = None if budget.per is None else {budget.per: metadata[budget.per]}
        whose = budget.per, json.dumps(labels, default=repr)
        midnight = now - now % DAY_S
        read_at, usd = self._known.get(whose, (-math.inf, 0.0))
        if max(midnight, now - FRESH_S) < read_at <= now and not budget.hard:
            return usd
        if len(self._known) >= MOST_KEPT:
            self._known.clear()
        if midnight <= read_at:
            self._known[whose] = now, usd  # while this one reads, others go on with what is known
        usd = self._spent(midnight, labels)
        self._known[whose] = now, usd
        return usd


def spend_price(spent: float, gone: float) -> float:
    """How often a USD of spend counts, in [1, HIGHEST_PRICE]; ``spent`` of the budget, >= 0, and ``gone`` of
    the day, in [0, 1), are shares."""
    money_left = 1 - spent
    if money_left <= 0:
        return HIGHEST_PRICE
    return min(max(1.0, (1 - gone) / money_left) ** STEEPNESS, HIGHEST_PRICE)

"""Budgets: the price they put on spend, whose spend counts, and what a hard one refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble.budget import DAY_S, FRESH_S, HIGHEST_PRICE, Budget, Budgets, spend_price
from ensemble.config import read_settings
from ensemble.errors import BudgetSpentError, ConfigError, InputError, NoEligibleMemberError
from ensemble.pool import Pool
from ensemble.records import Wishes
from local_provider import LocalProvider
from serving_cases import CHEAP, DEAR, MEMBERS, MIDDLE, PRICES, QUIET, Line, default_router

pytestmark = QUIET
NOON = 20_000.5 * DAY_S
SHARES = st.floats(0, 1, exclude_max=True)


@given(SHARES, SHARES, st.floats(0, 2))
def test_the_price_is_1_on_pace_and_rises_with_what_is_spent(gone: float, spent: float, more: float) -> None:
    price = spend_price(spent, gone)
    assert 1 <= price <= HIGHEST_PRICE
    assert price == 1 or spent > gone
    assert spend_price(spent + more, gone) >= price
    assert spend_price(1.0 + more, gone) == HIGHEST_PRICE


def day_of(usd_per_day: float, price_at: Callable[[float, float], float]) -> tuple[float, float]:
    """Spend over a day as a share of the budget, and the mean reward: three members, the dear ones better."""
    rng = np.random.default_rng(0)
    base, usd = np.array([0.45, 0.6, 0.75]), np.array([0.0001, 0.001, 0.006])
    spent, rewards = 0.0, []
    for moment in np.sort(rng.random(4_000)):
        reward = np.clip(base + rng.normal(0, 0.12, 3), 0, 1)
        price = price_at(spent / usd_per_day, moment)
        chosen = int(np.argmax(0.01 * reward - price * usd))
        spent += usd[chosen]
        rewards.append(float(reward[chosen]))
    return spent / usd_per_day, float(np.mean(rewards))


def test_a_day_ends_on_its_budget_nearly_as_well_as_with_hindsight() -> None:
    """Beside the one price that would have been best all day, had one known it."""
    free, _ = day_of(1.0, lambda spent, gone: 1.0)
    budget = free / 2
    spent, reward = day_of(budget, spend_price)
    days = [day_of(budget, lambda spent, gone, price=price: price) for price in np.geomspace(1, 30, 40)]
    best = max(reward for spent, reward in days if spent <= 1)
    assert 0.97 < spent < 1.02
    assert reward > best - 0.015


class Spending:
    """A log that is told what to say, and remembers what it was asked."""

    def __init__(self, usd: float = 0.0) -> None:
        self.usd, self.asked = usd, []  # type: float, list[tuple[float, Mapping[str, Any] | None]]

    def __call__(self, since: float, metadata: Mapping[str, Any] | None) -> float:
        self.asked.append((since, metadata))
        return self.usd


def test_spend_counts_from_midnight_and_is_read_again_when_it_is_old() -> None:
    spending, now = Spending(0.75), [NOON]
    budgets = Budgets([Budget(1.0)], spending, lambda: now[0])
    assert budgets.under(Wishes(), None).spend_price == pytest.approx(4.0)  # (.5 / .25) squared
    assert spending.asked == [(20_000 * DAY_S, None)]
    spending.usd = 0.5
    assert budgets.under(Wishes(), None).spend_price == pytest.approx(4.0)  # believed for a moment
    now[0] += FRESH_S
    assert budgets.under(Wishes(), None).spend_price == pytest.approx(1.0, abs=1e-3)
    now[0] = 20_001 * DAY_S + 0.1
    budgets.under(Wishes(), None)
    assert spending.asked[-1] == (20_001 * DAY_S, None)


def test_a_clock_set_back_makes_no_old_spend_believed() -> None:
    spending, now = Spending(0.5), [NOON]
    budgets = Budgets([Budget(1.0)], spending, lambda: now[0])
    assert budgets.under(Wishes(), None).spend_price == pytest.approx(1.0)
    now[0] -= 3_600
    spending.usd = 1.0
    assert budgets.under(Wishes(), None).spend_price == HIGHEST_PRICE


def test_a_hard_budget_knows_of_a_call_that_has_just_ended() -> None:
    spending = Spending(0.75)
    budgets = Budgets([Budget(1.0, hard=True)], spending, lambda: NOON)
    assert budgets.under(Wishes(), None).max_cost_usd == pytest.approx(0.25)
    spending.usd = 1.0
    with pytest.raises(BudgetSpentError):
        budgets.under(Wishes(), None)


def test_the_tightest_of_several_budgets_counts_and_a_hard_one_caps_the_call() -> None:
    budgets = Budgets([Budget(1.0), Budget(0.8, hard=True), Budget(100.0)], Spending(0.75), lambda: NOON)
    wishes = budgets.under(Wishes(max_cost_usd=0.3), None)
    assert wishes.spend_price == pytest.approx((0.5 / (0.05 / 0.8)) ** 2)
    assert wishes.max_cost_usd == pytest.approx(0.05)
    assert budgets.under(Wishes(max_cost_usd=0.01), None).max_cost_usd == 0.01


def test_a_budget_by_value_needs_the_value_and_keeps_them_apart() -> None:
    spending = Spending(0.0)
    budgets = Budgets([Budget(1.0, per="team")], spending, lambda: NOON)
    budgets.under(Wishes(), {"team": "a", "user": 1})
    budgets.under(Wishes(), {"team": {"odd": ["value"]}})
    assert [labels for _, labels in spending.asked] == [{"team": "a"}, {"team": {"odd": ["value"]}}]
    with pytest.raises(InputError, match=r"'team' among it.*found 'user'"):
        budgets.under(Wishes(), {"user": 1})
    with pytest.raises(InputError, match="found nothing"):
        budgets.under(Wishes(), None)


@pytest.mark.parametrize(
    ("table", "what"),
    [
        ({"usd_per_day": 0}, "above 0"),
        ({"usd_per_day": True}, "above 0"),
        ({"usd_per_day": float("nan")}, "above 0"),
        ({"usd_per_day": 1, "per": ""}, "per"),
        ({"usd_per_day": 1, "hard": "yes"}, "hard"),
    ],
)
def test_a_budget_that_cannot_be_meant_is_refused(table: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        Budget(**table)


def test_budgets_stand_in_the_settings_file(tmp_path: Path) -> None:
    place = tmp_path / "ensemble.toml"
    place.write_text(
        '[[budgets]]\nusd_per_day = 5\nper = "team"\n[[budgets]]\nusd_per_day = 9.5\nhard = true\n'
    )
    assert read_settings(place)["budgets"] == [Budget(5, per="team"), Budget(9.5, hard=True)]
    for broken in ("budgets = [1]\n", "[[budgets]]\nusd = 5\n", "[[budgets]]\nper = 'team'\n"):
        place.write_text(broken)
        with pytest.raises(ConfigError, match="usd_per_day"):
            read_settings(place)


# Through the engine: at a high dial a dear member is chosen, whose call takes more than such a budget.


@pytest.fixture
def provider() -> Iterator[LocalProvider]:
    with LocalProvider() as opened:
        yield opened


def line_with(provider: LocalProvider, place: Path, *budgets: Budget, now: list[float]) -> Line:
    pool = Pool([provider.member(n, *PRICES[n], context_window=100_000) for n in MEMBERS])
    settings: dict[str, Any] = {"router": default_router(), "pool": pool, "clock": lambda: now[0]}
    return Line(provider, place, budgets=budgets, **settings)


def test_spend_turns_the_dial_down_and_the_log_says_so(provider: LocalProvider, tmp_path: Path) -> None:
    now = [NOON]
    line = line_with(provider, tmp_path / "log.db", Budget(0.00005, per="team"), now=now)
    ask: dict[str, Any] = {"willingness_to_pay_usd": 3.0, "metadata": {"team": "a"}}
    with line.ensemble:
        first = line.ask(**ask)
        now[0] += FRESH_S
        later, other = line.ask(**ask), line.ask(**ask | {"metadata": {"team": "b"}})
        rows = [line.row(reply) for reply in (first, later, other)]
    assert (first.decision.member, later.decision.member) == (other.decision.member, CHEAP)
    assert first.decision.member in (MIDDLE, DEAR)
    assert [row["chosen_reason"] for row in rows] == ["routed", "budget", "routed"]
    assert [row["wishes"]["spend_price"] > 1 for row in rows] == [False, True, False]
    assert rows[1]["randomized"] and rows[1]["propensity"] == 1.0


def test_a_hard_budget_refuses_before_anyone_is_called(provider: LocalProvider, tmp_path: Path) -> None:
    now = [NOON]
    line = line_with(provider, tmp_path / "log.db", Budget(0.0001, hard=True), now=now)
    with line.ensemble:
        for _ in range(20):
            now[0] += FRESH_S
            try:
                line.ask(max_tokens=100)
            except NoEligibleMemberError:  # what is left doesn't cover a call
                break
        else:
            pytest.fail("a hard budget never refused a call")
        assert 0.00005 < line.log.spend_usd(0.0) <= 0.0001
        budgets = Budgets([Budget(0.00005, hard=True)], line.log.spend_usd, lambda: now[0])
        with pytest.raises(BudgetSpentError, match="5e-05 USD a day is spent"):
            budgets.under(Wishes(), None)

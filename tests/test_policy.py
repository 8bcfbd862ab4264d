"""Who is chosen, with what probability: laws that hold for every pool, prediction and wish."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ensemble import policy
from ensemble.records import Wishes
from policy_cases import DIALS, Case, case, cases, member

DRAWS = st.floats(0.0, 1.0, exclude_max=True)


@given(cases(), DRAWS)
def test_probabilities_sum_to_1_and_the_propensity_is_that_of_the_drawn(some: Case, draw: float) -> None:
    decision = some.one(draw)
    chances = {forecast.member: forecast.probability for forecast in decision}
    assert all(0 <= chance <= 1 for chance in chances.values())
    assert math.fsum(chances.values()) == pytest.approx(1, abs=1e-12)
    assert decision.propensity == chances[decision.member] > 0
    assert decision.randomized and decision.reason == "routed"
    assert sorted(decision.ranking) == sorted(chances)


@given(cases(), st.sampled_from(["m0", "m1"]), DRAWS)
def test_who_is_not_eligible_has_no_probability(some: Case, out: str, draw: float) -> None:
    assume(len(some.members) > 2)
    decision = some.one(draw, unavailable={out: "no API key: set ONE"})
    assert decision[out].probability == 0
    assert decision[out].ineligible_because == "no API key: set ONE"
    assert out not in decision.ranking and decision.member != out


@given(cases(), DRAWS)
def test_every_figure_is_a_number(some: Case, draw: float) -> None:
    for forecast in some.one(draw):
        figures = [value for value in dataclasses.astuple(forecast) if isinstance(value, float)]
        assert np.isfinite(figures).all()
        speed = next(m for m in some.members if m.name == forecast.member)
        known = speed.first_token_s is not None and speed.tokens_per_second is not None
        assert (forecast.seconds is not None) == known


@given(cases(), DRAWS)
def test_without_exploration_it_is_the_greatest_utility_and_no_chance(some: Case, draw: float) -> None:
    some = some.wishing(exploration=0.0)
    decision = some.one(draw)
    best = max(forecast.utility for forecast in decision)
    assert decision.chosen.utility == best
    assert decision.propensity == 1 and decision.member == decision.ranking[0]
    assert decision.chosen.cost_usd == min(f.cost_usd for f in decision if f.utility == best)
    assert some.one(0.0).member == decision.member


@given(cases())
def test_the_utility_is_the_one_that_is_promised(some: Case) -> None:
    dial = some.wishes.willingness_to_pay_usd
    for forecast in some.one():
        waiting = some.wishes.usd_per_second * (forecast.seconds or 0.0)
        promised = (
            forecast.reward if math.isinf(dial) else dial * forecast.reward - forecast.cost_usd - waiting
        )
        assert forecast.utility == pytest.approx(promised, rel=1e-12, abs=1e-15)


@given(cases())
def test_an_infinite_dial_is_reward_first_then_cost(some: Case) -> None:
    decision = some.wishing(willingness_to_pay_usd=math.inf, exploration=0.0).one()
    ranked = [(-decision[name].reward, decision[name].cost_usd) for name in decision.ranking]
    assert ranked == sorted(ranked)


@given(cases(st.integers(2, 6)), st.data())
def test_a_dearer_member_is_never_likelier(some: Case, data: st.DataObject) -> None:
    i = data.draw(st.integers(0, len(some.members) - 1))
    raised = {name: getattr(some.members[i], name) + data.draw(st.floats(0, 50)) for name in
              ("usd_per_million_input", "usd_per_million_output")}  # fmt: skip
    dearer = [dataclasses.replace(m, **raised) if j == i else m for j, m in enumerate(some.members)]
    before, after = some.one()[f"m{i}"], some.changed(members=tuple(dearer)).one()[f"m{i}"]
    assert after.probability <= before.probability + 1e-12


@given(cases(), DIALS, DIALS)
def test_a_higher_dial_never_lowers_the_reward_of_the_best(some: Case, one: float, other: float) -> None:
    low, high = (
        some.wishing(willingness_to_pay_usd=dial, exploration=0.0).one() for dial in sorted((one, other))
    )
    if math.isfinite(max(one, other)):
        assert high.chosen.reward >= low.chosen.reward - 1e-9  # a tie may fall either way by rounding
    else:
        assert high.chosen.reward >= low.chosen.reward


@given(cases(st.integers(1, 4)), st.lists(DRAWS, min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_a_batch_is_its_prompts_one_by_one(some: Case, draws: list[float], random: Any) -> None:
    n = len(draws)
    scale = np.array([[random.uniform(0.2, 1.0)] for _ in range(n)])
    batch = some.changed(reward=some.reward * scale, std=some.std.repeat(n, 0), tokens=some.tokens / scale)
    together = batch.decide(draws)
    for i, draw in enumerate(draws):
        alone = batch.changed(reward=batch.reward[[i]], std=batch.std[[i]], tokens=batch.tokens[[i]]).one(
            draw
        )
        assert dataclasses.replace(alone, id=f"d{i}") == together[i]


def test_the_drawn_come_as_often_as_their_propensities_say() -> None:
    some = case(
        *map(member, "abcd"), reward=[0.7, 0.6, 0.65, 0.1], willingness_to_pay_usd=0.01, exploration=0.4
    )
    n_draws = 4_000
    drawn = [some.one(draw).member for draw in np.random.default_rng(7).random(n_draws)]
    for forecast in some.one():
        p = forecast.probability
        assert drawn.count(forecast.member) / n_draws == pytest.approx(
            p, abs=4 * math.sqrt(p / n_draws) + 1e-9
        )
    assert some.one()["a"].probability == pytest.approx(0.6)
    assert 0 < some.one()["d"].probability < some.one()["b"].probability < some.one()["c"].probability


@given(st.integers(0, 10**6), DRAWS)
def test_exploration_may_be_all_but_certain(seed: int, draw: float) -> None:
    rewards, most = np.random.default_rng(seed).random(8).tolist(), math.nextafter(1, 0)
    some = case(*map(member, "abcdefgh"), reward=rewards, willingness_to_pay_usd=1.0, exploration=most)
    decision = some.one(draw)
    chances = [forecast.probability for forecast in decision]
    assert min(chances) >= 0 and math.fsum(chances) == pytest.approx(1, abs=1e-12)
    assert decision.propensity > 0


def test_the_shares_of_the_draw_begin_with_the_best_and_leave_no_gap() -> None:
    some = case(*map(member, "ab"), reward=[0.5, 0.5], willingness_to_pay_usd=1.0, exploration=0.5)
    drawn = [some.one(draw).member for draw in (0.0, math.nextafter(0.5, 0), 0.5, math.nextafter(1, 0))]
    assert drawn == ["a", "a", "b", "b"]


@pytest.mark.parametrize(("dial", "reward"), [(0.01, [0.5, 0.5]), (math.inf, [0.5, 0.5]), (0.0, [0.1, 0.9])])
def test_a_tie_goes_to_the_cheaper_then_to_the_first(dial: float, reward: list[float]) -> None:
    dear, cheap = member("dear", 0, 3), member("cheap", 0, 1)
    # At equal rewards the price decides; at a dial of 0 it is all that counts.
    assert case(dear, cheap, reward=reward, willingness_to_pay_usd=dial).one().member == "cheap"
    twin = member("twin", 0, 1)
    assert case(dear, cheap, twin, reward=[0.5] * 3, willingness_to_pay_usd=dial).one().member == "cheap"


def test_a_choice_after_a_failure_is_not_called_randomized() -> None:
    decision = case(*map(member, "ab"), reward=[0.9, 0.1]).one(reason="fallback", unavailable={"a": "failed"})
    assert (decision.member, decision.reason, decision.randomized) == ("b", "fallback", False)


def test_answers_are_no_longer_than_any_limit_and_paid_for_each() -> None:
    short = member("short", 0.0, 1.0, max_output_tokens=50)
    long = member("long", 0.0, 1.0)
    some = case(short, long, reward=[0.5, 0.5], tokens=200)
    assert [f.output_tokens for f in some.one()] == [50, 200]
    assert [f.output_tokens_p95 for f in some.one()] == [50, 600]
    assert [f.output_tokens for f in some.one(max_tokens=20)] == [20, 20]
    assert [f.cost_usd for f in some.one(max_tokens=20, answers=3)] == pytest.approx([60e-6, 60e-6])
    assert [f.cost_usd_p95 for f in some.one()] == pytest.approx([50e-6, 600e-6])


def test_a_thousand_members_are_decided_on() -> None:
    generator = np.random.default_rng(3)
    members = [member(f"m{i}", *generator.uniform(0.1, 10, 2)) for i in range(1000)]
    grid = generator.random((3, 1000))
    some = Case(tuple(members), grid, 0.1 * grid, 1000 * grid + 1, Wishes(exploration=0.1))
    for decision in some.decide([0.0, 0.5, 0.99]):
        assert math.fsum(f.probability for f in decision) == pytest.approx(1, abs=1e-12)
        assert decision.ranking[0] == max(decision, key=lambda f: f.utility).member


def test_deciding_has_no_side_effect_and_no_memory() -> None:
    some = case(*map(member, "abc"), reward=[0.5, 0.6, 0.7], exploration=0.3)
    assert [some.one(draw) for draw in (0.1, 0.9, 0.1)] == [some.one(draw) for draw in (0.1, 0.9, 0.1)]
    assert some.one().policy_version == policy.VERSION

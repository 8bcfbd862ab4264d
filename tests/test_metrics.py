"""The ruler itself: worked by hand where it can be, held to its properties where not."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble.learning import metrics

# Two members, four prompts. The second is dear and right except on the last prompt.
REWARD = np.array([[1.0, 1.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
COST = np.array([[1.0, 5.0], [1.0, 3.0], [2.0, 9.0], [2.0, 7.0]])
POINTS = [(1.0, 0.4), (3.0, 0.8), (2.0, 0.5), (4.0, 0.7)]  # hull: (1, .4) - (3, .8)


@pytest.mark.parametrize(
    ("dial", "chosen"),
    [
        (0.0, [0, 0, 0, 0]),
        (2.0, [0, 0, 0, 0]),  # prompt 1: 2 * 1 - 3 = -1 ties with -1: the cheaper
        (2.5, [0, 1, 0, 0]),
        (8.0, [0, 1, 1, 0]),
        (math.inf, [0, 1, 1, 0]),  # prompt 0: equal rewards, the cheaper
    ],
)
def test_choice_weighs_reward_against_cost(dial: float, chosen: list[int]) -> None:
    assert metrics.choose(REWARD, COST, dial).tolist() == chosen


def test_of_equals_the_first_is_chosen() -> None:
    assert metrics.choose(np.full((1, 3), 0.5), np.array([[2.0, 1.0, 1.0]]), math.inf).tolist() == [1]


def test_the_curve_goes_from_cheapest_to_reward_first() -> None:
    points = metrics.cost_quality_curve(REWARD, COST, REWARD, COST, [0.0, 2.5, math.inf])
    assert points.tolist() == [[1.5, 0.5], [2.0, 0.75], [3.75, 1.0]]
    assert metrics.DIALS[0] == 0 and math.isinf(metrics.DIALS[-1]) and (np.diff(metrics.DIALS) > 0).all()


def test_single_members_and_the_best_of_them() -> None:
    assert metrics.single_points(REWARD, COST).tolist() == [[1.5, 0.5], [6.0, 0.75]]
    assert metrics.best_single(REWARD, COST) == 1
    assert metrics.best_single(np.ones((2, 2)), np.array([[2.0, 1.0], [2.0, 1.0]])) == 1  # the cheaper
    assert metrics.spend_range(REWARD, COST) == (1.5, 6.0)


def test_hull_by_hand() -> None:
    assert metrics.hull(POINTS).tolist() == [[1.0, 0.4], [3.0, 0.8]]
    assert metrics.hull([(1, 0.4), (1, 0.6), (2, 0.6), (3, 0.7)]).tolist() == [[1.0, 0.6], [3.0, 0.7]]
    assert metrics.hull([(1, 0.9), (2, 0.8)]).tolist() == [[1.0, 0.9]]
    assert metrics.hull([(1, 0.25), (2, 0.5), (3, 0.75)]).tolist() == [[1.0, 0.25], [3.0, 0.75]]  # on a line


def test_aiq_by_hand() -> None:
    # Linear: over 1 to 3 the mean is .6, over 3 to 4 it is .8: (2 * .6 + 1 * .8) / 3.
    assert metrics.aiq(POINTS, (1, 4)) == pytest.approx(2 / 3)
    # Logarithmic: the hull is .2 + .2 c up to 3, so (.2 ln 3 + .2 * 2 + .8 ln(4/3)) / ln 4.
    by_hand = (0.2 * math.log(3) + 0.4 + 0.8 * math.log(4 / 3)) / math.log(4)
    assert metrics.aiq(POINTS, (1, 4), scale="log") == pytest.approx(by_hand, abs=1e-6)
    assert metrics.aiq(POINTS, (1.5, 2.5)) == pytest.approx(0.6)  # within the hull
    within = 0.2 + 0.2 / math.log(2.5 / 1.5)
    assert metrics.aiq(POINTS, (1.5, 2.5), scale="log") == pytest.approx(within, abs=1e-6)
    assert metrics.aiq(POINTS, (0.5, 1)) == pytest.approx(0.4)  # left of it
    assert metrics.aiq(POINTS, (2, 2)) == pytest.approx(0.6)
    assert math.isnan(metrics.aiq(POINTS, (0, 4), scale="log"))


def test_gain_and_saving_by_hand() -> None:
    curve = [(1.0, 0.6), (2.0, 0.9), (5.0, 0.85)]
    assert metrics.gain(curve, (3.0, 0.8)) == pytest.approx(0.1)
    assert metrics.gain(curve[-1], (3.0, 0.8)) == pytest.approx(0.05)
    # The hull reaches .8 two thirds of the way from 1 to 2 USD.
    assert metrics.saving(curve, (3.0, 0.8)) == pytest.approx(1 - (1 + 2 / 3) / 3)
    assert metrics.saving(curve, (1.0, 0.9)) == pytest.approx(-1.0)
    assert metrics.saving(curve, (4.0, 0.5)) == pytest.approx(0.75)  # even the cheapest point is better
    assert math.isnan(metrics.saving(curve, (3.0, 0.95)))


clouds = st.lists(
    st.tuples(st.floats(0.0625, 128, width=32), st.floats(0, 1, width=32)), min_size=1, max_size=30
).map(np.array)


@given(clouds)
def test_a_hull_is_concave_rises_and_lies_under_no_point(points: np.ndarray) -> None:
    corners = metrics.hull(points)
    assert (np.diff(corners[:, 0]) > 0).all() and (np.diff(corners[:, 1]) > 0).all()
    slopes = np.diff(corners[:, 1]) / np.diff(corners[:, 0])
    assert (np.diff(slopes) <= 1e-6 * np.abs(slopes[:-1])).all()
    assert (metrics.reward_at(points, points[:, 0]) >= points[:, 1] - 1e-9).all()
    assert {tuple(c) for c in corners} <= {tuple(p) for p in points}


@given(st.integers(0, 30))
def test_no_policy_beats_the_query_oracle_and_foresight_beats_one_member(seed: int) -> None:
    rng = np.random.default_rng(seed)
    reward, cost = rng.integers(0, 2, (40, 3)).astype(float), rng.lognormal(size=(40, 3))
    guess = rng.random((40, 3)), rng.lognormal(size=(40, 3))
    where = metrics.spend_range(reward, cost)
    oracle = metrics.cost_quality_curve(reward, cost, reward, cost)
    blind = metrics.cost_quality_curve(*guess, reward, cost)
    singles = metrics.single_points(reward, cost)
    assert metrics.aiq(oracle, where) >= max(metrics.aiq(blind, where), metrics.aiq(singles, where))
    assert oracle[0, 0] <= blind[:, 0].min() + 1e-12 and oracle[-1, 1] >= blind[:, 1].max() - 1e-12


def test_brier_and_calibration_leave_missing_pairs_out() -> None:
    hat = np.array([[0.9, 0.2], [0.8, 0.4]])
    reward = np.array([[1.0, np.nan], [0.0, 1.0]])
    assert metrics.brier(hat, reward) == pytest.approx((0.01 + 0.64 + 0.36) / 3)
    # Two bins of the sorted predictions .4 | .8 .9 -> np.array_split gives (.4, .8) and (.9).
    expected = (abs((0.4 - 1) + (0.8 - 0)) + abs(0.9 - 1)) / 3
    assert metrics.calibration_error(hat, reward, bins=2) == pytest.approx(expected)


def test_calibration_error_of_equal_predictions_does_not_depend_on_the_order_of_the_rows() -> None:
    reward = np.repeat([[0.0], [1.0]], 50, axis=0)
    assert metrics.calibration_error(np.full((100, 1), 0.5), reward) == pytest.approx(0)
    assert metrics.calibration_error(np.full((100, 1), 0.7), reward) == pytest.approx(0.2)


def test_calibration_error_tells_honest_from_overconfident() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random((20_000, 1))
    reward = (rng.random(truth.shape) < truth).astype(float)
    assert metrics.calibration_error(truth, reward) < 0.02
    boast = np.clip(0.5 + 2 * (truth - 0.5), 0, 1)
    assert metrics.calibration_error(boast, reward) == pytest.approx(0.125, abs=0.02)


def test_bootstrap_interval_has_the_width_of_theory_and_clusters_widen_it() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=400)
    low, high = metrics.bootstrap_interval(lambda w: float(w @ values), np.arange(400), draws=2000)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    copies, groups = np.repeat(values[:100], 4), np.repeat(np.arange(100), 4)
    low, high = metrics.bootstrap_interval(lambda w: float(w @ copies), groups, draws=2000)
    assert high - low == pytest.approx(2 * 1.96 * copies.std() / 10, rel=0.15)


def test_paired_interval_cancels_what_both_share() -> None:
    rng = np.random.default_rng(1)
    difficulty = rng.normal(size=300)
    a, b = difficulty + 0.1 + rng.normal(scale=0.05, size=300), difficulty
    low, high = metrics.bootstrap_interval(lambda w: float(w @ (a - b)), np.arange(300))
    assert 0.08 < low < 0.1 < high < 0.12
    assert (low, high) == metrics.bootstrap_interval(lambda w: float(w @ (a - b)), np.arange(300))

"""Expected rewards are bent to agree with realized ones: never downwards, never more than the data say."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ensemble.learning.calibrate import CURVE_PAIRS, EDGE, Curve, reward_curve
from worlds import table_of

Floats = npt.NDArray[np.floating]
RAW = np.linspace(-0.5, 1.5, 401)[:, None]  # a straight fit may leave [0, 1]
MANY = 10 * CURVE_PAIRS  # pairs of a member whose curve is its own
INSIDE = np.linspace(EDGE, 1 - EDGE, 97)[:, None]


def drawn(truth: Floats, seed: int) -> Floats:
    """Outcomes of 0 or 1 with these expectations; the seed shares nothing with what drew them."""
    return (np.random.default_rng([seed, 1]).random(truth.shape) < truth).astype(float)


def curve(offset: float, rise: float, fall: float) -> Curve:
    return Curve(np.array([offset]), np.array([rise]), np.array([fall]))


# --- the curve


@given(offset=st.floats(-10, 10), rise=st.floats(0, 20), fall=st.floats(0, 20))
def test_no_curve_turns_down_or_leaves_the_unit_interval(offset: float, rise: float, fall: float) -> None:
    bent = curve(offset, rise, fall)(RAW)
    assert (np.diff(bent[:, 0]) >= -1e-12).all()
    assert (bent >= 0).all() and (bent <= 1).all()


def test_the_plain_curve_changes_nothing_between_the_edges() -> None:
    np.testing.assert_allclose(curve(0, 1, 1)(INSIDE), INSIDE, atol=1e-12)
    np.testing.assert_allclose(curve(0, 1, 1)(RAW), np.clip(RAW, EDGE, 1 - EDGE), atol=1e-12)


def test_every_member_has_its_own() -> None:
    both = Curve(np.array([0.0, 0.5]), np.array([1.0, 0.3]), np.array([1.0, 2.0]))
    bent = both(np.hstack([INSIDE, INSIDE]))
    np.testing.assert_allclose(bent, np.hstack([curve(0, 1, 1)(INSIDE), curve(0.5, 0.3, 2)(INSIDE)]))


# --- what is learned of it


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 999), boldness=st.floats(1.2, 3.0))
def test_over_confident_rewards_are_drawn_to_the_middle_and_levels_corrected(
    seed: int, boldness: float
) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0.35, 0.65, (MANY, 3)) + np.array([-0.15, 0.0, 0.15])
    table = table_of(drawn(truth, seed))
    bold = 0.5 + boldness * (truth - 0.5) + np.array([0.1, 0.0, -0.1])
    bent = reward_curve(bold, table)(bold)
    assert np.abs(bent.mean(axis=0) - truth.mean(axis=0)).max() < 0.03
    assert np.abs(bent - truth).mean() < np.abs(bold - truth).mean()
    assert np.abs(bent - truth).mean() < 0.04


@settings(max_examples=8, deadline=None)
@example(seed=0, offset=-0.5, rise=2.0, fall=0.3)  # as far as it goes
@example(seed=0, offset=0.0, rise=1.0, fall=1.0)  # none
@given(
    seed=st.integers(0, 99),
    offset=st.floats(-0.5, 0.5),
    rise=st.floats(0.3, 2.0),
    fall=st.floats(0.3, 2.0),
)
def test_a_lopsided_distortion_is_found_for_each_member(
    seed: int, offset: float, rise: float, fall: float
) -> None:
    """Member 1's is the mirror image of member 0's, so that no curve serves both.

    Curves are held back towards none, and members towards each other: a tenth of a large distortion stays.
    """
    raw = np.random.default_rng(seed).uniform(0.03, 0.97, (MANY, 2))
    real = Curve(np.array([offset, -offset]), np.array([rise, fall]), np.array([fall, rise]))
    found = reward_curve(raw, table_of(drawn(real(raw), seed)))
    distortion = np.abs(raw - real(raw)).mean()
    assert np.abs(found(raw) - real(raw)).mean() < max(0.01, 0.15 * distortion)
    if abs(rise - fall) > 0.5:  # where the two differ, it is seen who is who
        assert (found.rise[0] > found.rise[1]) == (rise > fall) == (found.fall[1] > found.fall[0])


def test_a_distortion_that_no_line_undoes_is_undone() -> None:
    """Flat at the low end, steep at the high one: the reason for a curve of three coefficients."""
    raw = np.random.default_rng(0).uniform(0.03, 0.97, (8000, 1))
    real = curve(-2.0, 0.3, 3.0)
    truth = real(raw)
    line = np.polynomial.Polynomial.fit(raw[:, 0], truth[:, 0], 1)(raw)
    bent = reward_curve(raw, table_of(drawn(truth, 0)))(raw)
    assert np.abs(bent - truth).mean() < 0.5 * np.abs(line - truth).mean()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), n=st.integers(1, 60), sign=st.sampled_from([-1, 1]))
def test_no_data_however_few_or_perverse_make_a_curve_that_turns_down(seed: int, n: int, sign: int) -> None:
    rng = np.random.default_rng(seed)
    raw = rng.uniform(-0.2, 1.2, (n, 3))
    reward = (sign * (raw - 0.5) > 0).astype(float)  # told apart perfectly, or exactly the wrong way round
    reward[rng.random(reward.shape) < 0.3] = np.nan
    found = reward_curve(raw, table_of(reward))
    assert np.isfinite([found.offset, found.rise, found.fall]).all()
    assert (found.rise >= 0).all() and (found.fall >= 0).all()
    assert (np.diff(found(np.tile(RAW, 3)), axis=0) >= -1e-12).all()


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999), n=st.sampled_from([150, MANY]), against=st.booleans())
def test_levels_are_met_even_where_predictions_say_the_opposite(seed: int, n: int, against: bool) -> None:
    """Where a straight line would turn down the curve is flat, and flat at the realized level."""
    rng = np.random.default_rng(seed)
    raw = rng.uniform(0.1, 0.9, (n, 2))
    truth = rng.uniform(0.3, 0.7) + (-0.25 if against else 0.0) * (raw - 0.5)
    table = table_of(drawn(truth, seed))
    bent = reward_curve(raw, table)(raw)
    assert bent.mean() == pytest.approx(table.reward.mean(), abs=0.01)  # members borrow of one another
    if n == MANY:
        np.testing.assert_allclose(bent.mean(axis=0), table.reward.mean(axis=0), atol=0.01)
    if against and n == MANY:
        assert np.ptp(bent, axis=0).max() < 0.05


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999))
def test_the_curve_fits_no_worse_than_none_at_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    raw = np.clip(rng.uniform(0, 1) + rng.uniform(0.01, 0.6) * rng.normal(size=(200, 3)), -0.3, 1.3)
    table = table_of(drawn(rng.uniform(0, 1, (1, 3)) + rng.normal(0, 0.3) * (raw - raw.mean()), seed))

    def surprise(expected: Floats) -> float:
        kept = np.clip(expected, 1e-9, 1 - 1e-9)
        return float(-np.mean(np.where(table.reward == 1, np.log(kept), np.log1p(-kept))))

    assert surprise(reward_curve(raw, table)(raw)) <= surprise(np.clip(raw, EDGE, 1 - EDGE)) + 1e-3


def test_a_member_with_few_pairs_borrows_the_curve_of_all_and_one_with_none_takes_it() -> None:
    rng = np.random.default_rng(0)
    raw = rng.uniform(0.03, 0.97, (4000, 5))
    real = curve(0.4, 0.5, 1.5)
    reward = drawn(np.hstack([real(raw[:, [m]]) for m in range(5)]), 0)
    reward[8:, 3], reward[:, 4] = np.nan, np.nan
    reward[:8, 3] = 0.0  # eight failures in a row
    bent = reward_curve(raw, table_of(reward))(np.tile(INSIDE, 5))
    pooled, few = real(INSIDE)[:, 0], bent[:, 3]
    assert np.abs(bent[:, 4] - pooled).max() < 0.06
    assert (few < bent[:, 4]).all()  # they tell something,
    assert np.abs(few - bent[:, 4]).max() < 0.1  # but there are only eight of them


def test_levels_move_with_the_pairs_that_speak_for_it() -> None:
    reward = np.full((1000, 3), np.nan)
    reward[:, 0] = np.tile([0.0, 1.0], 500)
    reward[:5, 1] = 1.0
    raw = np.full((1000, 3), 0.5)
    level = reward_curve(raw, table_of(reward))(raw)[0]
    assert level[0] == pytest.approx(0.5, abs=0.005)
    assert 0.5 < level[1] < 0.55  # five lucky answers are not many
    assert level[2] == pytest.approx(0.5, abs=0.005)


def test_pairs_that_came_about_rarely_count_for_those_that_did_not() -> None:
    """Right answers were logged nine times as often as wrong ones, and the log says so."""
    rng = np.random.default_rng(0)
    right = np.tile([1.0, 0.0], 2000)[:, None]
    chance = np.where(right == 1, 0.9, 0.1)
    logged = np.where(rng.random(right.shape) < chance, right, np.nan)
    raw = np.full(right.shape, 0.5)
    told = reward_curve(raw, table_of(logged, propensity=chance))(raw)[0, 0]
    untold = reward_curve(raw, table_of(logged))(raw)[0, 0]
    assert told == pytest.approx(0.5, abs=0.05) and untold == pytest.approx(0.9, abs=0.05)

"""The penalties and the ballast are chosen by what was predicted out of fold, with caution."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st

from ensemble.learning.calibrate import BALLASTS, CAUTION, choose_ballast, choose_shrinkage
from ensemble.learning.crossfit import OutOfFold
from ensemble.learning.fit import Shrinkage
from ensemble.learning.recipe import GRID
from ensemble.learning.tables import OutcomeTable
from worlds import table_of

Floats = npt.NDArray[np.floating]
OWN = (1.0, CAUTION, CAUTION**2)
SMALL = [Shrinkage(shared, own) for own in OWN for shared in (0.3, 1.0)]


def coins(truth: Floats, seed: int = 0) -> OutcomeTable:
    return table_of((np.random.default_rng(seed).random(truth.shape) < truth).astype(float))


# --- the penalties


@given(order=st.permutations(range(len(SMALL))), best=st.sampled_from(range(4)))
def test_the_penalty_is_that_of_least_error_but_more_cautious(order: list[int], best: int) -> None:
    rng = np.random.default_rng(0)
    truth = rng.uniform(0.2, 0.8, (500, 3))
    error = np.array([0.05 if k == best else 0.2 + 0.01 * k for k in range(len(SMALL))])
    hats = truth + error[:, None, None] * rng.normal(size=truth.shape)
    grid = [SMALL[k] for k in order]
    chosen = grid[choose_shrinkage(hats[order], coins(truth), grid)]
    assert chosen == Shrinkage(SMALL[best].shared, CAUTION * SMALL[best].own)


def test_pairs_that_were_not_observed_count_for_nothing() -> None:
    rng = np.random.default_rng(1)
    truth = rng.uniform(0.2, 0.8, (800, 3))
    table = coins(truth)
    hidden = rng.random(truth.shape) < 0.5
    hats = np.full((len(SMALL), *truth.shape), 0.5)
    hats[0] = np.where(hidden, 9.0, truth)  # absurd, but nobody knows
    table = table_of(np.where(hidden, np.nan, table.reward))
    assert SMALL[choose_shrinkage(hats, table, SMALL)] == Shrinkage(0.3, CAUTION)


def test_from_a_log_the_penalty_is_chosen_by_what_was_asked_and_how_likely_that_was() -> None:
    """One observed member per prompt. One fit knows member 0, which was asked nine times in ten; the other
    knows the other two, which were hardly ever asked and count for as much each."""
    rng = np.random.default_rng(2)
    truth = np.where(np.arange(3) == rng.integers(0, 3, (6000, 1)), 0.9, 0.1)
    chance = np.array([0.9, 0.05, 0.05])
    asked = rng.choice(3, 6000, p=chance)[:, None] == np.arange(3)
    logged = np.where(asked, rng.random(truth.shape) < truth, np.nan)
    knows_first, knows_others = truth.copy(), truth.copy()
    knows_first[:, 1:], knows_others[:, 0] = 0.5, 0.5
    hats = np.full((len(SMALL), *truth.shape), 5.0)
    hats[0], hats[1] = knows_first, knows_others
    told = table_of(logged, propensity=np.tile(chance, (6000, 1)))
    assert SMALL[choose_shrinkage(hats, told, SMALL)] == Shrinkage(SMALL[1].shared, CAUTION)
    assert SMALL[choose_shrinkage(hats, table_of(logged), SMALL)] == Shrinkage(SMALL[0].shared, CAUTION)


def test_the_grid_holds_the_cautious_multiple_of_most_of_its_penalties() -> None:
    largest = max(shrinkage.own for shrinkage in GRID)
    for shrinkage in GRID:
        assert Shrinkage(shrinkage.shared, CAUTION * shrinkage.own) in GRID or shrinkage.own == largest


# --- the ballast


def out_of_fold(level: Floats, hat: Floats, company: float) -> OutOfFold:
    """Predictions ``hat`` where attention counts in full, ``level`` where it counts for nothing."""
    shape = hat.shape
    nothing = np.zeros(shape)
    usual = np.full(len(hat), company)
    return OutOfFold(
        hat[None], np.broadcast_to(level, shape), nothing, nothing, nothing, usual, np.zeros(len(hat))
    )


LEVEL = np.array([0.3, 0.5, 0.7])
TRUTH = np.clip(LEVEL + np.random.default_rng(3).uniform(-0.25, 0.25, (3000, 3)), 0.02, 0.98)
TABLE = coins(TRUTH)
NEAR = out_of_fold(LEVEL, TRUTH, company=50.0)


def test_where_far_off_prompts_are_misjudged_they_are_taken_at_the_members_levels() -> None:
    rng = np.random.default_rng(4)
    wrong = np.clip(LEVEL + rng.uniform(-0.5, 0.5, TRUTH.shape), 0, 1)  # bold, and about nothing
    far = out_of_fold(LEVEL, wrong, company=0.02)
    chosen = choose_ballast(NEAR.reward, far.reward, TABLE)
    assert chosen > min(BALLASTS)
    assert np.abs(far.reward(chosen) - LEVEL).max() < 0.2 < np.abs(wrong - LEVEL).max()
    assert np.abs(NEAR.reward(chosen) - TRUTH).max() < 0.02  # what has company hardly notices


def test_where_far_off_prompts_are_judged_well_nothing_is_given_up() -> None:
    far = out_of_fold(LEVEL, TRUTH, company=0.02)
    assert choose_ballast(NEAR.reward, far.reward, TABLE) == min(BALLASTS)


def test_what_is_near_is_not_given_up_for_what_is_far() -> None:
    """Prompts to come are mostly like those learned from: where a ballast costs there, it is small."""
    rng = np.random.default_rng(5)
    wrong = np.clip(LEVEL + rng.uniform(-0.3, 0.3, TRUTH.shape), 0, 1)
    lonely = out_of_fold(LEVEL, TRUTH, company=0.5)
    chosen = choose_ballast(lonely.reward, out_of_fold(LEVEL, wrong, company=0.4).reward, TABLE)
    assert np.abs(lonely.reward(chosen) - TRUTH).mean() < 0.5 * np.abs(LEVEL - TRUTH).mean()


def test_unobserved_pairs_leave_the_ballast_alone() -> None:
    rng = np.random.default_rng(6)
    hidden = rng.random(TRUTH.shape) < 0.7
    far = out_of_fold(LEVEL, np.where(hidden, 9.0, TRUTH), company=0.02)
    table = table_of(np.where(hidden, np.nan, TABLE.reward))
    assert choose_ballast(NEAR.reward, far.reward, table) == min(BALLASTS)

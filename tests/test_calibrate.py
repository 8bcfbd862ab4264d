"""Figures mean what they say: levels, token counts and doubts, on data where the truth is known."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble.learning.calibrate import (
    Cells,
    Doubt,
    cells,
    choose_shrinkage,
    dials,
    reward_doubt,
    reward_line,
    token_scale,
)
from ensemble.learning.fit import Shrinkage
from worlds import table_of


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), boldness=st.floats(1.2, 3.0))
def test_over_confident_rewards_are_drawn_to_the_middle_and_levels_corrected(
    seed: int, boldness: float
) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0.35, 0.65, (4000, 3)) + np.array([-0.15, 0.0, 0.15])
    table = table_of((rng.random(truth.shape) < truth).astype(float))
    bold = 0.5 + boldness * (truth - 0.5) + np.array([0.1, 0.0, -0.1])
    slope, offset = reward_line(bold, table)
    assert slope == pytest.approx(1 / boldness, abs=0.15)
    straight = offset + slope * bold
    assert np.abs(straight.mean(axis=0) - truth.mean(axis=0)).max() < 0.03
    assert np.abs(straight - truth).mean() < np.abs(bold - truth).mean()


def test_a_member_with_few_pairs_keeps_its_level_and_one_with_none_too() -> None:
    reward = np.full((1000, 3), np.nan)
    reward[:, 0] = np.tile([0.0, 1.0], 500)
    reward[:5, 1] = 1.0
    hat = np.full((1000, 3), 0.5)
    slope, offset = reward_line(hat, table_of(reward))
    level = offset + slope * 0.5
    assert level[0] == pytest.approx(0.5)
    assert 0.5 < level[1] < 0.55  # five lucky answers count as 5 of 105
    assert level[2] == pytest.approx(0.5)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), spread=st.floats(0.2, 1.2))
def test_expected_tokens_meet_the_mean_and_the_95_percent_point_its_share(seed: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    middle = rng.normal(5, 0.5, (5000, 2))
    tokens = np.round(np.exp(middle + rng.normal(0, [[spread, spread / 2]], middle.shape)))
    table = table_of(np.ones(tokens.shape), output_tokens=tokens)
    log_mean, log_p95 = token_scale(middle, table)
    expected = np.exp(middle + log_mean)
    np.testing.assert_allclose(expected.mean(axis=0), tokens.mean(axis=0), rtol=0.01)
    np.testing.assert_allclose((tokens <= np.exp(middle + log_p95)).mean(axis=0), 0.95, atol=0.01)
    assert (log_p95 >= log_mean).all()


def test_members_with_few_known_answers_borrow_and_without_any_the_guess_is_stated() -> None:
    rng = np.random.default_rng(0)
    tokens = np.exp(5 + rng.normal(0, 0.5, (1000, 2)))
    tokens[20:, 1] = np.nan
    tokens[:20, 1] = 1e6  # twenty freaks don't set a scale
    log_mean, _ = token_scale(
        np.full(tokens.shape, 5.0), table_of(np.ones(tokens.shape), output_tokens=tokens)
    )
    assert log_mean[0] == pytest.approx(0.125, abs=0.05)  # the mean of a log-normal: its variance over 2
    none = token_scale(np.full((10, 2), 5.0), table_of(np.ones((10, 2))))
    assert not none[0].any() and np.exp(none[1]) == pytest.approx([4, 4])


def test_dials_span_the_prices_paid_per_reward_and_none_where_costs_are_unknown() -> None:
    reward = np.array([[0.0, 1.0], [0.5, 0.5]])
    found = dials(reward, np.array([[0.1, 0.3], [0.1, 0.3]]))
    assert found == pytest.approx([0.04, 0.12, 0.4, 1.2, 4.0])
    assert dials(reward, np.full((2, 2), np.nan)) == [math.inf] == dials(reward, np.ones((2, 2)))


def doubtful(seed: int, prior_std: float, half: float) -> tuple[Cells, ...]:
    """Errors drawn from the formula itself: 20 regions x 5 members, where much and where little is known."""
    rng = np.random.default_rng(seed)
    region = np.repeat(np.arange(20), 100)
    parts = []
    for usual in (20 * half, half / 20):
        evidence = np.repeat(usual * rng.lognormal(0, 0.5, (20, 5)), 100, axis=0)
        error = np.repeat(rng.normal(size=(20, 5)), 100, axis=0) * prior_std / np.sqrt(1 + evidence / half)
        noise = rng.normal(0, 0.2, evidence.shape)
        hat = np.full(evidence.shape, 0.5)
        parts.append(cells(hat, evidence, region, table_of(np.clip(hat + error + noise, 0, 1))))
    return tuple(parts)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 99), prior_std=st.floats(0.08, 0.15), half=st.floats(0.05, 1.5))
def test_doubt_is_found_where_errors_follow_it(seed: int, prior_std: float, half: float) -> None:
    found = reward_doubt(*doubtful(seed, prior_std, half))
    assert found.prior_std == pytest.approx(prior_std, rel=0.3)
    assert found.half == pytest.approx(half, rel=1.5)


def test_one_outcome_tells_at_least_what_its_own_noise_leaves() -> None:
    """Errors alike near and far would make evidence worth nothing; it never is."""
    rng = np.random.default_rng(0)
    region = np.repeat(np.arange(20), 100)
    hat = np.full((2000, 5), 0.5)
    error = np.repeat(rng.normal(0, 0.1, (20, 5)), 100, axis=0)
    table = table_of(np.clip(0.5 + error + rng.normal(0, 0.2, hat.shape), 0, 1))
    found = reward_doubt(cells(hat, np.full(hat.shape, 100.0), region, table))
    assert found.half <= 0.2**2 / found.prior_std**2 * 1.1
    assert reward_doubt() == Doubt(0.25, 1.0)


def test_cells_average_over_a_region_and_leave_small_ones_out() -> None:
    reward = np.array([[0.0, 1.0]] * 4 + [[1.0, np.nan]] * 6)
    region = np.array([0] * 4 + [1] * 6)
    found = cells(np.full((10, 2), 0.25), np.ones((10, 2)), region, table_of(reward))
    assert found.residual == pytest.approx([0.75])  # region 1, member 0; the others have fewer than five
    assert found.sampling == pytest.approx([0.0])


def test_the_penalty_is_the_one_whose_decisions_earn_most_and_of_equals_the_strongest() -> None:
    rng = np.random.default_rng(0)
    truth = np.where(np.arange(2) == rng.integers(0, 2, (2000, 1)), 0.8, 0.3)
    table = table_of((rng.random(truth.shape) < truth).astype(float))
    wrong, right = 1 - truth, truth
    grid = [Shrinkage(0.3, 1.0), Shrinkage(3.0, 1.0), Shrinkage(0.3, 30.0)]
    unknown = np.ones(truth.shape)
    assert choose_shrinkage(np.stack([wrong, wrong, right]), unknown, table, grid) == 2
    assert (
        choose_shrinkage(np.stack([right + 0.3, right, wrong]), unknown, table, grid) == 1
    )  # less squared error
    assert choose_shrinkage(np.stack([right, right, right]), unknown, table, grid) == 2


def test_from_a_log_the_penalty_is_chosen_by_what_was_asked() -> None:
    """One observed member per prompt, drawn at random: no prompt by itself shows which choice is better."""
    rng = np.random.default_rng(1)
    truth = np.where(np.arange(3) == rng.integers(0, 3, (3000, 1)), 0.8, 0.3)
    asked = rng.integers(0, 3, (3000, 1)) == np.arange(3)
    table = table_of(np.where(asked, rng.random(truth.shape) < truth, np.nan))
    table = dataclasses.replace(table, propensity=np.full(truth.shape, 1 / 3, np.float32))
    grid = [Shrinkage(1.0, 1.0), Shrinkage(1.0, 100.0)]
    flat = np.full(truth.shape, 0.5)
    assert choose_shrinkage(np.stack([truth, flat]), np.ones(truth.shape), table, grid) == 0
    assert choose_shrinkage(np.stack([1 - truth, flat]), np.ones(truth.shape), table, grid) == 1

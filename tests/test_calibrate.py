"""Figures mean what they say: token counts and doubts, on data where the truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble.learning.calibrate import (
    Cells,
    Doubt,
    cells,
    reward_doubt,
    token_scale,
)
from worlds import table_of


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


NO_CELLS = Cells(np.zeros(0), np.zeros(0), np.zeros(0), np.zeros(0, np.int64))


def doubtful(seed: int, prior_std: float, half: float) -> tuple[Cells, Cells]:
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
    return parts[0], parts[1]


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
    near = cells(hat, np.full(hat.shape, 100.0), region, table)
    for far in (NO_CELLS, cells(hat, np.full(hat.shape, 0.01), region, table)):
        found = reward_doubt(near, far)
        assert found.half <= 0.2**2 / found.prior_std**2 * 1.1


def test_where_no_region_has_enough_prompts_the_doubt_is_stated() -> None:
    assert reward_doubt(NO_CELLS, NO_CELLS) == Doubt(0.25, 1.0)
    assert reward_doubt(NO_CELLS, doubtful(0, 0.1, 1.0)[1]) != Doubt(0.25, 1.0)  # one part is enough


def test_what_lies_near_counts_for_more_than_what_lies_far_off() -> None:
    """Errors that tell two stories: near data alone say a large doubt, far data alone a small one."""
    large, small = doubtful(0, 0.2, 1.0), doubtful(0, 0.05, 1.0)
    mixed = reward_doubt(large[0], small[0]).prior_std / np.sqrt(1 + 20)
    alone = [reward_doubt(part, NO_CELLS).prior_std / np.sqrt(1 + 20) for part in (large[0], small[0])]
    assert alone[1] < mixed


def test_cells_average_over_a_region_and_leave_small_ones_out() -> None:
    reward = np.array([[0.0, 1.0]] * 4 + [[1.0, np.nan]] * 6)
    region = np.array([0] * 4 + [1] * 6)
    found = cells(np.full((10, 2), 0.25), np.ones((10, 2)), region, table_of(reward))
    assert found.residual == pytest.approx([0.75])  # region 1, member 0; the others have fewer than five
    assert found.sampling == pytest.approx([0.25 * 0.75 / 6])  # of a coin's scatter, what six leave of it


def test_the_scatter_of_graded_rewards_is_the_one_seen() -> None:
    reward = np.array([[0.2], [0.4], [0.2], [0.4], [0.3], [0.3]])
    found = cells(np.full((6, 1), 0.5), np.ones((6, 1)), np.zeros(6, np.int64), table_of(reward))
    assert found.residual == pytest.approx([-0.2])
    assert found.sampling == pytest.approx([reward.var(ddof=1) / 6], rel=1e-5)

"""The recipe in worlds where the right member is known, and in ones where there is nothing to learn."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ensemble.errors import TableError
from ensemble.learning.export import HeadWeights
from ensemble.learning.fit import Shrinkage, fit
from ensemble.learning.recipe import fit_head
from worlds import World, planted, table_of


def head_of(world: World, seed: int = 0) -> HeadWeights:
    return fit_head(world.features, world.table, np.arange(world.table.n_prompts), seed=seed)[0]


def earned(world: World, head: HeadWeights) -> float:
    """True expected reward of always taking the member of the highest predicted one."""
    chosen = head.predict(world.features)[0].argmax(axis=1)
    return float(world.truth[np.arange(len(chosen)), chosen].mean())


LEARNED, FRESH = planted(1500, 0), planted(1000, 1)
BEST_SINGLE = float(FRESH.truth.mean(axis=0).max())


@pytest.fixture(scope="module")
def head() -> HeadWeights:
    return head_of(LEARNED)


def test_the_right_member_is_picked_far_more_often_than_the_best_single_one_is_right(
    head: HeadWeights,
) -> None:
    right = FRESH.truth.argmax(axis=1)
    picked = head.predict(FRESH.features)[0].argmax(axis=1)
    assert (picked == right).mean() > 0.85
    assert max(np.bincount(right) / len(right)) < 0.6
    assert earned(FRESH, head) > BEST_SINGLE + 0.06


def test_expected_rewards_and_tokens_are_near_the_truth(head: HeadWeights) -> None:
    reward, _, tokens, p95 = head.predict(FRESH.features)
    assert np.abs(reward - FRESH.truth).mean() < 0.06
    real = FRESH.table.output_tokens
    for kind in range(4):
        here = FRESH.kind == kind
        assert tokens[here].mean() == pytest.approx(real[here].mean(), rel=0.1)
        assert (real[here] <= p95[here]).mean() == pytest.approx(0.95, abs=0.03)


def test_nothing_is_gained_where_rewards_have_nothing_to_do_with_prompts() -> None:
    rng = np.random.default_rng(5)
    rows = rng.permutation(LEARNED.table.n_prompts)
    shuffled = dataclasses.replace(LEARNED.table, reward=LEARNED.table.reward[rows])
    control = head_of(dataclasses.replace(LEARNED, table=shuffled))
    assert earned(FRESH, control) < BEST_SINGLE + 0.02


def test_nothing_is_gained_from_features_that_tell_nothing() -> None:
    rng = np.random.default_rng(6)

    def blind(world: World) -> World:
        noise = rng.normal(size=world.features.shape)
        noise /= np.linalg.norm(noise, axis=1, keepdims=True)
        return dataclasses.replace(world, features=noise.astype(np.float32))

    control = head_of(blind(LEARNED))
    assert earned(blind(FRESH), control) < BEST_SINGLE + 0.02


def test_a_member_shown_only_easy_prompts_is_not_thought_strong_elsewhere() -> None:
    """Kinds rise in ease by more than members differ; member 3 is hidden but on the easiest kind."""
    reward = LEARNED.table.reward.copy()
    reward[LEARNED.kind < 3, 3] = np.nan
    world = dataclasses.replace(LEARNED, table=dataclasses.replace(LEARNED.table, reward=reward))
    raw = np.nanmean(reward, axis=0)
    assert raw.argmax() == 3 and raw[3] > raw[:3].max() + 0.15  # the trap
    head, hard = head_of(world), FRESH.kind == 0
    reward_hat, std, _, _ = head.predict(FRESH.features[hard])
    true = FRESH.truth[hard, 3].mean()
    assert abs(reward_hat[:, 3].mean() - true) < 0.15 < raw[3] - true
    assert std[:, 3].mean() > 1.3 * std[:, :3].mean()  # and it says that it was never seen here


def test_uncertainty_shrinks_with_data_and_grows_with_distance(head: HeadWeights) -> None:
    far = np.zeros((1, LEARNED.features.shape[1]), np.float32)
    far[0, -1] = -1.0  # away from all kinds
    near_std = head.predict(FRESH.features)[1].mean(axis=0)
    assert (head.predict(far)[1][0] > 1.5 * near_std).all()
    rows = np.arange(1500)
    few = LEARNED.table.reward.copy()
    few[rows % 10 != 0, 1] = np.nan  # member 1 is seen on a tenth of the prompts
    sparse = dataclasses.replace(LEARNED, table=dataclasses.replace(LEARNED.table, reward=few))
    std = head_of(sparse).predict(FRESH.features)[1].mean(axis=0)
    assert std[1] > 1.3 * std[[0, 2, 3]].max()


def test_one_answer_per_prompt_as_a_log_has_it_is_enough_to_tell_members_apart() -> None:
    world = planted(2000, 3)
    asked = np.random.default_rng(33).integers(0, 4, 2000)
    only = np.where(np.arange(4) == asked[:, None], world.table.reward, np.nan)
    table = dataclasses.replace(world.table, reward=only, propensity=np.full(only.shape, 0.25, np.float32))
    assert earned(FRESH, head_of(dataclasses.replace(world, table=table))) > BEST_SINGLE + 0.04


def test_same_seed_same_numbers_and_another_seed_others(head: HeadWeights) -> None:
    again, other = head_of(LEARNED), head_of(LEARNED, seed=1)
    assert np.array_equal(head.member_matrix, again.member_matrix)
    assert np.array_equal(head.trunk.landmarks, again.trunk.landmarks)
    assert head.member_matrix.shape != other.member_matrix.shape or not np.array_equal(
        head.member_matrix, other.member_matrix
    )


def test_members_seen_on_the_same_prompts_are_fitted_as_each_alone() -> None:
    """Sharing a factorization must not change anybody's row."""
    rng = np.random.default_rng(0)
    features = LEARNED.features[:300]
    reward = LEARNED.table.reward[:300].astype(float)
    reward[rng.random(reward.shape) < 0.3] = np.nan
    reward[:, 3] = np.where(np.isnan(reward[:, 2]), np.nan, LEARNED.table.reward[:300, 3])  # as 2
    shrinkages = [Shrinkage(1.0, 3.0), Shrinkage(1.0, 30.0)]
    one = fit(features, table_of(reward), shrinkages, 0)
    turned = fit(features, table_of(reward[:, ::-1]), shrinkages, 0)
    for a, b in zip(one.reward, turned.reward, strict=True):
        np.testing.assert_allclose(a.weights, b.weights[::-1], atol=1e-9)
        np.testing.assert_allclose(a.bias, b.bias[::-1], atol=1e-9)


def test_where_no_tokens_are_known_a_usual_length_is_assumed() -> None:
    table = table_of(LEARNED.table.reward[:300])
    head, _ = fit_head(LEARNED.features[:300], table, np.arange(300))
    _, _, tokens, p95 = head.predict(FRESH.features[:5])
    np.testing.assert_allclose(tokens, 256, rtol=1e-6)
    np.testing.assert_allclose(p95, 4 * 256, rtol=1e-6)


def test_too_few_distinct_prompts_for_the_folds_is_said() -> None:
    with pytest.raises(TableError, match="folds"):
        fit_head(LEARNED.features[:60], LEARNED.table.subset(np.arange(60)), np.zeros(60, np.int64))

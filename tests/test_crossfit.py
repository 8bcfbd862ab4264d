"""What would have been predicted, near and far: folds without whole kinds, and both ends of a ballast."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble.learning.clusters import k_means
from ensemble.learning.crossfit import KIND, Fold, away_folds, cross_fit
from ensemble.learning.fit import Shrinkage, fit
from ensemble.learning.trunk import LEAST_OF_TASK
from worlds import planted, unit

WORLD = planted(300, 0, named_tasks=True)


def held_out_once(folds: Sequence[Fold], n: int) -> None:
    assert sorted(np.concatenate([held_out for _, held_out in folds])) == list(range(n))
    for learned, held_out in folds:
        assert sorted([*learned, *held_out]) == list(range(n))
        assert len(learned) and len(held_out)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 99),
    n=st.integers(2 * LEAST_OF_TASK, 300),
    n_tasks=st.integers(2, 40),
    n_folds=st.integers(2, 6),
)
def test_tasks_go_whole_and_every_prompt_is_held_out_once(
    seed: int, n: int, n_tasks: int, n_folds: int
) -> None:
    rng = np.random.default_rng(seed)
    n_tasks = min(n_tasks, n // LEAST_OF_TASK)
    odds = rng.dirichlet(np.full(n_tasks, 0.5))  # some tasks are large, some have a prompt or two
    tasks = [f"task {k}" for k in rng.choice(n_tasks, n, p=odds)]
    if len(set(tasks)) == 1:
        tasks[0] = "another"
    folds = away_folds(unit(rng, n, 8), tasks, np.arange(n), n_folds=n_folds, seed=seed)
    held_out_once(folds, n)
    assert len(folds) == min(n_folds, len(set(tasks)))
    for learned, held_out in folds:
        assert not {tasks[i] for i in learned} & {tasks[i] for i in held_out}
    sizes = [len(held_out) for _, held_out in folds]
    assert max(sizes) - min(sizes) <= max(tasks.count(task) for task in set(tasks))  # as even as they can be


@pytest.mark.parametrize(
    "tasks",
    [[None] * 300, ["one"] * 300, ["a", None] * 150, [str(i) for i in range(300)]],
    ids=["none", "one", "some", "a label per prompt"],
)
def test_where_tasks_are_not_named_whole_regions_go(tasks: list[str | None]) -> None:
    folds = away_folds(WORLD.features, tasks, np.arange(300), n_folds=5, seed=0)
    held_out_once(folds, 300)
    assert len(folds) > 1
    region = k_means(WORLD.features, 300 // KIND, 0)
    for learned, held_out in folds:
        assert not set(region[learned]) & set(region[held_out])


@pytest.mark.parametrize("n", [40, 50, 60, 99, 100, 101, 150])
def test_small_tables_are_left_something_to_learn_from(n: int) -> None:
    held_out_once(away_folds(WORLD.features[:n], [None] * n, np.arange(n), n_folds=5, seed=0), n)


def test_prompts_that_all_look_alike_are_left_something_to_learn_from() -> None:
    alike = np.tile(WORLD.features[:1], (200, 1))
    for groups in (np.arange(200), np.zeros(200, np.int64)):
        held_out_once(away_folds(alike, [None] * 200, groups, n_folds=5, seed=0), 200)


def test_nothing_is_learned_from_a_twin_of_what_is_held_out() -> None:
    """Two tasks may hold the same question, as two benchmarks do."""
    tasks = [f"task {i % 10}" for i in range(300)]
    groups = np.minimum(np.arange(300), 299 - np.arange(300))  # each prompt has a twin in another task
    folds = away_folds(WORLD.features, tasks, groups, n_folds=5, seed=0)
    for learned, held_out in folds:
        assert not set(groups[learned]) & set(groups[held_out])
    assert sum(len(learned) for learned, _ in folds) < 4 * 300


def test_the_same_seed_gives_the_same_folds() -> None:
    tasks = [f"task {i % 13}" for i in range(300)]

    def held_out(seed: int) -> list[list[int]]:
        return [
            list(rows) for _, rows in away_folds(WORLD.features, tasks, np.arange(300), n_folds=5, seed=seed)
        ]

    assert held_out(0) == held_out(0) != held_out(1)


# --- both ends


@pytest.mark.parametrize("ballast", [0.0, 0.01, 1.0, 100.0])
def test_between_the_ends_lies_what_a_trunk_of_that_ballast_predicts(ballast: float) -> None:
    shrinkages = [Shrinkage(0.3, 2.0), Shrinkage(1.0, 16.0)]
    learned, held_out = np.arange(250), np.arange(250, 300)
    features = WORLD.features.copy()
    features[275:] = unit(np.random.default_rng(0), 25, 24)  # half of them lie anywhere
    found = cross_fit(features, WORLD.table, [(learned, held_out)], shrinkages, 0).only(1)
    fitted = fit(features[learned], WORLD.table.subset(learned), shrinkages, 0)
    trunk = dataclasses.replace(fitted.trunk, ballast=ballast)
    attention = trunk.attention(trunk.likeness(features[held_out]))
    np.testing.assert_allclose(found.reward(ballast)[held_out], fitted.reward[1](attention), atol=1e-5)
    np.testing.assert_allclose(found.log_tokens(ballast)[held_out], fitted.log_tokens(attention), atol=1e-4)
    np.testing.assert_allclose(found.entropy[held_out], trunk.entropy(features[held_out]), atol=1e-6)
    assert np.isnan(found.reward(ballast)[learned]).all()  # nobody foretold what it was fitted on


def test_without_a_ballast_all_counts_and_with_a_huge_one_only_the_level() -> None:
    folds = [(np.arange(150), np.arange(150, 300)), (np.arange(150, 300), np.arange(150))]
    found = cross_fit(WORLD.features, WORLD.table, folds, [Shrinkage(1.0, 2.0)], 0)
    assert np.array_equal(found.reward(0.0), found.reward_near[0])
    np.testing.assert_allclose(found.reward(1e9), found.reward_far, atol=1e-5)
    np.testing.assert_allclose(found.log_tokens(1e9), found.tokens_far, atol=1e-4)
    means = np.array([WORLD.table.reward[rows].mean(axis=0) for rows, _ in folds])
    np.testing.assert_allclose(found.reward_far[150:], np.tile(means[0], (150, 1)), atol=0.01)
    np.testing.assert_allclose(found.reward_far[:150], np.tile(means[1], (150, 1)), atol=0.01)

"""Who sees what: every prompt tested once, no twins on both sides, controls that only a leak survives."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import measures, ours, quality, rounds
from benchmarks.marks import marks
from benchmarks.protocol import (
    Candidate,
    Fold,
    Learner,
    Problem,
    Rival,
    make_folds,
    random_features,
    shuffled_outcomes,
)
from ensemble.errors import TableError
from ensemble.learning.baselines import Neighbours
from ensemble.learning.tables import OutcomeTable
from ruler_cases import Peeking, problem
from worlds import planted, table_of


def table_with_tasks(tasks: list[str | None]) -> OutcomeTable:
    reward = np.tile([0.0, 1.0], (len(tasks), 1))
    return table_of(reward, tasks=tasks, cost_usd=reward + 1)


def check(folds: tuple[Fold, ...], groups: np.ndarray) -> None:
    everywhere = np.concatenate([fold.test for fold in folds])
    assert sorted(everywhere) == list(range(len(groups)))
    for fold in folds:
        assert len(fold.train) and len(fold.validation) and len(fold.test)
        assert not set(groups[fold.learned]) & set(groups[fold.test])
        assert not set(groups[fold.train]) & set(groups[fold.validation])
        assert set(fold.train) | set(fold.validation) <= set(fold.learned)
        assert all((np.diff(rows) > 0).all() for rows in (fold.train, fold.validation, fold.test))


@given(st.lists(st.integers(1, 4), min_size=20, max_size=60), st.integers(0, 5))
def test_iid_folds_test_each_prompt_once_and_keep_near_duplicates_together(
    sizes: list[int], seed: int
) -> None:
    groups = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    folds = make_folds(table_with_tasks([None] * len(groups)), groups, "iid", seed)
    assert len(folds) == 5
    check(folds, groups)
    for k, fold in enumerate(folds):
        assert np.array_equal(fold.validation, folds[(k + 1) % 5].test)
        assert sorted([*fold.train, *fold.validation]) == fold.learned.tolist()


@given(st.integers(3, 9), st.integers(0, 5))
def test_leave_task_out_never_learns_of_a_held_out_task_or_its_twins(n_tasks: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    tasks = [f"t{i}" for i in np.concatenate([np.arange(n_tasks), rng.integers(0, n_tasks, 150)])]
    groups = np.where(rng.random(len(tasks)) < 0.1, 0, np.arange(len(tasks)))  # one group reaches everywhere
    folds = make_folds(table_with_tasks(list(tasks)), groups, "leave-task-out", seed)
    check(folds, groups)
    assert len(folds) == min(5, n_tasks)
    largest = max(Counter(tasks).values())
    sizes = [len(fold.test) for fold in folds]
    assert max(sizes) - min(sizes) <= largest
    for fold in folds:
        told = {tasks[i] for i in fold.test}
        assert not told & {tasks[i] for i in fold.learned}
        assert not {tasks[i] for i in fold.validation} & {tasks[i] for i in fold.train}


def test_with_two_tasks_a_fifth_of_the_other_one_chooses() -> None:
    tasks = ["a"] * 100 + ["b"] * 60
    folds = make_folds(table_with_tasks(list(tasks)), np.arange(160) // 2, "leave-task-out", 0)
    check(folds, np.arange(160) // 2)
    assert sorted(len(fold.test) for fold in folds) == [60, 100]
    assert sorted(len(fold.validation) for fold in folds) == [12, 20]


def test_folds_are_the_seeds() -> None:
    world, groups = planted(200, 0, named_tasks=True).table, np.arange(200)
    for split in quality.SPLITS:
        again = [make_folds(world, groups, split, 3) for _ in range(2)]
        assert all(np.array_equal(a.test, b.test) for a, b in zip(*again, strict=True))
    first, other = (make_folds(world, groups, "iid", seed)[0].test for seed in (0, 1))
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("tasks", [[None] * 80, ["one"] * 80, ["a", "b", None, "c"] * 20])
def test_leaving_tasks_out_of_a_table_that_names_none_says_what_to_do(tasks: list[str | None]) -> None:
    with pytest.raises(TableError, match="column `task`, or use --split iid"):
        make_folds(table_with_tasks(tasks), np.arange(80), "leave-task-out", 0)


def test_too_few_distinct_prompts_are_said_to_be() -> None:
    tasks = ["a", "b", "c"] * 20
    with pytest.raises(TableError, match="0 prompts remain to train on"):
        make_folds(table_with_tasks(list(tasks)), np.arange(60) // 3, "leave-task-out", 0)


# --- the controls


def gains(given_: Problem, *learners: Learner) -> dict[str, dict[str, Any]]:
    candidates = [Candidate(str(i), "tuned", (learner,)) for i, learner in enumerate(learners)]
    runs = marks(given_) + [
        rounds.Run(c.name, c.kind, tuple(rounds.play(c, given_, fold) for fold in given_.folds))
        for c in candidates
    ]
    sampled = measures.sample(given_, runs, draws=100)
    return {row["name"]: row for row in measures.control_figures(given_, runs, sampled, draws=100)}


def test_where_there_is_something_to_learn_an_honest_method_gains() -> None:
    found = gains(problem(1000), Rival(Neighbours(100, 0.1)), ours.Ours())
    assert all(row["aiq_over_mix"][1] > 0.05 for row in found.values())


@pytest.mark.parametrize("control", [shuffled_outcomes, random_features])
def test_where_there_is_nothing_to_learn_only_a_leak_gains(control: Any) -> None:
    nothing = control(problem(1000))
    found = gains(nothing, Rival(Neighbours(100, 0.1)), ours.Ours(), Peeking(nothing))
    for figure in ("gain", "aiq_over_mix"):
        assert found["0"][figure][1] <= 0 and found["1"][figure][1] <= 0
        assert found["2"][figure][1] > 0.1


def test_a_control_destroys_what_it_says_and_nothing_else() -> None:
    given_ = problem()
    shuffled, random = shuffled_outcomes(given_), random_features(given_)
    assert shuffled.table.reward.mean(axis=0) == pytest.approx(given_.table.reward.mean(axis=0))
    assert shuffled.table.prompts == given_.table.prompts
    rows = [tuple(np.r_[r, c]) for r, c in zip(given_.table.reward, given_.table.cost_usd, strict=True)]
    moved = [tuple(np.r_[r, c]) for r, c in zip(shuffled.table.reward, shuffled.table.cost_usd, strict=True)]
    assert sorted(rows) == sorted(moved) and rows != moved
    assert np.array_equal(random.table.reward, given_.table.reward)
    assert np.linalg.norm(random.features, axis=1) == pytest.approx(
        np.linalg.norm(given_.features, axis=1), rel=1e-4
    )
    assert sorted(random.table.prompts) == sorted(given_.table.prompts) != list(random.table.prompts)
    assert all(each.folds is given_.folds for each in (shuffled, random))

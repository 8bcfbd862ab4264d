"""Landmarks are crowds, attention is a smooth share, the task guess is a guess."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from ensemble.learning.trunk import LEAST_CROWD, MOST_LANDMARKS, Trunk, common_tasks, fit_trunk, trust
from worlds import planted


def scattered(n: int, seed: int, width: int = 16) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(n, width))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(2, 400), seed=st.integers(0, 99), copies=st.integers(1, 5))
def test_no_landmark_is_a_single_prompt_however_often_it_was_told(n: int, seed: int, copies: int) -> None:
    distinct = scattered(n, seed)
    texts = np.repeat(np.arange(n), copies)
    features = distinct[texts]
    trunk = fit_trunk(features, [None] * len(texts), texts, seed)
    assert trunk.sizes.sum() == len(texts) and trunk.n_landmarks <= MOST_LANDMARKS
    nearest = (features @ trunk.landmarks.T - (trunk.landmarks**2).sum(axis=1) / 2).argmax(axis=1)
    if n >= 100:
        crowds = [len(set(texts[nearest == k])) for k in range(trunk.n_landmarks)]
        assert min(crowds) >= LEAST_CROWD - 1  # one prompt may be nearer to another's mean than to its own
        assert (distinct @ trunk.landmarks.T / np.linalg.norm(trunk.landmarks, axis=1)).max() < 0.999
    if n >= LEAST_CROWD:
        assert all(np.abs(distinct - landmark).max(axis=1).min() > 1e-4 for landmark in trunk.landmarks)


def test_a_crowd_never_exceeds_the_contract() -> None:
    features = scattered(20_000, 0, width=4)
    trunk = fit_trunk(features, [None] * 20_000, np.arange(20_000), 0)
    assert 500 < trunk.n_landmarks <= 1024


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 200), seed=st.integers(0, 99))
def test_attention_is_a_share_of_the_near_ones(n: int, seed: int) -> None:
    features = scattered(n, seed)
    trunk = fit_trunk(features, [None] * n, np.arange(n), seed)
    attention = trunk.attention(trunk.likeness(features))
    assert attention.shape == (n, trunk.n_landmarks) and attention.min() >= 0
    assert (attention > 0).sum(axis=1).max() < max(trunk.n_near, 2)
    if trunk.n_landmarks > 1:
        np.testing.assert_allclose(attention.sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("ballast", [0.0, 0.3, 10.0])
def test_attention_moves_without_steps(ballast: float) -> None:
    features = scattered(600, 3)
    trunk = dataclasses.replace(fit_trunk(features, [None] * 600, np.arange(600), 0), ballast=ballast)
    way = np.linspace(0, 1, 20_001)[:, None]
    between = (1 - way) * features[0] + way * features[1]
    between /= np.linalg.norm(between, axis=1, keepdims=True)
    steps = np.abs(np.diff(trunk.attention(trunk.likeness(between)), axis=0)).max()
    assert steps < 0.002  # about 20,000 steps: a jump of one landmark would be far larger


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 99), ballast=st.floats(1e-3, 1e3))
def test_attention_fades_where_there_is_little_company(seed: int, ballast: float) -> None:
    features = scattered(300, seed)
    trunk = fit_trunk(features, [None] * 300, np.arange(300), seed)
    likeness = trunk.likeness(scattered(50, seed + 1000))
    company, full = trunk.company(likeness), trunk.attention(likeness)
    heavy = dataclasses.replace(trunk, ballast=ballast)
    faded = heavy.attention(likeness)
    np.testing.assert_allclose(faded.sum(axis=1), company / (company + ballast), rtol=1e-5)
    np.testing.assert_allclose(faded, full * faded.sum(axis=1, keepdims=True), atol=1e-7)  # shares stay
    order = company.argsort()
    assert (np.diff(faded.sum(axis=1)[order]) >= -1e-6).all()
    even = dataclasses.replace(trunk, ballast=float(company[0])).attention(likeness[:1])
    assert even.sum() == pytest.approx(0.5, abs=1e-5)


def test_company_is_how_many_learned_prompts_lie_near() -> None:
    world = planted(800, 0)
    trunk = fit_trunk(world.features, [None] * 800, np.arange(800), 0)
    within, lost = trunk.likeness(world.features), trunk.likeness(-world.features)
    assert trunk.nearness(within).max() == 1
    near = trunk.company(within)
    assert near.min() > 0 and near.max() <= 800 and np.median(near) > 10
    assert trunk.company(lost).max() < 1e-3


def test_trust_is_whole_without_a_ballast_and_none_without_company() -> None:
    assert trust(np.array([0.0, 1e-9, 5.0]), 0.0).tolist() == [1, 1, 1]
    assert trust(np.array([0.0, 2.0, 6.0]), 2.0).tolist() == [0, 0.5, 0.75]


def test_the_task_is_guessed_from_features_alone() -> None:
    world = planted(800, 0, named_tasks=True)
    trunk = fit_trunk(world.features, world.table.tasks, np.arange(800), 0)
    fresh = planted(300, 1)
    guess = (fresh.features @ trunk.task_weights + trunk.task_bias).argmax(axis=1)
    assert (guess == fresh.kind).mean() > 0.95
    two = [task if task in ("kind 0", "kind 1") else None for task in world.table.tasks]
    trunk = fit_trunk(world.features, two, np.arange(800), 0)
    assert trunk.task_bias.shape == (2,)
    rows = fresh.kind < 2
    guess = (fresh.features[rows] @ trunk.task_weights + trunk.task_bias).argmax(axis=1)
    assert (guess == fresh.kind[rows]).mean() > 0.95


def test_labels_that_are_no_tasks_are_not_guessed_at() -> None:
    features = scattered(300, 0)

    def n_tasks(tasks: list[str | None]) -> int:
        trunk: Trunk = fit_trunk(features, tasks, np.arange(300), 0)
        return trunk.task_bias.size

    assert n_tasks([None] * 300) == n_tasks(["one"] * 300) == 0 and n_tasks(["a", "b"] * 150) == 2
    assert common_tasks([None] * 300) == common_tasks([f"its own {i}" for i in range(300)]) == []
    assert common_tasks(["rare"] * 9 + ["a"] * 10 + ["b"] * 20) == ["b", "a"]


def test_entropy_is_that_of_the_guess() -> None:
    world = planted(400, 0, named_tasks=True)
    trunk = fit_trunk(world.features, world.table.tasks, np.arange(400), 0)
    features = np.concatenate([world.features, scattered(50, 1, width=24)])
    guess = softmax(features @ trunk.task_weights + trunk.task_bias, axis=1)
    np.testing.assert_allclose(trunk.entropy(features), scipy.stats.entropy(guess, axis=1), rtol=1e-5)
    no_tasks = fit_trunk(world.features, [None] * 400, np.arange(400), 0)
    assert not no_tasks.entropy(world.features).any()

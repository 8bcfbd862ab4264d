"""Each rival learns what there is to learn, gains nothing where there is nothing, and repeats itself."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import numpy as np
import pytest

from benchmarks.rivals import PUBLISHED, TUNED, ArgMaxClassifier, AvengersPro, Carrot
from benchmarks.rivals_torch import PATIENCE, Adam, EmbedLLM, ItemResponse, Perceptron, RouteLLM
from ensemble.errors import MissingExtraError, TableError
from ensemble.learning import metrics
from ensemble.learning.baselines import Method, Neighbours, Part

# Three kinds of prompts; each member is good at one, the third is dear.
ABILITY = np.array([[0.9, 0.3, 0.4], [0.3, 0.9, 0.5], [0.2, 0.3, 0.9]])
USD = np.array([[1.0, 2.0, 20.0], [2.0, 4.0, 40.0], [3.0, 6.0, 60.0]]) / 1e4
QUICK = Adam(0.02, batch=128, epochs=15)  # a few hundred prompts are few batches of the papers' sizes
NETWORKS: tuple[Any, ...] = (
    EmbedLLM(training=QUICK),
    RouteLLM(training=QUICK),
    ItemResponse(training=QUICK),
    Perceptron(training=QUICK),
)
LEARNERS: tuple[Any, ...] = (
    Neighbours(30, None),
    Neighbours(200, 0.05),
    AvengersPro(6, 4),
    Carrot(),
    ArgMaxClassifier(),
    ArgMaxClassifier(share_ties=True),
    *NETWORKS,
)


def kind_of(thing: object) -> str:
    return type(thing).__name__ if dataclasses.is_dataclass(thing) else str(thing)


SETTINGS: tuple[Method, ...] = (*(m for grid in TUNED.values() for m in grid), *PUBLISHED.values())


def world(n: int, seed: int, *, fractional: bool = False) -> tuple[Part, np.ndarray]:
    """A part with features (n, 12) around three axes, and every pair's expected reward (n, 3)."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 3, n)
    features = np.eye(3, 12)[kind] + 0.15 * rng.normal(size=(n, 12))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    truth = ABILITY[kind]
    reward = (rng.random((n, 3)) < truth).astype(np.float32)
    if fractional:
        reward = np.clip(truth + 0.1 * rng.normal(size=(n, 3)), 0, 1).astype(np.float32)
    cost = (USD[kind] * rng.lognormal(sigma=0.1, size=(n, 3))).astype(np.float32)
    return Part(features.astype(np.float32), reward, cost), truth


LEARNED, _ = world(400, 0)
ASKED, TRUTH = world(1000, 1)


def predict(
    method: Any, learned: Part = LEARNED, asked: Part = ASKED, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    fitted = method.fit(learned.features, learned.reward, learned.cost, seed=seed)
    reward, cost = fitted.predict(asked.features)
    assert reward.shape == cost.shape == (len(asked.features), learned.reward.shape[1])
    assert np.isfinite(reward).all() and reward.min() >= 0 and reward.max() <= 1
    assert np.isfinite(cost).all() and cost.min() >= 0
    return reward, cost


def gain(reward: np.ndarray, cost: np.ndarray, truth: np.ndarray = TRUTH) -> float:
    """Expected reward of the choices, reward first, over that of the best single member."""
    chosen = metrics.choose(reward, cost, np.inf)
    return float(truth[np.arange(len(truth)), chosen].mean() - truth.mean(axis=0).max())


@pytest.mark.parametrize("method", LEARNERS, ids=kind_of)
def test_every_method_beats_the_best_single_member_where_members_differ(method: Any) -> None:
    reward, cost = predict(method)
    assert gain(reward, cost) > 0.25  # of .3 that can be had
    assert np.corrcoef(cost[:, 2], ASKED.cost[:, 2])[0, 1] > 0.8
    assert cost.sum() == pytest.approx(ASKED.cost.sum(), rel=0.05)
    if getattr(method, "is_probability", True):
        assert np.abs(reward - TRUTH).mean() < 0.15


@pytest.mark.parametrize("method", LEARNERS, ids=kind_of)
def test_fractional_rewards_are_learned_from_too(method: Any) -> None:
    learned, _ = world(400, 2, fractional=True)
    reward, cost = predict(method, learned)
    assert gain(reward, cost) > 0.25


@pytest.mark.parametrize("method", LEARNERS, ids=kind_of)
def test_nobody_gains_from_features_that_say_nothing(method: Any) -> None:
    rng = np.random.default_rng(3)
    noise = [rng.normal(size=(len(part.features), 12)).astype(np.float32) for part in (LEARNED, ASKED)]
    learned, asked = (
        dataclasses.replace(part, features=x) for part, x in zip((LEARNED, ASKED), noise, strict=True)
    )
    assert gain(*predict(method, learned, asked)) < 0.02


@pytest.mark.parametrize("method", SETTINGS, ids=kind_of)
def test_every_setting_in_use_can_be_fitted(method: Any) -> None:
    learned, _ = world(120, 4)
    two = Part(learned.features, learned.reward[:, :2], learned.cost[:, :2])
    predict(method, two)


def test_results_are_stored_under_a_repr_that_tells_all_settings() -> None:
    known = {c.__name__: c for c in (Adam, Neighbours, *(type(m) for m in SETTINGS))}
    assert len({repr(method) for method in SETTINGS}) == len(SETTINGS)
    assert all(eval(repr(method), known) == method for method in SETTINGS)


@pytest.mark.parametrize("method", [*NETWORKS, AvengersPro(9, 4)], ids=kind_of)
def test_the_seed_decides_and_nothing_else(method: Any) -> None:
    import torch

    before = torch.random.get_rng_state()
    once = predict(method, seed=1)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.rand(7)
    assert all(map(np.array_equal, once, predict(method, seed=1)))
    assert not np.array_equal(once[0], predict(method, seed=2)[0])


@pytest.mark.parametrize("value", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("method", [m for m in LEARNERS if not isinstance(m, ArgMaxClassifier)], ids=kind_of)
def test_constant_rewards_are_learned_as_such(method: Any, value: float) -> None:
    learned = dataclasses.replace(LEARNED, reward=np.full_like(LEARNED.reward, value))
    assert predict(method, learned)[0] == pytest.approx(value, abs=0.1)


@pytest.mark.parametrize("method", [ArgMaxClassifier(), *PUBLISHED.values()], ids=kind_of)
def test_incomplete_or_impossible_rows_are_refused_and_counted(method: Any) -> None:
    for name, value in [
        ("reward", np.nan),
        ("reward", 1.5),
        ("cost", np.nan),
        ("cost", -1.0),
        ("features", np.nan),
    ]:
        broken = getattr(LEARNED, name).copy()
        broken[[3, 5], 1] = value
        part = dataclasses.replace(LEARNED, **{name: broken})
        with pytest.raises(TableError, match="found 2 of 400 prompts without: leave them out"):
            method.fit(part.features, part.reward, part.cost)
    with pytest.raises(TableError, match=r"at least one prompt; found \(0, 12\)"):
        method.fit(LEARNED.features[:0], LEARNED.reward[:0], LEARNED.cost[:0])
    with pytest.raises(TableError, match=r"found \(400, 12\), \(399, 3\)"):
        method.fit(LEARNED.features, LEARNED.reward[1:], LEARNED.cost[1:])


@pytest.mark.parametrize("method", [*NETWORKS[:3], ArgMaxClassifier()], ids=kind_of)
def test_methods_that_say_nothing_of_costs_get_those_of_soft_neighbours(method: Any) -> None:
    assert np.array_equal(predict(method)[1], predict(Neighbours(500, 0.1))[1])


def test_clusters_are_weighted_by_their_nearness() -> None:
    axes = np.repeat(np.eye(3), 4, axis=0)
    reward, cost = np.repeat([[0.2], [0.8], [0.5]], 4, axis=0), np.repeat([[1.0], [3.0], [9.0]], 4, axis=0)
    asked = np.array([[3.0, 4.0, 0.0]])  # cosines .6, .8, 0
    hat, usd = AvengersPro(3, 2, sharpness=5).fit(axes, reward, cost).predict(asked)
    near, nearer = np.exp(5 * 0.6), np.exp(5 * 0.8)
    assert hat.item() == pytest.approx((near * 0.2 + nearer * 0.8) / (near + nearer))
    assert usd.item() == pytest.approx((near * 1 + nearer * 3) / (near + nearer))
    assert AvengersPro(3, 1).fit(axes, reward, cost).predict(asked)[0].item() == pytest.approx(0.8)
    alike = AvengersPro(50, 50, sharpness=0).fit(axes[::4], reward[::4], cost[::4])  # three prompts
    assert alike.predict(asked)[0].item() == pytest.approx(0.5)


def test_carrot_finds_the_line_and_no_price_below_any_paid() -> None:
    x = np.random.default_rng(5).uniform(size=(50, 2))
    reward, cost = (0.2 + x @ [[0.3], [0.4]]), (1 + x @ [[5.0], [0.0]])
    hat, usd = Carrot().fit(x, reward, cost).predict(np.array([[0.5, 0.5], [-9.0, 0.0], [9.0, 9.0]]))
    assert hat[:, 0] == pytest.approx([0.55, 0.0, 1.0])
    assert usd[:, 0] == pytest.approx([3.5, cost.min(), 46.0])


def test_the_classifier_learns_the_cheaper_of_equally_good_members_or_shares_between_them() -> None:
    same = dataclasses.replace(LEARNED, reward=np.ones_like(LEARNED.reward))
    assert np.array_equal(predict(ArgMaxClassifier(), same)[0], np.tile([1.0, 0.0, 0.0], (1000, 1)))
    assert predict(ArgMaxClassifier(share_ties=True), same)[0] == pytest.approx(1 / 3, abs=1e-3)
    x, cost = np.ones((100, 1)), np.ones((100, 3))
    reward = np.repeat([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]], [40, 60], axis=0)
    scores, _ = ArgMaxClassifier(share_ties=True).fit(x, reward, cost).predict(x[:1])
    assert scores[0] == pytest.approx([0.2, 0.2, 0.6], abs=1e-3)
    assert ArgMaxClassifier.is_probability is False


def test_preferences_become_leads_over_the_members_mean() -> None:
    reward, _ = predict(RouteLLM(training=QUICK))
    inside = (reward > 0).all(axis=1) & (reward < 1).all(axis=1)
    assert reward[inside].mean(axis=1) == pytest.approx(LEARNED.reward.mean(), abs=1e-5)
    leads, wanted = (r - r.mean(axis=1, keepdims=True) for r in (reward, TRUTH))
    assert np.abs(leads - wanted).mean() < 0.12
    assert RouteLLM.is_probability is False  # the level is not its own


def test_a_preference_counts_by_how_strong_it_is() -> None:
    reward = np.repeat([[0.9, 0.1], [0.4, 0.5]], [100, 200], axis=0)  # wins by .8, loses by .1 twice as often
    x, cost = np.ones((300, 1)), np.ones((300, 2))
    hat, _ = RouteLLM(noise=0.0, training=QUICK).fit(x, reward, cost).predict(x[:1])
    assert hat[0, 0] - hat[0, 1] == pytest.approx((0.8 - 2 * 0.1) / 3, abs=0.03)


def test_training_ends_when_the_loss_stands_still() -> None:
    import torch

    def epochs(training: Adam) -> float:
        weight, seen = torch.zeros(1, requires_grad=True), []

        def loss(rows: Any) -> Any:
            seen.extend(rows.tolist())
            return 0 * weight.sum() + 1.0

        training.minimize(loss, [weight], 10)
        return len(seen) / 10

    assert epochs(Adam(0.1, batch=4, epochs=30, least_progress=1e-4)) == PATIENCE + 2
    assert epochs(Adam(0.1, batch=4, epochs=30)) == 30


@pytest.mark.parametrize(
    ("method", "module", "extra"),
    [
        (EmbedLLM(), "torch", "encoder"),
        (Perceptron(), "torch", "encoder"),
        (AvengersPro(), "sklearn.cluster", "train"),
        (Carrot(), "sklearn.linear_model", "train"),
    ],
    ids=kind_of,
)
def test_a_missing_library_is_named(
    method: Any, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"ensemble-router\[{extra}\]"):
        method.fit(LEARNED.features, LEARNED.reward, LEARNED.cost)

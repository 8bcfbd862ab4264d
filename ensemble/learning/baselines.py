"""The simple methods that a learned router has to beat, each in a few lines and with its own costs.

A method is fitted on features ``(n, n_features)``, ``reward`` in [0, 1] and ``cost`` in USD
``(n, n_members)``, where NaN is a pair that was not observed, and predicts both for new features.
Every method guesses costs in its own spirit, or the comparison would be one of costs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ensemble.errors import MissingExtraError, TableError
from ensemble.learning import metrics

Floats = npt.NDArray[np.floating[Any]]
Array = npt.NDArray[np.float64]
Predicted = tuple[Array, Array]  # reward in [0, 1], cost in USD: both (n_prompts, n_members)
_BLOCK = 512  # queries at once: bounds the memory of the similarities


class Fitted(Protocol):
    """What a method has become by fitting."""

    def predict(self, features: Floats) -> Predicted: ...


class Method(Protocol):
    """A method with its hyper-parameters chosen. ``seed`` decides all that is random in it."""

    def fit(self, features: Floats, reward: Floats, cost: Floats, *, seed: int = 0) -> Fitted: ...


@dataclass(frozen=True, eq=False)
class Part:
    """The arrays of one part of a table: ``(n, n_features)``, and twice ``(n, n_members)``."""

    features: Floats
    reward: Floats
    cost: Floats


@dataclass(frozen=True)
class Neighbours:
    """The mean over the ``k`` nearest training prompts by cosine.

    ``temperature`` weighs each by ``exp(cosine / temperature)``; ``None`` weighs all alike. A member that
    none of them observed gets its overall mean.
    """

    k: int = 500
    temperature: float | None = 0.1

    def fit(self, features: Floats, reward: Floats, cost: Floats, *, seed: int = 0) -> Fitted:
        return _FittedNeighbours(self, _unit(features), _Targets.of(reward, cost))


@dataclass(frozen=True)
class CostOnly:
    """Every prompt gets the members' mean rewards; only costs are guessed, by soft neighbours.

    What it gains over the random mix of members is due to knowing long answers from short ones.
    """

    def fit(self, features: Floats, reward: Floats, cost: Floats, *, seed: int = 0) -> Fitted:
        same = np.broadcast_to(_means(reward), reward.shape)
        return Neighbours().fit(features, same, cost, seed=seed)


@dataclass(frozen=True)
class Clusters:
    """The mean over the nearest of ``k`` clusters (k-means on unit features, as in Avengers)."""

    k: int = 32

    def fit(self, features: Floats, reward: Floats, cost: Floats, *, seed: int = 0) -> Fitted:
        try:
            from sklearn.cluster import KMeans
        except ImportError as error:
            raise MissingExtraError("sklearn", "train", "the k-means baseline") from error
        k = min(self.k, len(features))
        kmeans = KMeans(k, n_init=4, random_state=seed).fit(_unit(features))
        inside = (np.arange(k)[:, None] == kmeans.labels_).astype(np.float64)
        return _FittedClusters(kmeans, *_Targets.of(reward, cost).average(inside))


@dataclass(frozen=True)
class Ridge:
    """A ridge regression per member, of its rewards and of its costs, on the pairs it was observed on."""

    alpha: float = 100.0

    def fit(self, features: Floats, reward: Floats, cost: Floats, *, seed: int = 0) -> Fitted:
        x = np.asarray(features, np.float64)
        low = np.where(np.isnan(cost), np.inf, cost).min(axis=0, initial=np.inf)
        return _FittedRidge(
            _ridge(x, reward, self.alpha), _ridge(x, cost, self.alpha), np.where(np.isinf(low), 0.0, low)
        )


GRIDS: dict[str, tuple[Method, ...]] = {
    "cost only": (CostOnly(),),
    "nearest neighbours": tuple(Neighbours(k, None) for k in (40, 100, 200)),
    "soft neighbours": (Neighbours(500, 0.1),),
    "k-means": tuple(Clusters(k) for k in (16, 32, 64)),
    "ridge": tuple(Ridge(alpha) for alpha in (30.0, 100.0, 300.0)),
}


def fit_all(
    train: Part, validation: Part, *, grids: Mapping[str, Sequence[Method]] | None = None, seed: int = 0
) -> dict[str, tuple[Method, Fitted]]:
    """Each method with the hyper-parameters that do best on ``validation``, fitted on ``train``.

    Best is the highest AIQ on the validation prompts with every member observed; ``grids`` are
    ``GRIDS`` unless given.
    """
    chosen = {}
    for name, grid in (GRIDS if grids is None else grids).items():
        fits = [(m, m.fit(train.features, train.reward, train.cost, seed=seed)) for m in grid]
        scores = [aiq_on(validation, fitted) for _, fitted in fits] if len(fits) > 1 else [0.0]
        chosen[name] = fits[int(np.argmax(scores))]
    return chosen


def dataset_oracle(
    train_tasks: Sequence[str | None], reward: Floats, cost: Floats, tasks: Sequence[str | None]
) -> Predicted:
    """Each member's mean on the training prompts of the same task, for prompts of known ``tasks``.

    Not a method but a mark: no router is told the task. A task never trained on gets overall means.
    """
    names = list(dict.fromkeys(train_tasks))
    inside = np.array([[name == task for task in train_tasks] for name in names], np.float64)
    targets = _Targets.of(reward, cost)
    by_task = dict(zip(names, zip(*targets.average(inside), strict=True), strict=True))
    rows = [by_task.get(task, (targets.mean_reward, targets.mean_cost)) for task in tasks]
    return np.array([r for r, _ in rows]), np.array([c for _, c in rows])


@dataclass(frozen=True, eq=False)
class _Targets:
    """Rewards and costs side by side with what is missing set to 0 and counted out by ``known``."""

    values: Array  # (n, 2 * n_members)
    known: Array  # the same, 0 or 1
    mean_reward: Array  # (n_members,)
    mean_cost: Array

    @classmethod
    def of(cls, reward: Floats, cost: Floats) -> _Targets:
        both = np.concatenate([reward, cost], axis=1).astype(np.float64)
        known = ~np.isnan(both)
        return cls(np.where(known, both, 0.0), known.astype(np.float64), _means(reward), _means(cost))

    def average(self, weights: Array) -> Predicted:
        """Means under each row of ``weights`` ``(n_queries, n)``; overall means where nothing is known."""
        total = weights @ self.known
        default = np.concatenate([self.mean_reward, self.mean_cost])
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.where(total > 0, (weights @ self.values) / total, default)
        reward, cost = np.split(mean, 2, axis=1)
        return reward, cost


@dataclass(frozen=True, eq=False)
class _FittedNeighbours:
    method: Neighbours
    features: Array
    targets: _Targets

    def predict(self, features: Floats) -> Predicted:
        queries = _unit(features)
        parts = [
            self.targets.average(self._weights(queries[i : i + _BLOCK]))
            for i in range(0, len(queries), _BLOCK)
        ]
        empty = np.zeros((0, len(self.targets.mean_reward)))
        return np.concatenate([empty, *(r for r, _ in parts)]), np.concatenate(
            [empty, *(c for _, c in parts)]
        )

    def _weights(self, queries: Array) -> Array:
        """``(n_queries, n_training)``, 0 beyond the nearest k."""
        cosine = queries @ self.features.T
        k = min(self.method.k, cosine.shape[1])
        nearest = np.argpartition(-cosine, k - 1, axis=1)[:, :k]
        weights = np.zeros_like(cosine)
        if self.method.temperature is None:
            near = np.ones(nearest.shape)
        else:
            near = np.take_along_axis(cosine, nearest, axis=1)
            near = np.exp((near - near.max(axis=1, keepdims=True)) / self.method.temperature)
        np.put_along_axis(weights, nearest, near, axis=1)
        return weights


@dataclass(frozen=True, eq=False)
class _FittedClusters:
    kmeans: Any
    reward: Array  # (n_clusters, n_members)
    cost: Array

    def predict(self, features: Floats) -> Predicted:
        cluster = self.kmeans.predict(_unit(features))
        return self.reward[cluster], self.cost[cluster]


@dataclass(frozen=True, eq=False)
class _FittedRidge:
    reward: Array  # (n_features + 1, n_members), the intercept last
    cost: Array
    least_cost: Array  # (n_members,): a line may fall below zero, a price does not

    def predict(self, features: Floats) -> Predicted:
        x = np.asarray(features, np.float64)
        reward = x @ self.reward[:-1] + self.reward[-1]
        cost = x @ self.cost[:-1] + self.cost[-1]
        return reward.clip(0, 1), np.maximum(cost, self.least_cost)


def _ridge(x: Array, y: Floats, alpha: float) -> Array:
    """Weights and intercept per column of ``y``, each fitted on its known rows."""
    weights = np.zeros((x.shape[1] + 1, y.shape[1]))
    weights[-1] = _means(y)
    patterns, pattern_of = np.unique(~np.isnan(y), axis=1, return_inverse=True)
    for pattern, known in enumerate(patterns.T):
        columns = np.flatnonzero(pattern_of == pattern)
        if not known.any():
            continue
        centre, mean = x[known].mean(axis=0), y[np.ix_(known, columns)].mean(axis=0)
        z = x[known] - centre
        gram = z.T @ z + alpha * np.eye(x.shape[1])
        slopes = np.linalg.solve(gram, z.T @ (y[np.ix_(known, columns)] - mean))
        weights[:-1, columns] = slopes
        weights[-1, columns] = mean - centre @ slopes
    return weights


def _means(values: Floats) -> Array:
    """Mean of each column over its known rows; a column that is never known gets the mean of the others."""
    known = ~np.isnan(values)
    if not known.any():
        raise TableError(
            "expected some rewards and some costs in the training part, found none of one of them"
        )
    total = known.sum(axis=0)
    means = np.where(known, values, 0.0).sum(axis=0, dtype=np.float64) / np.maximum(total, 1)
    return np.asarray(np.where(total > 0, means, means[total > 0].mean()))


def _unit(features: Floats) -> Array:
    x = np.asarray(features, np.float64)
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12))


def aiq_on(part: Part, fitted: Fitted) -> float:
    """On the prompts that every member answered at a known cost; 0 where there are none."""
    complete = ~np.isnan(part.reward).any(axis=1) & ~np.isnan(part.cost).any(axis=1)
    if not complete.any():
        return 0.0
    reward, cost = part.reward[complete], part.cost[complete]
    points = metrics.cost_quality_curve(*fitted.predict(part.features[complete]), reward, cost)
    return metrics.aiq(points, metrics.spend_range(reward, cost))

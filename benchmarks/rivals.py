"""Who are the rivals? The methods that others published or anybody would try first, under one interface.

``TUNED`` choose from their grid on the validation fold; ``PUBLISHED`` stand once, with the
settings of their papers. Both are fitted on the same frozen features as ours.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from benchmarks.rivals_base import fitted, require_complete
from benchmarks.rivals_torch import EmbedLLM, ItemResponse, Perceptron, RouteLLM
from ensemble.errors import MissingExtraError
from ensemble.learning import metrics
from ensemble.learning.baselines import Array, Fitted, Floats, Method, Neighbours

ALL = 1_000_000  # neighbours: more than any table has


@dataclass(frozen=True)
class AvengersPro:
    """Means over the nearest k-means clusters (Avengers-Pro, Zhang et al. 2025, arXiv 2508.12631).

    A prompt takes the ``nearest`` of ``clusters`` centres, each weighted by ``exp(sharpness * cosine)``.
    Published: 60 clusters, the nearest 4, sharpness 9; with the nearest 1 it is Avengers (arXiv 2505.19797).
    Their dial mixes rewards and costs scaled to [0, 1] within each cluster, which has no unit; here both
    stay in theirs, and one dial serves all methods.
    """

    clusters: int = 60
    nearest: int = 4
    sharpness: float = 9.0

    def fit(self, features: Floats, reward: Floats, cost: Floats, *, seed: int = 0) -> Fitted:
        require_complete(features, reward, cost)
        normalize = _sklearn("preprocessing").normalize
        x = normalize(np.asarray(features, np.float64))
        kmeans = _sklearn("cluster").KMeans(min(self.clusters, len(x)), n_init=4, random_state=seed)
        with importlib.import_module("threadpoolctl").threadpool_limits(1):  # sums then have one order
            kmeans.fit(x)
        used, cluster = np.unique(kmeans.labels_, return_inverse=True)
        centres = kmeans.cluster_centers_[used]
        inside = np.eye(len(used))[cluster].T  # (clusters, n_prompts)
        inside /= inside.sum(axis=1, keepdims=True)
        rewards, costs = inside @ reward, inside @ cost  # (clusters, n_members)

        def near(asked: Floats) -> Array:
            return self._weights(normalize(np.asarray(asked, np.float64)) @ centres.T)

        return fitted(features, cost, lambda asked: near(asked) @ rewards, lambda asked: near(asked) @ costs)

    def _weights(self, cosine: Array) -> Array:
        """(n_prompts, clusters), rows sum to 1; 0 beyond the nearest."""
        order = np.argsort(-cosine, axis=1, kind="stable")[:, : self.nearest]
        closest = np.take_along_axis(cosine, order, axis=1)
        weights = np.zeros_like(cosine)
        np.put_along_axis(weights, order, np.exp(self.sharpness * (closest - closest[:, :1])), axis=1)
        return np.asarray(weights / weights.sum(axis=1, keepdims=True))


@dataclass(frozen=True)
class Carrot:
    """Least squares for each member's reward and cost (CARROT, Somerstep et al. 2025, arXiv 2502.03261).

    The paper's router plugs in any estimates of the two. Of those it may take, neighbours stand among the
    tuned methods, and this is the linear one, without penalty.
    """

    def fit(self, features: Floats, reward: Floats, cost: Floats, *, seed: int = 0) -> Fitted:
        require_complete(features, reward, cost)
        line = _sklearn("linear_model").LinearRegression
        x = np.asarray(features, np.float64)
        return fitted(features, cost, line().fit(x, reward).predict, line().fit(x, cost).predict)


@dataclass(frozen=True)
class ArgMaxClassifier:
    """Logistic regression on which member was best, the cheaper of equals unless ties are shared.

    What is built most often, and blind to how much better the best one was; with two members it is the
    idea of Hybrid LLM (Ding et al. 2024, arXiv 2404.14618). The penalty is scikit-learn's default (C = 1),
    no paper's. A member's score is its probability of being the best, which is no expected reward.

    Where most prompts have several right answers, the cheapest member is nearly always the cheaper of
    equals, and no dial leads away from it. With ``share_ties`` each of k equals counts 1 / k: ours, the
    stronger form.
    """

    is_probability: ClassVar[bool] = False
    share_ties: bool = False

    def fit(self, features: Floats, reward: Floats, cost: Floats, *, seed: int = 0) -> Fitted:
        require_complete(features, reward, cost)
        prompt, member = np.arange(len(reward)), metrics.choose(reward, cost, np.inf)
        if self.share_ties:
            prompt, member = np.nonzero(reward == reward.max(axis=1, keepdims=True))
        weight = 1 / np.bincount(prompt)[prompt]
        members = np.unique(member)  # ascending, as the classifier's columns are
        classifier: Any = None
        if len(members) > 1:
            classifier = _sklearn("linear_model").LogisticRegression(max_iter=1000)
            classifier.fit(features[prompt], member, sample_weight=weight)

        def score(features: Floats) -> Array:
            scores = np.zeros((len(features), reward.shape[1]))
            scores[:, members] = classifier.predict_proba(features) if classifier else 1.0
            return scores

        return fitted(features, cost, score)


TUNED: dict[str, tuple[Method, ...]] = {
    "nearest neighbours": tuple(Neighbours(k, None) for k in (10, 20, 40, 100, 200, 400)),
    "soft neighbours": tuple(
        Neighbours(k, temperature)
        for k in (100, 200, 500, 1000, ALL)
        for temperature in (0.03, 0.05, 0.1, 0.2)
    ),
    "k-means": tuple(AvengersPro(k, nearest) for k in (8, 16, 32, 64, 128) for nearest in (1, 4)),
}

PUBLISHED: dict[str, Method] = {
    "CARROT": Carrot(),
    "matrix factorization (EmbedLLM)": EmbedLLM(),
    "matrix factorization (RouteLLM)": RouteLLM(),
    "item response (IRT-Router)": ItemResponse(),
    "perceptron (RouterBench)": Perceptron(),
    "arg-max classifier": ArgMaxClassifier(),
    "arg-max classifier, ties shared": ArgMaxClassifier(share_ties=True),
}


def _sklearn(part: str) -> Any:
    try:
        return importlib.import_module(f"sklearn.{part}")
    except ImportError as error:
        raise MissingExtraError("sklearn", "train", "k-means, linear and logistic regression") from error

"""Where does a prompt lie among the ones learned from? The part of the head that all members share.

A prompt's features, joined by a guess at its task where the table names tasks, are compared with
landmarks (k-means centroids, never single prompts). It attends to the nearest of them:

    position  = [features, sqrt(task_weight * p(task | features))]
    likeness  = position @ landmarks.T
    shares    = normalized  sizes * max(exp(SHARPNESS * (likeness - best)) - exp(SHARPNESS * (far - best)), 0)
    company   = exp(BREADTH * min(likeness - reach, 0)) @ sizes
    attention = shares * company / (company + ballast)

where ``best`` is the greatest likeness and ``far`` that of the last landmark of the neighbourhood, so
that the shares fall to zero without a step. Everything a member is worth is linear in attention: where
few learned prompts keep a prompt company, attention fades and only the member's overall level is left.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ensemble.errors import MissingExtraError
from ensemble.learning.clusters import k_means, means, nearest
from ensemble.records import FloatArray

SHARPNESS = 11.0
NEIGHBOURHOOD = 0.2  # share of the landmarks a prompt attends to
TASK_WEIGHT = 0.28
BREADTH = 30.0  # how fast what lies farther off than usual counts less as company, and as evidence
TASK_PENALTY = 0.008  # inverse, of a logistic regression on features brought to one scale
MOST_LANDMARKS = 1024
PROMPTS_PER_LANDMARK = 8
MOST_TASKS = 100  # the commonest are guessed at ...
LEAST_OF_TASK = 10  # ... and only those with so many prompts: a label per prompt is no task
LEAST_CHANCE = 1e-12  # of a task, where its logarithm is taken
LEAST_CROWD = 3  # different texts a landmark is the mean of: it stands for a crowd, not for a prompt


@dataclass(frozen=True, eq=False)
class Trunk:
    """``landmarks`` (n_landmarks, n_features + n_tasks), ``sizes`` (n_landmarks,) prompts each stands for,
    ``task_weights`` (n_features, n_tasks) and ``task_bias`` (n_tasks,) of the task guess; n_tasks may be 0.
    ``n_near`` landmarks are attended to; ``reach`` is the usual likeness of a prompt to its nearest one;
    with ``ballast`` prompts for company attention is halved."""

    landmarks: FloatArray
    sizes: FloatArray
    task_weights: FloatArray
    task_bias: FloatArray
    n_near: int
    reach: float
    ballast: float = 0.0

    @property
    def n_landmarks(self) -> int:
        return len(self.landmarks)

    def likeness(self, features: FloatArray) -> FloatArray:
        """(n_prompts, n_features) of unit length -> (n_prompts, n_landmarks)."""
        return _position(features, self.task_weights, self.task_bias) @ self.landmarks.T

    def attention(self, likeness: FloatArray) -> FloatArray:
        """(n_prompts, n_landmarks) -> the same shape, rows summing to 1, or less with a ballast."""
        best = likeness.max(axis=1, keepdims=True)
        far = np.partition(likeness, -self.n_near, axis=1)[:, [-self.n_near]]
        near = np.exp(SHARPNESS * (likeness - best)) - np.exp(SHARPNESS * (far - best))
        weight = self.sizes * np.maximum(near, 0)
        shares: FloatArray = weight / np.maximum(weight.sum(axis=1, keepdims=True), 1e-12)
        return shares * trust(self.company(likeness), self.ballast)[:, None]

    def nearness(self, likeness: FloatArray) -> FloatArray:
        """(n_prompts, n_landmarks) -> the same shape: 1 as near as prompts usually are, less beyond."""
        near: FloatArray = np.exp(BREADTH * np.minimum(likeness - self.reach, 0))
        return near

    def entropy(self, features: FloatArray) -> FloatArray:
        """How undecided the task guess is, in nats, (n_prompts,); 0 where no tasks are guessed at."""
        guess = _task_guess(features, self.task_weights, self.task_bias)
        entropy: FloatArray = -(guess * np.log(np.maximum(guess, LEAST_CHANCE))).sum(axis=1)
        return entropy

    def company(self, likeness: FloatArray) -> FloatArray:
        """How many learned prompts lie near each prompt, (n_prompts,)."""
        return self.nearness(likeness) @ self.sizes


def trust(company: FloatArray, ballast: float) -> FloatArray:
    """What share of the attention counts, in [0, 1], the shape of ``company``."""
    return company / (company + ballast) if ballast else np.ones_like(company)


def fit_trunk(
    features: FloatArray, tasks: Sequence[str | None], texts: npt.NDArray[np.int64], seed: int
) -> Trunk:
    """Learn the task guess and place the landmarks.

    ``features`` (n_prompts, n_features) of unit length; ``tasks`` one label per prompt, None where it is not
    to be guessed at: labels are only learned from, at prediction the guess stands in for them. ``texts``
    (n_prompts,) is the same number where prompts are the same text, for a text told twice is no crowd.
    """
    task_weights, task_bias = _fit_task_guess(features, tasks)
    landmarks, sizes = _place(_position(features, task_weights, task_bias), texts, seed)
    n_near = min(len(sizes), max(2, round(NEIGHBOURHOOD * len(sizes))))
    trunk = Trunk(landmarks, sizes, task_weights, task_bias, n_near, reach=0.0)
    return dataclasses.replace(trunk, reach=float(np.median(trunk.likeness(features).max(axis=1))))


def _place(
    position: FloatArray, texts: npt.NDArray[np.int64], seed: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Landmarks (n_landmarks, width) and how many prompts each is the mean of, (n_landmarks,).

    k-means leaves outliers clusters of their own; those below LEAST_CROWD texts are dropped and their
    prompts go to the next landmark, so that no prompt can be read off the trunk.
    """
    n_clusters = int(np.clip(len(position) // PROMPTS_PER_LANDMARK, 1, MOST_LANDMARKS))
    labels = k_means(position, n_clusters, seed)
    crowd = _distinct(labels, texts) >= LEAST_CROWD
    if crowd.any():
        labels = nearest(position, means(position, labels)[crowd])
    else:  # fewer prompts than make a crowd anywhere: one landmark for all
        labels = np.zeros(len(position), np.int64)
    return means(position, labels).astype(np.float32), np.bincount(labels).astype(np.float32)


def _distinct(labels: npt.NDArray[np.int64], texts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """How many different texts each cluster holds, (n_clusters,)."""
    clusters = np.unique(np.stack([labels, texts]), axis=1)[0]
    return np.bincount(clusters, minlength=int(labels.max()) + 1)


def common_tasks(tasks: Sequence[str | None]) -> list[str]:
    """Those that can be guessed at, the commonest first; of a task per prompt none is left."""
    counts = Counter(task for task in tasks if task is not None).most_common(MOST_TASKS)
    return [task for task, count in counts if count >= LEAST_OF_TASK]


def _fit_task_guess(
    features: FloatArray, tasks: Sequence[str | None]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as missing:
        raise MissingExtraError("sklearn", "train", "training a router") from missing
    known = np.array([task is not None for task in tasks])
    labels = np.array([task for task in tasks if task is not None])
    names = set(labels)
    if len(names) < 2:
        return np.zeros((features.shape[1], 0), np.float32), np.zeros(0, np.float32)
    seen = features[known].astype(float)
    centre, scale = seen.mean(axis=0), np.maximum(seen.std(axis=0), 1e-6)
    standard = ((seen - centre) / scale).astype(np.float32)  # twice as fast as in double precision
    guess = LogisticRegression(C=TASK_PENALTY, max_iter=400, tol=1e-3).fit(standard, labels)
    weights = guess.coef_.astype(float).T / scale[:, None]
    bias = guess.intercept_ - centre @ weights
    if len(names) == 2:  # scikit-learn keeps one column for two classes; a softmax wants both
        weights, bias = np.hstack([-weights / 2, weights / 2]), np.append(-bias / 2, bias / 2)
    return weights.astype(np.float32), bias.astype(np.float32)


def _position(features: FloatArray, task_weights: FloatArray, task_bias: FloatArray) -> FloatArray:
    if not task_bias.size:
        return features
    return np.hstack([features, np.sqrt(TASK_WEIGHT * _task_guess(features, task_weights, task_bias))])


def _task_guess(features: FloatArray, task_weights: FloatArray, task_bias: FloatArray) -> FloatArray:
    """p(task | features), (n_prompts, n_tasks); n_tasks may be 0."""
    logits = features @ task_weights + task_bias
    odds = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
    return np.asarray(odds / odds.sum(axis=1, keepdims=True))

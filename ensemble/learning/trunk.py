"""Where does a prompt lie among the ones learned from? The part of the head that all members share.

A prompt's features, joined by a guess at its task where the table names tasks, are compared with
landmarks (k-means centroids, never single prompts). It attends to the nearest of them:

    position  = [features, sqrt(task_weight * p(task | features))]
    likeness  = position @ landmarks.T
    attention = normalized  sizes * max(exp(SHARPNESS * (likeness - best)) - exp(SHARPNESS * (far - best)), 0)

where ``best`` is the greatest likeness and ``far`` that of the last landmark of the neighbourhood, so
that attention falls to zero without a step. Everything a member is worth is linear in attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ensemble.errors import MissingExtraError
from ensemble.records import FloatArray

SHARPNESS = 10.0
NEIGHBOURHOOD = 0.2  # share of the landmarks a prompt attends to
TASK_WEIGHT = 0.4
MOST_LANDMARKS = 1024
PROMPTS_PER_LANDMARK = 8
LEAST_CROWD = 3  # different texts a landmark is the mean of: it stands for a crowd, not for a prompt


@dataclass(frozen=True, eq=False)
class Trunk:
    """``landmarks`` (n_landmarks, n_features + n_tasks), ``sizes`` (n_landmarks,) prompts each stands for,
    ``task_weights`` (n_features, n_tasks) and ``task_bias`` (n_tasks,) of the task guess; n_tasks may be 0."""

    landmarks: FloatArray
    sizes: FloatArray
    task_weights: FloatArray
    task_bias: FloatArray
    n_near: int

    @property
    def n_landmarks(self) -> int:
        return len(self.landmarks)

    @property
    def full_likeness(self) -> float:
        """Likeness of a prompt to itself: 1, plus the task guess's share."""
        return 1.0 + (TASK_WEIGHT if self.task_bias.size else 0.0)

    def likeness(self, features: FloatArray) -> FloatArray:
        """(n_prompts, n_features) of unit length -> (n_prompts, n_landmarks)."""
        return _position(features, self.task_weights, self.task_bias) @ self.landmarks.T

    def attention(self, likeness: FloatArray) -> FloatArray:
        """(n_prompts, n_landmarks) -> the same shape, rows summing to 1."""
        best = likeness.max(axis=1, keepdims=True)
        far = np.partition(likeness, -self.n_near, axis=1)[:, [-self.n_near]]
        near = np.exp(SHARPNESS * (likeness - best)) - np.exp(SHARPNESS * (far - best))
        weight = self.sizes * np.maximum(near, 0)
        return weight / np.maximum(weight.sum(axis=1, keepdims=True), 1e-12)


def fit_trunk(
    features: FloatArray, tasks: Sequence[str | None], texts: npt.NDArray[np.int64], seed: int
) -> Trunk:
    """Learn the task guess and place the landmarks.

    ``features`` (n_prompts, n_features) of unit length; ``tasks`` one label per prompt, None where
    unknown: labels are only learned from, at prediction the guess stands in for them. ``texts``
    (n_prompts,) is the same number where prompts are the same text, for a text told twice is no crowd.
    """
    task_weights, task_bias = _fit_task_guess(features, tasks)
    landmarks, sizes = _place(_position(features, task_weights, task_bias), texts, seed)
    n_near = min(len(sizes), max(2, round(NEIGHBOURHOOD * len(sizes))))
    return Trunk(landmarks, sizes, task_weights, task_bias, n_near)


def _place(
    position: FloatArray, texts: npt.NDArray[np.int64], seed: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Landmarks (n_landmarks, width) and how many prompts each is the mean of, (n_landmarks,).

    k-means leaves outliers clusters of their own; those below LEAST_CROWD texts are dropped and their
    prompts go to the next landmark, so that no prompt can be read off the trunk.
    """
    try:
        from sklearn.cluster import MiniBatchKMeans
    except ImportError as missing:
        raise MissingExtraError("sklearn", "train", "training a router") from missing
    n_clusters = int(np.clip(len(position) // PROMPTS_PER_LANDMARK, 1, MOST_LANDMARKS))
    # Drawn at random: k-means++ would take longer than all the rest of a training run.
    clusters = MiniBatchKMeans(
        n_clusters, init="random", random_state=seed, n_init=1, batch_size=4096, max_iter=50
    ).fit(position)
    crowd = _distinct(clusters.labels_, texts, n_clusters) >= LEAST_CROWD
    if not crowd.any():
        crowd[0] = True  # fewer prompts than make two crowds: one landmark for all
    centres = clusters.cluster_centers_[crowd]
    nearest = (position @ centres.T - (centres**2).sum(axis=1) / 2).argmax(axis=1)
    sizes = np.bincount(nearest, minlength=len(centres)).astype(float)
    sums = np.zeros(centres.shape)
    np.add.at(sums, nearest, position)  # their own means: k-means' are running ones, or a prompt drawn last
    return (sums / sizes[:, None]).astype(np.float32), sizes.astype(np.float32)


def _distinct(labels: npt.NDArray[np.int64], texts: npt.NDArray[np.int64], n: int) -> npt.NDArray[np.int64]:
    """How many different texts carry each of the labels 0 to n - 1."""
    pairs = np.unique(np.stack([labels.astype(np.int64), texts]), axis=1)
    return np.bincount(pairs[0], minlength=n)


def _fit_task_guess(
    features: FloatArray, tasks: Sequence[str | None]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    from sklearn.linear_model import LogisticRegression

    known = np.array([task is not None for task in tasks])
    labels = np.array([task for task in tasks if task is not None])
    names, counts = np.unique(labels, return_counts=True)
    if len(names) < 2 or counts.max() < 2:
        return np.zeros((features.shape[1], 0), np.float32), np.zeros(0, np.float32)
    guess = LogisticRegression(C=3.0, max_iter=200).fit(features[known], labels)
    weights, bias = guess.coef_.T, guess.intercept_
    if len(names) == 2:  # scikit-learn keeps one column for two classes; a softmax wants both
        weights, bias = np.hstack([-weights / 2, weights / 2]), np.append(-bias / 2, bias / 2)
    return weights.astype(np.float32), bias.astype(np.float32)


def _position(features: FloatArray, task_weights: FloatArray, task_bias: FloatArray) -> FloatArray:
    if not task_bias.size:
        return features
    logits = features @ task_weights + task_bias
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    guess = odds / odds.sum(axis=1, keepdims=True)
    return np.hstack([features, np.sqrt(TASK_WEIGHT * guess)])

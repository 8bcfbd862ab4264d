"""What would have been predicted for prompts that were not learned from?

Out-of-fold predictions are what everything is chosen on: shrinkage, calibration, uncertainty. Each
fold fits the whole pipeline, landmarks and task guess included, on the other folds only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ensemble.learning.clusters import k_means
from ensemble.learning.fit import Shrinkage, fit
from ensemble.learning.split import deal
from ensemble.learning.tables import OutcomeTable
from ensemble.learning.trunk import LEAST_OF_TASK, trust
from ensemble.records import FloatArray

Fold = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]  # rows to fit on, rows to predict

REGION, MOST_REGIONS = 50, 400  # prompts that lie close enough together for one error of expectation
KIND, MOST_KINDS = 50, 20  # prompts that are a kind of their own where no tasks are named


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """Predictions as two ends: ``far``, where nothing is known but the member's level, and ``near``, where
    attention counts in full. In between lies what a ballast makes of the prompt's company.

    ``reward_near`` (n_shrinkages, n_prompts, n_members); ``reward_far``, ``tokens_near``, ``tokens_far`` (in
    logarithms) and ``evidence`` (n_prompts, n_members); ``company`` and ``entropy`` of the task guess
    (n_prompts,).
    """

    reward_near: FloatArray
    reward_far: FloatArray
    tokens_near: FloatArray
    tokens_far: FloatArray
    evidence: FloatArray
    company: FloatArray
    entropy: FloatArray

    def only(self, shrinkage: int) -> OutOfFold:
        """The predictions under one of the shrinkages, by its place."""
        return dataclasses.replace(self, reward_near=self.reward_near[[shrinkage]])

    def rows(self, prompts: npt.NDArray[np.int64]) -> OutOfFold:
        """The predictions for some of the prompts."""
        return OutOfFold(
            self.reward_near[:, prompts],
            self.reward_far[prompts],
            self.tokens_near[prompts],
            self.tokens_far[prompts],
            self.evidence[prompts],
            self.company[prompts],
            self.entropy[prompts],
        )

    def reward(self, ballast: float) -> FloatArray:
        """(n_prompts, n_members), under the first shrinkage."""
        return self._between(self.reward_far, self.reward_near[0], ballast)

    def log_tokens(self, ballast: float) -> FloatArray:
        """(n_prompts, n_members)"""
        return self._between(self.tokens_far, self.tokens_near, ballast)

    def _between(self, far: FloatArray, near: FloatArray, ballast: float) -> FloatArray:
        between: FloatArray = far + trust(self.company, ballast)[:, None] * (near - far)
        return between


def cross_fit(
    features: FloatArray,
    table: OutcomeTable,
    folds: Iterable[Fold],
    shrinkages: Sequence[Shrinkage],
    seed: int,
    on_fold: Callable[[], None] = lambda: None,
) -> OutOfFold:
    """Predict every prompt from a fit that never saw its fold; what no fold holds out stays NaN."""
    shape = (table.n_prompts, table.n_members)
    near = np.full((len(shrinkages), *shape), np.nan)
    reward_far, tokens_near, tokens_far, evidence = (np.full(shape, np.nan) for _ in range(4))
    company, entropy = (np.full(table.n_prompts, np.nan) for _ in range(2))
    for learned, held_out in folds:
        fitted = fit(features[learned], table.subset(learned), shrinkages, seed)
        likeness = fitted.trunk.likeness(features[held_out])
        attention = fitted.trunk.attention(likeness)
        near[:, held_out] = [rows(attention) for rows in fitted.reward]
        reward_far[held_out] = fitted.reward[0].bias
        tokens_near[held_out] = fitted.log_tokens(attention)
        tokens_far[held_out] = fitted.log_tokens.bias
        evidence[held_out] = fitted.evidence(likeness)
        company[held_out] = fitted.trunk.company(likeness)
        entropy[held_out] = fitted.trunk.entropy(features[held_out])
        on_fold()
    return OutOfFold(near, reward_far, tokens_near, tokens_far, evidence, company, entropy)


def regions(features: FloatArray, seed: int) -> npt.NDArray[np.int64]:
    """The small region of the feature space that each prompt lies in, (n_prompts,)."""
    return k_means(features, int(np.clip(len(features) // REGION, 1, MOST_REGIONS)), seed)


def away_folds(
    features: FloatArray,
    tasks: Sequence[str | None],
    groups: npt.NDArray[np.int64],
    *,
    n_folds: int,
    seed: int,
) -> list[Fold]:
    """Folds that leave whole kinds of prompts out, to see predictions far from what was learned. What is left
    to learn from has no near-duplicate, of the same one of ``groups`` (n_prompts,), among them.

    A kind is a task where the table names them, else a large region of the feature space; a label per
    prompt names no tasks.
    """
    if None not in tasks and 1 < len(set(tasks)) <= len(tasks) / LEAST_OF_TASK:
        kind = np.unique(np.array(tasks), return_inverse=True)[1]
    else:
        kind = k_means(features, int(np.clip(len(features) // KIND, 1, MOST_KINDS)), seed)
    if not kind.any():  # one kind: leaving it out would leave nothing to learn from
        kind = np.arange(len(kind))
    n_folds = min(n_folds, int(kind.max()) + 1)
    fold = deal(kind, n_folds, seed)
    return [_without_twins(fold != k, groups) for k in range(n_folds)]


def _without_twins(learned: npt.NDArray[np.bool_], groups: npt.NDArray[np.int64]) -> Fold:
    """All that is held out, and what of the rest is nobody's twin there; all of it where that is nothing."""
    apart = ~np.isin(groups, groups[~learned])
    return np.flatnonzero(apart if apart.any() else learned), np.flatnonzero(~learned)

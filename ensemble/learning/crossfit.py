"""What would have been predicted for prompts that were not learned from?

Out-of-fold predictions are what everything is chosen on: shrinkage, calibration, uncertainty. Each
fold fits the whole pipeline, landmarks and task guess included, on the other folds only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ensemble.learning.clusters import k_means
from ensemble.learning.fit import Fitted, Shrinkage, fit
from ensemble.learning.tables import OutcomeTable
from ensemble.records import FloatArray

Fold = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]  # rows to fit on, rows to predict


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """``reward`` (n_shrinkages, n_prompts, n_members); the others (n_prompts, n_members)."""

    reward: FloatArray
    log_tokens: FloatArray
    evidence: FloatArray


def cross_fit(
    features: FloatArray,
    table: OutcomeTable,
    folds: Iterable[Fold],
    shrinkages: Sequence[Shrinkage],
    seed: int,
    on_fold: Callable[[], None] = lambda: None,
) -> OutOfFold:
    """Predict every prompt from a fit that never saw its fold; the folds' second halves cover all rows."""
    shape = (table.n_prompts, table.n_members)
    reward = np.full((len(shrinkages), *shape), np.nan)
    log_tokens, evidence = np.full(shape, np.nan), np.full(shape, np.nan)
    for learned, held_out in folds:
        fitted = fit(features[learned], table.subset(learned), shrinkages, seed)
        reward[:, held_out], log_tokens[held_out], evidence[held_out] = _predict(fitted, features[held_out])
        on_fold()
    return OutOfFold(reward, log_tokens, evidence)


def region_folds(
    features: FloatArray, *, n_folds: int, seed: int
) -> tuple[npt.NDArray[np.int64], list[Fold]]:
    """Folds that each leave whole regions of the feature space out, to see predictions far from data.

    Returns the region of every prompt, (n_prompts,), and the folds.
    """
    n_regions = int(np.clip(len(features) // 50, n_folds, 20))
    region = k_means(features, n_regions, seed)
    fold_of_region = np.random.default_rng(seed).permutation(region.max() + 1) % n_folds
    fold = fold_of_region[region]
    return region, [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(n_folds)]


def _predict(fitted: Fitted, features: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    likeness = fitted.trunk.likeness(features)
    attention = fitted.trunk.attention(likeness)
    reward = np.stack([rows(attention) for rows in fitted.reward])
    return reward, fitted.log_tokens(attention), fitted.evidence(likeness)

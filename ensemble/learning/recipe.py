"""How is a head fitted? From features and outcomes to weights, with all that is chosen on the way.

cross-fit on folds                  -> the penalties
cross-fit with whole tasks left out -> how much company what was learned needs to count
from both                           -> the curve of rewards, the scale of tokens, the doubt
fit on all rows                     -> the weights
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ensemble.learning import calibrate
from ensemble.learning.crossfit import Fold, away_folds, cross_fit, regions
from ensemble.learning.doubt import fit_doubt
from ensemble.learning.export import HeadWeights
from ensemble.learning.fit import Shrinkage, fit
from ensemble.learning.progress import Step, bar
from ensemble.learning.split import k_folds
from ensemble.learning.tables import OutcomeTable
from ensemble.learning.trunk import common_tasks
from ensemble.records import FloatArray

RECIPE = "landmark-attention-5"
OWN = tuple(0.5 * calibrate.CAUTION**step for step in range(8))
GRID = tuple(Shrinkage(shared, own) for own in OWN for shared in (0.3, 1.0))
N_FOLDS = 5


def fit_head(
    features: FloatArray,
    table: OutcomeTable,
    groups: npt.NDArray[np.int64],
    *,
    judged: npt.NDArray[np.int64] | None = None,
    seed: int = 0,
    progress: bool = False,
    on_step: Step = lambda _: None,
) -> tuple[HeadWeights, dict[str, Any]]:
    """Choose, calibrate and fit on all rows given; returns the head and what was chosen.

    ``features`` (n_prompts, n_features), ``groups`` (n_prompts,) of near-duplicates. Everything is chosen on
    the out-of-fold predictions of the rows numbered in ``judged``, ``None`` for all: where an encoder was
    tuned on some of the prompts, their features flatter what is made of them, so the others judge. Of what
    lies far off even they say too little then, for the encoder knows their tasks.
    """
    judged = np.arange(table.n_prompts) if judged is None else judged
    told, guessed = table.subset(judged), _of_common_tasks(table)
    folds = _judging(k_folds(groups, k=N_FOLDS, seed=seed), judged)
    away = _judging(away_folds(features, table.labels, groups, n_folds=N_FOLDS, seed=seed), judged)
    with bar(progress, len(folds) + len(away) + 1, "fitting") as advance:
        on_step(f"cross-fitting {len(folds)} folds, {len(GRID)} shrinkages")
        near = cross_fit(features, guessed, folds, GRID, seed, advance).rows(judged)
        chosen = calibrate.choose_shrinkage(near.reward_near, told, GRID)
        shrinkage, near = GRID[chosen], near.only(chosen)
        on_step("cross-fitting with whole tasks left out, for what lies far off")
        far = cross_fit(features, guessed, away, [shrinkage], seed, advance).rows(judged)
        ballast = calibrate.choose_ballast(near.reward, far.reward, told)
        curve = calibrate.reward_curve(near.reward(ballast), told)
        log_mean, log_p95 = calibrate.token_scale(near.log_tokens(ballast), told)
        rewards = [curve(part.reward(ballast)) for part in (near, far)]
        doubt = fit_doubt(near, far, rewards, regions(features, seed)[judged], told)
        on_step("fitting on all of them")
        fitted = fit(features, guessed, [shrinkage], seed)
        advance()
    weights = HeadWeights(
        trunk=dataclasses.replace(fitted.trunk, ballast=ballast),
        reward=fitted.reward[0].weights,
        reward_bias=fitted.reward[0].bias,
        curve=curve,
        tokens=fitted.log_tokens.weights,
        token_bias=fitted.log_tokens.bias + log_mean,
        token_spread=log_p95 - log_mean,
        evidence=fitted.support / doubt.half,
        prior_std=doubt.prior_std,
        strangeness=doubt.strangeness,
    )
    recipe = {
        "name": RECIPE,
        "n_landmarks": fitted.trunk.n_landmarks,
        "n_tasks_guessed": int(fitted.trunk.task_bias.size),
        "shrinkage_shared": shrinkage.shared,
        "shrinkage_own": shrinkage.own,
        "ballast": ballast,
        "prior_std": round(float(np.median(doubt.prior_std)), 4),
        "evidence_at_half_variance": round(doubt.half, 4),
    }
    return weights, recipe


def _of_common_tasks(table: OutcomeTable) -> OutcomeTable:
    """The table with those tasks alone that are to be guessed at, in every fold the same."""
    common = set(common_tasks(table.labels))
    tasks = [task if label in common else None for task, label in zip(table.tasks, table.labels, strict=True)]
    return dataclasses.replace(table, tasks=tuple(tasks))


def _judging(folds: Sequence[Fold], judged: npt.NDArray[np.int64]) -> list[Fold]:
    """The folds with only the judged rows held out; those that hold out none of them say nothing."""
    some = [(learned, held_out[np.isin(held_out, judged)]) for learned, held_out in folds]
    return [(learned, held_out) for learned, held_out in some if held_out.size]

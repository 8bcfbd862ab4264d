"""How is a head fitted? From features and outcomes to weights, with all that is chosen on the way.

cross-fit on folds                  -> the penalties
cross-fit with whole tasks left out -> how much company what was learned needs to count
from both                           -> the curve of rewards, the scale of tokens, the doubt
fit on all rows                     -> the weights
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ensemble.learning import calibrate
from ensemble.learning.crossfit import away_folds, cross_fit, regions
from ensemble.learning.export import HeadWeights
from ensemble.learning.fit import Shrinkage, fit
from ensemble.learning.split import k_folds
from ensemble.learning.tables import OutcomeTable
from ensemble.records import FloatArray

RECIPE = "landmark-attention-2"
OWN = tuple(0.5 * calibrate.CAUTION**step for step in range(8))
GRID = tuple(Shrinkage(shared, own) for own in OWN for shared in (0.3, 1.0))
N_FOLDS = 5

Step = Callable[[str], None]


def fit_head(
    features: FloatArray,
    table: OutcomeTable,
    groups: npt.NDArray[np.int64],
    *,
    seed: int = 0,
    progress: bool = False,
    on_step: Step = lambda _: None,
) -> tuple[HeadWeights, dict[str, Any]]:
    """Choose, calibrate and fit on all rows given; returns the head and what was chosen.

    ``features`` (n_prompts, n_features), ``groups`` (n_prompts,) of near-duplicates.
    """
    folds = k_folds(groups, k=N_FOLDS, seed=seed)
    away = away_folds(features, table.labels, n_folds=N_FOLDS, seed=seed)
    with _bar(progress, N_FOLDS + len(away) + 1, "fitting") as advance:
        on_step(f"cross-fitting {N_FOLDS} folds, {len(GRID)} shrinkages")
        near = cross_fit(features, table, folds, GRID, seed, advance)
        chosen = calibrate.choose_shrinkage(near.reward_near, table, GRID)
        shrinkage, near = GRID[chosen], near.only(chosen)
        on_step("cross-fitting with whole tasks left out, for what lies far off")
        far = cross_fit(features, table, away, [shrinkage], seed, advance)
        ballast = calibrate.choose_ballast(near.reward, far.reward, table)
        curve = calibrate.reward_curve(near.reward(ballast), table)
        log_mean, log_p95 = calibrate.token_scale(near.log_tokens(ballast), table)
        region = regions(features, seed)
        doubt = calibrate.reward_doubt(
            calibrate.cells(curve(near.reward(ballast)), near.evidence, region, table),
            calibrate.cells(curve(far.reward(ballast)), far.evidence, region, table),
        )
        on_step("fitting on all of them")
        fitted = fit(features, table, [shrinkage], seed)
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
        prior_std=np.full(table.n_members, doubt.prior_std),
    )
    recipe = {
        "name": RECIPE,
        "n_landmarks": fitted.trunk.n_landmarks,
        "n_tasks_guessed": int(fitted.trunk.task_bias.size),
        "shrinkage_shared": shrinkage.shared,
        "shrinkage_own": shrinkage.own,
        "ballast": ballast,
        "prior_std": round(doubt.prior_std, 4),
        "evidence_at_half_variance": round(doubt.half, 4),
    }
    return weights, recipe


@contextlib.contextmanager
def _bar(shown: bool, total: int, label: str) -> Iterator[Callable[[], None]]:
    """A progress bar on stderr, or nothing; gives the function that advances it."""
    if not shown:
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda: bar.advance(task)

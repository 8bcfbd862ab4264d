"""How far may an expected reward be off? Fitted on the errors made near to what was learned and far from it.

    strange    = sigmoid(offset - per_company * log(company) + per_entropy * entropy of the task guess)
    reward_std = prior_std * sqrt(strange + (1 - strange) / (1 + evidence / half))

A prompt is strange where few learned prompts keep it company and no task claims it. There little of what
was learned holds, whatever the evidence; elsewhere doubt shrinks as evidence of the member grows.
Everything is learned from out-of-fold predictions: ``near`` from ordinary folds, ``far`` from folds that
leave whole kinds of prompts out.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ensemble.learning.calibrate import STRANGE
from ensemble.learning.crossfit import OutOfFold
from ensemble.learning.tables import OutcomeTable
from ensemble.records import FloatArray

LEAST_CELL = 5  # prompts a region must have for its mean to tell anything
FAR_OFF = 4.0  # times the variance of a member's mean: the least where nothing is known
FAR = 0.3  # weight of errors far off; set on the tables at hand, see reward_doubt
WIDTHS = np.geomspace(0.01, 0.5, 60)  # what is searched: prior_std ...
HALVES = np.geomspace(0.003, 1e4, 30).tolist()  # ... half, in pairs ...
OFFSETS = np.linspace(-12.0, 0.0, 13).tolist()  # ... and the line, below that of the usual prompt
SHARPER = 3.0  # times the log odds; set on the tables at hand, see tell_strangers
WEAK = 1e-4  # ridge on the logistic regression, per prompt
LEAST_SPREAD = 1e-6  # of a sign of strangeness, below which it is the same for all
LEAST_COMPANY = 1e-30  # prompts; less is as strange
MOST_LOG_ODDS = 50.0  # beyond it a chance is 0 or 1 to any digit


@dataclass(frozen=True)
class Strangeness:
    """``offset`` in log odds, ``per_company`` per e-fold of company, ``per_entropy`` per nat; the last two at
    least 0."""

    offset: float
    per_company: float
    per_entropy: float

    def log_odds(self, company: FloatArray, entropy: FloatArray) -> FloatArray:
        """Both (n_prompts,) -> the same shape."""
        alone = -np.log(np.maximum(company, LEAST_COMPANY))
        return np.asarray(self.offset + self.per_company * alone + self.per_entropy * entropy)


def chance(log_odds: FloatArray) -> FloatArray:
    """From log odds to [0, 1]."""
    return np.asarray(1 / (1 + np.exp(-np.clip(log_odds, -MOST_LOG_ODDS, MOST_LOG_ODDS))))


@dataclass(frozen=True)
class Doubt:
    """``prior_std`` (n_members,) where nothing is known, and ``half`` the evidence that halves the variance
    of what is not strange."""

    strangeness: Strangeness
    prior_std: FloatArray
    half: float


def doubt_share(strange: FloatArray, evidence: FloatArray, half: float) -> FloatArray:
    """reward_std / prior_std, of the shape that ``strange`` and ``evidence`` broadcast to."""
    share: FloatArray = np.sqrt(strange + (1 - strange) / (1 + evidence / half))
    return share


def fit_doubt(
    near: OutOfFold,
    far: OutOfFold,
    reward_hat: Sequence[FloatArray],
    region: npt.NDArray[np.int64],
    table: OutcomeTable,
) -> Doubt:
    """Doubt about the rewards ``reward_hat`` that were expected near and far, (n_prompts, n_members) each.

    ``region`` (n_prompts,): prompts that lie close enough together for one error of expectation.
    """
    strangeness = tell_strangers(near, far)
    both = (
        cells(hat, strangeness.log_odds(part.company, part.entropy), part.evidence, region, table)
        for part, hat in zip((near, far), reward_hat, strict=True)
    )
    outcomes, seen = table.observed.sum(axis=0), np.median(near.evidence, axis=0)
    return reward_doubt(strangeness, *both, outcomes=outcomes, seen=seen)


def tell_strangers(near: OutOfFold, far: OutOfFold) -> Strangeness:
    """What tells the prompts of left-out kinds from the others: a logistic regression in which the strange
    count for STRANGE of the whole.

    Its log odds are taken SHARPER times: what is expected of strange prompts is several times farther off, so
    that a chance of a few hundredths, honest as a chance, would make up all the doubt about a known one. The
    usual prompt of ``near`` has even odds here; where the line lies, errors tell (:func:`reward_doubt`)."""
    from scipy.optimize import minimize

    signs = [np.stack([-np.log(np.maximum(p.company, LEAST_COMPANY)), p.entropy]) for p in (near, far)]
    spread = np.concatenate(signs, axis=1).std(axis=1)
    tells = spread > LEAST_SPREAD
    scale = np.where(tells, spread, 1.0)
    x = [np.vstack([np.ones(each.shape[1]), each / scale[:, None]]) for each in signs]

    def loss(w: FloatArray) -> float:
        usual, strange = np.logaddexp(0, w @ x[0]).mean(), np.logaddexp(0, -(w @ x[1])).mean()
        return float((1 - STRANGE) * usual + STRANGE * strange + WEAK * (w[1:] ** 2).sum())

    # Entropy tells nothing where one of the parts guessed at no tasks, as when all but one were left out.
    tells[1] &= all(part.entropy.any() for part in (near, far))
    bounds = [(None, None), *((0.0, None) if told else (0.0, 0.0) for told in tells)]
    found = minimize(loss, np.array([0.0, *np.where(tells, 0.5, 0.0)]), method="L-BFGS-B", bounds=bounds)
    per_sign = SHARPER * found.x[1:] / scale
    usual = float(np.median(per_sign @ signs[0]))
    return Strangeness(-usual, float(per_sign[0]), float(per_sign[1]))


@dataclass(frozen=True, eq=False)
class Cells:
    """Region x member cells: mean residual and its sampling variance, (n_cells,); and of the pairs in them
    the log odds of being strange, the evidence and the cell, (n_pairs,)."""

    residual: FloatArray
    sampling: FloatArray
    strange_odds: FloatArray
    evidence: FloatArray
    cell: npt.NDArray[np.int64]

    def share(self, offset: float, half: float) -> FloatArray:
        """Mean of :func:`doubt_share` over the pairs of each cell, (n_cells,)."""
        return _cell_means(doubt_share(chance(self.strange_odds + offset), self.evidence, half), self.cell)

    @property
    def noise(self) -> float:
        """Variance of one outcome about its expectation."""
        return float((self.sampling * np.bincount(self.cell)).mean())


def cells(
    reward_hat: FloatArray,
    strange_odds: FloatArray,
    evidence: FloatArray,
    region: npt.NDArray[np.int64],
    table: OutcomeTable,
) -> Cells:
    """Average over all prompts of a region, per member, so that an error of the *expectation* shows.

    ``strange_odds`` and ``region`` (n_prompts,), ``reward_hat`` and ``evidence`` (n_prompts, n_members).
    """
    row, member = np.nonzero(table.observed)
    code = region[row] * table.n_members + member
    _, cell, count = np.unique(code, return_inverse=True, return_counts=True)
    enough = (count >= LEAST_CELL)[cell]
    row, member = row[enough], member[enough]
    _, cell, count = np.unique(cell[enough], return_inverse=True, return_counts=True)
    hat = np.clip(reward_hat[row, member], 0, 1)
    residual = table.reward[row, member].astype(float) - hat
    mean = _cell_means(residual, cell)
    scatter = hat * (1 - hat)  # of rewards of 0 and 1, whatever the few of a cell happen to be
    if not np.isin(table.reward[table.observed], (0, 1)).all():  # graded ones scatter less
        within = float(((residual - mean[cell]) ** 2).sum()) * len(cell) / max(len(cell) - len(mean), 1)
        scatter = scatter * min(1.0, within / max(float(scatter.sum()), 1e-12))
    return Cells(mean, _cell_means(scatter, cell) / count, strange_odds[row], evidence[row, member], cell)


def _cell_means(values: FloatArray, cell: npt.NDArray[np.int64]) -> FloatArray:
    return np.bincount(cell, values) / np.bincount(cell)


def reward_doubt(
    strangeness: Strangeness, near: Cells, far: Cells, *, outcomes: npt.NDArray[Any], seen: FloatArray
) -> Doubt:
    """Maximum likelihood for Gaussian cell residuals of variance reward_std**2 + sampling variance.

    ``far`` counts for FAR of the whole: more than its share of prompts, for it is there that doubt is needed.
    Errors are taken to be alike all over a cell. An error of a member's level all cells have in common, and
    over equal folds it cancels: so where ``seen`` of a member is known, the usual evidence, doubt is at least
    that of a mean of its ``outcomes``, and FAR_OFF times that variance where nothing is known; both
    (n_members,). For most of them the errors ask for more; who answered far less often than the others has a
    ``prior_std`` of its own. Where there is nothing else to learn that is still too little: what is true lies
    within 2 reward_std in seven to nine cases of ten.
    """
    parts = [(s, part) for s, part in ((1 - FAR, near), (FAR, far)) if len(part.residual)]
    noise = max((part.noise for _, part in parts), default=0.0)
    best, doubt = np.inf, Doubt(strangeness, np.full(np.shape(outcomes), 0.25), 1.0)
    for offset, half in itertools.product(OFFSETS, HALVES):
        loss = np.zeros(len(WIDTHS))
        for weight, part in parts:
            variance = np.outer(WIDTHS, part.share(offset, half)) ** 2 + part.sampling + 1e-9
            loss += weight * (np.log(variance) + part.residual**2 / variance).mean(axis=1)
        loss[WIDTHS**2 * half > noise] = np.inf  # one outcome tells at least what its own noise leaves
        level = np.sqrt(noise / np.maximum(outcomes, 1) * np.maximum(FAR_OFF, 1 + seen / half))
        loss[level.min() > WIDTHS] = np.inf
        if loss.min() < best:
            shifted = dataclasses.replace(strangeness, offset=strangeness.offset + offset)
            prior_std = np.clip(level, WIDTHS[loss.argmin()], WIDTHS[-1])
            best, doubt = float(loss.min()), Doubt(shifted, prior_std, half)
    return doubt

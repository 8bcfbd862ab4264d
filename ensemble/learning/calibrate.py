"""Do the figures mean what they say? Everything here is learned from out-of-fold predictions.

``choose_shrinkage``   the penalties under which decisions were best
``reward_line``        a straight line that makes expected rewards agree with realized ones
``token_scale``        from the mean of logarithms to the mean of tokens, and to their 95 % point
``reward_doubt``       how far an expected reward may be off, given the evidence near the prompt
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ensemble.learning.fit import Shrinkage, pair_weight
from ensemble.learning.tables import OutcomeTable
from ensemble.records import FloatArray

DIAL_STEPS = (0.1, 0.3, 1.0, 3.0, 10.0)
LEAST_PAIRS = 100  # below it a member borrows the pooled figure
LEAST_CELL = 5  # prompts a region must have for its mean to tell anything


def choose_shrinkage(
    reward_hat: FloatArray, tokens_hat: FloatArray, table: OutcomeTable, grid: Sequence[Shrinkage]
) -> int:
    """Index into ``grid`` of the penalties to use; ``reward_hat`` (n_shrinkages, n_prompts, n_members).

    ``own`` by the mean utility of the decisions over five dials, ``shared`` (which no decision
    depends on) by squared error.
    """
    cost_hat = _typical_cost(table, tokens_hat)
    first = {s.own: k for k, s in reversed(list(enumerate(grid)))}
    own = max(
        sorted(first, reverse=True),  # of equal ones the strongest
        key=lambda own: _mean_utility(reward_hat[first[own]], cost_hat, table),
    )
    return min(
        (k for k, s in enumerate(grid) if s.own == own),
        key=lambda k: float(np.nanmean((reward_hat[k] - table.reward) ** 2)),
    )


def dials(reward: FloatArray, cost_usd: FloatArray) -> list[float]:
    """Five dials in USD per unit of reward, by formula: DIAL_STEPS x (dearest - cheapest mean USD) /
    (best - worst mean reward) of the members; ``inf`` alone where costs are unknown or all alike."""
    spread_usd = np.ptp(_column_means(cost_usd)) if np.isfinite(cost_usd).any() else 0.0
    spread_reward = np.ptp(_column_means(reward))
    if not spread_usd > 0 or not spread_reward > 0:
        return [float("inf")]
    return [float(step * spread_usd / spread_reward) for step in DIAL_STEPS]


def _column_means(values: FloatArray) -> FloatArray:
    known = np.isfinite(values)
    counts = known.sum(axis=0)
    means: FloatArray = np.where(known, values, 0.0).sum(axis=0)[counts > 0] / counts[counts > 0]
    return means


def _typical_cost(table: OutcomeTable, tokens_hat: FloatArray) -> FloatArray:
    """Each member's mean USD, scaled by how long this answer is expected to be; 0 where unknown."""
    known = np.isfinite(table.cost_usd)
    n_known = np.maximum(known.sum(axis=0), 1)
    mean_usd = np.where(known, table.cost_usd, 0.0).sum(axis=0) / n_known
    mean_tokens = np.where(known, tokens_hat, 0.0).sum(axis=0) / n_known
    usd: FloatArray = mean_usd * tokens_hat / np.maximum(mean_tokens, 1e-12)
    return usd


def _mean_utility(reward_hat: FloatArray, cost_hat: FloatArray, table: OutcomeTable) -> float:
    """Sum over the dials of the mean reward - USD / dial, each prompt going to its best observed member.

    A prompt with one observed member, as in a log, goes to the best of all: where that is the one observed
    it counts by its pair's weight (the self-normalized off-policy estimate), else not at all.
    """
    some = np.flatnonzero(table.observed.any(axis=1))
    alone = table.observed.sum(axis=1) == 1
    open_to = table.observed | alone[:, None]
    weight = pair_weight(table)
    total = 0.0
    for dial in dials(table.reward, table.cost_usd):
        value = np.nan_to_num(table.reward) - np.nan_to_num(table.cost_usd) / dial
        chosen = np.where(open_to, reward_hat - cost_hat / dial, -np.inf).argmax(axis=1)
        for rows, weights in ((some[~alone[some]], np.ones(weight.shape)), (some[alone[some]], weight)):
            got, counted = value[rows, chosen[rows]], weights[rows, chosen[rows]]
            total += len(rows) / len(some) * _mean(got, counted)
    return total


def _mean(values: FloatArray, weight: FloatArray) -> float:
    """Weighted; 0 where nothing counts."""
    return float((values * weight).sum() / max(float(weight.sum()), 1e-12))


def reward_line(reward_hat: FloatArray, table: OutcomeTable) -> tuple[float, FloatArray]:
    """``slope``, one for all members, and ``offset`` (n_members,): reward ~ offset + slope * predicted.

    One slope, since each member's own is mostly noise; an offset counts as if LEAST_PAIRS pairs more
    had said zero.
    """
    weight = pair_weight(table)
    count = np.maximum(weight.sum(axis=0), 1e-12)
    y = np.where(table.observed, table.reward, 0.0)
    mean_y, mean_hat = (weight * y).sum(axis=0) / count, (weight * reward_hat).sum(axis=0) / count
    centred_hat, centred_y = reward_hat - mean_hat, y - mean_y
    spread = float((weight * centred_hat**2).sum())
    slope = float((weight * centred_hat * centred_y).sum()) / spread if spread > 0 else 1.0
    slope = float(np.clip(slope, 0.0, 2.0))
    pairs = table.observed.sum(axis=0)
    middle = np.where(pairs > 0, mean_hat, 0.5)  # the line turns about the member's mean, so levels stay
    wanted = (mean_y - mean_hat) * pairs / (pairs + LEAST_PAIRS)
    return slope, middle * (1 - slope) + np.where(pairs > 0, wanted, 0.0)


def token_scale(log_tokens_hat: FloatArray, table: OutcomeTable) -> tuple[FloatArray, FloatArray]:
    """``log_mean`` and ``log_p95``, (n_members,) each: add them to a predicted log of tokens.

    The mean is Duan's smearing estimate (J. Am. Stat. Assoc. 78, 1983) as a ratio of sums; the 95 % point is
    the residuals' own. Members with under LEAST_PAIRS known answers borrow the pooled figures; where
    no answer's length is known the mean is taken as it is and the 95 % point as four times that.
    """
    n_members = log_tokens_hat.shape[1]
    known = np.isfinite(table.output_tokens)
    if not known.any():
        return np.zeros(n_members), np.full(n_members, np.log(4.0))
    residual = np.where(known, np.log1p(table.output_tokens) - log_tokens_hat, np.nan)
    tokens = np.where(known, table.output_tokens, 0.0)
    tokens_hat = np.where(known, np.exp(log_tokens_hat), 0.0)
    log_mean = np.full(n_members, _log_ratio(tokens.sum(), tokens_hat.sum()))
    log_p95 = np.full(n_members, np.nanquantile(residual, 0.95))
    for m in np.flatnonzero(known.sum(axis=0) >= LEAST_PAIRS):
        log_mean[m] = _log_ratio(tokens[:, m].sum(), tokens_hat[:, m].sum())
        log_p95[m] = np.nanquantile(residual[:, m], 0.95)
    return log_mean, np.maximum(log_p95, log_mean)


def _log_ratio(total: float, predicted: float) -> float:
    return float(np.log(max(total, 1.0) / max(predicted, 1.0)))


@dataclass(frozen=True)
class Doubt:
    """reward_std = prior_std / sqrt(1 + evidence / half): ``prior_std`` where nothing is known,
    and ``half`` the evidence at which the variance has halved."""

    prior_std: float
    half: float


@dataclass(frozen=True, eq=False)
class Cells:
    """Region x member cells: mean residual and its sampling variance, (n_cells,); and of the pairs in them
    the evidence and the cell, (n_pairs,)."""

    residual: FloatArray
    sampling: FloatArray
    evidence: FloatArray
    cell: npt.NDArray[np.int64]

    def doubt(self, half: float) -> FloatArray:
        """Mean of 1 / sqrt(1 + evidence / half) over the pairs of each cell, (n_cells,)."""
        return _cell_means(1 / np.sqrt(1 + self.evidence / half), self.cell)

    @property
    def noise(self) -> float:
        """Variance of one outcome about its expectation."""
        return float((self.sampling * np.bincount(self.cell)).mean())


def cells(
    reward_hat: FloatArray, evidence: FloatArray, region: npt.NDArray[np.int64], table: OutcomeTable
) -> Cells:
    """Average over all prompts of a region, per member, so that an error of the *expectation* shows."""
    row, member = np.nonzero(table.observed)
    code = region[row] * table.n_members + member
    _, cell, count = np.unique(code, return_inverse=True, return_counts=True)
    enough = (count >= LEAST_CELL)[cell]
    row, member = row[enough], member[enough]
    _, cell, count = np.unique(cell[enough], return_inverse=True, return_counts=True)
    residual = table.reward[row, member].astype(float) - np.clip(reward_hat[row, member], 0, 1)
    mean = _cell_means(residual, cell)
    spread = _cell_means((residual - mean[cell]) ** 2, cell)
    return Cells(mean, spread / np.maximum(count - 1, 1), evidence[row, member], cell)


def _cell_means(values: FloatArray, cell: npt.NDArray[np.int64]) -> FloatArray:
    return np.bincount(cell, values) / np.bincount(cell)


def reward_doubt(*parts: Cells) -> Doubt:
    """Maximum likelihood for Gaussian cell residuals of variance reward_std**2 + sampling variance.

    ``parts`` come from ordinary folds (much evidence) and from folds that leave regions out (little);
    each part counts the same. Errors are taken to be alike all over a cell, which errs on the wide side.
    """
    parts = tuple(part for part in parts if len(part.residual))
    noise = max((part.noise for part in parts), default=0.0)
    prior_std = np.geomspace(0.01, 0.5, 80)
    best, doubt = np.inf, Doubt(0.25, 1.0)
    for half in np.geomspace(0.01, 1e4, 61):
        loss = np.zeros(len(prior_std))
        for part in parts:
            variance = np.outer(prior_std, part.doubt(half)) ** 2 + part.sampling + 1e-9
            loss += (np.log(variance) + part.residual**2 / variance).mean(axis=1)
        loss[prior_std**2 * half > noise] = np.inf  # one outcome tells at least what its own noise leaves
        if loss.min() < best:
            best, doubt = float(loss.min()), Doubt(float(prior_std[loss.argmin()]), float(half))
    return doubt

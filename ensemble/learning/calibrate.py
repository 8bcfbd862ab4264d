"""Do the figures mean what they say? Everything here is learned from out-of-fold predictions.

``choose_shrinkage``   the penalties of least error, and more on what a choice hangs on
``choose_ballast``     how much company a prompt needs for what was learned to count
``reward_curve``       a curve per member that makes expected rewards agree with realized ones
``token_scale``        from the mean of logarithms to the mean of tokens, and to their 95 % point

How far off they may be nevertheless is the question of doubt.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ensemble.learning.fit import Shrinkage, pair_weight
from ensemble.learning.tables import OutcomeTable
from ensemble.records import FloatArray

CAUTION = 2.0  # times the penalty of least error: set on the tables at hand, see choose_shrinkage
LEAST_PAIRS = 100  # below it a member borrows the pooled figure
BALLASTS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # prompts; never none: far off, nothing is known
STRANGE = 0.1  # share of prompts to come that are expected to be unlike all that was learned from
EDGE = 0.02  # a straight fit knows no bounds; what it says nearer to 0 or 1 is not to be told apart
CURVE_PAIRS = 3000  # a choice between near equals hangs on their curves: they are parted late
NEWTON_STEPS, RIDGE = 20, 1.0


def choose_shrinkage(reward_hat: FloatArray, table: OutcomeTable, grid: Sequence[Shrinkage]) -> int:
    """Index into ``grid`` of the penalties to use; ``reward_hat`` (n_shrinkages, n_prompts, n_members).

    Those of least squared error, but CAUTION times the penalty on the members' own differences: who takes the
    greatest of several noisy expectations takes what noise favours, and an error that is counted member by
    member doesn't show it. On the tables at hand decisions were best at two to three times.
    """
    cautious = [Shrinkage(s.shared, CAUTION * s.own) for s in grid]
    open_to = [k for k, shrinkage in enumerate(cautious) if shrinkage in grid]
    return grid.index(cautious[min(open_to, key=lambda k: _squared_error(reward_hat[k], table))])


def _squared_error(reward_hat: FloatArray, table: OutcomeTable) -> float:
    """Sum over the observed pairs, each by its weight."""
    return float((pair_weight(table) * np.nan_to_num(reward_hat - table.reward) ** 2).sum())


def choose_ballast(
    near: Callable[[float], FloatArray], far: Callable[[float], FloatArray], table: OutcomeTable
) -> float:
    """Of BALLASTS the one under which expected rewards err least, in squares.

    ``near`` and ``far`` give the expected rewards (n_prompts, n_members) under a ballast: out of ordinary
    folds, and out of folds that leave whole kinds of prompts out, which count for STRANGE of the whole.
    """

    def error(ballast: float) -> float:
        usual, strange = (_squared_error(part(ballast), table) for part in (near, far))
        return (1 - STRANGE) * usual + STRANGE * strange

    return min(BALLASTS, key=error)


@dataclass(frozen=True, eq=False)
class Curve:
    """reward = sigmoid(offset + rise * log(raw) - fall * log(1 - raw)), raw kept EDGE away from 0 and 1.

    Beta calibration (Kull, Silva Filho, Flach 2017): with rise = fall it is Platt's, with both 1 and no
    offset the identity. All (n_members,), rise and fall at least 0, so that no curve ever turns down.
    """

    offset: FloatArray
    rise: FloatArray
    fall: FloatArray

    def __call__(self, raw: FloatArray) -> FloatArray:
        """(n_prompts, n_members) -> the same shape, in (0, 1)."""
        one, rise, fall = _terms(raw)
        bent: FloatArray = 1 / (1 + np.exp(-(one * self.offset + rise * self.rise + fall * self.fall)))
        return bent


def _terms(raw: FloatArray) -> FloatArray:
    """What offset, rise and fall are multiplied with, (3, *shape of raw). A straight fit may leave [0, 1]."""
    kept = np.clip(raw, EDGE, 1 - EDGE)
    return np.stack([np.ones_like(kept), np.log(kept), -np.log1p(-kept)])


def reward_curve(raw: FloatArray, table: OutcomeTable) -> Curve:
    """The curve per member that makes its expected rewards agree with the realized ones.

    A member's own is fitted as if CURVE_PAIRS pairs more had followed the curve of all members together.
    """
    weight = pair_weight(table)
    x, y = _terms(raw), np.where(table.observed, table.reward, 0.0)
    pairs = table.observed.sum(axis=0)
    weight = weight * pairs / np.maximum(weight.sum(axis=0), 1e-12)  # a member's pairs count one on average
    straight, free = np.array([0.0, 1.0, 1.0]), RIDGE * np.eye(3)
    pooled, information = _logistic(x.reshape(3, -1), y.ravel(), weight.ravel(), straight, free)
    shrinking = free + CURVE_PAIRS * information / max(int(pairs.sum()), 1)
    own = [_logistic(x[:, :, m], y[:, m], weight[:, m], pooled, shrinking)[0] for m in range(table.n_members)]
    return Curve(*np.array(own).T)


def _logistic(
    x: FloatArray, y: FloatArray, weight: FloatArray, start: FloatArray, shrinking: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Coefficients (3,) of ``x`` (3, n), all but the first at least 0; and the pairs' information (3, 3).

    The quadratic ``shrinking`` (3, 3) draws them to ``start``. By projected Newton steps (Bertsekas, SIAM J.
    Control Optim. 20, 1982): what stands at 0 and would go below is left out, too long a step is halved.
    """

    def loss(at: FloatArray) -> float:
        z, off = at @ x, at - start
        return float((weight * (np.logaddexp(0, z) - y * z)).sum() + off @ shrinking @ off / 2)

    at, information = start, np.zeros((3, 3))
    for _ in range(NEWTON_STEPS):
        p = 1 / (1 + np.exp(-(at @ x)))
        information = (x * (weight * p * (1 - p))) @ x.T
        gradient = x @ (weight * (y - p)) - shrinking @ (at - start)
        free = np.array([True, *((at > 0) | (gradient > 0))[1:]])
        step = np.zeros(3)
        step[free] = np.linalg.solve((information + shrinking)[np.ix_(free, free)], gradient[free])
        halved = [at + step / 2**k for k in range(12)]
        within = (np.array([to[0], *np.maximum(to[1:], 0.0)]) for to in halved)
        now = loss(at)
        better = next((to for to in within if loss(to) < now), None)
        if better is None:
            break
        at = better
    return at, information


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

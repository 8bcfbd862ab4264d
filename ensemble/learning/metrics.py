"""How good predictions are: the cost-quality curve and what is read off it; calibration; intervals.

Arrays are ``(n_prompts, n_members)``: ``reward`` in [0, 1] and ``cost`` in USD as observed, complete
(no NaN: leave out incomplete prompts first); ``reward_hat`` and ``cost_hat`` as predicted. A point of
a curve is (spend in USD per prompt, mean reward); points are ``(n_points, 2)``.
Curve, hull and AIQ follow RouterBench (Hu et al. 2024, arXiv 2403.12031, section 3).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Array = npt.NDArray[np.float64]

# Willingness to pay, USD per unit of reward: cheapest first (0), eight values per decade from 1e-8 to
# 1e4, reward first (inf). At 1e-8 no known price difference is worth a whole unit of reward; at 1e4 a
# thousandth of one outweighs a ten-dollar answer.
DIALS: Array = np.concatenate([[0.0], 10.0 ** (np.arange(-64, 33) / 8.0), [np.inf]])


def choose(reward_hat: Floats, cost_hat: Floats, dial: float) -> npt.NDArray[np.int64]:
    """The member of highest utility ``dial * reward_hat - cost_hat`` per prompt, ``(n_prompts,)``.

    An infinite dial means reward first, then cost. Equal utilities go to the cheaper, then to the first.
    """
    if np.isinf(dial):
        utility = np.asarray(reward_hat, np.float64)
    else:
        utility = dial * np.asarray(reward_hat, np.float64) - cost_hat
    best = utility == utility.max(axis=1, keepdims=True)
    return np.asarray(np.where(best, cost_hat, np.inf).argmin(axis=1), np.int64)


@dataclass(frozen=True, eq=False)
class Served:
    """What each prompt would have cost and earned at each dial, both ``(n_dials, n_prompts)``."""

    cost: Array
    reward: Array

    def points(self, weights: Array | None = None) -> Array:
        """The curve, ``(n_dials, 2)``; ``weights`` ``(n_prompts,)`` sum to 1, ``None`` for equal ones."""
        if weights is None:
            return np.stack([self.cost.mean(axis=1), self.reward.mean(axis=1)], axis=1)
        return np.stack([self.cost @ weights, self.reward @ weights], axis=1)


def serve(
    reward_hat: Floats, cost_hat: Floats, reward: Floats, cost: Floats, dials: npt.ArrayLike = DIALS
) -> Served:
    """Let :func:`choose` serve every prompt at every dial."""
    rows = np.arange(len(reward))
    chosen = [choose(reward_hat, cost_hat, float(dial)) for dial in np.asarray(dials, np.float64)]
    return Served(
        np.array([cost[rows, members] for members in chosen], np.float64),
        np.array([reward[rows, members] for members in chosen], np.float64),
    )


def cost_quality_curve(
    reward_hat: Floats, cost_hat: Floats, reward: Floats, cost: Floats, dials: npt.ArrayLike = DIALS
) -> Array:
    """One point per dial, in the dials' order: what :func:`choose` spends and earns, ``(n_dials, 2)``."""
    return serve(reward_hat, cost_hat, reward, cost, dials).points()


def single_points(reward: Floats, cost: Floats) -> Array:
    """One point per member: what calling it always spends and earns, ``(n_members, 2)``.

    Their :func:`hull` is the random mix of members (RouterBench's *Zero router*).
    """
    return np.stack([cost.mean(axis=0, dtype=np.float64), reward.mean(axis=0, dtype=np.float64)], axis=1)


def hull(points: npt.ArrayLike) -> Array:
    """The non-decreasing convex hull: corners by rising spend, reward rising and concave, ``(n, 2)``.

    Between two corners a random mix of both is on the line, so every point of the hull can be bought.
    It begins at the cheapest point and ends at the best one; to its right it is flat.
    """
    points = np.asarray(points, np.float64)
    corners: list[Array] = []
    for point in points[np.lexsort((-points[:, 1], points[:, 0]))]:
        if corners and point[1] <= corners[-1][1]:
            continue
        while len(corners) > 1 and _turns_up(corners[-2], corners[-1], point):
            corners.pop()
        corners.append(point)
    return np.array(corners)


def _turns_up(a: Array, b: Array, c: Array) -> bool:
    """Whether b lies on or under the line from a to c."""
    return bool((b[0] - a[0]) * (c[1] - a[1]) >= (c[0] - a[0]) * (b[1] - a[1]))


def reward_at(points: npt.ArrayLike, spend: npt.ArrayLike) -> Array:
    """The hull's reward at ``spend``; flat on both sides of it (left of it that is a favour)."""
    corners = hull(points)
    return np.asarray(np.interp(np.asarray(spend, np.float64), corners[:, 0], corners[:, 1]))


def aiq(
    points: npt.ArrayLike, spend_range: tuple[float, float], *, scale: Literal["linear", "log"] = "linear"
) -> float:
    """Average improvement in quality: the hull's mean reward over a range of spend, in [0, 1].

    ``1 / (high - low) * integral from low to high of hull(spend) d spend`` (RouterBench, equation of
    section 3.3). ``"log"`` integrates over the logarithm of spend, so that each doubling counts the
    same. Compare methods over one range: that of the single members, :func:`spend_range`. Right of the
    hull its best reward holds; left of it, where this method cannot go, its cheapest point's reward.
    NaN for ``"log"`` where a member is free; the reward at that spend where all cost the same.
    """
    low, high = spend_range
    corners = hull(points)
    if not low < high:
        return float(reward_at(corners, high))
    if scale == "log" and low <= 0:
        return float("nan")
    if scale == "linear":
        inner = corners[(corners[:, 0] > low) & (corners[:, 0] < high), 0]
        spend = np.concatenate([[low], inner, [high]])
        return float(np.trapezoid(reward_at(corners, spend), spend) / (high - low))
    spend = np.geomspace(low, high, 2001)
    return float(np.trapezoid(reward_at(corners, spend), np.log(spend)) / np.log(high / low))


def spend_range(reward: Floats, cost: Floats) -> tuple[float, float]:
    """From the cheapest to the dearest single member's spend, USD per prompt."""
    spend = single_points(reward, cost)[:, 0]
    return float(spend.min()), float(spend.max())


def best_single(reward: Floats, cost: Floats) -> int:
    """The member of the highest mean reward; the cheaper one where two are equal."""
    points = single_points(reward, cost)
    return int(np.lexsort((points[:, 0], -points[:, 1]))[0])


def gain(points: npt.ArrayLike, single: npt.ArrayLike) -> float:
    """The best reward the points reach, less the best single member's (``single``: its point).

    For the gain of reward first give the one point of the infinite dial: no choice is then made on
    the data that it is measured on, while the best of a whole curve is a little flattered.
    """
    return float(np.atleast_2d(points)[:, 1].max() - np.asarray(single)[1])


def saving(points: npt.ArrayLike, single: npt.ArrayLike) -> float:
    """The share of the best single member's spend that is saved at its reward, read off the hull.

    ``1 - spend(hull = reward of single) / spend of single``; negative where the hull reaches that
    reward only at a higher spend, NaN where it never does or the single member is free.
    """
    corners, (spend, reward) = hull(points), np.asarray(single, np.float64)
    if corners[-1, 1] < reward:
        return float("nan")
    needed = float(np.interp(reward, corners[:, 1], corners[:, 0]))
    return 1 - needed / float(spend) if spend > 0 else float("nan")


def brier(reward_hat: Floats, reward: Floats) -> float:
    """Mean squared error over the observed pairs (NaN in ``reward`` is left out), in [0, 1].

    For rewards of 0 and 1 this is the Brier score (Brier 1950).
    """
    return float(np.nanmean((np.asarray(reward_hat, np.float64) - reward) ** 2))


def calibration_error(reward_hat: Floats, reward: Floats, *, bins: int = 15) -> float:
    """Expected calibration error with bins of equal mass, over the observed pairs, in [0, 1].

    ``sum over bins of n_bin / n * |mean reward_hat - mean reward|`` (Naeini et al. 2015, with equal
    counts per bin instead of equal widths: Nguyen & O'Connor 2015). Bins are cut along the sorted
    predictions; equal ones share their mean reward, so that it doesn't matter where a cut parts them.
    """
    seen = ~np.isnan(reward)
    predicted, observed = np.asarray(reward_hat, np.float64)[seen], np.asarray(reward, np.float64)[seen]
    _, same = np.unique(predicted, return_inverse=True)
    observed = (np.bincount(same, observed) / np.bincount(same))[same]
    order = np.argsort(predicted, kind="stable")
    gaps = [abs((predicted[part] - observed[part]).sum()) for part in np.array_split(order, bins)]
    return float(sum(gaps) / len(order))


def bootstrap_interval(
    statistic: Callable[[Array], float],
    groups: npt.ArrayLike,
    *,
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of a statistic, resampling whole groups with replacement (Efron 1979).

    ``statistic`` takes one weight per prompt, ``(n_prompts,)`` summing to 1 (``Served.points`` does
    too). Prompts of a group vary together, so groups are drawn, not prompts. For two methods give the
    difference as one statistic: the same draw serves both, and what they share cancels.
    """
    _, group, size = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(draws):
        times = np.bincount(generator.integers(len(size), size=len(size)), minlength=len(size))
        weights = times[group].astype(np.float64)
        values.append(statistic(weights / weights.sum()))
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)

"""How good were the forecasts? From what each method forecast to figures with intervals.

Every figure is a function of means over the test prompts: of what was earned and spent at each dial. A
bootstrap draw is a set of weights for these means, the same one for every method; so methods are compared
draw by draw, and what they share cancels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from benchmarks.marks import BEST_SINGLE, QUERY_ORACLE, RANDOM_MIX
from benchmarks.protocol import Index, Problem
from benchmarks.rounds import Run
from ensemble.learning import metrics
from ensemble.learning.metrics import Array

DRAWS = 1000
DIAL_STEPS = (0.1, 0.3, 1.0, 3.0, 10.0)
BLOCK = 100  # draws at once: bounds the memory of the weights
KEPT = {"100": 1.0, "99": 0.99}  # share of the best single member's reward that CostSave must keep
COMPARED = ("aiq", "aiq_log", "mean_utility")

Interval = list[float] | None  # value, low and high end of its 95 % interval


def dials(problem: Problem) -> Array:
    """The dials at which utility is taken, (5,), USD per unit of reward: DIAL_STEPS x (dearest - cheapest
    mean USD) / (best - worst mean reward) of the members; (1,) infinite where either are all alike."""
    usd, reward = (np.ptp(values.mean(axis=0, dtype=np.float64)) for values in (problem.cost, problem.reward))
    return np.array(DIAL_STEPS) * (usd / reward) if usd > 0 and reward > 0 else np.array([np.inf])


@dataclass(frozen=True, eq=False)
class Earned:
    """What one method earned and spent on every test prompt: columns of an array (n_prompts, n_columns), of
    which only means are ever wanted.

    First the rewards at the ``n_points`` dials that serve differently, then the USD there; then the utility
    at the problem's ``n_dials``; then for every entry of KEPT reward and USD at the dials chosen for it.
    """

    columns: Array
    n_points: int
    n_dials: int

    @classmethod
    def of(cls, run: Run, problem: Problem, single: Run) -> Earned:
        forecast, reward, cost = run.pooled(problem), problem.reward, problem.cost
        curve = metrics.serve(forecast.reward, forecast.cost, reward, cost)
        changes = np.any((np.diff(curve.reward, axis=0) != 0) | (np.diff(curve.cost, axis=0) != 0), axis=1)
        last = np.append(changes, True)  # of the dials that serve alike, so reward first stays at the end
        five = dials(problem)
        at_five = metrics.serve(forecast.reward, forecast.cost, reward, cost, five)
        columns = [curve.reward[last], curve.cost[last], at_five.reward - at_five.cost / five[:, None]]
        columns += [_at_dials(run, chosen, problem) for chosen in _frugal_dials(run, problem, single)]
        return cls(np.ascontiguousarray(np.concatenate(columns).T), int(last.sum()), len(five))


def frugal_dial(points: Array, target: float) -> float:
    """The dial that spends least among those that earn ``target``; the one that earns most where none does.
    ``points`` (n_dials, 2) are (USD, reward) at each of metrics.DIALS."""
    spend, earned = points.T
    enough = earned >= target - 1e-12  # the same members give the same mean only up to rounding
    best = np.where(enough, spend, np.inf).argmin() if enough.any() else earned.argmax()
    return float(metrics.DIALS[best])


def _frugal_dials(run: Run, problem: Problem, single: Run) -> list[list[float]]:
    """Of every entry of KEPT each fold's dial, chosen on its validation part."""
    chosen = []
    for mine, best, fold in zip(run.rounds, single.rounds, problem.folds, strict=True):
        happened = problem.reward[fold.validation], problem.cost[fold.validation]
        points = metrics.cost_quality_curve(mine.validation.reward, mine.validation.cost, *happened)
        [(_, reward)] = metrics.cost_quality_curve(
            best.validation.reward, best.validation.cost, *happened, [np.inf]
        )
        chosen.append([frugal_dial(points, share * reward) for share in KEPT.values()])
    return [list(of_folds) for of_folds in zip(*chosen, strict=True)]


def _at_dials(run: Run, chosen: Sequence[float], problem: Problem) -> Array:
    """Reward and USD of every prompt at its own fold's dial, (2, n_prompts)."""
    got = np.empty((2, problem.table.n_prompts))
    for round_, fold, dial in zip(run.rounds, problem.folds, chosen, strict=True):
        test = round_.test
        served = metrics.serve(
            test.reward, test.cost, problem.reward[fold.test], problem.cost[fold.test], [dial]
        )
        got[:, fold.test] = served.reward[0], served.cost[0]
    return got


def weights(groups: Index, draws: int, seed: int) -> Iterator[Array]:
    """Blocks of weights (<= BLOCK, n_prompts), each row summing to 1: first one row of equal weights, then
    ``draws`` rows for which whole ``groups`` are drawn with replacement, as ``bootstrap_interval`` does."""
    _, group, size = np.unique(groups, return_inverse=True, return_counts=True)
    n = len(size)
    yield np.full((1, len(group)), 1 / len(group))
    generator = np.random.default_rng(seed)
    for start in range(0, draws, BLOCK):
        times = [
            np.bincount(generator.integers(n, size=n), minlength=n) for _ in range(min(BLOCK, draws - start))
        ]
        drawn = np.array(times, np.float64)[:, group]
        yield drawn / drawn.sum(axis=1, keepdims=True)


@dataclass(frozen=True, eq=False)
class Sampled:
    """One method's figures: on the data as they are at index 0, then once per draw; all (1 + draws,) but
    ``utility`` (1 + draws, n_dials).

    ``aiq`` and ``aiq_log`` are NaN for a method that serves alike at every dial, as the best single member
    does: left of its one point it would be credited with a reward that cannot be bought there.
    """

    aiq: Array
    aiq_log: Array
    utility: Array
    reward_first: Array
    saver: Mapping[str, tuple[Array, Array]]  # by KEPT: reward, USD
    curve: Array  # (n_corners, 2) of the hull, on the data as they are

    @property
    def mean_utility(self) -> Array:
        return np.asarray(self.utility.mean(axis=1))

    @classmethod
    def of(cls, earned: Earned, means: Array, spend: tuple[float, float]) -> Sampled:
        """``means`` (1 + draws, n_columns) are the weighted means of the columns of ``earned``."""
        ends = np.cumsum([earned.n_points, earned.n_points, earned.n_dials])
        reward, cost, utility, saver = np.split(means, ends, axis=1)
        hulls = [metrics.hull(points) for points in np.stack([cost, reward], axis=2)]

        def aiq(scale: Literal["linear", "log"]) -> Array:
            if earned.n_points == 1:
                return np.full(len(hulls), np.nan)
            return np.array([metrics.aiq(corners, spend, scale=scale) for corners in hulls])

        return cls(
            aiq=aiq("linear"),
            aiq_log=aiq("log"),
            utility=utility,
            reward_first=reward[:, -1],
            saver={name: (saver[:, 2 * i], saver[:, 2 * i + 1]) for i, name in enumerate(KEPT)},
            curve=hulls[0],
        )


def sample(problem: Problem, runs: Sequence[Run], *, draws: int = DRAWS, seed: int = 0) -> dict[str, Sampled]:
    """Every run's figures, by name, under the same draws. The best single member must be among them."""
    single = next(run for run in runs if run.name == BEST_SINGLE)
    earned = {run.name: Earned.of(run, problem, single) for run in runs}
    means: dict[str, list[Array]] = {name: [] for name in earned}
    for block in weights(problem.groups, draws, seed):
        for name, mine in earned.items():
            means[name].append(block @ mine.columns)
    spend = metrics.spend_range(problem.reward, problem.cost)
    return {name: Sampled.of(mine, np.concatenate(means[name]), spend) for name, mine in earned.items()}


def interval(values: Array) -> Interval:
    """Value and 95 % percentile interval of a figure of :class:`Sampled`; ``None`` where it is undefined."""
    drawn = values[1:][np.isfinite(values[1:])]
    if not np.isfinite(values[0]) or not len(drawn):
        return None
    low, high = np.quantile(drawn, [0.025, 0.975])
    return [float(values[0]), float(low), float(high)]


def best_baseline(runs: Sequence[Run], sampled: Mapping[str, Sampled], figure: str) -> str:
    """The name of the highest figure among baselines, the two marks that anybody can have included; picked on
    the test itself, in its favour."""
    names = [r.name for r in runs if r.kind in ("tuned", "published") or r.name in (BEST_SINGLE, RANDOM_MIX)]
    return max(names, key=lambda name: np.nan_to_num(getattr(sampled[name], figure)[0], nan=-np.inf))


def figures(
    problem: Problem, runs: Sequence[Run], sampled: Mapping[str, Sampled], best: Mapping[str, str]
) -> list[dict[str, Any]]:
    """One entry per method; ``best`` names the best baseline by each of COMPARED."""
    return [_figures(problem, run, sampled, best) for run in runs]


def _figures(
    problem: Problem, run: Run, sampled: Mapping[str, Sampled], best: Mapping[str, str]
) -> dict[str, Any]:
    mine, single, oracle = sampled[run.name], sampled[BEST_SINGLE], sampled[QUERY_ORACLE]
    gain, room = mine.reward_first - single.reward_first, oracle.reward_first - single.reward_first
    forecast = run.pooled(problem)
    with np.errstate(divide="ignore", invalid="ignore"):
        perf_gain, gap_closed = interval(gain / single.reward_first), interval(gain / room)
    return {
        "name": run.name,
        "kind": run.kind,
        "settings": [round_.setting for round_ in run.rounds],
        "aiq": interval(mine.aiq),
        "aiq_log": interval(mine.aiq_log),
        "utility": [interval(column) for column in mine.utility.T],
        "utility_over_single": [interval(column) for column in (mine.utility - single.utility).T],
        "mean_utility": interval(mine.mean_utility),
        **{
            f"{figure}_over_best": None
            if best[figure] == run.name
            else interval(getattr(mine, figure) - getattr(sampled[best[figure]], figure))
            for figure in COMPARED
        },
        "perf_gain": perf_gain,
        "gap_closed": gap_closed,
        "cost_save": {name: _saved(mine.saver[name], single.saver[name]) for name in KEPT},
        "brier": metrics.brier(forecast.reward, problem.reward) if forecast.is_probability else None,
        "seconds": float(np.mean([round_.seconds for round_ in run.rounds])),
        "curve": [[float(spend) * 1000, float(reward)] for spend, reward in mine.curve],
    }


def _saved(mine: tuple[Array, Array], single: tuple[Array, Array]) -> dict[str, Interval]:
    with np.errstate(divide="ignore", invalid="ignore"):
        cost_saved = interval(1 - mine[1] / single[1])
    return {"reward_difference": interval(mine[0] - single[0]), "cost_saved": cost_saved}


def control_figures(
    problem: Problem,
    runs: Sequence[Run],
    sampled: Mapping[str, Sampled],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """What each method gains where there is nothing to learn: over the best single member with reward first,
    and of AIQ over the random mix; ``draws`` and ``seed`` are those of ``sampled``.

    Both marks are those of these very prompts. The member that a fold learned to be the best is on average
    worse than that in its test part, and chance alone would beat it.
    """
    blocks = list(weights(problem.groups, draws, seed))
    reward, cost = (
        np.concatenate([block @ cells for block in blocks]) for cells in (problem.reward, problem.cost)
    )
    spend = metrics.spend_range(problem.reward, problem.cost)
    mix = np.array([metrics.aiq(points, spend) for points in np.stack([cost, reward], axis=2)])
    single = reward[:, metrics.best_single(problem.reward, problem.cost)]
    return [
        {
            "name": run.name,
            "gain": interval(sampled[run.name].reward_first - single),
            "aiq_over_mix": interval(sampled[run.name].aiq - mix),
        }
        for run in runs
        if run.kind != "mark"
    ]

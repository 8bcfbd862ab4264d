"""Predictions against a held-out part of an outcome table: one report, for eyes and for machines."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ensemble.errors import InputError, TableError
from ensemble.learning import metrics
from ensemble.learning.tables import OutcomeTable

if TYPE_CHECKING:
    from rich.console import Console

Floats = npt.NDArray[np.floating[Any]]
# Willingness to pay, USD per unit of reward, at which the dial table is printed.
TABLE_DIALS = (0.0, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, math.inf)


@dataclass(frozen=True)
class Score:
    """What one method reached. ``None``: it doesn't exist for it.

    ``aiq`` and ``aiq_log`` over linear and logarithmic spend; ``gain`` over the best single member with
    reward first, ``best_gain`` anywhere on the curve; ``saving`` of the best single member's spend at its
    reward; ``brier`` and ``calibration_error`` of the predicted rewards. ``aiq_behind`` is the 95 %
    interval of the first method's AIQ less this one's. ``curve`` holds the hull's corners as
    (USD per 1,000 prompts, reward).
    """

    method: str
    aiq: float
    aiq_log: float | None
    gain: float
    best_gain: float
    saving: float | None
    brier: float | None
    calibration_error: float | None
    aiq_behind: tuple[float, float] | None
    curve: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class DialRow:
    """One setting of the dial: what the first method then spends, earns, and whom it asks.

    ``cost_ratio`` is its spend over the best single member's, ``None`` where that is free; ``shares`` of
    the prompts sum to 1.
    """

    willingness_to_pay_usd: float
    usd_per_1000: float
    reward: float
    cost_ratio: float | None
    shares: dict[str, float]


@dataclass(frozen=True)
class Report:
    """All figures are of the ``n_prompts`` on which every member was observed."""

    members: tuple[str, ...]
    n_prompts: int
    n_left_out: int  # a member's reward or cost is missing there
    best_single: str
    best_single_reward: float
    best_single_usd_per_1000: float
    spend_range_usd_per_1000: tuple[float, float]  # over which AIQ is the mean
    scores: tuple[Score, ...]
    dials: tuple[DialRow, ...]  # of the first method

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types; an infinite dial is ``"inf"``."""
        plain = dataclasses.asdict(self)
        for row in plain["dials"]:
            if math.isinf(row["willingness_to_pay_usd"]):
                row["willingness_to_pay_usd"] = "inf"
        listed: dict[str, Any] = _listed(plain)
        return listed


def evaluate(
    predictors: Mapping[str, tuple[Floats, Floats]],
    table: OutcomeTable,
    *,
    groups: npt.ArrayLike | None = None,
    dials: Sequence[float] = TABLE_DIALS,
    draws: int = 400,
    seed: int = 0,
) -> Report:
    """Compare methods on a held-out part; the first one is ours: its dial table is made.

    ``predictors`` maps a method's name to its (reward, cost in USD), both ``(n_prompts, n_members)`` in
    the table's order. Added to them: the best single member (the best *on this part*, which flatters it),
    with the cheapest mixed in for less spend; the random mix of members; the query oracle, which knows every
    answer. A prompt with any reward or cost missing is left out and counted: filling it in would reward who
    guesses the filling. With ``groups`` ``(n_prompts,)`` of near-duplicates, ``draws`` bootstraps give each
    method's AIQ difference to the first an interval.

    :raises TableError: no prompt has all members observed.
    :raises InputError: predictions of the wrong shape, or not finite.
    """
    complete = np.asarray(~np.isnan(table.reward + table.cost_usd).any(axis=1))
    _check(predictors, table, complete)
    part = table.subset(complete)
    reward, cost = part.reward.astype(np.float64), part.cost_usd.astype(np.float64)
    single = metrics.best_single(reward, cost)
    rulers = _Ruler(
        metrics.single_points(reward, cost)[single],
        metrics.spend_range(reward, cost),
        None if groups is None else np.asarray(groups)[complete],
        draws,
        seed,
    )
    hats = {name: (r[complete], c[complete]) for name, (r, c) in predictors.items()}
    served = {name: metrics.serve(r, c, reward, cost) for name, (r, c) in hats.items()}
    first = next(iter(hats))
    scores = [rulers.score(name, served[name], served[first], hats[name][0], reward) for name in hats]
    for name, reference in _references(reward, cost, single).items():
        scores.append(rulers.score(name, reference, served[first], None, reward))
    return Report(
        members=part.members,
        n_prompts=part.n_prompts,
        n_left_out=table.n_prompts - part.n_prompts,
        best_single=part.members[single],
        best_single_reward=float(rulers.single[1]),
        best_single_usd_per_1000=float(rulers.single[0]) * 1000,
        spend_range_usd_per_1000=(rulers.spend_range[0] * 1000, rulers.spend_range[1] * 1000),
        scores=tuple(scores),
        dials=tuple(_dial_row(float(d), hats[first], part, float(rulers.single[0])) for d in dials),
    )


def _check(
    predictors: Mapping[str, tuple[Floats, Floats]], table: OutcomeTable, complete: npt.NDArray[np.bool_]
) -> None:
    if not complete.any():
        lacking = np.isnan(table.reward).sum(axis=0) + np.isnan(table.cost_usd).sum(axis=0)
        worst = ", ".join(table.members[j] for j in np.argsort(-lacking)[:3])
        raise TableError(
            f"none of {table.n_prompts} prompts has a reward and a cost for all {table.n_members} members, "
            f"so they cannot be compared; leave out those that lack most ({worst}): with_members(...)"
        )
    if not predictors:
        raise InputError("expected the predictions of at least one method, found none")
    expected = (table.n_prompts, table.n_members)
    for name, (reward_hat, cost_hat) in predictors.items():
        if reward_hat.shape != expected or cost_hat.shape != expected:
            raise InputError(
                f"predictions of {name!r}: expected reward and cost of shape {expected} (prompts, members), "
                f"found {reward_hat.shape} and {cost_hat.shape}"
            )
        if not (np.isfinite(reward_hat).all() and np.isfinite(cost_hat).all()):
            raise InputError(f"predictions of {name!r} are not all finite: every member needs both")


def _references(reward: metrics.Array, cost: metrics.Array, single: int) -> dict[str, metrics.Served]:
    """The marks on the scale: one member for all, members at random, and perfect foresight."""
    rising = np.argsort(reward.mean(axis=0), kind="stable")  # the last point is reward first, as on a curve
    rising = np.append(rising[rising != single], single)
    alone = [cost.mean(axis=0).argmin(), single]  # who wants to spend less mixes it with the cheapest
    return {
        "best single": metrics.Served(cost[:, alone].T, reward[:, alone].T),
        "random mix": metrics.Served(cost[:, rising].T, reward[:, rising].T),
        "query oracle": metrics.serve(reward, cost, reward, cost),
    }


def _dial_row(dial: float, hats: tuple[Floats, Floats], part: OutcomeTable, single_usd: float) -> DialRow:
    chosen = metrics.choose(*hats, dial)
    rows = np.arange(part.n_prompts)
    spend = float(part.cost_usd[rows, chosen].mean(dtype=np.float64))
    counts = np.bincount(chosen, minlength=part.n_members)
    return DialRow(
        willingness_to_pay_usd=dial,
        usd_per_1000=spend * 1000,
        reward=float(part.reward[rows, chosen].mean(dtype=np.float64)),
        cost_ratio=spend / single_usd if single_usd else None,
        shares={name: float(n / part.n_prompts) for name, n in zip(part.members, counts, strict=True)},
    )


@dataclass(frozen=True, eq=False)
class _Ruler:
    """What all methods of a report are measured by."""

    single: metrics.Array  # the best single member's point
    spend_range: tuple[float, float]
    groups: npt.NDArray[Any] | None
    draws: int
    seed: int

    def score(
        self,
        name: str,
        served: metrics.Served,
        first: metrics.Served,
        reward_hat: Floats | None,
        reward: Floats,
    ) -> Score:
        points = served.points()
        log = metrics.aiq(points, self.spend_range, scale="log")
        saved = metrics.saving(points, self.single)
        behind = None
        if self.groups is not None and served is not first:
            behind = metrics.bootstrap_interval(
                lambda w: self._aiq(first, w) - self._aiq(served, w),
                self.groups,
                draws=self.draws,
                seed=self.seed,
            )
        return Score(
            method=name,
            aiq=metrics.aiq(points, self.spend_range),
            aiq_log=None if math.isnan(log) else log,
            gain=metrics.gain(points[-1], self.single),
            best_gain=metrics.gain(points, self.single),
            saving=None if math.isnan(saved) else saved,
            brier=None if reward_hat is None else metrics.brier(reward_hat, reward),
            calibration_error=None if reward_hat is None else metrics.calibration_error(reward_hat, reward),
            aiq_behind=behind,
            curve=tuple((float(spend) * 1000, float(r)) for spend, r in metrics.hull(points)),
        )

    def _aiq(self, served: metrics.Served, weights: metrics.Array) -> float:
        return metrics.aiq(served.points(weights), self.spend_range)


def print_report(report: Report, console: Console | None = None) -> None:
    """The report as two tables: the methods, and the first method's dial."""
    from ensemble.show import console as wide_console

    console = console or wide_console()
    low, high = report.spend_range_usd_per_1000
    console.print(
        f"{report.n_prompts:,} prompts, {len(report.members)} members"
        + (
            f"; {report.n_left_out:,} prompts left out: a member is missing there"
            if report.n_left_out
            else ""
        )
        + f"\nbest single member: {report.best_single}, reward {report.best_single_reward:.3f}, "
        f"{report.best_single_usd_per_1000:.4g} USD per 1,000 prompts; "
        f"AIQ: mean reward over {low:.4g} to {high:.4g} USD per 1,000"
    )
    console.print(_score_table(report.scores))
    console.print(_dial_table(report))


def _score_table(scores: Sequence[Score]) -> Any:
    from rich.table import Table

    table = Table(title="methods")
    table.add_column("method")
    with_interval = any(score.aiq_behind for score in scores)
    heads = ["AIQ", "AIQ, log spend", "gain", "best gain", "saving", "Brier", "calibration error"]
    for head in heads + [f"AIQ behind {scores[0].method}, 95 %"] * with_interval:
        table.add_column(head, justify="right")
    for s in scores:
        cells = [f"{s.aiq:.4f}", _number(s.aiq_log, ".4f"), f"{s.gain:+.4f}", f"{s.best_gain:+.4f}"]
        cells += [_number(s.saving, ".0%"), _number(s.brier, ".4f"), _number(s.calibration_error, ".4f")]
        behind = "-" if s.aiq_behind is None else f"{s.aiq_behind[0]:+.4f} to {s.aiq_behind[1]:+.4f}"
        table.add_row(s.method, *cells, *[behind] * with_interval)
    return table


def _dial_table(report: Report) -> Any:
    from rich.table import Table

    table = Table(title=f"{report.scores[0].method}: the dial")
    for head in ("willingness to pay, USD", "USD per 1,000", "reward", "cost against best single"):
        table.add_column(head, justify="right")
    table.add_column("asked most")
    for row in report.dials:
        top = sorted(row.shares.items(), key=lambda item: -item[1])[:3]
        table.add_row(
            "reward first" if math.isinf(row.willingness_to_pay_usd) else f"{row.willingness_to_pay_usd:g}",
            f"{row.usd_per_1000:.4g}",
            f"{row.reward:.4f}",
            _number(row.cost_ratio, ".1%"),
            ", ".join(f"{name} {share:.0%}" for name, share in top if share),
        )
    return table


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _listed(value: Any) -> Any:
    """Tuples as lists, as JSON has them."""
    if isinstance(value, dict):
        return {key: _listed(inner) for key, inner in value.items()}
    return [_listed(inner) for inner in value] if isinstance(value, list | tuple) else value

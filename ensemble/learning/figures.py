"""How good is a head on prompts it never saw, beside what else could be done with the same rows?

Used twice: at the end of a training run, for the manifest, and by ``ensemble evaluate``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ensemble.errors import TableError
from ensemble.head import Head
from ensemble.learning.baselines import Method, Part, aiq_on, dataset_oracle, fit_all
from ensemble.learning.evaluate import Report, evaluate
from ensemble.learning.prices import implied_prices
from ensemble.learning.split import split
from ensemble.learning.tables import OutcomeTable
from ensemble.records import FloatArray

OURS = "ours"
LEAST_MEASURED = 20  # prompts held out, below which a figure says nothing
OFTEN = 0.8  # share of a source's prompts
LEAST_LEARNED = 100  # rows with every member, below which no other method is fitted beside ours
Index = npt.NDArray[np.int64]


def compare(
    head: Head,
    features: FloatArray,
    table: OutcomeTable,
    groups: Index,
    *,
    learned: Index,
    held_out: Index,
    judged: Index | None = None,
    seed: int = 0,
    draws: int = 400,
) -> Report:
    """Ours and the baselines on ``held_out``; the baselines learn from ``learned``, the rows ours learned
    from, or from those alone that lack no member. Which of the two, and their settings, is chosen on
    ``judged``, those rows that the encoder was not tuned on, or on an eighth drawn by ``seed``. Members of
    the table that the head lacks are left out; where a source tells no cost at all, every answer in it counts
    as free.
    """
    known = [name for name in table.members if name in head.members]
    if len(known) < 2:
        raise TableError(
            f"expected at least two of the router's members ({', '.join(head.members)}) in the table, "
            f"found {len(known)}. Evaluate on a table of the same members, or train on this one."
        )
    table = _priced(table.with_members(known))
    part, seen = table.subset(held_out), table.subset(learned)
    prediction = head.predict(features[held_out])
    columns = [head.members.index(name) for name in known]
    told = np.isfinite(seen.cost_usd).sum(axis=0).min() >= LEAST_MEASURED
    prices = implied_prices(seen if told else part)  # whose price few learned rows tell would count as free
    characters = np.array([len(prompt) for prompt in part.prompts], float)
    predictors = {
        OURS: (
            prediction.reward[:, columns],
            prices.cost_usd(characters, prediction.output_tokens[:, columns]),
        )
    }
    complete = seen.observed.all(axis=1) & np.isfinite(seen.cost_usd).all(axis=1)
    if complete.sum() >= LEAST_LEARNED:
        if judged is None:
            cut = split(groups[learned], fractions=(0.875, 0.125, 0.0), seed=seed)
            judged = learned[cut.validation]
        predictors |= _baselines(features, table, learned, learned[complete], judged, held_out, seed)
    return evaluate(predictors, part, groups=groups[held_out], seed=seed, draws=draws)


def _baselines(
    features: FloatArray,
    table: OutcomeTable,
    learned: Index,
    complete: Index,
    judged: Index,
    held_out: Index,
    seed: int,
) -> Mapping[str, tuple[FloatArray, FloatArray]]:
    """More rows help, but where members lack on hard prompts they make a plain mean wrong."""

    def part(rows: Index) -> Part:
        return Part(features[rows], table.reward[rows], table.cost_usd[rows])

    judges = part(np.intersect1d(learned, judged))
    tried: dict[str, list[tuple[float, Method, Part]]] = {}
    for rows in [learned] if len(complete) == len(learned) else [learned, complete]:
        for name, (method, fitted) in fit_all(part(np.setdiff1d(rows, judged)), judges, seed=seed).items():
            tried.setdefault(name, []).append((aiq_on(judges, fitted), method, part(rows)))
    found = {}
    for name, ways in tried.items():
        _, method, best = max(ways, key=lambda way: way[0])
        found[name] = method.fit(best.features, best.reward, best.cost, seed=seed).predict(features[held_out])
    every = part(learned)
    if all(task is not None for task in table.tasks):
        tasks = table.labels
        found["dataset oracle"] = dataset_oracle(
            [tasks[i] for i in learned], every.reward, every.cost, [tasks[i] for i in held_out]
        )
    return found


def measure(
    head: Head,
    features: FloatArray,
    table: OutcomeTable,
    groups: Index,
    *,
    learned: Index,
    held_out: Index,
    judged: Index | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """The manifest's figures: per source table, the comparison on the prompts held out of it; rows as in
    ``compare``. The baselines learn from that source alone, ours learned from all.

    A source's members are those seen on most of its prompts: rarer ones would empty the comparison. Sources
    with fewer than two of them, or fewer than LEAST_MEASURED prompts that all of them answered, are left out.
    """
    figures = {}
    table, source = _priced(table), np.array(table.source)
    for name in dict.fromkeys(table.source):
        here = table.subset(held_out[source[held_out] == name])
        usable = here.observed & np.isfinite(here.cost_usd)
        often = usable.sum(axis=0) > OFTEN * here.n_prompts
        members = [m for m, seen in zip(table.members, often, strict=True) if seen]
        if len(members) < 2 or usable[:, often].all(axis=1).sum() < LEAST_MEASURED:
            continue
        report = compare(
            head,
            features,
            table.with_members(members),
            groups,
            learned=learned[source[learned] == name],
            held_out=held_out[source[held_out] == name],
            judged=judged,
            seed=seed,
            draws=100,
        )
        figures[name] = _short(report)
    return figures


def _priced(table: OutcomeTable) -> OutcomeTable:
    """The table, with every cost of a source 0 that tells none at all."""
    source, cost_usd = np.array(table.source), table.cost_usd.copy()
    for name in set(table.source):
        if not np.isfinite(cost_usd[source == name]).any():
            cost_usd[source == name] = 0
    return dataclasses.replace(table, cost_usd=cost_usd)


def _short(report: Report) -> dict[str, Any]:
    def rounded(value: float | None) -> float | None:
        return None if value is None else round(value, 4)

    def interval(bounds: tuple[float, float] | None) -> list[float | None] | None:
        return None if bounds is None else [rounded(bound) for bound in bounds]

    return {
        "n_prompts": report.n_prompts,
        "members": list(report.members),
        "best_single": report.best_single,
        "best_single_reward": rounded(report.best_single_reward),
        "best_single_usd_per_1000": rounded(report.best_single_usd_per_1000),
        "methods": {
            s.method: {
                "aiq": rounded(s.aiq),
                "gain": rounded(s.gain),
                "saving": rounded(s.saving),
                "brier": rounded(s.brier),
                "calibration_error": rounded(s.calibration_error),
                "aiq_behind": interval(s.aiq_behind),
            }
            for s in report.scores
        },
    }

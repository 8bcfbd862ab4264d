"""Does a form of the encoder cost routing quality? Our recipe, fitted to each form's features.

The head of a shipped router was fitted to the features of one form, so it can't tell: another form would get
another head. Here every form gets its own, in five rotating folds of the same prompts, and what they earn is
compared draw by draw, as in measures.py.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measures import DRAWS, Interval, dials, interval, weights
from benchmarks.ours import Ours
from benchmarks.protocol import Floats, Forecast, Learner, Problem, make_folds, read_rows
from ensemble.learning import metrics
from ensemble.learning.metrics import Array
from ensemble.learning.split import near_duplicates


def draw(path: Path, most: int, seed: int) -> Problem:
    """At most so many prompts of the table at ``path``, drawn by ``seed``, in five folds. No features yet."""
    table = read_rows(path)
    if table.n_prompts > most:
        kept = random.Random(seed).sample(range(table.n_prompts), most)
        table = table.subset(np.array(sorted(kept)))
    groups = near_duplicates(table.prompts)
    folds = make_folds(table, groups, "iid", seed)
    return Problem(path.stem, "iid", table, np.zeros((0, 0), np.float32), groups, folds, seed)


def forecast(
    problem: Problem,
    features: Floats,
    learner: Learner = Ours(),  # noqa: B008  has no state
) -> Forecast:
    """What our recipe says of every prompt when it learns from the other folds; ``features`` (n_prompts,
    n_features) are those of all."""
    problem = dataclasses.replace(problem, features=features)
    shape = (problem.table.n_prompts, problem.table.n_members)
    reward, cost = np.empty(shape), np.empty(shape)
    for fold in problem.folds:
        told = learner.forecast(problem.learned(fold.learned), problem.asked(fold.test), seed=problem.seed)
        reward[fold.test], cost[fold.test] = told.reward, told.cost
    return Forecast(reward, cost)


def figures(
    problem: Problem, forecasts: Mapping[str, Forecast], against: str, *, draws: int = DRAWS
) -> dict[str, dict[str, Any]]:
    """By form: AIQ and the mean utility over five dials, both in reward, with 95 % intervals; and what they
    are over those of the form ``against``, ``None`` for itself.

    A draw is of near-duplicate groups, the same one for every form: so what they share cancels.
    """
    sampled = {name: _sampled(problem, told, draws) for name, told in forecasts.items()}
    base = sampled[against]
    return {
        name: {
            figure: {
                "value": interval(mine[figure]),
                "over": _over(mine[figure], base[figure], name == against),
            }
            for figure in mine
        }
        for name, mine in sampled.items()
    }


def _over(mine: Array, base: Array, is_base: bool) -> Interval:
    return None if is_base else interval(mine - base)


def _sampled(problem: Problem, told: Forecast, draws: int) -> dict[str, Array]:
    """AIQ and mean utility, (1 + draws,) each: on the data as they are, then once per draw."""
    curve = metrics.serve(told.reward, told.cost, problem.reward, problem.cost)
    worth = dials(problem)
    at_dials = metrics.serve(told.reward, told.cost, problem.reward, problem.cost, worth)
    utility = (at_dials.reward - at_dials.cost / worth[:, None]).mean(axis=0)  # (n_prompts,)
    spend = metrics.spend_range(problem.reward, problem.cost)
    found: dict[str, list[Array]] = {"aiq": [], "utility": []}
    for block in weights(problem.groups, draws, problem.seed):
        points = np.stack([block @ curve.cost.T, block @ curve.reward.T], axis=2)  # (draws, n_dials, 2)
        found["aiq"].append(np.array([metrics.aiq(each, spend) for each in points]))
        found["utility"].append(block @ utility)
    return {name: np.concatenate(parts) for name, parts in found.items()}

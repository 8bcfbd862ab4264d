"""Between what do methods lie? The marks on the scale: one member for all, a mix of them, and the oracles.

Each is given as a forecast, so that it is served, pooled and measured as every method is. Only the two
oracles know more than a method may.
"""

from __future__ import annotations

import numpy as np

from benchmarks.protocol import Forecast, Index, Problem
from benchmarks.rounds import Round, Run
from ensemble.learning import metrics
from ensemble.learning.baselines import dataset_oracle

BEST_SINGLE, RANDOM_MIX, DATASET_ORACLE, QUERY_ORACLE = MARKS = (
    "best single",
    "random mix",
    "dataset oracle",
    "query oracle",
)


def marks(problem: Problem) -> list[Run]:
    """The four of them, or three where a prompt's task is not known."""
    told = all(task is not None for task in problem.table.tasks)
    teller = {BEST_SINGLE: _best_single, RANDOM_MIX: _random_mix, QUERY_ORACLE: _query_oracle}
    if told:
        teller[DATASET_ORACLE] = _dataset_oracle
    runs = []
    for name in [name for name in MARKS if name in teller]:
        rounds = tuple(
            Round(
                teller[name](problem, fold.train, fold.validation),
                teller[name](problem, fold.learned, fold.test),
                _setting(name, problem, fold.learned),
                0.0,
            )
            for fold in problem.folds
        )
        runs.append(Run(name, "mark", rounds))
    return runs


def best_member(problem: Problem, learned: Index) -> int:
    return metrics.best_single(problem.reward[learned], problem.cost[learned])


def _setting(name: str, problem: Problem, learned: Index) -> str:
    return problem.table.members[best_member(problem, learned)] if name == BEST_SINGLE else ""


def _best_single(problem: Problem, learned: Index, asked: Index) -> Forecast:
    """A score and a price that make one member the choice at every dial, the cheapest included."""
    score = np.zeros((len(asked), problem.table.n_members))
    score[:, best_member(problem, learned)] = 1.0
    return Forecast(score, 1 - score, is_probability=False)


def _random_mix(problem: Problem, learned: Index, asked: Index) -> Forecast:
    """The members' means for every prompt: the dial then walks along the corners of their hull, and AIQ fills
    in the mixes between (RouterBench's zero router)."""
    shape = (len(asked), problem.table.n_members)
    reward, cost = problem.reward[learned].mean(axis=0), problem.cost[learned].mean(axis=0)
    return Forecast(np.broadcast_to(reward, shape), np.broadcast_to(cost, shape))


def _dataset_oracle(problem: Problem, learned: Index, asked: Index) -> Forecast:
    tasks = problem.table.tasks
    known, wanted = [tasks[i] for i in learned], [tasks[i] for i in asked]
    return Forecast(*dataset_oracle(known, problem.reward[learned], problem.cost[learned], wanted))


def _query_oracle(problem: Problem, learned: Index, asked: Index) -> Forecast:
    return Forecast(problem.reward[asked], problem.cost[asked], is_probability=False)

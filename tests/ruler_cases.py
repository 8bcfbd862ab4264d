"""Small problems to put under the ruler, and methods that are known to be honest, constant or crooked."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from benchmarks.protocol import Asked, Forecast, Learned, Problem, Split, make_folds
from ensemble.learning.baselines import Neighbours
from worlds import planted


def problem(n: int = 240, split: Split = "iid", seed: int = 0) -> Problem:
    """The planted world with near-duplicates, a tenth of them across tasks: rows 0 and 1 are twins, 2 and 3,
    and so on up to a third of the rows."""
    world = planted(n, 0, named_tasks=True)
    groups = np.arange(n)
    groups[1 : n // 3 : 2] = groups[0 : n // 3 - n // 3 % 2 : 2]
    folds = make_folds(world.table, groups, split, seed)
    return Problem("planted", split, world.table, world.features, groups, folds, seed)


def with_cells(given: Problem, **cells: npt.NDArray[np.floating]) -> Problem:
    """The same problem with other outcomes; the folds stay."""
    changed = {name: values.astype(np.float32) for name, values in cells.items()}
    return dataclasses.replace(given, table=dataclasses.replace(given.table, **changed))


@dataclass(frozen=True)
class Watched:
    """40 neighbours, which remember how often they were fitted, and stop at the ``breaks``th time."""

    k: int = 40
    breaks: int = 10**9
    fits: list[int] = field(default_factory=list, repr=False, compare=False)

    def forecast(self, learned: Learned, asked: Asked, *, seed: int) -> Forecast:
        self.fits.append(len(learned.features))
        if len(self.fits) == self.breaks:
            raise KeyboardInterrupt
        table = learned.table
        fitted = Neighbours(self.k, None).fit(learned.features, table.reward, table.cost_usd, seed=seed)
        return Forecast(*fitted.predict(asked.features))


@dataclass(frozen=True, eq=False)
class Peeking:
    """Looks up what it is asked, among all rows."""

    problem: Problem = field(repr=False)

    def forecast(self, learned: Learned, asked: Asked, *, seed: int) -> Forecast:
        row_of = {features.tobytes(): i for i, features in enumerate(self.problem.features)}
        rows = [row_of[features.tobytes()] for features in asked.features]
        return Forecast(self.problem.reward[rows], self.problem.cost[rows])

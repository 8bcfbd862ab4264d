"""What does every method get, and what must it give back? The rows, the five folds, the controls.

A method is handed what it may learn from and the features of what it is asked, never a row's outcome
before it has spoken: that it cannot peek is a matter of types here, not of care.

    fold:   | test | validation |          train           |      rotating: each prompt is tested once
                   |<------------- learned --------------->|
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from ensemble.errors import TableError
from ensemble.learning.baselines import Method
from ensemble.learning.longform import CELLS
from ensemble.learning.metrics import Array
from ensemble.learning.split import k_folds, split
from ensemble.learning.tables import OutcomeTable, read_tables

Index = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Split = Literal["iid", "leave-task-out"]
Control = Literal["shuffled outcomes", "random features"]

N_FOLDS = 5
LEAST_PROMPTS = 50  # that every member answered; with fewer a fifth of them says nothing
CONTROL_SEED = 1  # beside the run's own seed, so that no control repeats the draw of the folds


@dataclass(frozen=True, eq=False)
class Forecast:
    """What a method says of prompts it hasn't seen; every array is ``(n_prompts, n_members)``.

    ``reward`` is the expected reward in [0, 1], or any score in its place: then ``is_probability`` is
    False and it is not held to its size. ``cost`` is the expected USD of one answer. ``reward_std`` (of
    the expected reward) and ``output_tokens`` (expected) are ``None`` where a method says nothing of
    them. ``note`` tells in words what was chosen inside.
    """

    reward: Array
    cost: Array
    reward_std: Array | None = None
    output_tokens: Array | None = None
    is_probability: bool = True
    note: str = ""


@dataclass(frozen=True, eq=False)
class Learned:
    """What may be learned from: ``features`` (n_prompts, n_features), the outcomes of the same prompts,
    and ``groups`` (n_prompts,) of near-duplicates."""

    features: Floats
    table: OutcomeTable
    groups: Index


@dataclass(frozen=True, eq=False)
class Asked:
    """All that is told of the prompts in question: ``features`` (n_prompts, n_features) and the length of
    their text in ``characters`` (n_prompts,). Neither task nor outcome."""

    features: Floats
    characters: Array


class Learner(Protocol):
    """One setting of a method under the ruler. ``seed`` decides all that is random in it, and its repr
    tells all of its settings: results are stored under it."""

    def forecast(self, learned: Learned, asked: Asked, *, seed: int) -> Forecast: ...


@dataclass(frozen=True)
class Rival:
    """A baseline's :class:`Method` as a :class:`Learner`."""

    method: Method

    def __repr__(self) -> str:
        return repr(self.method)

    def forecast(self, learned: Learned, asked: Asked, *, seed: int) -> Forecast:
        table = learned.table
        fitted = self.method.fit(learned.features, table.reward, table.cost_usd, seed=seed)
        reward, cost = fitted.predict(asked.features)
        # A method whose scores are no expected rewards says so by an attribute of this name.
        return Forecast(reward, cost, is_probability=getattr(self.method, "is_probability", True))


@dataclass(frozen=True)
class Candidate:
    """A method with the settings that it may choose from on validation.

    ``kind``: "tuned" has a grid, "published" the one setting of its paper, "ours" is ours.
    """

    name: str
    kind: Literal["tuned", "published", "ours"]
    grid: tuple[Learner, ...]


@dataclass(frozen=True, eq=False)
class Fold:
    """Row numbers, each ascending. No near-duplicate group reaches from ``learned`` into ``test``, nor from
    ``train`` into ``validation``; ``learned`` holds both of these."""

    train: Index
    validation: Index
    learned: Index
    test: Index


@dataclass(frozen=True, eq=False)
class Problem:
    """One table under one split: all that decides what a method sees.

    ``features`` (n_prompts, n_features), ``groups`` (n_prompts,) of near-duplicates, ``folds`` whose test
    parts hold every row once; ``control`` names what was destroyed, ``None`` for the table as it is.
    ``maker`` is a hash of all that made the features, ``None`` where that is not known.
    """

    name: str
    split: Split
    table: OutcomeTable
    features: Floats
    groups: Index
    folds: tuple[Fold, ...]
    seed: int = 0
    control: Control | None = None
    maker: str | None = None

    def learned(self, rows: Index) -> Learned:
        return Learned(self.features[rows], self.table.subset(rows), self.groups[rows])

    def asked(self, rows: Index) -> Asked:
        characters = np.array([len(self.table.prompts[i]) for i in rows], np.float64)
        return Asked(self.features[rows], characters)

    @cached_property
    def reward(self) -> Array:
        """(n_prompts, n_members), complete."""
        return self.table.reward.astype(np.float64)

    @cached_property
    def cost(self) -> Array:
        """(n_prompts, n_members) in USD, complete."""
        return self.table.cost_usd.astype(np.float64)

    @cached_property
    def digest(self) -> str:
        """A hash of everything above: another row, outcome, feature or fold makes it another one.

        Features of one text differ in their last bits from machine to machine, which makes no other problem:
        where their maker is known, it stands for them.
        """
        hashed = hashlib.sha256(f"{self.seed} {self.control} {self.maker} {self.table.members}".encode())
        for text in (self.table.prompts, self.table.tasks):
            hashed.update(json.dumps(text).encode())
        arrays = [self.groups, *(getattr(self.table, name) for name in CELLS)]
        arrays += [self.features] if self.maker is None else []
        arrays += [
            rows for fold in self.folds for rows in (fold.train, fold.validation, fold.learned, fold.test)
        ]
        for array in arrays:
            hashed.update(f"{array.shape} {array.dtype}".encode())
            hashed.update(np.ascontiguousarray(array).tobytes())
        return hashed.hexdigest()


def read_rows(path: Path) -> OutcomeTable:
    """The prompts of the table at ``path`` that every compared member answered at a known cost.

    Compared are the ``main_members`` of the JSON file beside it, without one all members.

    :raises TableError: the table is broken, too few prompts are left, or all members are alike.
    """
    table = read_tables(path)
    notes = path.with_suffix(".json")
    named = json.loads(notes.read_text(encoding="utf-8")).get("main_members") if notes.is_file() else None
    table = table.with_members(named) if named else table
    known = np.isfinite(table.reward) & np.isfinite(table.cost_usd)
    complete = known.all(axis=1)
    if complete.sum() < LEAST_PROMPTS:
        gaps = ", ".join(
            f"{table.members[j]} {(~known[:, j]).sum()}" for j in np.argsort(known.sum(axis=0))[:3]
        )
        raise TableError(
            f"{path.name}: expected at least {LEAST_PROMPTS} prompts with a reward and a cost_usd from every "
            f"member, found {complete.sum()} of {table.n_prompts}; most are lacking from {gaps}. Name the "
            f'members to compare in {notes.name}: {{"main_members": [...]}}.'
        )
    table = table.subset(complete)
    if any(np.ptp(cells.mean(axis=0, dtype=np.float64)) == 0 for cells in (table.reward, table.cost_usd)):
        raise TableError(
            f"{path.name}: expected members that differ in mean reward and in mean cost, found all alike in "
            "one of them; there is nothing to weigh against each other."
        )
    return table


def make_folds(table: OutcomeTable, groups: Index, how: Split, seed: int) -> tuple[Fold, ...]:
    """Five rotating folds; fewer where fewer tasks are to be left out.

    :raises TableError: too few groups, or tasks, for it.
    """
    if how == "iid":
        tests = [test for _, test in k_folds(groups, k=N_FOLDS, seed=seed)]
    else:
        fold_of = _deal_tasks(table.tasks, seed)
        tests = [np.flatnonzero(fold_of == k) for k in range(fold_of.max() + 1)]
    return tuple(_fold(k, tests, groups, seed) for k in range(len(tests)))


def _fold(k: int, tests: Sequence[Index], groups: Index, seed: int) -> Fold:
    test = tests[k]
    learned = np.flatnonzero(~np.isin(groups, groups[test]))
    if len(tests) > 2:
        validation = np.intersect1d(tests[(k + 1) % len(tests)], learned)
    else:  # two tasks: nothing would be left to train on
        drawn = split(groups[learned], fractions=(0.8, 0.2, 0.0), seed=seed).validation
        validation = learned[drawn]
    train = learned[~np.isin(groups[learned], groups[validation])]
    if not len(train) or not len(validation):
        raise TableError(
            f"fold {k + 1}: without near-duplicates of those held out, {len(train)} prompts remain to train "
            f"on and {len(validation)} to choose on. Use --split iid, or a table of more distinct prompts."
        )
    return Fold(train, validation, learned, test)


def _deal_tasks(tasks: Sequence[str | None], seed: int) -> Index:
    """Whole tasks to at most N_FOLDS folds, the largest task first and each to the fold that is smallest so
    far; ``seed`` decides between equals. Gives the fold of every prompt, (n_prompts,)."""
    names = [task for task in tasks if task is not None]
    sizes = Counter(names)
    if len(names) < len(tasks) or len(sizes) < 2:
        raise TableError(
            f"--split leave-task-out needs the task of every prompt, and at least two of them; found "
            f"{len(sizes)} task(s), and none for {len(tasks) - len(names)} of {len(tasks)} prompts. Fill the "
            "column `task`, or use --split iid."
        )
    shuffled = [sorted(sizes)[i] for i in np.random.default_rng(seed).permutation(len(sizes))]
    dealt = dict.fromkeys(range(min(N_FOLDS, len(sizes))), 0)
    fold_of = {}
    for task in sorted(shuffled, key=lambda name: -sizes[name]):
        fold_of[task] = min(dealt, key=lambda fold: dealt[fold])
        dealt[fold_of[task]] += sizes[task]
    return np.array([fold_of[task] for task in names])


def shuffled_outcomes(problem: Problem) -> Problem:
    """The control in which every prompt gets another's outcomes, whole rows of them: what the members are
    worth stays, what a prompt tells of it is gone."""
    order = np.random.default_rng([problem.seed, CONTROL_SEED]).permutation(problem.table.n_prompts)
    cells = {name: getattr(problem.table, name)[order] for name in CELLS}
    table = dataclasses.replace(problem.table, **cells)
    return dataclasses.replace(problem, table=table, control="shuffled outcomes")


def random_features(problem: Problem) -> Problem:
    """The control in which a prompt's features are drawn from a Gaussian, at the length of its own since
    methods are made for that; and its text, whose length tells of costs, is another's."""
    generator = np.random.default_rng([problem.seed, CONTROL_SEED])
    features = generator.standard_normal(problem.features.shape, np.float32)
    length = np.linalg.norm(problem.features, axis=1) / np.linalg.norm(features, axis=1)
    features *= length[:, None]
    order = generator.permutation(problem.table.n_prompts)
    table = dataclasses.replace(problem.table, prompts=tuple(problem.table.prompts[i] for i in order))
    return dataclasses.replace(problem, table=table, features=features, control="random features")

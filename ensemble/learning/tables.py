"""The outcome table: prompts x members with rewards, costs and tokens, complete or partial.

On disk it is Parquet in the long form, one row per (prompt, member) pair:

    prompt_id, prompt, member, reward                       required
    task, cost_usd, input_tokens, output_tokens, propensity optional, nulls allowed

A pair that was never observed is a row that is not there. In memory the same table is a set of
``(n_prompts, n_members)`` arrays in which NaN marks it.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ensemble.errors import TableError
from ensemble.learning.longform import CELLS, LongForm, arrow_table, faults, read_parquet, write_table

__all__ = ["OutcomeTable", "from_rows", "read_tables", "write_table"]

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class OutcomeTable:
    """Outcomes of ``members`` on ``prompts``; every array is float32 ``(n_prompts, n_members)``.

    ``reward`` in [0, 1], NaN where the pair was not observed. ``cost_usd`` is USD of one answer,
    ``input_tokens`` and ``output_tokens`` are counts, NaN where unknown. ``propensity`` in (0, 1] is
    the probability with which the pair came to be observed, 1 where the table doesn't say.
    ``tasks`` and ``source`` (the file a prompt came from) have one entry per prompt.
    """

    prompt_ids: tuple[str, ...]
    prompts: tuple[str, ...]
    tasks: tuple[str | None, ...]
    source: tuple[str, ...]
    members: tuple[str, ...]
    reward: FloatArray
    cost_usd: FloatArray
    input_tokens: FloatArray
    output_tokens: FloatArray
    propensity: FloatArray

    @property
    def n_prompts(self) -> int:
        return len(self.prompt_ids)

    @property
    def n_members(self) -> int:
        return len(self.members)

    @property
    def observed(self) -> npt.NDArray[np.bool_]:
        """Which pairs have a reward, ``(n_prompts, n_members)``."""
        return ~np.isnan(self.reward)

    @property
    def n_pairs(self) -> int:
        """How many pairs have a reward."""
        return int(self.observed.sum())

    @property
    def labels(self) -> tuple[str | None, ...]:
        """The task of every prompt, led by its source: tasks of one name in two files are two."""
        named = zip(self.source, self.tasks, strict=True)
        return tuple(None if task is None else f"{source}/{task}" for source, task in named)

    def subset(self, rows: npt.ArrayLike) -> OutcomeTable:
        """The table of these prompts only, in this order; ``rows`` are indices or a mask."""
        index = np.arange(self.n_prompts)[np.asarray(rows) if np.size(rows) else []]
        return OutcomeTable(
            prompt_ids=tuple(self.prompt_ids[i] for i in index),
            prompts=tuple(self.prompts[i] for i in index),
            tasks=tuple(self.tasks[i] for i in index),
            source=tuple(self.source[i] for i in index),
            members=self.members,
            **{name: getattr(self, name)[index] for name in CELLS},
        )

    def with_members(self, names: Sequence[str]) -> OutcomeTable:
        """The table of these members only, in this order. All prompts stay, observed or not.

        :raises TableError: a name is not a member of this table, or stands there twice.
        """
        unknown = [name for name in names if name not in self.members]
        if unknown or len(set(names)) != len(names):
            raise TableError(
                f"expected distinct members out of {', '.join(self.members)}; found "
                + (f"unknown: {', '.join(unknown)}" if unknown else f"a name twice in {', '.join(names)}")
            )
        columns = [self.members.index(name) for name in names]
        return OutcomeTable(
            self.prompt_ids,
            self.prompts,
            self.tasks,
            self.source,
            tuple(names),
            **{name: getattr(self, name)[:, columns] for name in CELLS},
        )


def read_tables(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    aliases: Mapping[str, str] | None = None,
    members: Collection[str] | None = None,
    min_prompts: int = 50,
    min_members: int = 2,
) -> OutcomeTable:
    """Read one or more Parquet files in the long form, check them, and put them together.

    ``aliases`` maps a name in the files to the member it stands for; members of one name are one
    member, whichever file they are in. With several files, every prompt id is led by its file's
    name, so the same text in two files stays two prompts (``split`` keeps them on one side).
    ``members``, where given, are the only names allowed.

    :raises TableError: the files break the contract; all problems found are in the one message.
    :raises MissingExtraError: pyarrow is not installed.
    """
    files = [Path(p) for p in ([paths] if isinstance(paths, str | os.PathLike) else paths)]
    if not files:
        raise TableError("expected at least one outcome table (a Parquet file), found none")
    problems: list[str] = []
    parts = []
    for path, label in zip(files, _labels(files), strict=True):
        columns = read_parquet(path, label, problems)
        if columns is not None:
            rows = LongForm.of(columns, label, aliases or {}, problems)
            problems += faults(rows, members)
            parts.append(rows)
    return _assemble(parts, problems, min_prompts, min_members)


def from_rows(
    rows: Iterable[Mapping[str, Any]],
    *,
    source: str,
    members: Collection[str] | None = None,
    min_prompts: int = 50,
    min_members: int = 2,
) -> OutcomeTable:
    """The same from long-form rows in memory (from a log, say); ``source`` names where they are from.

    :raises TableError: as in :func:`read_tables`.
    :raises MissingExtraError: pyarrow is not installed.
    """
    problems: list[str] = []
    part = LongForm.of(arrow_table(rows), source, {}, problems)
    return _assemble([part], problems + faults(part, members), min_prompts, min_members)


def _labels(files: Sequence[Path]) -> list[str]:
    """A short distinct name per file: its stem, numbered where two files share it."""
    labels: list[str] = []
    for path in files:
        same = sum(label.split("#")[0] == path.stem for label in labels)
        labels.append(f"{path.stem}#{same + 1}" if same else path.stem)
    return labels


def _assemble(
    parts: Sequence[LongForm], problems: list[str], min_prompts: int, min_members: int
) -> OutcomeTable:
    """Sound parts as one table, members in order of first appearance; else one error with all problems."""
    members = list(dict.fromkeys(name for part in parts for name in part.members))
    n_prompts = sum(len(part.prompt_ids) for part in parts)
    if not problems and n_prompts < min_prompts:
        problems = [*problems, f"expected at least {min_prompts} prompts, found {n_prompts}: collect more"]
    if not problems and len(members) < min_members:
        problems = [
            *problems,
            f"expected at least {min_members} members, found {len(members)} "
            f"({', '.join(members)}): there is nothing to route between",
        ]
    if problems:
        listing = "\n".join(f"  - {problem}" for problem in problems)
        raise TableError(f"{len(problems)} problem(s) in the outcome table(s):\n{listing}")

    cells = {name: np.full((n_prompts, len(members)), np.nan, np.float32) for name in CELLS}
    ids: list[str] = []
    prompts: list[str] = []
    tasks: list[str | None] = []
    source: list[str] = []
    for part in parts:
        at = part.prompt + len(ids), np.array([members.index(name) for name in part.members])[part.member]
        for name in CELLS:
            cells[name][at] = part.cells[name]
        first = part.first_rows
        ids += [f"{part.label}:{i}" for i in part.prompt_ids] if len(parts) > 1 else part.prompt_ids
        prompts += [part.texts[code] for code in part.text[first]]
        tasks += [part.tasks[code] or None for code in part.task[first]]
        source += [part.label] * len(part.prompt_ids)
    cells["propensity"][np.isnan(cells["propensity"])] = 1.0
    return OutcomeTable(tuple(ids), tuple(prompts), tuple(tasks), tuple(source), tuple(members), **cells)

"""The outcome table on disk: Parquet, one row per (prompt, member) pair, read as codes and checked."""

from __future__ import annotations

import importlib
import os
import secrets
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ensemble.errors import MissingExtraError, TableError

IntArray = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

REQUIRED = ("prompt_id", "prompt", "member", "reward")
OPTIONAL = ("task", "cost_usd", "input_tokens", "output_tokens", "propensity")
TEXTS = ("prompt_id", "prompt", "member", "task")
CELLS = ("reward", "cost_usd", "input_tokens", "output_tokens", "propensity")


def write_table(path: str | os.PathLike[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write long-form rows as a Parquet file; the file appears whole or not at all.

    Each row maps column names to values; optional columns may be missing or ``None``. Only the
    columns' names and types are checked here: :func:`ensemble.learning.tables.read_tables` does the rest.

    :raises TableError: a row lacks a required column, has an unknown one, or a value of another type.
    :raises MissingExtraError: pyarrow is not installed.
    """
    table = arrow_table(rows)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with temporary.open("xb") as file:
            _pyarrow("parquet").write_table(table, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def arrow_table(rows: Iterable[Mapping[str, Any]]) -> Any:
    """Long-form rows as an Arrow table in the order and types of the contract.

    :raises TableError: as in :func:`write_table`.
    """
    pa = _pyarrow()
    rows = [dict(row) for row in rows]
    for number, row in enumerate(rows):
        missing = [name for name in REQUIRED if row.get(name) is None]
        unknown = sorted(set(row) - set(REQUIRED) - set(OPTIONAL))
        if missing or unknown:
            raise TableError(
                f"row {number} of an outcome table: expected the columns {', '.join(REQUIRED)} and any of "
                f"{', '.join(OPTIONAL)}; missing: {', '.join(missing) or 'none'}, "
                f"unknown: {', '.join(unknown) or 'none'}"
            )
    schema = pa.schema(
        [(name, pa.string() if name in TEXTS else pa.float64()) for name in REQUIRED + OPTIONAL]
    )
    try:
        return pa.Table.from_pylist(rows, schema=schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise TableError(f"a row of an outcome table has a value of the wrong type: {error}") from error


def read_parquet(path: Path, label: str, problems: list[str]) -> Any | None:
    """The columns we know of one file as an Arrow table, or ``None`` and a line in ``problems``."""
    pa, pq = _pyarrow(), _pyarrow("parquet")
    if not path.is_file():
        problems.append(f"{label}: expected a Parquet file at {path}, found none there")
        return None
    try:
        names = pq.read_schema(path).names
        missing = [name for name in REQUIRED if name not in names]
        if missing:
            problems.append(
                f"{label}: missing column(s) {', '.join(missing)}; found {', '.join(names)}. Required are "
                f"{', '.join(REQUIRED)}; optional {', '.join(OPTIONAL)}: rename or add them"
            )
            return None
        columns = pq.read_table(path, columns=[name for name in REQUIRED + OPTIONAL if name in names])
    except (pa.ArrowInvalid, OSError) as error:
        problems.append(f"{label}: {path} cannot be read as Parquet ({error}); write it with write_table()")
        return None
    odd = [f for f in columns.schema if pa.types.is_nested(f.type) or pa.types.is_temporal(f.type)]
    for field in odd:
        problems.append(
            f"{label}: expected text or numbers in the column {field.name}, found {field.type}; write one "
            "text a prompt (of messages what the user asks) and plain numbers"
        )
    return None if odd else columns


@dataclass(frozen=True, eq=False)
class LongForm:
    """The rows of one file as codes: row i is the pair ``(prompt_ids[prompt[i]], members[member[i]])``.

    ``cells`` holds a float64 array ``(n_rows,)`` for each of ``CELLS`` that is numeric, NaN for null.
    """

    label: str
    prompt: IntArray
    prompt_ids: list[str]
    text: IntArray
    texts: list[str]
    member: IntArray
    members: list[str]
    task: IntArray
    tasks: list[str]
    cells: dict[str, npt.NDArray[np.float64]]

    @classmethod
    def of(cls, columns: Any, label: str, aliases: Mapping[str, str], problems: list[str]) -> LongForm:
        """Read an Arrow table; columns that are not numbers where they should be go to ``problems``."""
        codes = {name: _codes(columns, name) for name in TEXTS}
        member, names = codes["member"]
        members = list(dict.fromkeys(aliases.get(name, name) for name in names))
        renamed = np.array([members.index(aliases.get(name, name)) for name in names], np.int64)
        cells = {}
        for name in CELLS:
            try:
                cells[name] = _numbers(columns, name)
            except ValueError as error:  # pyarrow.ArrowInvalid is one
                problems.append(f"{label}: the column {name} is not numeric ({error}); write it as numbers")
        return cls(
            label,
            *codes["prompt_id"],
            *codes["prompt"],
            renamed[member],
            members,
            *codes["task"],
            cells,
        )

    @property
    def first_rows(self) -> IntArray:
        """The first row of every prompt, in the order of ``prompt_ids``."""
        return np.unique(self.prompt, return_index=True)[1]


def faults(rows: LongForm, allowed: Collection[str] | None) -> list[str]:
    """Everything in one file that breaks the contract: a line each, with counts, an example, a remedy.

    ``allowed`` are the only member names to expect, ``None`` for any.
    """
    lines: list[str] = []

    def blame(bad: Mask, what: str) -> None:
        if bad.any():
            i = int(bad.argmax())
            first = f"prompt {rows.prompt_ids[rows.prompt[i]]!r}, member {rows.members[rows.member[i]]!r}"
            lines.append(f"{rows.label}: {bad.sum()} of {len(bad)} rows {what}; the first: {first}")

    columns = {
        "prompt_id": (rows.prompt, rows.prompt_ids),
        "prompt": (rows.text, rows.texts),
        "member": (rows.member, rows.members),
    }
    for name, (codes, values) in columns.items():
        blank = np.array([not value.strip() for value in values], np.bool_)
        blame(blank[codes], f"have no {name}: fill it in, or leave the rows out")
    if allowed is not None:
        unknown = [name for name in rows.members if name not in allowed]
        blame(
            np.isin(rows.member, [rows.members.index(name) for name in unknown]),
            f"belong to {len(unknown)} unknown member(s) ({', '.join(unknown)}); expected "
            f"{', '.join(sorted(allowed))}: correct the names, or give aliases",
        )
    for name, (is_bad, what) in _CELL_RULES.items():
        if name in rows.cells:
            blame(is_bad(rows.cells[name]), what)
    if "reward" in rows.cells:
        blame(np.isnan(rows.cells["reward"]), "have no reward (null or NaN): leave unscored pairs out")
    pair = rows.prompt * len(rows.members) + rows.member
    blame(
        _repeated(pair), "repeat a (prompt_id, member) pair (two names may be one by alias): keep one of each"
    )
    other_text = rows.text != rows.text[rows.first_rows][rows.prompt]
    blame(other_text, "have another prompt than the first under their prompt_id: make the ids unique")
    return lines


def _negative_or_infinite(x: npt.NDArray[np.float64]) -> Any:
    return (x < 0) | np.isinf(x)


_AMOUNT = "have a negative or infinite {}: leave it null where unknown"
_CELL_RULES: dict[str, tuple[Any, str]] = {
    "reward": (lambda x: (x < 0) | (x > 1), "have a reward outside [0, 1]: rescale the scores"),
    "propensity": (
        lambda x: (x <= 0) | (x > 1),
        "have a propensity outside (0, 1]: leave it null where the pair was certain to be observed",
    ),
    **{
        name: (_negative_or_infinite, _AMOUNT.format(name))
        for name in ("cost_usd", "input_tokens", "output_tokens")
    },
}


def _repeated(pair: IntArray) -> Mask:
    """The rows whose code stood in an earlier row already."""
    again = np.ones(len(pair), np.bool_)
    again[np.unique(pair, return_index=True)[1]] = False
    return again


def _codes(columns: Any, name: str) -> tuple[IntArray, list[str]]:
    """A text column as codes into its distinct values, in order of appearance; null becomes ``""``."""
    pa = _pyarrow()
    if name not in columns.column_names:
        return np.zeros(columns.num_rows, np.int64), [""]
    text = _pyarrow("compute").fill_null(columns[name].cast(pa.large_string()), "")
    encoded = text.combine_chunks().dictionary_encode()
    return encoded.indices.to_numpy().astype(np.int64), encoded.dictionary.to_pylist()


def _numbers(columns: Any, name: str) -> npt.NDArray[np.float64]:
    """A numeric or boolean column with NaN for null; all NaN where it is absent."""
    if name not in columns.column_names:
        return np.full(columns.num_rows, np.nan)
    pa = _pyarrow()
    column = columns[name]
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    numbers: npt.NDArray[np.float64] = column.cast(pa.float64()).to_numpy()
    return numbers


def _pyarrow(part: str | None = None) -> Any:
    try:
        return importlib.import_module(f"pyarrow.{part}" if part else "pyarrow")
    except ImportError as error:
        raise MissingExtraError("pyarrow", "train", "reading and writing outcome tables") from error

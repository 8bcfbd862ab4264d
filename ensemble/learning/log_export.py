"""How does a log become one Parquet file? One row per decision, what followed from it nested in the row.

Vectors over members are lists in the order of ``members``; what has no fixed shape (``wishes``,
``metadata``, ``standing``) is JSON text. The file's metadata holds the number of this form.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ensemble.errors import LogError
from ensemble.log_rows import FORECAST_NUMBERS, PRICES, Row, to_json
from ensemble.outcomes import OutcomeLog

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 1
ROW_GROUP = 1_000  # decisions that are in memory at once

_JSON = ("metadata", "wishes", "standing")


def schema() -> pa.Schema:
    """The columns of a file: those of the log's tables, and what they are in Parquet."""
    import pyarrow as pa

    def columns(kind: pa.DataType, names: str) -> list[pa.Field]:
        return [pa.field(name, kind) for name in names.split()]

    number, text, real, flag = pa.int64(), pa.string(), pa.float64(), pa.bool_()
    attempt = [
        *columns(number, "number input_tokens cached_input_tokens output_tokens"),
        *columns(text, "member reason error model"),
        *columns(real, "started_at seconds first_token_s cost_usd told_usd"),
        *columns(flag, "cost_is_estimated"),
    ]
    reward = columns(text, "source") + columns(real, "reward")
    decision = [
        *columns(text, "decision_id chosen_member chosen_reason router_id policy_version"),
        *columns(text, "encoder_sha256 prompt_key text session metadata wishes standing"),
        *columns(real, "created_at propensity estimated_input_tokens"),
        *columns(flag, "randomized"),
        *columns(pa.list_(pa.float32()), "features"),
        *columns(pa.list_(text), "members ineligible_because kind ranking warnings"),
        *columns(pa.list_(flag), "measured"),
        *columns(pa.list_(real), " ".join((*FORECAST_NUMBERS, *PRICES))),
        *columns(real, "ended_at seconds first_token_s cost_usd"),
        *columns(text, "served_member served_reason error answer"),
        *columns(number, "input_tokens output_tokens"),
        *columns(flag, "cost_is_estimated"),
        *columns(pa.list_(pa.struct(attempt)), "attempts"),
        *columns(pa.list_(pa.struct(reward)), "rewards"),
    ]
    return pa.schema(decision, metadata={"ensemble_log_format": str(FORMAT)})


def export_log(
    log: OutcomeLog, path: str | os.PathLike[str], *, since: float | None = None, until: float | None = None
) -> int:
    """Write the decisions made in [since, until), seconds since 1970, to ``path``; how many there were.

    The file appears whole or not at all, readable by its owner alone. Raises LogError where it cannot.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    place, shape = Path(path), schema()
    count = 0
    half: str | None = None
    try:
        descriptor, half = tempfile.mkstemp(prefix=f".{place.name}.", dir=place.parent)
        with os.fdopen(descriptor, "wb") as file, pq.ParquetWriter(file, shape) as writer:
            for group in _groups(log.rows(since, until)):
                writer.write_table(pa.Table.from_pylist(group, shape), row_group_size=ROW_GROUP)
                count += len(group)
        os.replace(half, place)
        half = None
    except OSError as error:
        raise LogError(
            f"cannot write {place}: {error.strerror or error}. Give a file in a folder that exists, may be "
            "written and has room."
        ) from error
    finally:
        if half is not None:
            Path(half).unlink(missing_ok=True)
    return count


def _groups(rows: Iterable[Row]) -> Iterator[list[dict[str, Any]]]:
    plain = map(_plain, rows)
    while group := list(islice(plain, ROW_GROUP)):
        yield group


def _plain(row: Row) -> dict[str, Any]:
    as_json = {name: None if row[name] is None else to_json(row[name]) for name in _JSON}
    rewards = [{"source": source, "reward": reward} for source, reward in row["rewards"].items()]
    return row | as_json | {"rewards": rewards}

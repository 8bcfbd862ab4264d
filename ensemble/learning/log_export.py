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
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ensemble.errors import LogError
from ensemble.log_rows import FORECAST_NUMBERS, PRICES, Row, to_json
from ensemble.outcomes import OutcomeLog

FORMAT = 1
ROW_GROUP = 1_000  # decisions that are in memory at once

_JSON = ("metadata", "wishes", "standing")
_TEXTS = pa.list_(pa.string())


def _columns(kind: pa.DataType, names: str) -> list[pa.Field]:
    return [pa.field(name, kind) for name in names.split()]


_ATTEMPT = pa.struct(
    [
        *_columns(pa.int64(), "number input_tokens cached_input_tokens output_tokens"),
        *_columns(pa.string(), "member reason error model"),
        *_columns(pa.float64(), "started_at seconds first_token_s cost_usd told_usd"),
        *_columns(pa.bool_(), "cost_is_estimated"),
    ]
)
SCHEMA = pa.schema(
    [
        *_columns(pa.string(), "decision_id chosen_member chosen_reason router_id policy_version"),
        *_columns(pa.string(), "encoder_sha256 prompt_key text session metadata wishes standing"),
        *_columns(pa.float64(), "created_at propensity estimated_input_tokens"),
        *_columns(pa.bool_(), "randomized"),
        *_columns(pa.list_(pa.float32()), "features"),
        *_columns(_TEXTS, "members ineligible_because kind ranking warnings"),
        *_columns(pa.list_(pa.bool_()), "measured"),
        *_columns(pa.list_(pa.float64()), " ".join((*FORECAST_NUMBERS, *PRICES))),
        *_columns(pa.float64(), "ended_at seconds first_token_s cost_usd"),
        *_columns(pa.string(), "served_member served_reason error answer"),
        *_columns(pa.int64(), "input_tokens output_tokens"),
        *_columns(pa.bool_(), "cost_is_estimated"),
        *_columns(pa.list_(_ATTEMPT), "attempts"),
        *_columns(
            pa.list_(pa.struct(_columns(pa.string(), "source") + _columns(pa.float64(), "reward"))), "rewards"
        ),
    ],
    metadata={"ensemble_log_format": str(FORMAT)},
)


def export_log(
    log: OutcomeLog, path: str | os.PathLike[str], *, since: float | None = None, until: float | None = None
) -> int:
    """Write the decisions made in [since, until), seconds since 1970, to ``path``; how many there were.

    The file appears whole or not at all, readable by its owner alone. Raises LogError where it cannot.
    """
    place = Path(path)
    count = 0
    half: str | None = None
    try:
        descriptor, half = tempfile.mkstemp(prefix=f".{place.name}.", dir=place.parent)
        with os.fdopen(descriptor, "wb") as file, pq.ParquetWriter(file, SCHEMA) as writer:
            for group in _groups(log.rows(since, until)):
                writer.write_table(pa.Table.from_pylist(group, SCHEMA), row_group_size=ROW_GROUP)
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

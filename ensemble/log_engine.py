"""Where is the log's database, and how is it opened? This file, ``log_statements`` and ``log_database`` are
the only ones that know SQLAlchemy."""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ensemble.errors import ConfigError, MissingExtraError
from ensemble.log_file import LogFile
from ensemble.log_rows import to_json
from ensemble.log_schema import TYPES

if TYPE_CHECKING:
    import sqlalchemy as sa

BUSY_S = 10  # how long to wait for another process that writes to the same SQLite file, or for a server


def url_of(place: str | os.PathLike[str]) -> sa.URL:
    """A plain path means SQLite; ``postgres://`` and ``postgresql://`` mean psycopg."""
    import sqlalchemy as sa

    text = os.fspath(place)
    if "://" not in text:
        return sa.URL.create("sqlite", database=str(Path(text).expanduser()))
    try:
        url = sa.make_url(text)
    except sa.exc.ArgumentError as error:
        raise ConfigError(f"log: expected a path or a URL like postgresql://host/name: {error}") from error
    if url.drivername in ("postgres", "postgresql"):
        url = url.set(drivername="postgresql+psycopg")
    if url.drivername.partition("+")[0] not in TYPES:
        raise ConfigError(
            f"log: expected an SQLite path or a postgresql:// URL, found one of {url.drivername!r}."
        )
    return url


def make_engine(url: sa.URL, *, fsync: bool, file: LogFile | None = None) -> sa.Engine:
    """``file`` is told of every connection to it."""
    import sqlalchemy as sa

    # Prompts must not end up in tracebacks: hide_parameters keeps them out of SQLAlchemy's errors.
    if url.get_backend_name() != "sqlite":
        limits = {} if "connect_timeout" in url.query else {"connect_timeout": BUSY_S}
        try:
            return sa.create_engine(
                url, hide_parameters=True, json_serializer=to_json, pool_pre_ping=True, connect_args=limits
            )
        except ModuleNotFoundError as error:
            raise MissingExtraError(error.name or "psycopg", "postgres", "a log in PostgreSQL") from error
    engine = sa.create_engine(
        url,
        hide_parameters=True,
        json_serializer=to_json,
        poolclass=sa.pool.StaticPool,
        connect_args={"timeout": BUSY_S, "check_same_thread": False},
    )
    sa.event.listen(engine, "connect", functools.partial(_set_up_sqlite, fsync=fsync))
    if file:
        sa.event.listen(engine, "connect", lambda *_: file.connected())
        sa.event.listen(engine, "close", lambda *_: file.disconnected())
    return engine


@contextlib.contextmanager
def without_waiting(connection: Any) -> Iterator[None]:
    """An SQLite file that another process keeps is an error at once, and not only after ``BUSY_S``."""
    connection.cursor().execute("PRAGMA busy_timeout = 0").close()
    try:
        yield
    finally:
        connection.cursor().execute(f"PRAGMA busy_timeout = {int(1_000 * BUSY_S)}").close()


def _set_up_sqlite(connection: Any, _record: object, *, fsync: bool) -> None:
    deadline = time.monotonic() + BUSY_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            break
        except Exception as error:  # changing the mode does not wait for others, whatever the timeout
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
    connection.execute(f"PRAGMA synchronous = {'FULL' if fsync else 'NORMAL'}")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA secure_delete = ON")
    connection.execute("SELECT 1 FROM sqlite_master").close()  # what lies beside the file is opened, too

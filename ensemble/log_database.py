"""The log's database in use: upgrades, transactions, forks, errors."""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ensemble.errors import LogError
from ensemble.log_engine import BUSY_S, make_engine, url_of, without_waiting
from ensemble.log_file import LogFile, make_private_file
from ensemble.log_outage import Outage
from ensemble.log_rows import Row, Rows
from ensemble.log_schema import MIGRATIONS, TYPES
from ensemble.log_statements import inserts, statements

if TYPE_CHECKING:
    import sqlalchemy as sa

TABLES = ("decisions", "labels", "attempts", "outcomes", "rewards")

_MIGRATION_LOCK = 7_305_808_870  # any number that no other program is likely to lock in PostgreSQL
_ADVICE = (  # a sign in the database's own words, what to do
    ("locked", f"another process kept it for over {BUSY_S} s: end it, or keep the log in PostgreSQL"),
    ("readonly", "give a path that this process may write"),
    ("unable to open", "give a path whose folder exists and may be written"),
    ("disk i/o", "see that the disk has room and that the file is still there, then try again"),
    ("no space", "free space on the server's disk, then try again"),
    ("disk is full", "free space on that disk, then try again"),
    ("not a database", "that file is no SQLite database: give another path, or move the file away"),
    ("malformed", "the file is damaged: move it away and restore a copy"),
    ("foreign key", "its decision is not in the log: record the decision first, and not after forget()"),
    ("unique", "it is in the log already: a decision, an attempt number and an outcome are recorded once"),
    ("already exists", "the log needs a database, or a PostgreSQL search_path, of its own"),
    ("too many c", "let the server take more connections, or close some"),
    ("connection slots", "let the server take more connections, or close some"),
    ("no such table", "restore the log from a copy, or give another place"),
    ("could not reflect", "restore the log's tables from a copy, or give another place"),
    ("permission denied", "let the URL's user read and write the log's tables"),
    ("does not exist", "restore the log from a copy, or give another place"),
    ("connection", "see that the server runs and that the URL names its host, user and password"),
)


class Database:
    """One engine, its tables brought up to date, and the statements of the log.

    Thread-safe. An SQLite file is used through one connection at a time and never across a fork:
    it is closed before and opened again after, in parent and child. Raises LogError throughout.
    """

    def __init__(self, place: str | os.PathLike[str], *, fsync: bool, clock: Callable[[], float]) -> None:
        url = url_of(place)
        self._where = url.render_as_string(hide_password=True)
        self._sqlite = url.get_backend_name() == "sqlite"
        self._in_memory = self._sqlite and url.database in (None, "", ":memory:")
        self._turn: contextlib.AbstractContextManager[Any] = (
            threading.RLock() if self._sqlite else contextlib.nullcontext()
        )
        self._closed = False
        self.after_fork_in_child: Callable[[], None] | None = None
        self._outage = Outage()
        self._file: LogFile | None = None
        if self._sqlite and not self._in_memory and not str(url.database).startswith("file:"):
            # SQLite's other files lie beside the one that a link leads to; and a child may work elsewhere.
            path = Path(os.path.realpath(str(url.database)))
            make_private_file(path)
            url, self._file = url.set(database=str(path)), LogFile(path)
        self._engine = make_engine(url, fsync=fsync, file=self._file)
        _watch_forks()
        _OPEN.add(self)
        try:
            self._migrate(clock)
            self._prepare()
        except BaseException:
            self.close()
            raise

    def _migrate(self, clock: Callable[[], float]) -> None:
        with self._transaction("open") as connection:
            if self._version(connection) == len(MIGRATIONS):
                return
        with self._transaction("prepare") as connection:
            import sqlalchemy as sa

            if self._sqlite:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            else:
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")
            version = self._version(connection)  # again: another process may have been faster
            note = sa.text("INSERT INTO meta (name, value) VALUES (:name, :value)")
            for number, step in enumerate(MIGRATIONS[version:], version + 1):
                for statement in step:
                    connection.exec_driver_sql(statement.format_map(TYPES[connection.dialect.name]))
                connection.execute(note, {"name": f"migration_{number}_at", "value": str(clock())})
            if version == 0:
                connection.execute(note, {"name": "hmac_key", "value": secrets.token_hex(32)})
            connection.execute(sa.text("DELETE FROM meta WHERE name = 'schema_version'"))
            connection.execute(note, {"name": "schema_version", "value": str(len(MIGRATIONS))})

    def _version(self, connection: sa.Connection) -> int:
        import sqlalchemy as sa

        if not sa.inspect(connection).has_table("meta"):
            return 0
        found = connection.exec_driver_sql("SELECT value FROM meta WHERE name = 'schema_version'").scalar()
        if found is None:
            raise LogError(
                f"{self._where}: expected the log's own table `meta`, found another program's. "
                "Give the log a database, or a PostgreSQL search_path, of its own."
            )
        if int(found) > len(MIGRATIONS):
            raise LogError(
                f"{self._where}: the log has schema version {found}, this version of the library reads up "
                f"to {len(MIGRATIONS)}. Upgrade ensemble-router, or give another log."
            )
        return int(found)

    def _prepare(self) -> None:
        """The tables as the database describes them, the statements over them, the log's key."""
        import sqlalchemy as sa

        with self._transaction("open") as connection:
            known = sa.MetaData()
            known.reflect(connection, only=TABLES)
            key = connection.exec_driver_sql("SELECT value FROM meta WHERE name = 'hmac_key'").scalar_one()
        self._statements = statements(known.tables)
        self._inserts = inserts(known.tables, self._engine.dialect)
        self.key = bytes.fromhex(key)

    def insert(self, batch: list[Rows]) -> list[None]:
        """Write all rows of the batch in one transaction: committed on return.

        One that is away is waited for, and AwayError raised when it no longer is (``log_outage``).
        """
        by_table: dict[str, list[Any]] = {table: [] for table in TABLES}
        for rows in batch:
            for table, row in rows:
                by_table[table].append(self._inserts[table].values(row))
        again = ""
        while True:
            begun = time.monotonic()
            try:
                self._insert(by_table, again)
            except LogError as error:
                if not self._is_away(error.__cause__):
                    raise
                self._outage.wait(error, begun)
            else:
                self._outage.end()
                return [None for _ in batch]
            again = " ON CONFLICT DO NOTHING"  # it may have been committed, and only the word of it lost

    def _insert(self, by_table: Mapping[str, list[Any]], again: str) -> None:
        import sqlalchemy as sa

        with self._turn:
            self._check_usable()
            connection = None
            try:
                # The driver's own: SQLAlchemy's ways of beginning and executing take longer than the writing.
                connection = self._engine.raw_connection()
                tries = self._sqlite and self._outage.lasts  # who was waited for once is only tried
                with without_waiting(connection) if tries else contextlib.nullcontext():
                    cursor = connection.cursor()
                    for table, values in by_table.items():  # what others refer to comes first
                        if values:
                            cursor.executemany(self._inserts[table].sql + again, values)
                    connection.commit()
            except (sa.exc.SQLAlchemyError, self._engine.dialect.loaded_dbapi.Error) as error:
                if connection is not None and not self._sqlite and self._is_away(error):
                    connection.invalidate()  # there is nothing left to roll back
                raise _explained(error, f"cannot write to the log {self._where}") from error
            finally:
                if connection is not None:
                    connection.close()  # back to the pool, which rolls back what is not committed

    def _is_away(self, error: BaseException | None) -> bool:
        """Whether a server has gone or has no room, or a file is locked: soon it may be well again."""
        cause = getattr(error, "orig", error)
        if not isinstance(cause, self._engine.dialect.loaded_dbapi.OperationalError):
            return False
        return not self._sqlite or "locked" in str(cause)

    def change(self, statement: str, **values: Any) -> int:
        """Run one of the writing statements; the number of rows it wrote or deleted itself."""
        with self._transaction("write to") as connection:
            counted = self._statements[statement].execution_options(preserve_rowcount=True)
            return connection.execute(counted, values).rowcount

    def change_in_steps(self, statement: str, **values: Any) -> int:
        """``change`` until there is nothing left to change, others having their turn after each step."""
        total = 0
        while changed := self.change(statement, **values):
            total += changed
        return total

    def reward(self, decision_id: str, source: str, reward: float, recorded_at: float) -> bool:
        """Write a reward unless it is in force already; False where its decision is not in the log."""
        with self._transaction("write to") as connection:
            values = {
                "decision_id": decision_id,
                "source": source,
                "reward": reward,
                "recorded_at": recorded_at,
            }
            known = connection.execute(self._statements["hold"], {"decision_id": decision_id}).first()
            if known is not None:
                connection.execute(self._statements["reward"], values)
            return known is not None

    def read(self, statement: str, **values: Any) -> list[Row]:
        with self._transaction("read") as connection:
            return [dict(row) for row in connection.execute(self._statements[statement], values).mappings()]

    def overwrite_deleted(self) -> None:
        """Leave no copy of deleted rows in SQLite's write-ahead file, unless a reader still needs it."""
        if self._sqlite:
            with self._transaction("write to") as connection:
                connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        with self._turn:
            self._closed = True
            self._engine.dispose()
        _OPEN.discard(self)

    @contextlib.contextmanager
    def _transaction(self, doing: str) -> Iterator[sa.Connection]:
        import sqlalchemy as sa

        try:
            with self._turn:
                self._check_usable()
                with self._engine.begin() as connection:
                    yield connection
        except sa.exc.SQLAlchemyError as error:
            raise _explained(error, f"cannot {doing} the log {self._where}") from error

    def _check_usable(self) -> None:
        if self._closed:
            raise LogError(f"{self._where}: this log was closed. Open it again to use it.")
        if self._file:
            self._file.check()

    def _before_fork(self) -> None:
        self._turn.__enter__()
        if self._sqlite and not self._in_memory:
            self._engine.dispose()  # SQLite's locks do not survive a fork

    def _after_fork(self, *, child: bool) -> None:
        if child and not self._sqlite:
            self._engine.dispose(close=False)  # the connections stay the parent's
        if child and self.after_fork_in_child:
            self.after_fork_in_child()
        self._turn.__exit__(None, None, None)


def _explained(error: Exception, what: str) -> LogError:
    # Only the first line: PostgreSQL puts the refused row, and so the prompt, on the next.
    cause = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
    advice = [advice for sign, advice in _ADVICE if sign in cause.lower()]
    return LogError(f"{what}: {cause}" + (f". What to do: {advice[0]}." if advice else ""))


_OPEN: weakref.WeakSet[Database] = weakref.WeakSet()
_forking = threading.Lock()
_paused: list[Database] = []


@functools.cache
def _watch_forks() -> None:
    if not hasattr(os, "register_at_fork"):
        return

    def before() -> None:
        _forking.acquire()
        _paused[:] = _OPEN
        for database in _paused:
            database._before_fork()

    def after(*, child: bool) -> None:
        for database in _paused:
            database._after_fork(child=child)
        _paused.clear()
        _forking.release()

    os.register_at_fork(
        before=before,
        after_in_parent=functools.partial(after, child=False),
        after_in_child=functools.partial(after, child=True),
    )

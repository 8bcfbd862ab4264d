"""A log's database cut off, gone for long, full, or without a table: who is told what, and what is kept."""

from __future__ import annotations

import contextlib
import logging
import socket
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import sqlalchemy as sa

from ensemble import log_engine, log_outage
from ensemble.errors import LogError
from ensemble.log_engine import url_of
from ensemble.log_outage import AwayError, Outage
from ensemble.outcomes import QUEUE_SIZE, OutcomeLog
from log_cases import attempt, decision, ids, outcome, record
from test_log_faults import cut_connections

both_modes = pytest.mark.parametrize("log_mode", ["before", "after"])


def say(place: str, *statements: str) -> None:
    """To the log's database, by another way than the log's."""
    engine = sa.create_engine(url_of(place))
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()


# ---- a transaction that is cut half-way


def cut_before(monkeypatch: pytest.MonkeyPatch, url: str, what: str, nth: int) -> None:
    """The connection is cut just before psycopg does ``what`` for the ``nth`` time from now."""
    import psycopg

    owner: Any = psycopg.Cursor if what == "executemany" else psycopg.Connection
    does, left = getattr(owner, what), iter(range(nth - 1, -1, -1))

    def cut(self: Any, *given: Any) -> Any:
        if next(left, None) == 0:
            cut_connections(url)
        return does(self, *given)

    monkeypatch.setattr(owner, what, cut)


@both_modes
@pytest.mark.parametrize(("what", "nth"), [("executemany", 2), ("commit", 1)])
def test_a_transaction_cut_half_way_is_written_whole_and_once(
    postgres: str,
    log_mode: Any,
    what: str,
    nth: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with OutcomeLog.open(postgres, log_mode=log_mode) as log:
        of = record(log)
        log.flush()
        caplog.clear()
        cut_before(monkeypatch, postgres, what, nth)
        log.record_outcome(outcome(of), last_attempt=attempt(of))
        row = log.decision(of)
        assert row is not None and row["served_member"] == "oak" and len(row["attempts"]) == 1
        assert [one for one in caplog.records if one.levelno >= logging.ERROR] == []
        monkeypatch.undo()
        log.forget(of)


def test_a_reward_cut_at_its_commit_is_told_and_given_again_is_one(
    postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with OutcomeLog.open(postgres) as log:
        of = record(log)
        cut_before(monkeypatch, postgres, "commit", 1)
        with pytest.raises(LogError, match="server runs"):
            log.record_reward(of, 0.5)
        log.record_reward(of, 0.5)
        assert len(log._database.read("rewards", ids=[of])) == 1
        log.forget(of)


# ---- a table that is gone


@both_modes
def test_a_table_that_was_dropped_is_told_and_the_rest_goes_on(place: str, log_mode: Any) -> None:
    with OutcomeLog.open(place, log_mode=log_mode) as log:
        of = record(log)
        log.flush()
        say(place, "DROP TABLE outcomes")
        with pytest.raises(LogError, match="restore the log"):
            log.record_outcome(outcome(of))
            log.flush()
        log.record_attempt(attempt(of))
        log.flush()
        with pytest.raises(LogError, match="restore the log"):
            ids(log)
        assert len(log.latest_attempts(9)) == 1
    with pytest.raises(LogError, match="restore the log"):
        OutcomeLog.open(place)


# ---- a server without room for us


@pytest.fixture
def narrow(postgres: str) -> Iterator[str]:
    """An empty log's URL, for a user who may have one connection."""
    name = f"u{uuid.uuid4().hex}"
    say(
        postgres, f"CREATE ROLE {name} LOGIN CONNECTION LIMIT 1", f"CREATE SCHEMA {name} AUTHORIZATION {name}"
    )
    yield postgres.replace("//postgres:", f"//{name}:", 1) + f"&options=-csearch_path%3D{name}"
    say(postgres, f"DROP SCHEMA {name} CASCADE", f"DROP ROLE {name}")


@both_modes
def test_without_a_connection_left_it_is_told_and_one_that_falls_free_is_used(
    postgres: str, narrow: str, log_mode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = f"ALTER ROLE {url_of(narrow).username} CONNECTION LIMIT"
    with OutcomeLog.open(narrow, log_mode=log_mode) as log:
        made = [record(log)]
        log.flush()
        say(postgres, f"{limit} 0")
        log._database._engine.dispose()
        with monkeypatch.context() as patched:
            patched.setattr(log_engine, "BUSY_S", 0)
            with pytest.raises(LogError, match="take more connections"):
                record(log)
                log.flush()
            with pytest.raises(LogError, match="take more connections"):
                OutcomeLog.open(narrow)
        falls_free = threading.Timer(0.3, say, (postgres, f"{limit} 1"))
        falls_free.start()
        made.append(record(log, decision(created_at=2_000.0)))
        log.flush()
        falls_free.join()
        assert ids(log) == made


def test_a_server_that_says_nothing_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_engine, "BUSY_S", 2)  # whole seconds, and 2 at least, for libpq
    with socket.create_server(("127.0.0.1", 0)) as mute, pytest.raises(LogError, match="server runs"):
        OutcomeLog.open(f"postgresql://someone@127.0.0.1:{mute.getsockname()[1]}/log")


# ---- gone for longer than it is waited for


def counted(
    log: OutcomeLog, monkeypatch: pytest.MonkeyPatch, first: Callable[[], None] = lambda: None
) -> list[int]:
    """The number of rows of each try to write, as they are made; ``first`` is called before each."""
    tries: list[int] = []
    insert: Callable[..., None] = log._database._insert

    def counting(by_table: Any, again: str) -> None:
        tries.append(sum(map(len, by_table.values())))
        first()
        insert(by_table, again)

    monkeypatch.setattr(log._database, "_insert", counting)
    return tries


class Away(NamedTuple):
    """A place whose database can be taken away and brought back."""

    place: str
    take: Callable[[], object]
    bring: Callable[[], object]


@pytest.fixture(params=["a locked file", "a server that lets nobody in"])
def away(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Away]:
    """It is given up at once."""
    monkeypatch.setattr(log_engine, "BUSY_S", 0)
    if request.param == "a locked file":
        with contextlib.closing(sqlite3.connect(tmp_path / "log.db")) as other:
            yield Away(str(tmp_path / "log.db"), partial(other.execute, "BEGIN IMMEDIATE"), other.rollback)
        return
    postgres, place = request.getfixturevalue("postgres"), request.getfixturevalue("narrow")
    role = str(url_of(place).username)

    def take_away() -> None:
        say(postgres, f"ALTER ROLE {role} NOLOGIN")
        cut_connections(postgres)

    yield Away(place, take_away, partial(say, postgres, f"ALTER ROLE {role} LOGIN"))


def test_while_it_is_away_those_who_stand_in_line_are_tried_once_together(
    away: Away, monkeypatch: pytest.MonkeyPatch
) -> None:
    callers = 20
    with OutcomeLog.open(away.place) as log, ThreadPoolExecutor(callers) as threads:
        kept = record(log)

        def until_all_are_there() -> None:
            while len(tries) == 1 and len(log._insert._line) < callers - 1:
                time.sleep(0.001)

        tries = counted(log, monkeypatch, until_all_are_there)
        away.take()
        refused = [threads.submit(record, log) for _ in range(callers)]
        for one in refused:
            with pytest.raises(LogError, match="What to do"):
                one.result(timeout=60)
        assert tries == [1, callers - 1]
        away.bring()
        later = record(log, decision(created_at=2_000.0))
        assert log._database._outage._since is None  # the next one is waited for anew
        assert ids(log) == [kept, later]


def test_in_mode_after_nobody_is_held_up_and_what_is_lost_is_counted(
    away: Away, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with OutcomeLog.open(away.place, log_mode="after") as log:
        kept = record(log)
        log.flush()
        tries = counted(log, monkeypatch)
        away.take()
        for n in range(2 * QUEUE_SIZE):  # more than may wait
            log.record_attempt(attempt(kept, n))
        with pytest.raises(LogError, match=rf"^{2 * QUEUE_SIZE} records are not in the log"):
            log.flush()
        log.flush()  # told once
        assert sum(tries) == 2 * QUEUE_SIZE  # each was tried once
        assert sum(one.name == "ensemble" for one in caplog.records) == 1
        away.bring()
        later = record(log, decision(created_at=2_000.0))
        assert ids(log) == [kept, later]


def test_a_file_that_was_waited_for_once_is_only_tried_until_it_is_free(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    with (
        OutcomeLog.open(path) as log,
        contextlib.closing(sqlite3.connect(path, check_same_thread=False)) as other,
    ):
        kept = record(log)
        with pytest.raises(AwayError):
            log._database._outage.wait(LogError("gone"), begun=time.monotonic() - 60)
        other.execute("BEGIN IMMEDIATE")
        falls_free = threading.Timer(5, other.rollback)  # before long, to who waits
        falls_free.start()
        with pytest.raises(AwayError, match="another process kept it"):
            record(log)
        falls_free.cancel()
        other.rollback()
        later = record(log, decision(created_at=2_000.0))
        other.execute("BEGIN IMMEDIATE")
        falls_free = threading.Timer(0.3, other.rollback)
        falls_free.start()
        log.record_reward(kept, 1.0)  # is waited for again
        falls_free.join()
        assert ids(log) == [kept, later]


def test_after_each_outage_the_next_is_waited_for_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_outage, "AWAY_S", 0.0)
    outage, met, now = Outage(), LogError("gone"), time.monotonic()
    outage.wait(met, begun=now)
    outage.end()
    for begun in (now - 60, now):  # once it is given up, who begins later does not wait either
        with pytest.raises(AwayError, match="gone"):
            outage.wait(met, begun)
    outage.end()
    outage.wait(met, begun=now)

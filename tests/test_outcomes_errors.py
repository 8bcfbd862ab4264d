"""What the log refuses, what it says then, and its schema from version to version."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
import sys
import traceback
from pathlib import Path

import numpy as np
import pytest

from ensemble import log_database, log_engine, log_schema
from ensemble.errors import ConfigError, LogError, MissingExtraError
from ensemble.outcomes import LogMode, OutcomeLog
from log_cases import ENVIRONMENT, PROMPT, attempt, decision, ids, outcome, raw, record

# ---- what may not happen


def test_each_record_is_written_once_and_after_its_decision(log: OutcomeLog) -> None:
    made = decision()
    record(log, made)
    log.record_attempt(attempt(made.id))
    log.record_outcome(outcome(made.id))
    with pytest.raises(LogError, match="recorded once"):
        record(log, made)
    with pytest.raises(LogError, match="recorded once"):
        log.record_attempt(attempt(made.id))
    with pytest.raises(LogError, match="recorded once"):
        log.record_outcome(outcome(made.id))
    with pytest.raises(LogError, match="record the decision first"):
        log.record_attempt(attempt("nobody"))
    with pytest.raises(LogError, match="record the decision first"):
        log.record_outcome(outcome("nobody"))
    assert ids(log) == [made.id]


def test_prompts_stay_out_of_tracebacks(place: str) -> None:
    with OutcomeLog.open(place, keep="text") as log:
        made = decision()
        record(log, made)
        with pytest.raises(LogError) as caught:
            record(log, made)
    assert PROMPT not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("log_mode", ["before", "after"])
def test_a_log_closed_while_it_was_written_to_says_so_to_whoever_goes_on(
    tmp_path: Path, log_mode: LogMode
) -> None:
    log = OutcomeLog.open(tmp_path / "log.db", log_mode=log_mode)
    record(log)
    log.close()
    for _ in range(2):
        with pytest.raises(LogError, match="this log was closed"):
            record(log)
    log.close()


def test_a_closed_log_says_so(log: OutcomeLog) -> None:
    log.close()
    log.close()
    with pytest.raises(LogError, match="closed"):
        record(log)


@pytest.mark.parametrize("where", ["", "file/log.db", "text.db"])
def test_a_place_that_cannot_hold_a_log_is_named(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "text.db").write_text("this is no database" * 100)
    with pytest.raises(LogError, match=str(tmp_path / where)):
        OutcomeLog.open(tmp_path / where)
    assert (tmp_path / "text.db").read_text().startswith("this is no database")


def test_a_server_that_does_not_answer_is_named_without_its_password() -> None:
    with pytest.raises(LogError, match="server runs") as caught:
        OutcomeLog.open("postgresql://me:hunter2@127.0.0.1:1/log")
    assert "hunter2" not in str(caught.value)


def test_a_locked_file_is_an_error_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_engine, "BUSY_S", 0.1)
    with OutcomeLog.open(tmp_path / "log.db") as log:
        with contextlib.closing(sqlite3.connect(tmp_path / "log.db")) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(LogError, match="another process"):
                record(log)
        of = record(log)
        assert ids(log) == [of]


def test_wrong_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="log_mode"):
        OutcomeLog.open(tmp_path / "log.db", log_mode="sometimes")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="keep"):
        OutcomeLog.open(tmp_path / "log.db", keep="everything")  # type: ignore[arg-type]
    for url in ("mysql://host/name", "sqlite//:x://", "nothing://"):
        with pytest.raises(ConfigError, match="log: expected"):
            OutcomeLog.open(url)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_driver_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingExtraError, match=r"ensemble-router\[postgres\]"):
        OutcomeLog.open("postgresql://host/name")


def test_importing_the_log_imports_no_sqlalchemy() -> None:
    code = "import sys, ensemble.outcomes; sys.exit('sqlalchemy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT).returncode == 0


# ---- schema versions

NEXT_STEP = ("ALTER TABLE decisions ADD COLUMN region TEXT", "CREATE INDEX by_region ON decisions (region)")


def test_an_older_log_is_brought_up_to_date_and_a_newer_one_refused(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with OutcomeLog.open(place) as log:
        old, key = record(log), log.prompt_key(PROMPT)
    with monkeypatch.context() as newer:
        newer.setattr(log_database, "MIGRATIONS", (*log_schema.MIGRATIONS, NEXT_STEP))
        for _ in range(2):
            with OutcomeLog.open(place) as log:
                row = log.decision(old)
                assert row is not None and row["region"] is None
                assert log.prompt_key(PROMPT) == key
                record(log)
    with pytest.raises(LogError, match=r"version 3.*up to 2"):
        OutcomeLog.open(place)


def test_a_step_that_fails_leaves_the_log_as_it_was(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with OutcomeLog.open(place) as log:
        old = record(log)
    with monkeypatch.context() as newer:
        newer.setattr(log_database, "MIGRATIONS", (*log_schema.MIGRATIONS, (*NEXT_STEP, "NO SUCH STATEMENT")))
        with pytest.raises(LogError, match="cannot prepare"):
            OutcomeLog.open(place)
    with OutcomeLog.open(place) as log:
        row = log.decision(old)
    assert row is not None and "region" not in row


@pytest.mark.parametrize(
    "theirs", ["CREATE TABLE meta (name TEXT, value TEXT)", "CREATE TABLE decisions (x TEXT)"]
)
def test_another_programs_tables_are_left_alone(tmp_path: Path, theirs: str) -> None:
    raw(tmp_path / "log.db", theirs)
    with pytest.raises(LogError, match="of its own"):
        OutcomeLog.open(tmp_path / "log.db")
    assert len(raw(tmp_path / "log.db", "SELECT name FROM sqlite_master")) == 1


def test_the_file_can_be_read_without_us(tmp_path: Path) -> None:
    with OutcomeLog.open(tmp_path / "log.db") as log:
        record(log, metadata={"user": "u1"})
    ((members, probability, features, metadata),) = raw(
        tmp_path / "log.db", "SELECT members, probability, features, metadata FROM decisions"
    )
    assert dict(zip(json.loads(members), json.loads(probability), strict=True)) == {"oak": 0.5, "elm": 0.5}
    assert np.frombuffer(features, "<f4").tolist() == [0.0, 1.0, 2.0]
    assert json.loads(metadata) == {"user": "u1"}
    assert raw(tmp_path / "log.db", "PRAGMA journal_mode") == [("wal",)]

"""The log through threads, processes, forks, kills, and writing behind the caller's back."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from ensemble import log_queue
from ensemble.errors import LogError
from ensemble.outcomes import OutcomeLog
from log_cases import ENVIRONMENT, attempt, decision, ids, outcome, raw, record

# ---- many at once

WORKER = """
import sys, time, itertools, numpy as np
from ensemble.outcomes import OutcomeLog
from ensemble.records import Attempt, Decision, Forecast, Member, Outcome, Wishes
path, name, count, mode = sys.argv[1:]
log = OutcomeLog.open(path, log_mode=mode)
forecast = Forecast("oak", .5, .1, 1., 2., .1, .2, None, 0., 1., True, None)
for n in itertools.count() if count == "endless" else range(int(count)):
    made = Decision(f"{name}-{n}", float(n), "oak", "routed", 1., True, (forecast,), ("oak",), 1., Wishes(),
                    "r", "1")
    log.record_decision(made, members=[Member("oak", "tuned", (), 1., 1.)], encoder_sha256="e",
                        features=np.zeros(384), session=name)
    log.record_attempt(Attempt(made.id, 1, "oak", "routed", float(n), 1., cost_usd=1.))
    log.record_outcome(Outcome(made.id, float(n), "oak", "routed", 1., None, 1, 1, 1., False))
    print(made.id, flush=True)
"""


def worker(path: Path, name: str, count: str, mode: str = "before") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORKER, str(path), name, count, mode]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("log_mode", ["before", "after"])
def test_threads_share_a_log(place: str, log_mode: Any) -> None:
    failed: list[BaseException] = []

    def run(session: str) -> None:
        try:
            for second in range(15):
                of = record(log, decision(created_at=float(second)), session=session, metadata={"t": session})
                log.record_attempt(attempt(of))
                log.record_outcome(outcome(of, member=session))
                log.record_reward(of, 0.5)
                last = log.last_step(session)
                assert last is not None and last["served_member"] == session
        except BaseException as error:
            failed.append(error)

    with OutcomeLog.open(place, log_mode=log_mode) as log:
        threads = [threading.Thread(target=run, args=(f"thread-{n}",)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == []
        rows = list(log.rows())
        assert len(rows) == 90
        assert all(row["served_member"] == row["session"] and row["rewards"] for row in rows)
        assert log.forget(metadata={"t": "thread-3"}) == 15


def test_many_may_create_one_log_at_once(place: str) -> None:
    start, failed = threading.Barrier(8), []

    def run() -> None:
        try:
            start.wait()
            with OutcomeLog.open(place) as log:
                record(log)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    with OutcomeLog.open(place) as log:
        assert len(ids(log)) == 8


def test_two_processes_create_and_write_one_file(tmp_path: Path) -> None:
    processes = [worker(tmp_path / "log.db", name, "60") for name in ("a", "b")]
    written = [process.communicate(timeout=30)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    with OutcomeLog.open(tmp_path / "log.db") as log:
        assert sorted(ids(log)) == sorted(written[0] + written[1])
        assert log.spend_usd(0.0) == 120.0


@pytest.mark.parametrize("log_mode", ["before", "after"])
def test_a_killed_process_loses_what_its_mode_allows(tmp_path: Path, log_mode: str) -> None:
    path, chance = tmp_path / "log.db", random.Random(0)
    for turn in range(3):
        process = worker(path, str(turn), "endless", log_mode)
        assert process.stdout is not None
        written = [process.stdout.readline().strip()]
        time.sleep(0.05 + 0.1 * chance.random())
        process.send_signal(signal.SIGKILL)
        written += process.stdout.read().split("\n")[:-1]  # the last line may be cut short
        process.wait()
        with OutcomeLog.open(path) as log:
            kept = [row for row in log.rows() if row["decision_id"].startswith(f"{turn}-")]
            if log_mode == "before":
                complete = {row["decision_id"] for row in kept if row["served_member"] and row["attempts"]}
                assert complete >= set(written)
            else:
                assert len(kept) >= len(written) - log_queue.QUEUE_SIZE
                assert [row["decision_id"] for row in kept] == [f"{turn}-{n}" for n in range(len(kept))]
            record(log)
        assert raw(path, "PRAGMA integrity_check") == [("ok",)]
        assert raw(path, "PRAGMA foreign_key_check") == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("log_mode", ["before", "after"])
def test_a_log_serves_parent_and_children_after_a_fork(place: str, log_mode: Any) -> None:
    stop = threading.Event()

    def keep_writing() -> None:
        while not stop.is_set():
            record(log, decision(id=f"thread-{next(counter)}"))

    counter = itertools.count()
    with OutcomeLog.open(place, log_mode=log_mode) as log:
        thread = threading.Thread(target=keep_writing)
        thread.start()
        children = []
        for n in range(3):
            record(log, decision(id=f"parent-{n}"))
            child = os.fork()
            if child == 0:
                try:
                    for k in range(5):
                        record(log, decision(id=f"child-{n}-{k}"))
                    log.flush()
                    os._exit(0 if log.decision(f"child-{n}-4") else 1)
                finally:
                    os._exit(2)
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        stop.set()
        thread.join()
        assert codes == [0, 0, 0]
        found = ids(log)
    expected = [f"thread-{n}" for n in range(next(counter))] + [f"parent-{n}" for n in range(3)]
    assert sorted(found) == sorted(expected + [f"child-{n}-{k}" for n in range(3) for k in range(5)])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_keeps_its_log_when_the_parent_closes(tmp_path: Path) -> None:
    log = OutcomeLog.open(tmp_path / "log.db")
    record(log, decision(id="parent"))
    closed, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            record(log, decision(id="child-1"))
            os.read(closed, 1)
            record(log, decision(id="child-2"))
            os._exit(0)
        finally:
            os._exit(2)
    while "child-1" not in ids(log):
        time.sleep(0.01)
    log.close()
    os.write(tell, b".")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with OutcomeLog.open(tmp_path / "log.db") as log:
        assert sorted(ids(log)) == ["child-1", "child-2", "parent"]


# ---- writing behind the caller's back


def test_leaving_the_program_writes_what_waits(tmp_path: Path) -> None:
    process = worker(tmp_path / "log.db", "a", "40", "after")
    assert process.wait(timeout=30) == 0
    with OutcomeLog.open(tmp_path / "log.db") as log:
        assert len(ids(log)) == 40


def test_a_record_that_fails_later_is_reported_and_alone(place: str) -> None:
    log = OutcomeLog.open(place, log_mode="after")
    log.record_attempt(attempt("nobody"))
    made = record(log)
    assert ids(log) == [made]
    with pytest.raises(LogError, match=r"1 records.*record the decision first"):
        log.flush()
    log.flush()  # told once
    log.record_outcome(outcome("nobody"))
    with pytest.raises(LogError, match="1 records"):
        log.close()


def test_a_full_queue_makes_the_caller_wait_and_drops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_queue, "QUEUE_SIZE", 5)
    monkeypatch.setattr(log_queue, "BATCH_SIZE", 2)
    open_gate, written, put = threading.Event(), [], []

    def write(batch: list[int]) -> None:
        open_gate.wait()
        written.extend(batch)

    writer = log_queue.BackgroundWriter(write)

    def produce() -> None:
        for n in range(20):
            writer.put(n)
            put.append(n)

    producer = threading.Thread(target=produce)
    producer.start()
    producer.join(0.2)
    assert put == [0, 1, 2, 3, 4] and written == []
    open_gate.set()
    producer.join()
    writer.stop()
    assert written == list(range(20))


def test_a_log_in_memory_serves_tests_and_notebooks() -> None:
    with OutcomeLog.open("sqlite://") as log:
        of = record(log)
        subprocess.run(["true"], check=True)
        assert ids(log) == [of]

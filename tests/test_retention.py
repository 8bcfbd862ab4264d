"""What has grown too old goes by itself, while the log is written to, and nobody waits for it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ensemble.engine import Ensemble
from ensemble.errors import EnsembleWarning, LogError
from ensemble.log_retention import EVERY_S, Retention
from ensemble.outcomes import OutcomeLog
from ensemble.pool import Pool
from log_cases import decision, ids, record
from policy_cases import member
from serving_cases import CHEAP, PROMPT, default_router

DAY = 86_400.0


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100 * DAY

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Iterator[Clock]:
    return Clock()


def settle(log: OutcomeLog) -> None:
    assert log._retention is not None
    log._retention.wait()


@pytest.mark.parametrize("log_mode", ["before", "after"])
def test_what_is_older_than_keep_days_goes_once_an_hour(place: str, clock: Clock, log_mode: str) -> None:
    with OutcomeLog.open(place, clock=clock) as log:
        for age in (80, 40, 29, 1):
            record(log, decision(created_at=clock.now - age * DAY))
        assert len(ids(log)) == 4
    with OutcomeLog.open(place, clock=clock, keep_days=30, log_mode=log_mode) as log:  # type: ignore[arg-type]
        record(log, decision(created_at=clock.now))
        settle(log)
        assert [row["created_at"] for row in log.rows()] == [clock.now - 29 * DAY, clock.now - DAY, clock.now]
        clock.now += DAY + 1
        record(log, decision(created_at=clock.now))
        settle(log)
        assert len(ids(log)) == 3  # one more has come, one has gone
        record(log, decision(created_at=clock.now - 40 * DAY))
        settle(log)
        assert len(ids(log)) == 4  # it is not time yet
        clock.now += EVERY_S
        record(log, decision(created_at=clock.now))
        settle(log)
        assert len(ids(log)) == 4


def test_nobody_waits_for_it_and_it_is_done_once_at_a_time(clock: Clock) -> None:
    begun, go_on, times = threading.Event(), threading.Event(), []

    def forget() -> None:
        times.append(clock.now)
        begun.set()
        assert go_on.wait(10)

    retention = Retention(forget, clock)
    retention.remind()
    assert begun.wait(10)
    clock.now += 2 * EVERY_S
    retention.remind()  # returns, though the first is still at it
    go_on.set()
    retention.wait()
    retention.remind()
    retention.wait()
    assert times == [100 * DAY, 100 * DAY + 2 * EVERY_S]


@pytest.mark.filterwarnings("always")
def test_a_log_that_refuses_is_said_and_tried_again(clock: Clock) -> None:
    faults = [LogError("the disk is full")]

    def forget() -> None:
        if faults:
            raise faults.pop()
        done.append(True)

    done: list[bool] = []
    retention = Retention(forget, clock)
    with pytest.warns(EnsembleWarning, match="still in the log.*the disk is full"):
        retention.remind()
        retention.wait()
    clock.now += EVERY_S
    retention.remind()
    retention.wait()
    assert done == [True]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_does_its_own(clock: Clock) -> None:
    held, go_on = threading.Event(), threading.Event()
    at_work = [lambda: (held.set(), go_on.wait(10))]
    retention = Retention(lambda: at_work.pop()() if at_work else None, clock)
    retention.remind()
    assert held.wait(10)
    clock.now += EVERY_S
    if (child := os.fork()) == 0:
        done: list[bool] = []
        retention._forget = lambda: done.append(True)
        retention.remind()
        retention.wait()
        os._exit(0 if done else 1)
    go_on.set()
    retention.wait()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_an_ensemble_is_told_how_long_to_keep(tmp_path: Path, clock: Clock) -> None:
    pool = Pool([member(CHEAP, 0.1, 0.2)])
    settings = {"router": default_router(), "pool": pool, "log": tmp_path / "log.db", "clock": clock}
    with Ensemble(keep_days=30, **settings) as ensemble:  # type: ignore[arg-type]
        assert ensemble.log is not None
        ensemble.route(PROMPT)
        settle(ensemble.log)
        clock.now += 31 * DAY
        new = ensemble.route(PROMPT)
        settle(ensemble.log)
        assert ids(ensemble.log) == [new.id]

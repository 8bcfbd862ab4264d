"""Calls one after another use one connection: waiting, awaiting, under a deadline, whatever the provider."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import litellm
import pytest

from ensemble.connections import MOST_IDLE
from ensemble.errors import CallFailedError
from ensemble.pool import Pool
from ensemble.records import Deployment
from local_provider import LocalProvider, Say
from serving_cases import CHEAP, KEY, MEMBERS, PRICES, QUIET, Line, said

pytestmark = QUIET
N_CALLS = 6
LONG_S = 20.0  # seconds: a silence that no test waits out
MODULES = ("openai", "openrouter")  # called through OpenAI's own client, and through litellm's


@pytest.fixture
def provider() -> Iterator[LocalProvider]:
    with LocalProvider(api_key=KEY, keep_alive=True) as running:
        yield running


@pytest.fixture(params=MODULES)
def line(request: pytest.FixtureRequest, provider: LocalProvider, tmp_path: Path) -> Iterator[Line]:
    """Its clock goes on by a millisecond each time it is read, so that no two deadlines are the same."""
    here = {"api_base": provider.url, "api_key": KEY}
    pool = Pool(
        [
            provider.member(n, *PRICES[n], deployments=(Deployment(f"{request.param}/{n}", here),))
            for n in MEMBERS
        ]
    )
    ticks = itertools.count(1_000_000)
    opened = Line(provider, tmp_path / "log.db", pool=pool, clock=lambda: next(ticks) / 1000)
    with opened.ensemble:
        yield opened


def wait_for(line: Line, n_calls: int, **keywords: Any) -> None:
    for number in range(n_calls):
        assert said(line.ask(f"call {number}", **keywords)).startswith("Oslo")


def await_(line: Line, n_calls: int, **keywords: Any) -> None:
    async def calls() -> None:
        for number in range(n_calls):
            assert said(await line.aask(f"call {number}", **keywords)).startswith("Oslo")

    asyncio.run(calls())


@pytest.mark.parametrize("keywords", [{}, {"timeout": 9}, {"max_latency_s": 600.0}], ids=str)
@pytest.mark.parametrize("ask", [wait_for, await_])
def test_calls_one_after_another_use_one_connection(
    line: Line, ask: Callable[..., None], keywords: dict[str, Any]
) -> None:
    ask(line, N_CALLS, **keywords)
    assert (line.provider.connections, len(line.asked)) == (1, N_CALLS)


def test_threads_open_no_more_connections_than_there_are_callers(line: Line) -> None:
    line.ask()
    together = threading.Barrier(8, timeout=10)

    def ask() -> None:
        together.wait()
        wait_for(line, 4)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(line.asked) == 33 and line.provider.connections <= 8


@pytest.mark.parametrize("line", ["openai"], indirect=True)
def test_many_that_wait_at_once_are_served_at_once_and_their_connections_kept(line: Line) -> None:
    n_callers = MOST_IDLE + 20
    line.provider.behave(CHEAP, Say("Oslo", delay_s=0.5))
    for _ in range(2):
        together = threading.Barrier(n_callers, timeout=30)

        def ask() -> None:
            together.wait()  # noqa: B023
            assert said(line.ask(members=[CHEAP])) == "Oslo"

        threads = [threading.Thread(target=ask) for _ in range(n_callers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(line.asked) == 2 * n_callers
    assert line.provider.connections < 1.5 * n_callers


def test_each_call_keeps_its_own_time_out(line: Line) -> None:
    line.provider.behave(CHEAP, ["one", Say("two", delay_s=LONG_S), Say("three", delay_s=LONG_S)])
    only = {"members": [CHEAP]}
    assert said(line.ask(timeout=LONG_S, **only)) == "one"
    for silence in ({"timeout": 0.2}, {"max_latency_s": 0.2}):
        with pytest.raises(CallFailedError):
            line.ask(**silence, **only)
    assert line.asked == [CHEAP] * 3


def test_a_connection_that_the_provider_has_closed_costs_no_attempt(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("local_http._Handler.timeout", 0.05)  # seconds that it bears an idle connection
    for opened in (1, 2):
        assert line.attempts(line.ask()) == [(CHEAP, "routed", None)]
        assert line.provider.connections == opened
        time.sleep(0.3)


def test_one_event_loop_after_another(line: Line) -> None:
    for opened in (1, 2):  # a connection can't leave its loop
        await_(line, 2)
        assert line.provider.connections == opened


@pytest.mark.parametrize("line", ["openai"], indirect=True)
def test_the_callers_own_session_is_used_and_left_alone(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    line.ask()
    seen: list[httpx.Request] = []
    with httpx.Client(event_hooks={"request": [seen.append]}) as session:
        monkeypatch.setattr(litellm, "client_session", session)
        wait_for(line, 2)
        assert litellm.client_session is session and not session.is_closed
    assert len(seen) == 2 and line.provider.connections == 2


FORKED = """
import os, sys
from pathlib import Path
from local_provider import LocalProvider
from serving_cases import Line
provider = LocalProvider(keep_alive=True).start()
line = Line(provider, Path(sys.argv[1]))
line.ask("the parent, before")
child = os.fork()
for i in range(3):
    line.ask(f"call {i}")
if child == 0:
    line.ensemble.close()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
line.ask("the parent, after")
assert (provider.connections, len(provider.requests)) == (2, 8), provider.connections
line.ensemble.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system knows no fork")
def test_a_forked_child_opens_its_own(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKED, str(tmp_path / "log.db")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr

"""``acomplete``: the same answers and the same log as ``complete``, and the loop is never held up."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ensemble.errors import CallFailedError, InputError, NoEligibleMemberError, StreamBrokenError
from local_provider import Fail, Say
from serving_cases import CHEAP, MEMBERS, MIDDLE, MOST_INPUT, QUIET, Line, open_line, said, text_of, usd

pytestmark = QUIET
LONG = Say(" ".join(["word"] * 300), chunk_delay_s=0.02)  # six seconds of talk


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    with open_line(tmp_path, keep="text+answers") as opened:
        yield opened


async def until(true: Any) -> None:
    for _ in range(500):
        if true():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come true within five seconds")


async def read(stream: Any) -> list[Any]:
    return [chunk async for chunk in stream]


def test_an_awaited_call_is_the_same_call(line: Line) -> None:
    async def ask_both() -> tuple[Any, Any]:
        return await line.aask(max_cost_usd=0.01, seed=3), line.ask(max_cost_usd=0.01, seed=3)

    awaited, plain = asyncio.run(ask_both())
    assert said(awaited) == said(plain) == f"Oslo, says {CHEAP}."
    assert type(awaited) is type(plain) and "decision" not in awaited.model_dump()
    first, second = line.provider.requests
    assert (first["messages"], first["params"]) == (second["messages"], second["params"])
    same = [
        (r["served_member"], r["cost_usd"], r["probability"], r["answer"], r["wishes"]) for r in line.rows()
    ]
    assert len(same) == 2 and same[0] == same[1]


def test_errors_are_the_same_errors(line: Line) -> None:
    with pytest.raises(InputError, match="min_reward"):
        asyncio.run(line.aask(min_reward=7))
    with pytest.raises(NoEligibleMemberError):
        asyncio.run(line.aask(max_cost_usd=0))
    for name in MEMBERS:
        line.provider.behave(name, Fail(500))
    with pytest.raises(CallFailedError) as caught:
        asyncio.run(line.aask())
    assert list(caught.value.failures) == list(MEMBERS)
    assert len(line.row(caught.value)["attempts"]) == 3


@pytest.mark.parametrize("wanted", [False, True])
def test_a_stream_has_its_decision_its_usage_if_wanted_and_its_outcome_in_time(
    line: Line, wanted: bool
) -> None:
    async def ask() -> tuple[Any, list[Any], list[bool]]:
        options = {"stream_options": {"include_usage": True}} if wanted else {}
        stream = await line.aask(stream=True, **options)
        chunks, written = [], []
        async for chunk in stream:
            chunks.append(chunk)
            written.append(line.rows()[0]["ended_at"] is not None)
        return stream, chunks, written

    stream, chunks, written = asyncio.run(ask())
    assert text_of(chunks) == f"Oslo, says {CHEAP}." and stream.decision.member == CHEAP
    assert sum(getattr(chunk, "usage", None) is not None for chunk in chunks) == wanted
    assert written[0] is False and written[-1] is True
    [request], row = line.provider.requests, line.row(stream)
    exactly = usd(CHEAP, request["input_tokens"], request["output_tokens"])
    assert row["cost_usd"] == pytest.approx(exactly, abs=1e-12) and not row["cost_is_estimated"]


def test_a_stream_that_breaks_off(line: Line) -> None:
    line.provider.behave(CHEAP, Say("one two three", break_after=1))

    async def ask() -> Any:
        stream = await line.aask(stream=True)
        with pytest.raises(StreamBrokenError):
            await read(stream)
        assert await read(stream) == []
        return stream

    row = line.row(asyncio.run(ask()))
    assert row["served_member"] is None and row["answer"] == "one " and row["cost_is_estimated"]


@pytest.mark.parametrize("how", ["aclose", "with", "drop"])
def test_a_stream_that_its_reader_leaves(line: Line, how: str) -> None:
    line.provider.behave(CHEAP, LONG)

    async def ask() -> str:
        stream = await line.aask(stream=True, max_tokens=5_000)
        decision_id = stream.decision.id
        await anext(stream)
        if how == "with":
            async with stream:
                await anext(stream)
        elif how == "aclose":
            await stream.aclose()
            assert await read(stream) == []
        if how != "drop":
            await until(lambda: line.provider._at_once == 0)  # the provider was told to stop
        return str(decision_id)

    decision_id = asyncio.run(ask())
    until_s = time.monotonic() + 5
    while not (row := line.row(decision_id))["error"] and time.monotonic() < until_s:
        time.sleep(0.01)  # dropped, it is left by a thread of its own
    assert (row["served_member"], row["error"]) == (None, "closed by the caller")
    assert row["cost_usd"] == pytest.approx(usd(CHEAP, MOST_INPUT, 5_000))


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_is_cancelled_before_its_answer_is_written_down(line: Line, stream: bool) -> None:
    line.provider.behave(CHEAP, Say("too late", delay_s=20))

    async def ask() -> None:
        task = asyncio.create_task(line.aask(stream=stream, max_tokens=100))
        await until(lambda: line.asked)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(ask())
    [row] = line.rows()
    assert (row["served_member"], row["error"]) == (None, "cancelled by the caller")
    assert row["cost_is_estimated"]
    assert row["cost_usd"] == pytest.approx(usd(CHEAP, MOST_INPUT, 100))
    assert line.attempts(row["decision_id"]) == [(CHEAP, "routed", "cancelled by the caller")]


@pytest.mark.parametrize("writing", ["record_decision", "record_attempt"])
def test_what_is_cancelled_before_it_is_sent_costs_nothing(
    line: Line, monkeypatch: Any, writing: str
) -> None:
    record, began = getattr(line.log, writing), threading.Event()

    def record_slowly(*arguments: Any, **keywords: Any) -> None:
        began.set()
        time.sleep(0.2)
        record(*arguments, **keywords)

    async def ask() -> None:
        task = asyncio.create_task(line.aask())
        await until(began.is_set)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert line.rows()[0]["ended_at"] is not None  # it is over when the caller hears of it

    line.provider.behave(CHEAP, Fail(500))
    monkeypatch.setattr(line.log, writing, record_slowly)
    asyncio.run(ask())
    [row] = line.rows()
    assert (row["error"], row["cost_usd"]) == ("cancelled by the caller", 0)
    sent = [] if writing == "record_decision" else [CHEAP]
    assert [attempt["member"] for attempt in row["attempts"]] == line.asked == sent


def test_a_stream_whose_reader_is_cancelled(line: Line) -> None:
    line.provider.behave(CHEAP, LONG)

    async def ask() -> None:
        stream = await line.aask(stream=True)
        task = asyncio.create_task(read(stream))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert line.row(stream)["error"] == "cancelled by the caller"
        assert await read(stream) == []
        await until(lambda: line.provider._at_once == 0)

    asyncio.run(ask())


@pytest.mark.parametrize("delay_s", [0.0, 0.002, 0.005, 0.01, 0.02, 0.05])
def test_whenever_it_is_cancelled_each_decision_has_at_most_one_outcome(line: Line, delay_s: float) -> None:
    async def ask() -> list[Any]:
        tasks = [asyncio.create_task(line.aask()) for _ in range(8)]
        await asyncio.sleep(delay_s)
        for task in tasks[::2]:
            task.cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    results = asyncio.run(ask())
    assert all(isinstance(r, asyncio.CancelledError) or said(r).startswith("Oslo") for r in results)
    assert sum(isinstance(r, asyncio.CancelledError) for r in results) <= 4
    rows = line.rows()
    assert all(row["ended_at"] is not None for row in rows)  # none is left without its end
    answered = {r.decision.id for r in results if not isinstance(r, BaseException)}
    assert answered <= {row["decision_id"] for row in rows if row["served_member"] == CHEAP}
    for row in rows:
        if not row["attempts"]:  # cancelled before anything was sent
            assert (row["error"], row["cost_usd"]) == ("cancelled by the caller", 0)


def test_a_timeout_around_the_call_leaves_an_outcome(line: Line) -> None:
    line.provider.behave(CHEAP, Say("too late", delay_s=20))
    line.ask(members=[MIDDLE])  # what is opened on first use takes its own time

    async def ask() -> None:
        async with asyncio.timeout(0.5):
            await line.aask()

    with pytest.raises(TimeoutError):
        asyncio.run(ask())
    assert [row["error"] for row in line.rows()] == [None, "cancelled by the caller"]


def test_the_loop_runs_on_while_log_scorer_and_provider_take_their_time(tmp_path: Path) -> None:
    ticks = {"provider": 0, "scorer": 0}
    phase, loop_thread, slept_in = "provider", threading.get_ident(), set()

    def scorer(messages: Any, answer: str) -> float:
        nonlocal phase
        phase = "scorer"
        slept_in.add(threading.get_ident())
        time.sleep(0.3)
        phase = "done"
        return 0.5

    async def tick() -> None:
        while phase != "done":
            ticks[phase] += 1
            await asyncio.sleep(0.005)

    async def ask(line: Line, stream: bool) -> Any:
        nonlocal phase
        phase = "provider"
        ticking = asyncio.create_task(tick())
        reply = await line.aask(stream=stream)
        if stream:
            await read(reply)
        await ticking
        return reply

    with open_line(tmp_path, scorer=scorer) as line:
        line.provider.behave(CHEAP, Say("slow", delay_s=0.3))
        for stream in (False, True):
            ticks.update(provider=0, scorer=0)
            reply = asyncio.run(ask(line, stream))
            assert ticks["provider"] > 5 and ticks["scorer"] > 5
            assert line.row(reply)["rewards"] == {"scorer": 0.5}
    assert loop_thread not in slept_in


def test_many_at_once(line: Line) -> None:
    line.provider.behave(CHEAP, Say("ok", delay_s=0.2))

    async def ask() -> list[Any]:
        return await asyncio.gather(*(line.aask(metadata={"i": i}) for i in range(32)))

    replies = asyncio.run(ask())
    assert line.provider.most_at_once > 8
    rows = line.rows()
    assert {row["decision_id"] for row in rows} == {reply.decision.id for reply in replies}
    assert sorted(row["metadata"]["i"] for row in rows) == list(range(32))
    assert all(row["served_member"] == CHEAP and len(row["attempts"]) == 1 for row in rows)

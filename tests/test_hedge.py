"""A second member asked while the first is silent: who serves, what the race costs, how it may be left."""

from __future__ import annotations

import asyncio
import concurrent.futures
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ensemble import exchange
from ensemble.errors import CallFailedError, StreamBrokenError
from local_provider import Fail, Say
from serving_cases import (
    CHEAP,
    DEAR,
    MIDDLE,
    MOST_INPUT,
    QUIET,
    Ask,
    Line,
    each_way,
    open_line,
    read,
    said,
    streamed_or_not,
    usd,
    waited,
)

pytestmark = QUIET
SLOW_S = 20.0  # longer than any of these tests may take
SOON_S = 0.1  # of patience
SILENT = Say("too late", delay_s=SLOW_S)
LONG = Say("", chunks=[""] * 900 + ["at last"], chunk_delay_s=0.02)  # 18 seconds without a word
LOST = "let go"
CANCELLED = "cancelled by the caller"


@pytest.fixture(scope="module", autouse=True)
def _warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is opened on first use takes longer than the patience of these tests."""
    with open_line(tmp_path_factory.mktemp("warm")) as opened:
        opened.ask(), asyncio.run(opened.aask())


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    with open_line(tmp_path, keep="text+answers") as opened:
        yield opened


def until(true: Callable[[], Any]) -> None:
    assert any(true() or time.sleep(0.01) for _ in range(800)), "it did not come true within eight seconds"


@each_way
@streamed_or_not
def test_who_answers_first_serves_and_the_other_is_written_down(line: Line, ask: Ask, stream: bool) -> None:
    line.provider.behave(CHEAP, SILENT)
    reply, text = ask(line, stream=stream, hedge_after_s=SOON_S, max_tokens=100)
    assert text == f"Oslo, says {MIDDLE}." and line.asked == [CHEAP, MIDDLE]
    now = reply.decision
    assert (now.member, now.reason, now.randomized) == (MIDDLE, "hedge", False)
    assert now[CHEAP].ineligible_because == "is being asked already"
    [row] = line.rows()
    assert (row["chosen_member"], row["propensity"]) == (CHEAP, 1.0)  # what was drawn, not what served
    assert (row["served_member"], row["served_reason"], row["error"]) == (MIDDLE, "hedge", None)
    assert line.attempts(reply) == [(CHEAP, "routed", LOST), (MIDDLE, "hedge", None)]
    assert row["answer"] == text
    lost, served = row["attempts"]
    assert (lost["number"], served["number"]) == (1, 2) and lost["started_at"] < served["started_at"]
    last = line.provider.requests[-1]
    assert lost["cost_usd"] == pytest.approx(usd(CHEAP, MOST_INPUT, 100))
    assert served["cost_usd"] == pytest.approx(usd(MIDDLE, last["input_tokens"], last["output_tokens"]))
    assert lost["cost_is_estimated"] and row["cost_is_estimated"] and not served["cost_is_estimated"]
    assert row["cost_usd"] == pytest.approx(lost["cost_usd"] + served["cost_usd"], abs=1e-12)


@each_way
def test_who_answers_in_time_is_not_raced(line: Line, ask: Ask) -> None:
    reply, text = ask(line, hedge_after_s=SLOW_S)
    assert text == f"Oslo, says {CHEAP}." and line.attempts(reply) == [(CHEAP, "routed", None)]
    assert "hedge_after_s" not in line.provider.requests[0]["params"]


@each_way
@streamed_or_not
def test_the_first_may_still_win(line: Line, ask: Ask, stream: bool) -> None:
    line.provider.behave(CHEAP, Say("here I am", delay_s=0.4))
    line.provider.behave(MIDDLE, SILENT)
    reply, text = ask(line, stream=stream, hedge_after_s=SOON_S)
    assert text == "here I am" and (reply.decision.member, reply.decision.reason) == (CHEAP, "routed")
    assert line.attempts(reply) == [(CHEAP, "routed", None), (MIDDLE, "hedge", LOST)]
    row = line.row(reply)
    assert (row["served_member"], row["served_reason"], row["cost_is_estimated"]) == (CHEAP, "routed", 1)


@each_way
def test_a_first_that_fails_leaves_it_to_the_hedge(line: Line, ask: Ask) -> None:
    line.provider.behave(CHEAP, Fail(500, delay_s=0.3))
    line.provider.behave(MIDDLE, Say("mine now", delay_s=0.6))
    reply, text = ask(line, hedge_after_s=SOON_S)
    assert text == "mine now" and line.asked == [CHEAP, MIDDLE]
    assert line.attempts(reply) == [(CHEAP, "routed", "InternalServerError"), (MIDDLE, "hedge", None)]
    assert (line.row(reply)["served_reason"], line.row(reply)["cost_is_estimated"]) == ("hedge", 0)


@each_way
def test_a_hedge_that_fails_is_not_followed_by_another(line: Line, ask: Ask) -> None:
    line.provider.behave(CHEAP, Say("slow but sure", delay_s=0.6))
    line.provider.behave(MIDDLE, Fail(500))
    reply, text = ask(line, hedge_after_s=SOON_S)
    assert text == "slow but sure" and line.asked == [CHEAP, MIDDLE]
    assert line.attempts(reply) == [(CHEAP, "routed", None), (MIDDLE, "hedge", "InternalServerError")]


@each_way
def test_when_both_fail_the_hops_go_on(line: Line, ask: Ask) -> None:
    line.provider.behave(CHEAP, Fail(500, delay_s=0.3))
    line.provider.behave(MIDDLE, Fail(503))
    reply, text = ask(line, hedge_after_s=SOON_S)
    assert text == f"Oslo, says {DEAR}." and line.asked == [CHEAP, MIDDLE, DEAR]
    assert {a[:2] for a in line.attempts(reply)} == {(CHEAP, "routed"), (MIDDLE, "hedge"), (DEAR, "fallback")}
    assert line.row(reply)["served_reason"] == "fallback"


def test_a_hop_may_be_hedged_too(line: Line) -> None:
    line.provider.behave(CHEAP, Fail(500))
    line.provider.behave(MIDDLE, SILENT)
    reply = line.ask(hedge_after_s=SOON_S)
    assert [a[:2] for a in line.attempts(reply)] == [(CHEAP, "routed"), (MIDDLE, "fallback"), (DEAR, "hedge")]


@each_way
def test_where_nobody_else_may_serve_the_first_is_waited_for(line: Line, ask: Ask) -> None:
    line.provider.behave(CHEAP, Say("alone", delay_s=0.3))
    reply, text = ask(line, hedge_after_s=SOON_S, members=[CHEAP])
    assert text == "alone" and line.attempts(reply) == [(CHEAP, "routed", None)]


@pytest.mark.parametrize(("max_tokens", "asked"), [(None, [CHEAP]), (50, [CHEAP, MIDDLE])])
def test_what_is_under_way_counts_at_its_most_against_the_cap(
    line: Line, max_tokens: int | None, asked: list[str]
) -> None:
    line.provider.behave(CHEAP, Say("in the end", delay_s=0.6))
    line.provider.behave(MIDDLE, SILENT)
    reply = line.ask(hedge_after_s=SOON_S, max_cost_usd=0.01, max_tokens=max_tokens)
    assert said(reply) == "in the end" and line.asked == asked
    assert line.row(reply)["cost_usd"] <= 0.01


@each_way
@streamed_or_not
def test_the_deadline_is_one_for_both(line: Line, ask: Ask, stream: bool) -> None:
    for name in (CHEAP, MIDDLE):
        line.provider.behave(name, SILENT)
    with pytest.raises(CallFailedError, match=r"The deadline has passed: max_latency_s is 1\.5\.$") as caught:
        ask(line, hedge_after_s=SOON_S, max_latency_s=1.5, stream=stream)
    assert set(caught.value.failures) == {CHEAP, MIDDLE} and DEAR not in line.asked
    assert [a["reason"] for a in line.row(caught.value)["attempts"]] == ["routed", "hedge"]


def test_a_lost_answer_that_has_come_is_paid_for_as_the_provider_says(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = concurrent.futures.wait

    def until_both_are_there(running: Any, timeout: Any, return_when: str) -> Any:
        return wait(running, timeout, return_when if len(running) < 2 else concurrent.futures.ALL_COMPLETED)

    monkeypatch.setattr(concurrent.futures, "wait", until_both_are_there)
    line.provider.behave(CHEAP, Say("first", delay_s=0.3, input_tokens=30, output_tokens=9))
    line.provider.behave(MIDDLE, Say("second", input_tokens=31, output_tokens=7))
    reply = line.ask(hedge_after_s=SOON_S)
    row = line.row(reply)
    assert said(reply) == "first" and line.attempts(reply)[1] == (MIDDLE, "hedge", LOST)
    assert [a["cost_usd"] for a in row["attempts"]] == pytest.approx([usd(CHEAP, 30, 9), usd(MIDDLE, 31, 7)])
    assert not row["cost_is_estimated"]


def test_a_task_that_lost_is_cancelled(line: Line) -> None:
    async def ask() -> None:
        assert (await read(line, stream=True, hedge_after_s=SOON_S))[0].decision.reason == "hedge"
        await asyncio.to_thread(until, lambda: line.provider._at_once == 0)  # the provider was told to stop

    line.provider.behave(CHEAP, LONG)
    asyncio.run(ask())


def test_a_stream_that_comes_too_late_is_closed(line: Line) -> None:
    line.provider.behave(CHEAP, Say("much too late " * 100, delay_s=0.4, chunk_delay_s=0.02))
    assert waited(line, stream=True, hedge_after_s=SOON_S)[0].decision.reason == "hedge"
    until(lambda: line.provider._at_once == 0)
    assert not line.provider.requests[0]["whole"]  # the provider was told to stop


@pytest.mark.parametrize("how", ["broken", "closed", "past the deadline"])
def test_a_stream_that_won_and_ends_early_brings_both_attempts(line: Line, how: str) -> None:
    line.provider.behave(CHEAP, SILENT)
    words = Say("one two three " * 100, chunk_delay_s=0.02, break_after=2 if how == "broken" else None)
    line.provider.behave(MIDDLE, words)
    limits = {"max_latency_s": 1.0} if how == "past the deadline" else {}
    stream = line.ask(stream=True, hedge_after_s=SOON_S, **limits)
    if how == "closed":
        next(stream)
        stream.close()
    else:
        with pytest.raises(StreamBrokenError):
            list(stream)
    row = line.row(stream)
    assert row["served_member"] is None and row["ended_at"] is not None and row["error"]
    assert [(a["member"], a["reason"]) for a in row["attempts"]] == [(CHEAP, "routed"), (MIDDLE, "hedge")]
    assert row["cost_usd"] == pytest.approx(sum(a["cost_usd"] for a in row["attempts"]))


def _both_cancelled(line: Line) -> None:
    [row] = line.rows()
    assert (row["served_member"], row["error"], row["cost_is_estimated"]) == (None, CANCELLED, 1)
    assert line.attempts(row["decision_id"]) == [(CHEAP, "routed", CANCELLED), (MIDDLE, "hedge", CANCELLED)]
    first, second = row["attempts"]
    assert first["cost_usd"] == pytest.approx(usd(CHEAP, MOST_INPUT, 100))
    assert second["cost_usd"] > usd(MIDDLE, 1, 100)


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="this system can't interrupt a thread")
@streamed_or_not
def test_an_interrupt_leaves_the_record_of_both(line: Line, stream: bool) -> None:
    for name in (CHEAP, MIDDLE):
        line.provider.behave(name, SILENT)

    def interrupt() -> None:
        until(lambda: len(line.asked) == 2)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt) as caught:  # which keeps what was interrupted alive
        line.ask(hedge_after_s=SOON_S, stream=stream, max_tokens=100)
    assert caught.tb
    _both_cancelled(line)


@streamed_or_not
def test_a_cancellation_leaves_the_record_of_both(line: Line, stream: bool) -> None:
    for name in (CHEAP, MIDDLE):
        line.provider.behave(name, SILENT)

    async def ask() -> None:
        task = asyncio.create_task(line.aask(hedge_after_s=SOON_S, stream=stream, max_tokens=100))
        await asyncio.to_thread(until, lambda: len(line.asked) == 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        _both_cancelled(line)  # it is over when the caller hears of it

    asyncio.run(ask())


@pytest.mark.parametrize("delay_s", [0.03, 0.05, 0.06, 0.08, 0.1, 0.13])
@streamed_or_not
def test_whenever_it_is_cancelled_there_is_one_outcome(line: Line, delay_s: float, stream: bool) -> None:
    line.provider.behave(CHEAP, Say("ok", delay_s=0.08))
    line.provider.behave(MIDDLE, Say("ok", delay_s=0.02))

    async def ask() -> list[Any]:
        calls = [read(line, hedge_after_s=0.03, stream=stream) for _ in range(8)]
        tasks = [asyncio.create_task(call) for call in calls]
        await asyncio.sleep(delay_s)
        for task in tasks[::2]:
            task.cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    results = asyncio.run(ask())
    assert all(isinstance(result, asyncio.CancelledError) or result[1] == "ok" for result in results)
    for row in line.rows():
        assert row["ended_at"] is not None and (row["served_member"] is None) == (row["error"] is not None)
        assert [a["number"] for a in row["attempts"]] == list(range(1, len(row["attempts"]) + 1))
        assert sum(a["error"] is None for a in row["attempts"]) == (row["served_member"] is not None)


def test_without_the_wish_there_is_no_thread(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(work: Any) -> Any:
        raise AssertionError("a thread was asked for")

    monkeypatch.setattr(exchange, "in_own_thread", refuse)
    line.provider.behave(CHEAP, Fail(500))
    assert said(line.ask()) == f"Oslo, says {MIDDLE}."
    with pytest.raises(AssertionError, match="a thread"):
        line.ask(hedge_after_s=SOON_S)

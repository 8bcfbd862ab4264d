"""Answers in pieces: passed on as they come, written down before they end, however they end."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ensemble.errors import CallFailedError, EnsembleWarning, StreamBrokenError
from local_provider import Fail, Raw, Say
from serving_cases import CHEAP, DEAR, MEMBERS, MIDDLE, MOST_INPUT, QUIET, Line, open_line, text_of, usd

pytestmark = QUIET
LONG = Say(" ".join(["word"] * 300), chunk_delay_s=0.02)  # six seconds of talk


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    with open_line(tmp_path, keep="text+answers") as opened:
        yield opened


def eventually(true: Any) -> bool:
    """Whether it comes true within five seconds."""
    return any(true() or time.sleep(0.01) for _ in range(500))


def test_the_pieces_come_as_they_are_sent_with_the_decision_beside(line: Line) -> None:
    stream = line.ask(stream=True)
    assert stream.decision.member == CHEAP
    chunks = list(stream)
    assert text_of(chunks) == f"Oslo, says {CHEAP}." and len(chunks) > 3
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert not any("decision" in chunk.model_dump() for chunk in chunks)
    assert list(stream) == []  # and at its end it stays


SIGNS_OF_LIFE = {
    "no word": Say(chunks=[""] * 500 + ["late"], chunk_delay_s=0.02),
    "no further word": Say(chunks=["at once", *[""] * 500], chunk_delay_s=0.02),
    "silence": Say(chunks=["at last"], delay_s=0.6, chunk_delay_s=10.0),
}


@pytest.mark.parametrize("way", ["waited", "awaited"])
@pytest.mark.parametrize("stream", SIGNS_OF_LIFE)
def test_a_stream_that_only_gives_signs_of_life_ends_at_the_deadline(
    line: Line, stream: str, way: str
) -> None:
    async def read() -> None:
        async for _ in await line.aask(stream=True, max_latency_s=1.0):
            pass

    line.provider.behave(CHEAP, SIGNS_OF_LIFE[stream])
    line.ask(members=[MIDDLE])  # what is opened on first use takes its own time
    with pytest.raises(CallFailedError, match=r"deadline has passed: max_latency_s is 1") as caught:
        asyncio.run(read()) if way == "awaited" else list(line.ask(stream=True, max_latency_s=1.0))
    assert not line.provider.requests[-1]["whole"]  # it would go on for ten seconds
    assert isinstance(caught.value, StreamBrokenError) == (stream != "no word")
    assert list(caught.value.failures) == [CHEAP] and line.asked == [MIDDLE, CHEAP]
    row = line.row(caught.value)
    assert row["served_member"] is None and row["cost_is_estimated"]
    assert "TimeoutError" in row["attempts"][0]["error"]


@pytest.mark.parametrize("wanted", [False, True])
def test_the_usage_is_always_asked_for_and_passed_on_only_if_wanted(line: Line, wanted: bool) -> None:
    options = {"stream_options": {"include_usage": True}} if wanted else {}
    chunks = list(line.ask(stream=True, **options))
    assert line.provider.requests[0]["params"]["stream_options"] == {"include_usage": True}
    told = [chunk for chunk in chunks if getattr(chunk, "usage", None) is not None]
    assert len(told) == wanted
    [row] = line.rows()
    [request] = line.provider.requests
    assert row["cost_usd"] == pytest.approx(
        usd(CHEAP, request["input_tokens"], request["output_tokens"]), abs=1e-12
    )
    assert not row["cost_is_estimated"] and row["answer"] == f"Oslo, says {CHEAP}."
    assert 0 < row["first_token_s"] <= row["seconds"]


def test_a_reader_who_takes_his_time_does_not_make_the_first_token_late(tmp_path: Path) -> None:
    now = [1_000.0]
    with open_line(tmp_path, clock=lambda: now[0]) as line:

        def think(request: Any) -> str:
            now[0] += 2.0
            return "Oslo it is."

        line.provider.behave(CHEAP, think)
        stream = line.ask(stream=True)
        now[0] += 100.0
        list(stream)
        assert (line.row(stream)["first_token_s"], line.row(stream)["seconds"]) == (2.0, 102.0)


def test_the_outcome_is_written_before_the_last_chunk(line: Line) -> None:
    seen = []
    for chunk in line.ask(stream=True):
        finished = chunk.choices[0].finish_reason is not None
        seen.append((finished, line.rows()[0]["ended_at"] is not None))
    assert seen[-1] == (True, True)
    assert {(False, False)} == set(seen[:-1])


def test_a_first_chunk_is_there_when_the_stream_is_handed_over(line: Line) -> None:
    line.provider.behave(CHEAP, Say("never heard", break_after=0))  # after the role, before any word
    stream = line.ask(stream=True)
    assert (stream.decision.member, stream.decision.reason) == (MIDDLE, "fallback")
    assert text_of(stream) == f"Oslo, says {MIDDLE}."
    assert line.attempts(stream) == [(CHEAP, "routed", "APIConnectionError"), (MIDDLE, "fallback", None)]


def test_all_fail_before_the_first_chunk(line: Line) -> None:
    for name in MEMBERS:
        line.provider.behave(name, Fail(500))
    with pytest.raises(CallFailedError) as caught:
        line.ask(stream=True)
    assert not isinstance(caught.value, StreamBrokenError)
    assert len(line.row(caught.value)["attempts"]) == 3


def test_a_stream_that_breaks_off_says_so_and_leaves_an_outcome(line: Line) -> None:
    line.provider.behave(CHEAP, Say("one two three", break_after=2))
    stream, heard = line.ask(stream=True, max_tokens=50), []
    with pytest.raises(StreamBrokenError, match="ask again") as caught:
        heard.extend(stream)
    assert text_of(heard) == "one two "
    assert list(caught.value.failures) == [CHEAP] and caught.value.decision_id == stream.decision.id
    row = line.row(stream)
    assert row["served_member"] is None and "APIConnectionError" in row["error"]
    assert row["answer"] == "one two " and row["first_token_s"] > 0
    assert row["cost_is_estimated"]
    assert row["cost_usd"] == pytest.approx(usd(CHEAP, MOST_INPUT, 50))
    assert line.asked == [CHEAP] and list(stream) == []


@pytest.mark.parametrize("how", ["close", "with", "drop", "cycle"])
def test_a_stream_that_its_reader_leaves_is_written_down_and_let_go(line: Line, how: str) -> None:
    line.provider.behave(CHEAP, LONG)
    stream = line.ask(stream=True, max_tokens=5_000)
    decision_id = stream.decision.id
    assert next(stream).choices[0].delta is not None
    if how == "close":
        stream.close()
        stream.close()
        assert list(stream) == []
    elif how == "with":
        with stream:
            next(stream)
    else:
        if how == "cycle":
            stream.myself = stream
        del stream
        gc.collect()
    assert eventually(lambda: line.row(decision_id)["error"])  # dropped, it is left by a thread of its own
    row = line.row(decision_id)
    assert (row["served_member"], row["error"]) == (None, "closed by the caller")
    assert row["cost_is_estimated"]
    assert row["cost_usd"] == pytest.approx(usd(CHEAP, MOST_INPUT, 5_000))
    [attempt] = row["attempts"]
    assert attempt["error"] == "closed by the caller" and attempt["cost_is_estimated"]
    assert eventually(lambda: line.provider._at_once == 0)  # the provider was told to stop


@pytest.mark.parametrize("talk", [LONG, Say(chunks=["at once"], chunk_delay_s=10.0)])
def test_a_stream_may_be_closed_from_another_thread(line: Line, talk: Say) -> None:
    line.provider.behave(CHEAP, talk)
    stream = line.ask(stream=True)
    next(stream)
    threading.Timer(0.1, stream.close).start()
    assert len(list(stream)) < 300 and not line.provider.requests[-1]["whole"]
    assert line.row(stream)["error"] == "closed by the caller"


def test_the_deadline_holds_while_the_answer_comes(line: Line) -> None:
    line.provider.behave(CHEAP, LONG)
    stream = line.ask(stream=True, max_latency_s=0.5)
    with pytest.raises(StreamBrokenError, match=r"deadline has passed: max_latency_s is 0\.5"):
        list(stream)
    assert not line.provider.requests[-1]["whole"]
    assert "TimeoutError" in line.row(stream)["error"]


def test_an_answer_that_is_whole_counts_though_its_usage_never_comes(line: Line) -> None:
    opening = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": CHEAP}
    choices = [{"delta": {"content": "all of it"}}, {"delta": {}, "finish_reason": "stop"}]
    events = [json.dumps({**opening, "choices": [{"index": 0, **choice}]}) for choice in choices]
    body = "".join(f"data: {event}\n\n" for event in [*events, '{"cut o'])
    line.provider.behave(CHEAP, Raw(body, content_type="text/event-stream"))
    stream = line.ask(stream=True, max_tokens=50)
    assert text_of(stream) == "all of it"
    row = line.row(stream)
    assert (row["served_member"], row["error"], row["cost_is_estimated"]) == (CHEAP, None, True)
    assert row["cost_usd"] == pytest.approx(usd(CHEAP, MOST_INPUT, 50))


def test_a_log_that_fails_at_the_end_takes_nothing_away(line: Line) -> None:
    stream = line.ask(stream=True)
    first = next(stream)
    line.log.close()
    with pytest.warns(EnsembleWarning, match="is not in the log"):
        assert text_of([first, *stream]) == f"Oslo, says {CHEAP}."


def test_tool_calls_are_streamed(line: Line) -> None:
    call = {"index": 0, "id": "c", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}
    line.provider.behave(CHEAP, Say("", message={"content": None, "tool_calls": [call]}))
    tool = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}
    chunks = list(line.ask(stream=True, tools=[tool]))
    calls = [c for chunk in chunks for c in chunk.choices[0].delta.tool_calls or []]
    assert [c.function.name for c in calls] == ["look_up"]
    assert line.rows()[0]["served_member"] == CHEAP


def test_many_streams_at_once_leave_one_outcome_each(line: Line) -> None:
    def read() -> None:
        texts.append(text_of(line.ask(stream=True)))

    texts: list[str] = []
    threads = [threading.Thread(target=read) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == [f"Oslo, says {CHEAP}."] * 12
    assert [len(row["attempts"]) for row in line.rows()] == [1] * 12
    assert all(row["served_member"] == CHEAP for row in line.rows())


LEFT_OPEN = """
import sys
from pathlib import Path
from local_provider import LocalProvider, Say
from serving_cases import Line
provider = LocalProvider().start()
line = Line(provider, Path(sys.argv[1]), log_mode=sys.argv[2])
provider.behave("{cheap}", Say("one two three", chunk_delay_s=0.2))
stream = line.ask(stream=True)
next(stream)
print(stream.decision.id)
"""


@pytest.mark.parametrize("log_mode", ["before", "after"])
def test_a_stream_left_open_at_the_end_of_the_process_is_written_down(tmp_path: Path, log_mode: str) -> None:
    place = tmp_path / "other.db"
    done = subprocess.run(
        [sys.executable, "-c", LEFT_OPEN.format(cheap=CHEAP), str(place), log_mode],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == ""
    from ensemble.outcomes import OutcomeLog

    with OutcomeLog.open(place) as log:
        row = log.decision(done.stdout.strip())
    assert row is not None and row["error"] == "closed by the caller"
    assert DEAR in row["members"]

"""Each fault that a provider is known for, by its name: who answers then, what is written, what it costs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ensemble.cooling import FAILURES
from ensemble.engine import Ensemble
from ensemble.errors import CallFailedError, StreamBrokenError
from ensemble.pool import Pool
from ensemble.records import Deployment
from local_provider import Fail, Raw, Reset, Say
from serving_cases import (
    CHEAP,
    DEAR,
    KEY,
    MIDDLE,
    MOST_INPUT,
    PRICES,
    PROMPT,
    QUIET,
    Ask,
    Line,
    default_router,
    each_way,
    open_line,
    streamed_or_not,
    usd,
)

pytestmark = QUIET
SLOW_S = 20.0  # longer than any of these tests may take
LIMIT = 100  # tokens
OVERDUE = {"timeout": 0.3, "stream_timeout": 0.3}  # seconds: all that the slow ones are given
EVENTS = "text/event-stream"


def _chunk(delta: dict[str, Any], ending: str | None = None, **more: Any) -> str:
    choices = [{"index": 0, "delta": delta, "finish_reason": ending}]
    opening = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": CHEAP}
    return f"data: {json.dumps({**opening, 'choices': choices, **more})}\n\n"


def _whole(*choices: dict[str, Any], tokens: tuple[int, int] | None = None) -> str:
    facts = {"usage": _usage(*tokens)} if tokens else {}
    opening = {"id": "x", "object": "chat.completion", "created": 0, "model": CHEAP}
    return json.dumps({**opening, "choices": choices, **facts})


def _usage(tokens_in: int, tokens_out: int) -> dict[str, int]:
    return {
        "prompt_tokens": tokens_in,
        "completion_tokens": tokens_out,
        "total_tokens": tokens_in + tokens_out,
    }


def _error(message: str, code: Any = None) -> str:
    return json.dumps({"error": {"message": message, "type": None, "param": "prompt", "code": code}})


class Fault(NamedTuple):
    """``error``: as the attempt's row names it, whole and streamed. ``usd``: what it costs, of CHEAP's
    money; ``None``: as much as it may have been."""

    behaviour: Any
    error: str | tuple[str, str]
    usd: float | None = 0.0
    ways: tuple[bool, ...] = (False, True)  # streamed or not


BROKEN = ("InternalServerError", "NoAnswerError")
FAULTS = {
    "busy, with retry-after": Fault(Fail(429, "slow down", {"retry-after": "30"}), "RateLimitError"),
    "a server's error": Fault(Fail(500), "InternalServerError"),
    "a bad gateway": Fault(Raw("<html>no</html>", 502, "text/html"), "BadGatewayError"),
    "overloaded": Fault(Fail(503), "ServiceUnavailableError"),
    "a gateway that timed out": Fault(Fail(504), "Timeout", None),
    "a reset": Fault(Reset(), "InternalServerError", None),
    "a time-out": Fault(Say("late", delay_s=SLOW_S), "Timeout", None),
    "a stream without a word": Fault(
        Say(chunks=["", "late"], chunk_delay_s=SLOW_S), "APIConnectionError", None, (True,)
    ),
    "a stream cut before a word": Fault(Say("a b", break_after=0), "APIConnectionError", None, (True,)),
    "a stream that ends before a word": Fault(
        Raw(_chunk({"role": "assistant"}), 200, EVENTS), "NoAnswerError", None, (True,)
    ),
    "an error in the stream": Fault(
        Raw(f"data: {_error('overloaded', 500)}\n\n", 200, EVENTS), "APIConnectionError", None, (True,)
    ),
    "malformed JSON": Fault(Raw(), BROKEN, None),
    "JSON of another kind": Fault(Raw("[null]"), BROKEN, None),
    "a choice without a message": Fault(Raw('{"choices": [{}]}'), BROKEN, None),
    "a wrong content type": Fault(Raw("<html>Please sign in</html>", 200, "text/html"), BROKEN, None),
    "an empty body": Fault(Raw(""), BROKEN, None),
    "empty choices": Fault(Raw(_whole()), "NoAnswerError", None),
    "empty choices, billed": Fault(Raw(_whole(tokens=(30, 4))), "NoAnswerError", usd(CHEAP, 30, 4), (False,)),
    "a content filter": Fault(
        Raw(_error("The prompt was filtered", "content_filter"), 400), "BadRequestError"
    ),
    "a prompt too long": Fault(
        Raw(_error("This model's maximum context length is 9 tokens", "context_length_exceeded"), 400),
        "ContextWindowExceededError",
    ),
    "a wrong model name": Fault(Fail(404, "The model does not exist"), "NotFoundError"),
    "an expired key": Fault(Fail(401, f"Expired API key: {KEY}"), "AuthenticationError"),
    "no permission": Fault(Fail(403, f"not with {KEY}"), "APIError"),
    "a request too large": Fault(Fail(413, "too large"), "APIError"),
    "a request that makes no sense": Fault(Fail(422, "max_tokens: not so"), "BadRequestError"),
}


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    with open_line(tmp_path, keep="text+answers") as opened:
        yield opened


CASES = [
    pytest.param(fault, stream, id=f"{name}-{'streamed' if stream else 'whole'}")
    for name, fault in FAULTS.items()
    for stream in fault.ways
]


@each_way
@pytest.mark.parametrize(("fault", "stream"), CASES)
def test_the_next_best_answers(line: Line, tmp_path: Path, fault: Fault, stream: bool, ask: Ask) -> None:
    line.provider.behave(CHEAP, fault.behaviour)
    late = isinstance(fault.behaviour, Say) and fault.behaviour.break_after is None
    reply, text = ask(line, stream, max_tokens=LIMIT, **(OVERDUE if late else {}))
    assert text == f"Oslo, says {MIDDLE}." and line.asked == [CHEAP, MIDDLE]
    error = fault.error if isinstance(fault.error, str) else fault.error[stream]
    assert line.attempts(reply) == [(CHEAP, "routed", error), (MIDDLE, "fallback", None)]
    now = reply.decision
    assert (now.member, now.reason, now.randomized) == (MIDDLE, "fallback", False)
    assert now[CHEAP].ineligible_because == "failed a moment ago"
    row, last = line.row(reply), line.provider.requests[-1]
    assert (row["chosen_member"], row["propensity"]) == (CHEAP, 1.0)  # what was drawn, not what served
    assert (row["served_member"], row["served_reason"], row["error"]) == (MIDDLE, "fallback", None)
    failed, served = row["attempts"]
    at_most = usd(CHEAP, MOST_INPUT, LIMIT)
    exactly = usd(MIDDLE, last["input_tokens"], last["output_tokens"])
    assert failed["cost_is_estimated"] == row["cost_is_estimated"] == (fault.usd is None)
    assert failed["cost_usd"] == pytest.approx(at_most if fault.usd is None else fault.usd)
    assert served["cost_usd"] == pytest.approx(exactly, abs=1e-12) and not served["cost_is_estimated"]
    assert row["cost_usd"] == pytest.approx(failed["cost_usd"] + served["cost_usd"], abs=1e-12)
    assert KEY not in str(row)
    assert KEY.encode() not in b"".join(file.read_bytes() for file in tmp_path.iterdir())


@each_way
@pytest.mark.parametrize("name", [name for name, fault in FAULTS.items() if False in fault.ways])
def test_where_it_befalls_everyone_the_error_names_each(line: Line, name: str, ask: Ask) -> None:
    fault, pool = FAULTS[name], (CHEAP, DEAR)
    limits = OVERDUE if isinstance(fault.behaviour, Say) else {}
    for member in pool:
        line.provider.behave(member, fault.behaviour)
    with pytest.raises(CallFailedError) as caught:
        ask(line, False, max_tokens=LIMIT, members=pool, **limits)
    error = fault.error if isinstance(fault.error, str) else fault.error[False]
    assert [what.split(":")[0] for what in caught.value.failures.values()] == [error, error]
    assert all(member in str(caught.value) for member in pool) and KEY not in str(caught.value)
    row = line.row(caught.value)
    assert (row["served_member"], row["error"]) == (None, "2 member(s) failed")
    assert [a["reason"] for a in row["attempts"]] == ["routed", "fallback"]


@each_way
@pytest.mark.parametrize("slow", [False, True])
def test_a_stream_cut_half_way_is_an_error_and_no_second_answer(line: Line, slow: bool, ask: Ask) -> None:
    words = Say("one two three", break_after=None if slow else 2, chunk_delay_s=SLOW_S if slow else 0)
    line.provider.behave(CHEAP, words)
    line.ask(members=[MIDDLE])  # what is opened on first use takes its own time
    with pytest.raises(StreamBrokenError, match="ask again") as caught:
        ask(line, True, max_tokens=LIMIT, **({"max_latency_s": 1.0} if slow else {}))
    row = line.row(caught.value)
    assert line.asked == [MIDDLE, CHEAP] and row["answer"] == ("one " if slow else "one two ")
    assert (row["served_member"], row["cost_is_estimated"]) == (None, True)
    assert row["cost_usd"] <= usd(CHEAP, MOST_INPUT, LIMIT) * (1 + 1e-9)
    assert row["attempts"][0]["error"] == row["error"] != ""


@each_way
@streamed_or_not
def test_a_filtered_answer_is_an_answer_at_its_price(line: Line, stream: bool, ask: Ask) -> None:
    ending = "content_filter"
    if stream:
        body = _chunk({"role": "assistant"}) + _chunk({}, ending) + _chunk({}, usage=_usage(30, 2))
    else:
        message = {"role": "assistant", "content": None}
        body = _whole({"index": 0, "message": message, "finish_reason": ending}, tokens=(30, 2))
    line.provider.behave(CHEAP, Raw(body, 200, EVENTS if stream else "application/json"))
    reply, text = ask(line, stream)
    assert text in ("", "None") and line.attempts(reply) == [(CHEAP, "routed", None)]
    row = line.row(reply)
    assert (row["served_member"], row["error"], row["cost_is_estimated"]) == (CHEAP, None, 0)
    assert row["cost_usd"] == pytest.approx(usd(CHEAP, 30, 2), abs=1e-12)


@each_way
@streamed_or_not
def test_an_answer_whose_usage_is_never_told_costs_its_most(line: Line, stream: bool, ask: Ask) -> None:
    line.provider.behave(CHEAP, Say("one two three", usage=False))
    reply, text = ask(line, stream, max_tokens=LIMIT)
    row = line.row(reply)
    assert text == "one two three" and (row["served_member"], row["output_tokens"]) == (CHEAP, None)
    assert row["cost_is_estimated"]  # what litellm counts by itself is less than the bill
    assert row["cost_usd"] == pytest.approx(usd(CHEAP, MOST_INPUT, LIMIT))
    assert row["cost_usd"] > line.provider.bill_usd(PRICES)


@pytest.mark.parametrize("tokens", [(-5, 3), (5, -3), (0, 0), (0, 7)])
def test_counts_that_cannot_be_are_not_believed(line: Line, tokens: tuple[int, int]) -> None:
    choice = {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
    line.provider.behave(CHEAP, Raw(_whole(choice, tokens=tokens)))
    row = line.row(line.ask(max_tokens=LIMIT))
    assert row["served_member"] == CHEAP and row["cost_is_estimated"]
    assert row["cost_usd"] == pytest.approx(usd(CHEAP, MOST_INPUT, LIMIT))


BUSY = Fail(429, "slow down", {"retry-after": "30"})


def test_a_deployment_that_is_busy_is_left_alone_for_another_of_its_member(line: Line) -> None:
    here = {"api_base": line.provider.url, "api_key": KEY}
    places = tuple(Deployment(f"openai/{name}", here) for name in ("north", "south"))
    line.provider.behave("north", BUSY)
    line.provider.behave("south", "Oslo")
    pool = Pool([line.member(CHEAP, deployments=places), line.member(MIDDLE)])
    with Ensemble(router=default_router(), pool=pool, log=line.log) as opened:
        for _ in range(20):  # by chance, north is all but certain to be tried
            reply = opened.complete(PROMPT, willingness_to_pay_usd=0)
            assert line.attempts(reply) == [(CHEAP, "routed", None)]
    assert (line.provider.asked("north"), line.provider.asked("south")) == (1, 20)


def test_the_only_deployment_of_a_member_that_is_busy_is_probed_now_and_then(tmp_path: Path) -> None:
    now, asked, alarms = 1_000.0, list[int](), list[object]()
    with open_line(tmp_path, clock=lambda: now, on_alarm=alarms.append) as line:
        line.provider.behave(CHEAP, BUSY)
        for second in range(34):
            before = line.provider.asked(CHEAP)
            assert line.ask().decision.member == MIDDLE
            asked += [second] * (line.provider.asked(CHEAP) - before)
            now += 1.0
        line.provider.behave(CHEAP, "well again")
        assert line.ask().decision.member == CHEAP
    assert asked == [*range(FAILURES), 6, 10, 18]  # it rests for 2 s, 4 s, 8 s and 16 s

"""Members that fail: who takes over, what that costs, when it is given up, and what is said of it."""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ensemble.engine import Ensemble
from ensemble.errors import CallFailedError, EnsembleWarning
from ensemble.pool import Pool
from ensemble.records import Attempt, Deployment
from local_provider import Fail, LocalProvider, Reset, Say
from serving_cases import (
    CHEAP,
    DEAR,
    KEY,
    MEMBERS,
    MIDDLE,
    MOST_INPUT,
    PRICES,
    PROMPT,
    QUIET,
    Line,
    default_router,
    open_line,
    said,
    streamed_or_not,
    usd,
    waited,
)

pytestmark = QUIET
SLOW_S = 20.0  # longer than any of these tests may take


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    with open_line(tmp_path) as opened:
        yield opened


def test_whoever_takes_over_was_not_drawn(line: Line) -> None:
    turns = itertools.chain([Fail(500)], itertools.repeat("here"))
    for name in MEMBERS:
        line.provider.behave(name, lambda request: next(turns))
    reply = line.ask(willingness_to_pay_usd=1.0, exploration=0.9)
    assert line.row(reply)["propensity"] < 1 and line.row(reply)["randomized"]
    now = reply.decision
    assert (now.reason, now.propensity, now.randomized) == ("fallback", 1.0, False)
    assert now.member == now.ranking[0]


def test_all_that_failed_are_listed_in_the_order_of_the_attempts(line: Line) -> None:
    for name, status in zip(MEMBERS, (429, 500, 503), strict=True):
        line.provider.behave(name, Fail(status, f"out of order: {status}"))
    with pytest.raises(CallFailedError) as caught:
        line.ask(metadata={"user": "a"})
    assert list(caught.value.failures) == [CHEAP, MIDDLE, DEAR]
    for name, status in zip(MEMBERS, (429, 500, 503), strict=True):
        assert f"{name}: " in str(caught.value) and f"out of order: {status}" in caught.value.failures[name]
    row = line.row(caught.value)
    assert caught.value.decision_id in str(caught.value)
    assert (row["served_member"], row["error"], row["cost_usd"]) == (None, "3 member(s) failed", 0)
    assert [attempt["number"] for attempt in row["attempts"]] == [1, 2, 3]
    assert row["metadata"] == {"user": "a"}


def test_refused_keys_are_called_by_their_name(line: Line) -> None:
    for name in MEMBERS:
        line.provider.behave(name, Fail(401, "who are you"))
    with pytest.raises(CallFailedError, match=r"Check the members' API keys\.$"):
        line.ask()


def test_who_could_not_be_asked_is_listed_with_the_reason(line: Line) -> None:
    line.provider.behave(CHEAP, Fail(500))
    line.provider.behave(MIDDLE, Fail(500))
    with pytest.raises(CallFailedError) as caught:
        line.ask(exclude=[DEAR])
    assert list(caught.value.failures) == [CHEAP, MIDDLE]
    assert str(caught.value).endswith(f"Left out from the start:\n  {DEAR}: excluded by the caller")


def test_the_wishes_bind_whoever_takes_over(line: Line) -> None:
    line.provider.behave(CHEAP, Fail(500))
    reply = line.ask(exclude=[MIDDLE])
    assert line.attempts(reply) == [(CHEAP, "routed", "InternalServerError"), (DEAR, "fallback", None)]
    with pytest.raises(CallFailedError) as caught:
        line.ask(members=[CHEAP])
    assert list(caught.value.failures) == [CHEAP]


def test_what_a_failure_may_have_cost_counts_against_the_cap(line: Line) -> None:
    line.provider.behave(CHEAP, Reset())
    with pytest.raises(CallFailedError) as caught:  # all of the cap may be gone, so nobody is asked
        line.ask(max_cost_usd=0.005)
    assert list(caught.value.failures) == [CHEAP]
    row = line.row(caught.value)
    beyond = MOST_INPUT - row["estimated_input_tokens"]
    assert 0 < row["cost_usd"] <= 0.005 + usd(CHEAP, beyond, 0)
    line.provider.behave(CHEAP, Fail(500))  # an error is not billed
    assert line.ask(max_cost_usd=0.02).decision.member == MIDDLE


@pytest.mark.parametrize("stream", [False, True])
def test_nobody_is_asked_after_the_deadline(line: Line, stream: bool) -> None:
    for name in (CHEAP, MIDDLE):
        line.provider.behave(name, Say("x", delay_s=SLOW_S))
    with pytest.raises(CallFailedError, match=r"The deadline has passed: max_latency_s is 0\.3\.$") as caught:
        line.ask(max_latency_s=0.3, stream=stream)
    assert list(caught.value.failures) == [CHEAP] and line.asked == [CHEAP]
    assert line.provider.requests[0]["status"] is None  # it is still at it


def test_the_deadline_is_one_for_all_hops(line: Line) -> None:
    line.provider.behave(CHEAP, Fail(500, delay_s=0.3))  # leaves some of it to the next
    line.provider.behave(MIDDLE, Say("x", delay_s=SLOW_S))
    with pytest.raises(CallFailedError) as caught:
        line.ask(max_latency_s=1.0)
    assert list(caught.value.failures) == [CHEAP, MIDDLE]
    first, second = line.row(caught.value)["attempts"]
    assert 0.8 < first["seconds"] + second["seconds"] < SLOW_S / 4


def test_each_hop_is_decided_under_the_time_and_the_money_that_are_left(tmp_path: Path) -> None:
    now = [1_000.0]
    with open_line(tmp_path, clock=lambda: now[0]) as line:
        slow = {"first_token_s": 3.0, "tokens_per_second": 1e6}
        pool = Pool([line.member(CHEAP), line.member(MIDDLE, **slow), line.member(DEAR)])

        def fail_late(request: Any) -> Fail:
            now[0] += 3.0
            return Fail(500)

        with Ensemble(router=default_router(), pool=pool, log=line.log, clock=lambda: now[0]) as opened:
            line.provider.behave(CHEAP, Fail(500))
            soon = opened.complete(PROMPT, willingness_to_pay_usd=0, max_latency_s=5).decision
            line.provider.behave(CHEAP, fail_late)
            late = opened.complete(PROMPT, willingness_to_pay_usd=0, max_latency_s=5).decision
    assert (soon.member, soon.wishes.max_latency_s) == (MIDDLE, 5.0)
    assert (late.member, late.reason, late.wishes.max_latency_s) == (DEAR, "fallback", 2.0)
    assert late[MIDDLE].ineligible_because == "takes about 3.0 s, the limit is 2"


def test_what_a_failure_may_have_cost_leaves_less_for_the_next(line: Line) -> None:
    at_most = line.ensemble.route(PROMPT, max_tokens=100)[MIDDLE].cost_usd_p95
    limits = {"max_tokens": 100, "max_cost_usd": at_most + 1e-6}  # CHEAP may cost twenty times that crumb
    line.provider.behave(CHEAP, Fail(500))
    assert line.ask(**limits).decision.member == MIDDLE
    line.provider.behave(CHEAP, Reset())
    with pytest.raises(CallFailedError) as caught:
        line.ask(**limits)
    assert list(caught.value.failures) == [CHEAP]


def test_the_deadline_holds_in_a_member_with_several_places(line: Line) -> None:
    here = {"api_base": line.provider.url, "api_key": KEY, "stream_timeout": SLOW_S}
    places = tuple(Deployment(f"openai/{name}", here) for name in ("north", "south"))
    for name in ("north", "south"):
        line.provider.behave(name, Say("x", delay_s=SLOW_S))
    pool = Pool([line.member(CHEAP, deployments=places)])
    with Ensemble(router=default_router(), pool=pool, log=line.log) as opened:
        for stream in (False, True):
            with pytest.raises(CallFailedError):
                opened.complete(PROMPT, max_latency_s=0.3, stream=stream)
    assert len(line.asked) == 2  # one place each time: what has timed out is not tried again


def test_a_shorter_timeout_of_the_callers_own_stays(line: Line) -> None:
    line.provider.behave(CHEAP, Say("x", delay_s=SLOW_S))
    reply = line.ask(timeout=0.3, max_latency_s=SLOW_S)
    assert reply.decision.member == MIDDLE
    assert line.row(reply)["attempts"][0]["seconds"] < SLOW_S / 4


def test_the_callers_retries_are_litellms(line: Line) -> None:
    line.provider.behave(CHEAP, [Fail(500), "second time"])
    assert said(line.ask(num_retries=1)) == "second time"
    assert line.asked == [CHEAP, CHEAP]


def test_a_member_that_cools_down_costs_nothing(line: Line) -> None:
    line.provider.behave(CHEAP, Fail(401))
    line.ask()
    row = line.row(line.ask())  # litellm doesn't even ask it again
    assert line.asked == [CHEAP, MIDDLE, MIDDLE]
    assert (row["attempts"][0]["cost_usd"], row["cost_is_estimated"]) == (0, False)


def test_keys_show_in_no_error_no_warning_and_no_byte_of_the_log(tmp_path: Path, capfd: Any) -> None:
    with open_line(tmp_path, keep="text+answers") as line, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        errors = []
        for status in (401, 400):  # a refused key rests for some seconds: here another member has it
            for name in MEMBERS:
                line.provider.behave(name, Fail(status, f"API key {KEY}? Incorrect API key provided: {KEY}"))
            with pytest.raises(CallFailedError) as failed:
                line.ask(members=MEMBERS[:2] if status == 401 else [DEAR])
            errors.append(str(failed.value))
        line.provider.behave(DEAR, "fine")
        reply = line.ask(members=[DEAR], api_key=KEY)
        shown = [*errors, repr(reply.decision), repr(line.ensemble.pool[DEAR]), *map(str, caught)]
    assert all(error.count("[removed]") >= 2 for error in errors)
    assert not [text for text in (*shown, *capfd.readouterr()) if KEY in text]
    assert KEY.encode() not in b"".join(file.read_bytes() for file in tmp_path.iterdir())


def test_the_key_of_one_call_shows_in_no_error(tmp_path: Path) -> None:
    own = "of-this-call-alone"  # and like no key that one would know by its looks
    with LocalProvider(api_key=own) as provider:
        line = Line(provider, tmp_path / "log.db")
        provider.behave(CHEAP, Fail(400, f"whose is {own}"))
        with line.ensemble, pytest.raises(CallFailedError, match=r"whose is \[removed\]") as caught:
            line.ask(members=[CHEAP], api_key=own)
        assert own not in line.row(caught.value)["error"]


def test_prices_are_those_of_the_members_that_were_billed(line: Line) -> None:
    line.provider.behave(CHEAP, [Fail(500), "a", Fail(429), "b"])
    for _ in range(3):
        line.ask()
    spent = sum(row["cost_usd"] for row in line.rows())
    assert spent == pytest.approx(line.provider.bill_usd(PRICES), abs=1e-12)
    assert line.log.spend_usd(since=0) == pytest.approx(spent, abs=1e-12)


@pytest.mark.parametrize("fails", [False, True])
@streamed_or_not
def test_each_attempt_is_told_of_once(
    line: Line, monkeypatch: pytest.MonkeyPatch, fails: bool, stream: bool
) -> None:
    heard, prepare = list[Attempt](), line.ensemble._prepare

    def hear(attempt: Attempt) -> None:
        heard.append(attempt)
        if fails:
            raise RuntimeError("nobody is listening")

    def hooked(*arguments: Any) -> Any:
        request, call, sender = prepare(*arguments)
        call.on_attempt = hear
        return request, call, sender

    monkeypatch.setattr(line.ensemble, "_prepare", hooked)
    line.provider.behave(CHEAP, Fail(500))
    line.provider.behave(MIDDLE, Say("too late", delay_s=SLOW_S))
    with pytest.warns(EnsembleWarning, match="nobody is listening") if fails else contextlib.nullcontext():
        reply, text = waited(line, stream=stream, hedge_after_s=0.1)
    assert text == f"Oslo, says {DEAR}."
    kept = [(a["number"], a["member"], a["error"], a["cost_usd"]) for a in line.row(reply)["attempts"]]
    assert [(a.number, a.member, a.error, a.cost_usd) for a in heard] == kept and len(kept) == 3


def test_after_a_failure_even_who_looks_too_slow_is_asked(tmp_path: Path) -> None:
    with open_line(tmp_path) as line:
        fast = line.member(CHEAP, first_token_s=0.01, tokens_per_second=1e5)
        slow = line.member(MIDDLE, first_token_s=100.0, tokens_per_second=1.0)
        line.provider.behave(CHEAP, Fail(500))
        pool = Pool([fast, slow])
        with Line(line.provider, tmp_path / "2.db", pool=pool).ensemble as ensemble:
            line.provider.behave(CHEAP, Fail(500))
            reply = ensemble.complete(PROMPT, willingness_to_pay_usd=0, max_latency_s=10)
            assert (reply.decision.member, reply.decision.reason) == (MIDDLE, "fallback")

"""What calls teach the calls after them: who is left alone, how fast members are, and what has changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ensemble.alarms import Alarm
from ensemble.errors import CallFailedError, EnsembleWarning
from ensemble.health import Health
from ensemble.pool import Pool
from ensemble.records import Attempt, Deployment
from local_provider import Fail, Say
from serving_cases import CHEAP, DEAR, MEMBERS, MIDDLE, PROMPT, QUIET, Ask, Line, each_way, open_line

pytestmark = QUIET
FAILURES, USUAL = 5, 20  # in a row until a member rests; answers until something is usual


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    with open_line(tmp_path) as opened:
        yield opened


def test_a_member_that_fails_again_and_again_is_left_alone_and_the_log_says_why(line: Line) -> None:
    line.provider.behave(CHEAP, Fail(503))
    replies = [line.ask() for _ in range(FAILURES + 3)]
    assert line.provider.asked(CHEAP) == FAILURES
    assert [reply.decision.member for reply in replies] == [MIDDLE] * len(replies)
    row = line.row(replies[-1])
    assert (row["chosen_member"], row["chosen_reason"]) == (MIDDLE, "routed")
    assert "failed 5 times in a row" in row["ineligible_because"][row["members"].index(CHEAP)]


def test_who_rests_is_better_than_nobody(line: Line) -> None:
    line.provider.behave(CHEAP, Fail(503))
    for _ in range(FAILURES):
        line.ask()
    line.provider.behave(CHEAP, "well again")
    assert line.ask(members=[CHEAP]).decision.member == CHEAP
    assert line.ask().decision.member == CHEAP  # it answered


def test_a_key_of_the_callers_own_says_nothing_of_the_member(line: Line) -> None:
    for _ in range(FAILURES + 1):
        with pytest.raises(CallFailedError):
            line.ask(members=[CHEAP], api_key="wrong")
    asked = line.provider.asked(CHEAP)
    assert line.ask().decision.member == CHEAP
    assert line.provider.asked(CHEAP) == asked + 1


@pytest.mark.parametrize("own", [{"api_base": "http://127.0.0.1:9"}, {"mock_response": RuntimeError("x")}])
def test_an_address_or_an_answer_of_the_callers_own_says_nothing_of_the_members(
    line: Line, own: dict[str, Any]
) -> None:
    for _ in range(FAILURES + 1):
        with pytest.raises(CallFailedError):
            line.ask(members=[CHEAP], **own)
    assert line.asked == [] and line.ask().decision.member == CHEAP


@each_way
@pytest.mark.filterwarnings("ignore:.* drop_params:ensemble.errors.EnsembleWarning")
@pytest.mark.parametrize("status", [400, 413, 422, None])
def test_who_asks_wrongly_twenty_times_puts_no_member_to_rest(
    line: Line, status: int | None, ask: Ask
) -> None:
    wrong: dict[str, Any] = (
        {} if status else {"thinking": {"type": "enabled", "budget_tokens": 9}}
    )  # by litellm
    for name in MEMBERS:
        line.provider.behave(name, Fail(status or 500, "not like this"))
    for _ in range(20):
        with pytest.raises(CallFailedError) as caught:
            ask(line, **wrong)
        assert list(caught.value.failures) == list(MEMBERS)
    assert len(line.asked) == (60 if status else 0) and line.log.spend_usd(since=0) == 0
    for name in MEMBERS:
        line.provider.behave(name, "to others as ever")
    row = line.row(ask(line)[0])
    assert row["served_member"] == CHEAP and set(row["ineligible_because"]) == {None}


def test_how_fast_a_member_answers_is_learned_and_known_to_the_next_process(
    line: Line, tmp_path: Path
) -> None:
    assert line.ask().decision.chosen.seconds is None
    line.provider.behave(CHEAP, Say("Oslo", delay_s=0.02))
    for _ in range(USUAL):
        line.ask()
    here = line.ask().decision
    assert here.chosen.seconds is not None and 0.02 < here.chosen.seconds < 5
    assert here[DEAR].seconds is None
    with Line(line.provider, tmp_path / "log.db").ensemble as other:
        there = other.route("What is the capital of Norway?", willingness_to_pay_usd=0)
        assert there[CHEAP].seconds is not None and there[DEAR].seconds is None


def test_a_new_served_name_is_told_once(tmp_path: Path) -> None:
    heard: list[Alarm] = []
    with open_line(tmp_path, on_alarm=heard.append) as line:
        for _ in range(USUAL):
            line.ask()
        line.provider.behave(CHEAP, Say("Oslo", served="another-2027"))
        for _ in range(3):
            line.ask()
    assert [(alarm.member, alarm.kind) for alarm in heard] == [(CHEAP, "name")]
    assert "another-2027" in heard[0].text


def test_a_member_that_does_not_take_a_parameter_is_told_once_with_the_remedy(tmp_path: Path) -> None:
    heard: list[Alarm] = []
    with open_line(tmp_path, on_alarm=heard.append) as line:
        params = line.member(CHEAP).deployments[0].params
        line.provider.behave("o3-mini", "Oslo")
        for remedy in ({}, {"drop_params": True}):
            narrow = line.member(CHEAP, deployments=(Deployment("openai/o3-mini", {**params, **remedy}),))
            pool = Pool([narrow, line.member(MIDDLE)])
            with Line(line.provider, line.log, pool=pool, on_alarm=heard.append).ensemble as opened:
                served = [
                    opened.complete(PROMPT, willingness_to_pay_usd=0, temperature=t).decision.member
                    for t in (0.1, 0.2, 0.3)
                ]
            assert served == [CHEAP if remedy else MIDDLE] * 3
    [alarm] = heard
    assert (alarm.member, alarm.kind) == (CHEAP, "params")
    assert "temperature=0.1" in alarm.text and "params = { drop_params = true }" in alarm.text


def test_an_alarm_is_a_warning_unless_somebody_listens(line: Line) -> None:
    for _ in range(USUAL):
        line.ask()
    line.provider.behave(CHEAP, Say("Oslo", served="another-2027"))
    with pytest.warns(EnsembleWarning, match="another-2027"):
        line.ask()


def test_rewards_far_below_their_prediction_are_told(tmp_path: Path) -> None:
    heard: list[Alarm] = []
    with open_line(tmp_path, on_alarm=heard.append) as line:
        reply = line.ask(members=[DEAR])
        for n in range(300):  # as many sources as there would be answers
            line.ensemble.feedback(reply, 0.0, source=str(n))
    assert [(alarm.member, alarm.kind) for alarm in heard] == [(DEAR, "reward")]


def test_several_answers_are_not_taken_for_one_long_one(tmp_path: Path) -> None:
    heard: list[Alarm] = []
    with open_line(tmp_path, on_alarm=heard.append) as line:
        longest = line.ensemble.route(PROMPT)[CHEAP].output_tokens_p95
        line.provider.behave(CHEAP, Say("Oslo", output_tokens=int(3 * longest)))
        for _ in range(20):
            line.ask(n=8)
        assert not heard
        for _ in range(20):
            line.ask()
    assert [alarm.kind for alarm in heard] == ["tokens"]


def test_the_same_reward_again_tells_nothing_new(tmp_path: Path) -> None:
    heard: list[Alarm] = []
    with open_line(tmp_path, on_alarm=heard.append) as line:
        reply = line.ask(members=[DEAR])
        for _ in range(300):
            line.ensemble.feedback(reply, 0.0)
    assert not heard


def test_what_is_in_the_log_is_usual_and_raises_nothing() -> None:
    attempt = Attempt("d", 1, "m", "routed", 0.0, 1.0, model="first", output_tokens=10, cost_usd=0.1)
    earlier: list[dict[str, Any]] = [dataclasses.asdict(attempt)] * USUAL
    changed = dataclasses.replace(attempt, model="second")
    heard: list[Alarm] = []
    Health(lambda: 0.0, heard.append, [*earlier, dataclasses.asdict(changed)])
    assert not heard

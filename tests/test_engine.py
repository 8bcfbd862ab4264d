"""One call through the whole line: what comes back, what is sent, what is written down."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import litellm
import pytest

import ensemble
from ensemble.errors import ConfigError, EnsembleWarning, InputError, LogError, NoEligibleMemberError
from ensemble.pool import Pool
from ensemble.records import Deployment
from local_provider import Fail, LocalProvider, Say
from serving_cases import (
    CHEAP,
    DEAR,
    KEY,
    MEMBERS,
    MIDDLE,
    MOST_INPUT,
    PRICES,
    PROMPT,
    Line,
    default_router,
    open_line,
    said,
    usd,
)

TOOL = {
    "type": "function",
    "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}},
}
CALL = {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    with open_line(tmp_path) as opened:
        yield opened


def test_the_reply_is_litellms_own_with_the_decision_beside_it(line: Line) -> None:
    reply = line.ask()
    assert isinstance(reply, litellm.ModelResponse)
    assert said(reply) == f"Oslo, says {CHEAP}."
    assert reply.decision.member == CHEAP and reply.decision.propensity == 1
    assert {forecast.member for forecast in reply.decision} == set(MEMBERS)
    for form in (reply.model_dump(), reply.json(), json.loads(reply.model_dump_json()), reply.to_dict()):
        assert "decision" not in form and "choices" in form
    assert pickle.loads(pickle.dumps(reply)).choices == reply.choices


def test_the_outcome_is_written_with_the_providers_own_counts(line: Line) -> None:
    line.provider.behave(CHEAP, Say("Oslo", input_tokens=1_000, output_tokens=50, served="llama-2026"))
    row = line.row(line.ask())
    assert (row["served_member"], row["served_reason"], row["error"]) == (CHEAP, "routed", None)
    assert (row["input_tokens"], row["output_tokens"]) == (1_000, 50)
    assert row["cost_usd"] == pytest.approx(usd(CHEAP, 1_000, 50), abs=1e-12)
    assert not row["cost_is_estimated"]
    [attempt] = row["attempts"]
    assert (attempt["number"], attempt["model"], attempt["cost_usd"]) == (1, "llama-2026", row["cost_usd"])
    assert 0 <= attempt["seconds"] <= row["seconds"]
    assert row["cost_usd"] == pytest.approx(line.provider.bill_usd(PRICES), abs=1e-12)


def test_a_cached_prefix_is_paid_at_its_own_price(tmp_path: Path) -> None:
    with open_line(tmp_path) as line:
        cached = line.member(CHEAP, usd_per_million_cached_input=0.01)
        with ensemble.Ensemble(router=default_router(), pool=Pool([cached]), log=line.log) as other:
            line.provider.behave(CHEAP, Say(input_tokens=1_000, output_tokens=50, cached_tokens=600))
            row = line.row(other.complete(PROMPT))
    assert row["cost_usd"] == pytest.approx((400 * 0.1 + 600 * 0.01 + 50 * 0.2) / 1e6, abs=1e-12)
    assert row["attempts"][0]["cached_input_tokens"] == 600


def test_without_usage_the_cost_is_an_upper_bound_and_says_so(line: Line) -> None:
    line.provider.behave(CHEAP, Say("Oslo", usage=False))
    row = line.row(line.ask(max_tokens=100))
    assert row["cost_is_estimated"] and row["input_tokens"] is None
    assert row["cost_usd"] == pytest.approx(usd(CHEAP, MOST_INPUT, 100))


def test_what_is_not_ours_goes_through_unchanged(line: Line) -> None:
    theirs: dict[str, Any] = {
        "tools": [TOOL],
        "tool_choice": "auto",
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": {"type": "object"}},
        },
        "temperature": 0.25,
        "top_p": 0.5,
        "seed": 11,
        "stop": ["END"],
        "max_tokens": 77,
        "n": 2,
    }
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": PROMPT}]
    line.ask(messages, metadata={"user": "a"}, session="s", usd_per_second=1e-9, exclude=[DEAR], **theirs)
    [request] = line.provider.requests
    assert request["messages"] == messages
    assert request["params"] == theirs  # and so nothing of ours, nor of litellm's own


@pytest.mark.parametrize(
    "limit", [{"max_cost_usd": 1.0}, {"max_latency_s": 30}, {"min_reward": 0}, {"members": [CHEAP]}]
)
def test_our_words_never_reach_the_provider(line: Line, limit: dict[str, Any]) -> None:
    line.ask(owned_only=False, exploration=0.1, requires=[], certified=False, **limit)
    assert set(line.provider.requests[0]["params"]) <= {"max_tokens"}


def test_a_cap_on_the_cost_decides_who_may_serve_and_how_long_the_answer_may_be(line: Line) -> None:
    line.provider.behave(CHEAP, "word " * 100_000)
    reply = line.ask(max_cost_usd=0.001, willingness_to_pay_usd=math.inf)
    assert "may cost" in str(reply.decision[DEAR].ineligible_because)
    assert all(f.cost_usd_p95 <= 0.001 for f in reply.decision if not f.ineligible_because)
    [request] = line.provider.requests
    member, chosen = reply.decision.member, reply.decision
    affordable = (0.001 - usd(member, chosen.input_tokens, 0)) / (PRICES[member][1] / 1e6)
    assert request["params"]["max_tokens"] == int(affordable)
    assert line.row(reply)["cost_usd"] <= 0.001 * 1.01  # input tokens are estimated beforehand


def test_the_cap_holds_for_all_answers_together_and_never_raises_the_callers_own(line: Line) -> None:
    line.ask(max_cost_usd=0.001, n=4, members=[CHEAP])
    line.ask(max_cost_usd=0.001, max_tokens=3, members=[CHEAP])
    line.ask(max_cost_usd=0.001, max_completion_tokens=10**9, members=[CHEAP])
    four, own, other = (request["params"] for request in line.provider.requests)
    assert 0.0002 < usd(CHEAP, 0, 4 * four["max_tokens"]) <= 0.001
    assert own["max_tokens"] == 3
    assert "max_tokens" not in other and usd(CHEAP, 0, other["max_completion_tokens"]) <= 0.001


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
def test_a_cap_that_binds_nobody_leaves_the_pools_own_limit_alone(tmp_path: Path, limit: str) -> None:
    with LocalProvider(api_key=KEY) as provider:
        member = provider.member(CHEAP, 1.0, 1.0, context_window=100_000)
        [place] = member.deployments
        limited = dataclasses.replace(place, params={**place.params, limit: 5_000})
        pool = Pool([dataclasses.replace(member, deployments=(limited,))])
        line = Line(provider, tmp_path / "log.db", pool=pool)
        with line.ensemble:
            for usd_at_most in (0.05, 0.0009):
                line.ask(max_cost_usd=usd_at_most)
        wide, tight = (request["params"] for request in provider.requests)
    assert wide == {limit: 5_000} and tight.keys() == {limit} and tight[limit] < 900


def test_a_cap_sends_no_limit_beyond_what_a_member_can_take(line: Line) -> None:
    line.ask(max_cost_usd=10.0, members=[CHEAP])
    assert "max_tokens" not in line.provider.requests[0]["params"]


def test_an_answer_of_tool_calls_is_an_answer(line: Line) -> None:
    line.provider.behave(CHEAP, Say("", message={"content": None, "tool_calls": [CALL]}))
    reply = line.ask(tools=[TOOL])
    assert reply.choices[0].message.tool_calls[0].function.name == "look_up"
    assert line.row(reply)["served_member"] == CHEAP
    turn = [{"role": "user", "content": PROMPT}, reply.choices[0].message,
            {"role": "tool", "tool_call_id": "c1", "content": "Oslo"}]  # fmt: skip
    assert said(line.ask(turn, tools=[TOOL], members=[MIDDLE])) == f"Oslo, says {MIDDLE}."


def test_nobody_is_called_where_nobody_may_serve(line: Line) -> None:
    with pytest.raises(NoEligibleMemberError) as caught:
        line.ask(max_cost_usd=0)
    assert set(caught.value.reasons) == set(MEMBERS)
    with pytest.raises(InputError, match="gpt-5o"):
        line.ask(exclude=["gpt-5o"])
    assert line.asked == [] and line.rows() == []


def test_without_a_key_for_any_member_the_variables_are_named(tmp_path: Path, monkeypatch: Any) -> None:
    there = {
        "kind": "frontier",
        "usd_per_million_input": 1,
        "usd_per_million_output": 1,
        "context_window": 9000,
    }
    pool = Pool([
        {"name": "a", "model": "openai/gpt-4o", **there},
        {"name": "b", "model": "anthropic/claude-sonnet-4-5", **there},
        {"name": "c", "model": "openai/x", "params": {"api_key": "os.environ/HOUSE_KEY"}, **there},
    ])  # fmt: skip
    with ensemble.Ensemble(router=default_router(), pool=pool, log=tmp_path / "log.db") as opened:
        with pytest.raises(NoEligibleMemberError) as caught:
            opened.complete(PROMPT)
        for variable in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "HOUSE_KEY"):
            assert f"no API key: set {variable}" in str(caught.value)
        assert opened.route(PROMPT).member in "abc"  # a plan needs no key
        monkeypatch.setenv("HOUSE_KEY", "now there")
        assert opened.complete(PROMPT, mock_response="hi").decision.member == "c"
        reply = opened.complete(PROMPT, members=["a"], api_key="the caller's own", mock_response="hi")
        assert said(reply) == "hi"


def test_route_decides_and_logs_without_calling(line: Line) -> None:
    decision = line.ensemble.route(PROMPT, willingness_to_pay_usd=0, metadata={"user": "a"})
    row = line.row(decision.id)
    assert (row["chosen_member"], row["attempts"], row["ended_at"]) == (CHEAP, [], None)
    assert row["metadata"] == {"user": "a"} and line.asked == []


def test_a_member_the_router_never_saw_is_marked_and_may_serve(line: Line) -> None:
    line.provider.behave("newcomer", "hello")
    pool = Pool([line.member(CHEAP), line.provider.member("newcomer", 0.001, 0.001)])
    with ensemble.Ensemble(router=default_router(), pool=pool, log=line.log) as opened:
        reply = opened.complete(PROMPT, willingness_to_pay_usd=0)
    assert reply.decision.member == "newcomer" and not reply.decision.chosen.measured
    assert reply.decision[CHEAP].measured
    assert reply.decision.chosen.reward_std > reply.decision[CHEAP].reward_std
    assert line.row(reply)["measured"] == [True, False]


def test_a_member_in_several_places_is_one_member_and_the_other_place_is_tried(line: Line) -> None:
    here = {"api_base": line.provider.url, "api_key": KEY}
    places = tuple(Deployment(f"openai/{name}", here) for name in ("north", "south"))
    turns = itertools.chain([Fail(429)], itertools.repeat("here"))  # whichever is asked first is busy
    for name in ("north", "south"):
        line.provider.behave(name, lambda request: next(turns))
    pool = Pool([line.member(CHEAP, deployments=places)])
    with ensemble.Ensemble(router=default_router(), pool=pool, log=line.log) as opened:
        reply = opened.complete(PROMPT)
    assert sorted(line.asked) == ["north", "south"]
    assert line.attempts(reply) == [(CHEAP, "routed", None)]


def test_a_log_that_fails_before_the_call_stops_it(line: Line) -> None:
    line.log.close()
    with pytest.raises(LogError, match="closed"):
        line.ask()
    assert line.asked == []


def test_a_log_that_fails_after_the_call_warns_and_hands_over_the_answer(line: Line) -> None:
    def close_then_answer(request: Any) -> str:
        line.log.close()
        return "paid for"

    line.provider.behave(CHEAP, close_then_answer)
    with pytest.warns(EnsembleWarning, match="is not in the log: .*closed"):
        assert said(line.ask()) == "paid for"


def test_a_decision_forgotten_during_its_call_stays_forgotten(line: Line) -> None:
    def forget_then_answer(request: Any) -> str:
        assert line.ensemble.forget(metadata={"user": "a"}) == 1
        return "answer"

    line.provider.behave(CHEAP, forget_then_answer)
    with pytest.warns(EnsembleWarning, match="not in the log"):
        assert said(line.ask(metadata={"user": "a"})) == "answer"
    assert line.rows() == []


@pytest.mark.parametrize("metadata", [{"a": object()}, {1: "a"}, {"a": math.nan}])
def test_metadata_that_cannot_be_kept_is_refused_before_the_call(line: Line, metadata: Any) -> None:
    with pytest.raises(InputError, match="metadata"):
        line.ask(metadata=metadata)
    assert line.asked == []


def test_without_a_log_all_that_needs_none_works(tmp_path: Path) -> None:
    with open_line(tmp_path, log=False) as line:
        reply = line.ask(metadata={"a": 1})
        assert said(reply).startswith("Oslo") and reply.decision.member == CHEAP
        for use in (lambda: line.ensemble.feedback(reply, 1.0), lambda: line.ask(session="s")):
            with pytest.raises(ConfigError, match="log=False"):
                use()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"router": 5}, "router: expected a path or an open Router, found 5"),
        ({"pool": [{"name": "a"}]}, "pool: expected a path or an open Pool, found a list"),
        ({"log": 5}, "log: expected a path or an open OutcomeLog, found 5"),
        ({"budgets": [{"usd_per_day": 1}]}, "budgets: expected a list of Budget, found"),
        ({"budgets": ensemble.Budget(1)}, "budgets: expected a list of Budget, found"),
    ],
)
def test_a_setting_of_the_wrong_kind_is_named_at_once(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        ensemble.Ensemble(**settings)

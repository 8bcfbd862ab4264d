"""Who may serve, and what is said of those who may not; what may be wished for."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble import policy
from ensemble.asked import Asked
from ensemble.engine import Ensemble
from ensemble.errors import InputError, NoEligibleMemberError
from ensemble.pool import Pool
from ensemble.records import ABILITIES, Wishes
from policy_cases import case, member
from serving_cases import default_router

KNOWN: dict[str, Any] = {
    "context_window": 50,
    "max_output_tokens": 200,
    "abilities": frozenset({"vision"}),
    "first_token_s": 0.5,
    "tokens_per_second": 50.0,
}


@pytest.mark.parametrize(
    ("facts", "wishes", "reason"),
    [
        ({}, {"members": frozenset({"other"})}, "not among the members asked for"),
        ({}, {"exclude": frozenset({"one"})}, "excluded by the caller"),
        ({}, {"owned_only": True}, "not owned, and owned_only was asked for"),
        ({"abilities": frozenset({"vision"})}, {"requires": frozenset({"tools", "vision"})}, "lacks tools"),
        ({"context_window": 50}, {}, "needs about 100 input tokens, its window holds 50"),
        ({}, {"max_cost_usd": 0.0003}, "may cost 0.0004 USD (95 %), the limit is 0.0003"),
        ({"first_token_s": 0.5, "tokens_per_second": 50.0}, {"max_latency_s": 2.0}, "takes about 2.5 s"),
        ({}, {"min_reward": 0.6}, "expected reward 0.500, at least 0.6 was asked for"),
    ],
)
def test_each_rule_bars_with_its_reason(facts: dict[str, Any], wishes: dict[str, Any], reason: str) -> None:
    # 100 tokens in and 100 out, at most 300; "other" meets every wish.
    other = member("other", 0.1, 0.1, owned=True)
    some = case(member("one", **facts), other, reward=[0.5, 0.9], **wishes)
    decision = some.one()
    assert decision.member == "other" and decision.ranking == ("other",)
    assert reason in str(decision["one"].ineligible_because)
    assert decision["one"].probability == 0
    with pytest.raises(NoEligibleMemberError, match=r"(?s)1 members.*Loosen") as caught:
        case(member("one", **facts), reward=[0.5], **_without_names(wishes)).one(unavailable={})
    assert reason in caught.value.reasons["one"] and reason in str(caught.value)


SHAPE = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


@pytest.mark.parametrize(
    ("more", "params", "reason"),
    [
        ([], {"tools": [TOOL]}, "lacks tools, which the request needs"),
        ([], {"response_format": SHAPE}, "lacks json_schema, which the request needs"),
        ([], {"reasoning_effort": "high"}, "lacks reasoning, which the request needs"),
        (
            [],
            {"thinking": {"type": "enabled", "budget_tokens": 99}},
            "lacks reasoning, which the request needs",
        ),
        ([IMAGE], {}, "lacks vision, which the request needs"),
        ([{"type": "text", "text": "words " * 10_000}], {}, "input tokens, its window holds 4,000"),
    ],
)
def test_what_a_request_needs_bars_who_cannot_do_it(more: Any, params: Any, reason: str) -> None:
    plain = member("plain", abilities=frozenset(), context_window=4_000)
    able = member("able", 50, 50, abilities=frozenset(ABILITIES), context_window=200_000)
    asked = [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, *more]}]
    with Ensemble(router=default_router(), pool=Pool([plain, able]), log=False) as opened:
        decision = opened.route(asked, willingness_to_pay_usd=0, **params)
        assert decision.member == "able" and reason in str(decision["plain"].ineligible_because)
        assert opened.route("What is this?", willingness_to_pay_usd=0).member == "plain"
        with pytest.raises(NoEligibleMemberError) as caught:
            opened.route(asked, exclude=["able"], **params)
    assert reason in caught.value.reasons["plain"]
    assert caught.value.reasons["able"] == "excluded by the caller"


def _without_names(wishes: dict[str, Any]) -> dict[str, Any]:
    """``members`` must name somebody in the pool: here nobody."""
    return {**wishes, "members": frozenset()} if "members" in wishes else wishes


def test_unknown_facts_bar_nobody() -> None:
    stranger = member("stranger")
    some = case(
        stranger, reward=[0.5], tokens=1e6, max_latency_s=0.001, requires=frozenset({"tools", "vision"})
    )
    assert some.one().member == "stranger"


def test_what_just_meets_a_limit_is_eligible() -> None:
    one = member("one", context_window=100, first_token_s=0.5, tokens_per_second=50.0)
    some = case(one, reward=[0.5], max_cost_usd=400e-6, max_latency_s=2.5, min_reward=0.5)
    assert some.one().member == "one"


@pytest.mark.parametrize("limit", [None, 50, 10**9])
def test_a_window_is_held_against_the_input_alone(limit: int | None) -> None:
    # Whether the output counts too differs between providers, and one that refuses has cost nothing.
    one, asked = member("one", context_window=5_000), {} if limit is None else {"max_tokens": limit}
    with Ensemble(router=default_router(), pool=Pool([one]), log=False) as opened:
        assert opened.route("words " * 1_000, **asked).member == "one"
        with pytest.raises(NoEligibleMemberError, match="its window holds 5,000"):
            opened.route("words " * 10_000, **asked)


@pytest.mark.parametrize("field", ["members", "exclude"])
def test_a_name_that_is_not_in_the_pool_is_an_error(field: str) -> None:
    some = case(member("one"), reward=[0.5], **{field: frozenset({"one", "gpt-5o"})})
    with pytest.raises(InputError, match=r"members of the pool \(one\); found gpt-5o"):
        some.one()


def test_a_prediction_over_another_pool_is_an_error() -> None:
    some = case(member("one"), member("two"), reward=[0.5, 0.5])
    expected = policy.expect(some.prediction, some.pool, np.array([400.0]), np.full(2, 4.0))
    turned = Pool(some.members[::-1])
    with pytest.raises(InputError, match=r"expected a prediction over .*two.*, found one over"):
        next(policy.decide(some.prediction, expected, turned, some.wishes, np.zeros(1), ["d"], now=0.0))


NUMBERS = (
    "willingness_to_pay_usd",
    "usd_per_second",
    "max_cost_usd",
    "max_latency_s",
    "min_reward",
    "exploration",
)
WRONG = st.one_of(
    st.sampled_from([math.nan, -1, -1e-9, True, False, "0.1", "inf", b"1", [], {}, [0.1], object(), 1j]),
    st.floats(max_value=-1e-300),
    st.text(max_size=5),
    st.just(np.array([0.5])),
    st.just(10**400).map(lambda n: -n),
)


@given(st.sampled_from(NUMBERS), WRONG)
def test_a_number_that_is_none_or_out_of_range_is_named(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"^{name}: expected a number from 0 .*, found "):
        Asked.of({name: value}).wishes(Wishes(), frozenset())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_cost_usd", math.inf),
        ("max_latency_s", 2e9),
        ("min_reward", 1.01),
        ("exploration", 1),
        ("willingness_to_pay_usd", 10**400),
        ("owned_only", "no"),
        ("owned_only", 1),
        ("members", "gpt-4o"),
        ("members", 5),
        ("members", [["gpt-4o"]]),
        ("exclude", [1]),
        ("requires", ["telepathy"]),
        ("requires", "tools"),
        ("session", 5),
        ("session", ""),
        ("metadata", [("user", "a")]),
        ("metadata", "a"),
        ("stream_options", True),
        ("max_tokens", 0),
        ("max_tokens", True),
        ("max_tokens", 10.5),
        ("max_completion_tokens", "100"),
        ("n", 0),
        ("hedge_after_s", 0),
        ("hedge_after_s", math.nan),
        ("hedge_after_s", "2"),
        ("certified", True),
        ("model", "gpt-4o"),
        ("messages", []),
        ("fallbacks", ["gpt-4o"]),
        ("context_window_fallbacks", [{"a": ["b"]}]),
    ],
)
def test_what_cannot_be_meant_is_an_error_that_names_it(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"^{name}"):
        Asked.of({name: value}).wishes(Wishes(), frozenset())


@pytest.mark.parametrize("kind", [int, float, np.float32, np.float64, np.int64])
def test_every_kind_of_number_is_taken_and_becomes_a_float(kind: Any) -> None:
    given_ = {name: kind(0) for name in NUMBERS} | {"max_tokens": 7, "n": 2}
    asked = Asked.of(given_ | ({"max_tokens": np.int64(7)} if kind is np.int64 else {}))
    wishes = asked.wishes(Wishes(willingness_to_pay_usd=0.5, exploration=0.5), frozenset())
    assert {type(getattr(wishes, name)) for name in NUMBERS} == {float}
    assert wishes.willingness_to_pay_usd == wishes.exploration == 0
    assert type(asked.max_tokens) is int and asked.max_tokens == 7 and asked.answers == 2


def test_none_means_the_pools_default_and_no_limit() -> None:
    defaults = Wishes(willingness_to_pay_usd=0.3, usd_per_second=0.1, exploration=0.2)
    asked = Asked.of(
        {name: None for name in (*NUMBERS, "members", "exclude", "owned_only", "session", "metadata")}
    )
    assert asked.wishes(defaults, frozenset({"tools"})) == Wishes(
        willingness_to_pay_usd=0.3, usd_per_second=0.1, exploration=0.2, requires=frozenset({"tools"})
    )
    assert asked.params == {} and asked.max_tokens is None and asked.answers == 1


def test_names_may_come_in_any_collection_and_what_is_needed_is_added() -> None:
    asked = Asked.of({"members": ("a", "b"), "exclude": {"c": 1}, "requires": ["vision"]})
    wishes = asked.wishes(Wishes(), frozenset({"tools"}))
    assert (wishes.members, wishes.exclude) == (frozenset("ab"), frozenset("c"))
    assert wishes.requires == {"tools", "vision"}


def test_the_tighter_of_two_limits_on_the_answer_counts() -> None:
    assert Asked.of({"max_tokens": 50, "max_completion_tokens": 20}).max_tokens == 20

"""What an answer can have cost at most, and what is sent so that it can't cost more."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ensemble.budget import Budget
from ensemble.pool import Pool
from local_provider import LocalProvider, Raw, Say
from serving_cases import CHEAP, KEY, MOST_INPUT, PRICES, QUIET, Line, usd, waited

pytestmark = QUIET
Open = Callable[..., Line]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """One member with such facts and, for each of its deployments, such parameters; it tells no usage."""
    with LocalProvider(api_key=KEY) as provider:

        def open_line(*places: dict[str, Any], budgets: Any = (), **facts: Any) -> Line:
            member = provider.member(CHEAP, *PRICES[CHEAP], **facts)
            [here] = member.deployments
            limited = (dataclasses.replace(here, params={**here.params, **more}) for more in places or ({},))
            pool = Pool([dataclasses.replace(member, deployments=tuple(limited))])
            line = Line(provider, tmp_path / "log.db", pool=pool, budgets=budgets)
            provider.behave(CHEAP, Say("one two", usage=False))
            lines.append(line)
            return line

        lines: list[Line] = []
        yield open_line
        for line in lines:
            line.ensemble.close()


def bound_of(line: Line, **asked: Any) -> float:
    row = line.row(line.ask(**asked))
    assert row["cost_is_estimated"]
    return float(row["cost_usd"])


@pytest.mark.parametrize(("max_tokens", "most"), [(30, 30), (2**63 - 1, 50)])
def test_a_members_own_limit_holds_where_the_caller_has_a_wider_one(
    opened: Open, max_tokens: int, most: int
) -> None:
    line = opened(max_output_tokens=50)
    assert bound_of(line, max_tokens=max_tokens) == pytest.approx(usd(CHEAP, MOST_INPUT, most))


def test_a_limit_that_means_none_is_none_where_the_member_has_none_either(opened: Open) -> None:
    line = opened()
    assert bound_of(line, max_tokens=2**63 - 1) == bound_of(line) < usd(CHEAP, MOST_INPUT, 2**17)


def test_of_several_places_the_one_that_may_write_most_is_the_bound(opened: Open) -> None:
    line = opened({"max_tokens": 10}, {"max_tokens": 40, "max_completion_tokens": 35}, max_output_tokens=50)
    assert bound_of(line) == pytest.approx(usd(CHEAP, MOST_INPUT, 35))


def test_where_no_window_is_known_a_wide_cap_sends_no_limit_that_none_would_take(opened: Open) -> None:
    line = opened(budgets=[Budget(20.0, hard=True)])
    line.ask()
    line.ask(max_cost_usd=0.001)
    wide, tight = (request["params"] for request in line.provider.requests)
    assert wide == {} and 0 < tight["max_tokens"] < 5_000


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("told", [{"input_tokens": 10**20}, {"output_tokens": 10**400}])
def test_counts_that_cannot_be_are_none_and_take_no_answer_away(
    opened: Open, told: dict[str, int], stream: bool
) -> None:
    line = opened(max_output_tokens=50)
    line.provider.behave(CHEAP, Say("Oslo", **told))
    reply, text = waited(line, stream)
    row = line.row(reply)
    assert text == "Oslo" and (row["input_tokens"], row["output_tokens"]) == (None, None)
    assert row["cost_usd"] == pytest.approx(usd(CHEAP, MOST_INPUT, 50))


def test_a_cost_or_a_cached_prefix_that_cannot_be_is_none(opened: Open) -> None:
    line = opened()
    choice = {"index": 0, "message": {"role": "assistant", "content": "Oslo"}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 30, "completion_tokens": 9, "total_tokens": 39, "cost": 10**400}
    usage |= {"prompt_tokens_details": {"cached_tokens": 10**20}}
    body = {"id": "x", "object": "chat.completion", "created": 0, "model": CHEAP, "choices": [choice]}
    line.provider.behave(CHEAP, Raw(json.dumps({**body, "usage": usage})))
    [attempt] = line.row(line.ask())["attempts"]
    assert (attempt["input_tokens"], attempt["cached_input_tokens"], attempt["told_usd"]) == (30, 30, None)
    assert attempt["cost_usd"] == pytest.approx(usd(CHEAP, 30, 9))

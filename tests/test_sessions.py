"""Whether a conversation stays with its member: the rule, the cost of long runs, the way through the log."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble import policy
from ensemble.pool import Pool
from ensemble.records import Prediction, Wishes
from ensemble.sessions import CACHE_S, Standing
from local_provider import Fail, Say
from policy_cases import case, member
from serving_cases import CHEAP, DEAR, MIDDLE, QUIET, Line, default_router, open_line

pytestmark = QUIET
LONG = "What is the capital of Norway? " * 200  # some 1,500 tokens: enough to be kept in a cache


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    with open_line(tmp_path) as opened:
        yield opened


def test_a_step_stays_where_nobody_has_been_better_for_long_enough() -> None:
    some = case(*map(member, "ab"), reward=[0.62, 0.5], std=0.1, exploration=0.2)
    stays = some.one(standing=Standing("b"))
    assert (stays.member, stays.reason, stays.propensity, stays.randomized) == ("b", "session", 1.0, False)
    assert [forecast.probability for forecast in stays] == [0, 1]
    # The doubt is hypot(.1, .1) of reward: an advantage of .12 exceeds it at the second step.
    assert stays.standing is not None
    moves = some.one(standing=Standing(**stays.standing))
    assert (moves.member, moves.reason, moves.propensity, moves.randomized) == ("a", "routed", 1.0, False)
    assert moves.standing == Standing("a").as_dict()


def test_a_step_whose_member_may_not_serve_is_free() -> None:
    some = case(*map(member, "ab"), reward=[0.9, 0.1], exploration=0.2)
    freed = some.wishing(exclude=frozenset("b")).one(standing=Standing("b"))
    assert (freed.member, freed.reason, freed.randomized, freed.standing) == ("a", "routed", True, None)
    assert some.one(standing=Standing("gone")).reason == "routed"


def test_with_an_infinite_dial_only_this_steps_reward_counts() -> None:
    some = case(*map(member, "ab"), reward=[0.6, 0.5], std=0.05, willingness_to_pay_usd=float("inf"))
    assert some.one(standing=Standing("b", forgone_usd={"a": 1e9})).member == "a"
    assert some.changed(std=np.full((1, 2), 0.1)).one(standing=Standing("b")).member == "b"


def test_what_is_cached_costs_less_but_no_limit_counts_on_it() -> None:
    kept = member("a", 10.0, 0.0, usd_per_million_cached_input=1.0)
    some = case(kept, member("b", 10.0, 0.0), reward=[0.5, 0.5])
    standing = Standing("a", prefix_tokens=2_000)  # more than the 100 tokens that there are
    decision = some.one(standing=standing)
    assert decision["a"].cost_usd == pytest.approx(100e-6) and decision["b"].cost_usd == pytest.approx(1e-3)
    assert decision["a"].cost_usd_p95 == pytest.approx(1e-3)
    assert some.one(standing=Standing("a", prefix_tokens=2_000, trust=0.5)).chosen.cost_usd < 1e-3
    assert some.one(standing=Standing("a", prefix_tokens=100)).chosen.cost_usd == pytest.approx(1e-3)


def test_what_was_forgone_in_reward_does_not_count_as_usd() -> None:
    some = case(*map(member, "ab"), reward=[0.62, 0.5], std=0.1)
    first = some.wishing(willingness_to_pay_usd=float("inf")).one(standing=Standing("b"))
    assert first.member == "b" and first.standing == Standing("b").as_dict()


def step(**changes: Any) -> dict[str, Any]:
    plain = {"served_member": "a", "ended_at": 100.0, "input_tokens": 5_000, "cached_input_tokens": None}
    return {**plain, "standing": None, **changes}


def test_a_prefix_counts_while_its_cache_is_warm_and_as_far_as_it_was_used() -> None:
    assert Standing.after(step(), 101.0) == Standing("a", 5_000.0)
    assert Standing.after(step(), 101.0 + CACHE_S).cached_tokens == 0
    stored = Standing("a", 4_000.0, 1.0, {"b": 0.5}).as_dict()
    assert Standing.after(step(standing=stored, cached_input_tokens=2_000), 101.0).trust == 0.5
    assert Standing.after(step(standing=stored), 101.0).cached_tokens == 0  # told of none: none was used
    assert Standing.after(step(standing=stored), 101.0).forgone_usd == {"b": 0.5}
    # Another took over after a failure: what was true of the first says nothing of it.
    assert Standing.after(step(served_member="b", standing=stored), 101.0) == Standing("b", 5_000.0)


@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), max_size=60), st.floats(0, 0.5))
def test_whatever_comes_staying_never_costs_more_than_moving_and_one_step(
    utilities: list[tuple[float, float]], moving: float
) -> None:
    """What is forgone under one member stays below what moving costs; to that comes the step that decides."""
    standing, forgone = Standing("a"), 0.0
    for in_charge, other in utilities:
        bound = standing.member
        here, there = (in_charge, other) if bound == "a" else (other, in_charge)
        now = [in_charge, other]
        now[1 if bound == "a" else 0] -= moving  # who is not settled reads all of the prefix anew
        standing = standing.next(("a", "b"), [True, True], now, [moving, moving], [0.0, 0.0])
        if standing.member != bound:
            assert forgone + there - here > moving
            forgone = 0.0
        else:
            forgone = max(0.0, forgone + there - here)
            assert forgone <= moving + 1e-9


# Agents: 300 steps of a growing conversation over three members that keep a prefix at a tenth of its price.

AGENTS = tuple(
    member(name, usd, 4 * usd, usd_per_million_cached_input=usd / 10)
    for name, usd in [("small", 0.5), ("middle", 2.0), ("large", 8.0)]
)
N_STEPS, TOKENS_A_STEP, ANSWER_TOKENS = 300, 400, 150.0
Choose = Callable[[Prediction, float, "Standing | None"], tuple[str, "Standing"]]


def run_agent(rewards: np.ndarray, choose: Choose, dial: float) -> float:
    """Total utility in USD of a run; ``rewards`` (n_steps, n_members) are what is predicted, and true."""
    pool, total, in_charge = Pool(AGENTS), 0.0, None
    warm: dict[str, int] = {}  # tokens of the conversation that each member's cache holds
    for k, reward in enumerate(rewards):
        tokens = TOKENS_A_STEP * (k + 1)
        ones = np.ones((1, 3))
        prediction = Prediction(pool.names, reward[None], 0.02 * ones, ANSWER_TOKENS * ones, 300.0 * ones)
        name, in_charge = choose(prediction, 4.0 * tokens, in_charge)
        chosen, cached = pool[name], warm.get(name, 0)
        usd = (tokens - cached) * chosen.usd_per_million_input
        usd += cached * float(chosen.usd_per_million_cached_input or 0)
        usd += ANSWER_TOKENS * chosen.usd_per_million_output
        total += dial * float(reward[pool.names.index(name)]) - usd / 1e6
        warm[name] = tokens
    return total


def agent(dial: float, *, moves: bool = True, stays: bool = True) -> Choose:
    pool = Pool(AGENTS)

    def choose(prediction: Prediction, characters: float, last: Standing | None) -> tuple[str, Standing]:
        if last is not None and not moves:
            return last.member, last
        standing = last if stays else None
        ratio = np.full(3, 4.0)
        expected = policy.expect(prediction, pool, np.array([characters]), ratio, standing=standing)
        wishes, context = Wishes(willingness_to_pay_usd=dial), policy.Context(standing=standing)
        [made] = policy.decide(
            prediction, expected, pool, wishes, np.zeros(1), ["d"], now=0.0, context=context
        )
        kept = {"standing": made.standing, "cached_input_tokens": characters / 4 - TOKENS_A_STEP}
        after = step(served_member=made.member, input_tokens=characters / 4, **kept)
        return made.member, Standing.after(after, 100.0)

    return choose


@pytest.mark.parametrize("dial", [0.002, 0.02, 0.05, 0.2, 1.0])
@pytest.mark.parametrize("world", ["steady", "wavering", "turning"])
def test_long_runs_do_about_as_well_as_the_better_of_staying_and_deciding_anew(
    world: str, dial: float
) -> None:
    """``steady``: the members differ by the same all along; ``wavering``: by chance at each step, as in
    predictions; ``turning``: what was easy becomes hard half-way."""
    rng = np.random.default_rng(0)
    rewards = np.tile([0.5, 0.6, 0.7], (N_STEPS, 1))
    if world == "wavering":
        rewards = np.clip(rewards + rng.normal(0, 0.15, rewards.shape), 0, 1)
    if world == "turning":
        rewards[: N_STEPS // 2] = [0.72, 0.73, 0.74]
        rewards[N_STEPS // 2 :] = [0.1, 0.3, 0.9]
    ours = run_agent(rewards, agent(dial), dial)
    never_moves = run_agent(rewards, agent(dial, moves=False), dial)
    always_anew = run_agent(rewards, agent(dial, stays=False), dial)
    assert ours >= max(never_moves, always_anew) - 0.001 * dial * N_STEPS


def test_where_members_differ_a_little_both_habits_lose() -> None:
    """Never moving keeps what was best for a short conversation; deciding anew looks one step ahead."""
    rewards = np.tile([0.5, 0.6, 0.7], (N_STEPS, 1))
    ours = run_agent(rewards, agent(0.2), 0.2)
    assert ours > run_agent(rewards, agent(0.2, moves=False), 0.2) + 2.0  # USD of utility
    assert ours > run_agent(rewards, agent(0.2, stays=False), 0.2) + 2.0


# Through the engine and the log.


def same_price(line: Line, **cheaper: float) -> Pool:
    """CHEAP is one in a hundred cheaper than MIDDLE, and both keep a prefix at a hundredth of its price."""
    kept = {"usd_per_million_cached_input": 0.1, "context_window": 100_000}
    return Pool(
        [line.provider.member(MIDDLE, 10.0, 20.0, **kept), line.provider.member(CHEAP, 9.9, 19.8, **kept)]
    )


def test_a_conversation_with_a_prefix_stays_and_says_so(line: Line, tmp_path: Path) -> None:
    line.provider.behave(MIDDLE, lambda request: Say("Oslo", cached_tokens=1_400))
    with Line(line.provider, tmp_path / "2.db", pool=same_price(line)).ensemble as ensemble:
        ask: dict[str, Any] = {"willingness_to_pay_usd": 0, "session": "s"}
        first = ensemble.complete(LONG, members=[MIDDLE], **ask)
        then = ensemble.complete(LONG, **ask)
        other = ensemble.complete(LONG, **ask | {"session": "other"})
        row = ensemble.log and ensemble.log.decision(then.decision.id)
        assert (first.decision.reason, other.decision.member) == ("routed", CHEAP)
        assert (then.decision.member, then.decision.reason, then.decision.randomized) == (
            MIDDLE,
            "session",
            False,
        )
        assert row and row["served_reason"] == "session" and not row["randomized"]
        assert row["standing"]["forgone_usd"][CHEAP] > 0


def test_a_conversation_that_costs_more_by_staying_moves(line: Line) -> None:
    """At a dial of 0 a dear member's short prefix holds nobody."""
    line.ask(session="s", members=[DEAR])
    moved = line.ask(session="s")
    assert (moved.decision.member, moved.decision.reason, moved.decision.randomized) == (
        CHEAP,
        "routed",
        False,
    )


def test_a_conversation_goes_on_with_whoever_answered(line: Line) -> None:
    line.ask(LONG, session="s", members=[MIDDLE])
    line.provider.behave(CHEAP, Fail(500))
    hopped = line.ask(LONG, session="s")
    assert line.attempts(hopped) == [(CHEAP, "routed", "InternalServerError"), (MIDDLE, "fallback", None)]
    last = line.log.last_step("s")
    assert last is not None and Standing.after(last, last["ended_at"]).member == MIDDLE
    line.provider.behave(CHEAP, "well again")
    kept_out = line.ask(LONG, session="s", exclude=[MIDDLE])  # a wish is stronger than a habit
    assert (kept_out.decision.member, kept_out.decision.reason) == (CHEAP, "routed")


def test_conversations_are_known_to_other_processes_by_the_log(line: Line, tmp_path: Path) -> None:
    pool, place = same_price(line), tmp_path / "3.db"
    ask: dict[str, Any] = {"willingness_to_pay_usd": 0, "session": "s"}
    with Line(line.provider, place, pool=pool, router=default_router()).ensemble as one:
        one.complete(LONG, members=[MIDDLE], **ask)
    with Line(line.provider, place, pool=pool).ensemble as other:
        assert other.complete(LONG, **ask).decision.reason == "session"

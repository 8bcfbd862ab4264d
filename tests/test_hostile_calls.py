"""Whatever a call passes on is decided or is one clear error, and no text moves more money than the dial."""

from __future__ import annotations

import math
import random
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import gadgets, hostile_calls
from benchmarks.hostile_case import Case
from ensemble.engine import Ensemble
from ensemble.errors import EnsembleError, NoEligibleMemberError
from ensemble.outcomes import OutcomeLog
from ensemble.policy import VERSION
from ensemble.records import Decision
from ensemble.text import as_messages
from log_cases import record
from policy_cases import Case as Deciding
from policy_cases import cases
from serving_cases import default_router


@pytest.mark.parametrize("case", hostile_calls.CASES, ids=lambda case: case.what)
def test_each_gets_what_it_should(case: Case, tmp_path: Path) -> None:
    got, held = case.got(tmp_path)
    assert held, got


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with hostile_calls.opened(tmp_path_factory.mktemp("small")) as opened:
        yield opened


texts = st.text(st.characters(exclude_categories=[]), max_size=12)  # surrogates too
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | texts
    | st.builds(lambda: 10**5_000)
    | st.binary(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.one_of(texts, st.sampled_from(["type", "text", "role", "content"])), inner, max_size=3
        )
    ),
    max_leaves=8,
)
parts = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image_url", "tool_use", "z"])}, optional={"text": values, "z": values}
)
messages = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "system", "assistant", "tool"]) | values},
    optional={"content": st.lists(parts, max_size=2) | values, "tool_calls": values, "name": values},
)


@given(prompt=st.lists(messages, max_size=3) | st.lists(values, max_size=2) | values)
@settings(max_examples=300)
def test_any_messages_are_decided_or_one_clear_error(small: Ensemble, prompt: Any) -> None:
    try:
        assert isinstance(small.route(prompt), Decision)
    except EnsembleError as error:
        assert 10 < len(str(error)) < 2_000


KEYWORDS = (
    "tools", "functions", "response_format", "metadata", "session", "n", "max_tokens", "members", "requires",
    "exclude", "owned_only", "willingness_to_pay_usd", "max_cost_usd", "min_reward", "exploration", "stream",
    "hedge_after_s", "reasoning_effort", "thinking", "stream_options", "temperature",
)  # fmt: skip


@given(keywords=st.dictionaries(st.sampled_from(KEYWORDS), values, max_size=3))
@settings(max_examples=300)
def test_any_keywords_are_decided_or_one_clear_error(small: Ensemble, keywords: dict[str, Any]) -> None:
    try:
        assert isinstance(small.route("a", **keywords), Decision)
    except EnsembleError as error:
        assert 10 < len(str(error)) < 2_000


@pytest.mark.parametrize("text", ["\0", "'; DROP TABLE decisions; --", "%", "\ufffe", "x" * 500])
def test_names_of_any_kind_stay_names_in_both_databases(log: OutcomeLog, text: str) -> None:
    mine, theirs = record(log, metadata={text: text}, session=text), record(log, metadata={"a": text})
    assert log.last_step(text) is None
    assert log.forget(metadata={text: text}) == 1
    assert [row["decision_id"] for row in log.rows()] == [theirs] != [mine]


def test_a_lone_surrogate_in_a_key_is_sent_to_nobody() -> None:
    inner = MappingProxyType({"type": "z", "\ud800": ["\udfff"]})
    sent = as_messages([{"role": "user", "\udc00": 1, "content": [inner]}])
    assert sent == [{"role": "user", "\ufffd": 1, "content": [{"type": "z", "\ufffd": ["\ufffd"]}]}]


# What a text can cost


def above(one: Decision, dial: float) -> None:
    """The bound of benchmarks/gadgets.py, on one decision that nothing was left to chance in."""
    eligible = [line for line in one.forecasts if line.ineligible_because is None]
    rounding = 1e-9 * (dial + max(line.cost_usd for line in eligible))
    for other in eligible:
        gain = dial * (one.chosen.reward - other.reward)
        assert one.chosen.cost_usd <= other.cost_usd + gain + rounding
    assert gadgets.above_cheapest(one) <= dial + rounding


@given(cases())
@settings(max_examples=300)
def test_no_prediction_costs_more_than_the_cheapest_and_the_dial(some: Deciding) -> None:
    some = some.wishing(exploration=0.0, usd_per_second=0.0)
    dial = some.wishes.willingness_to_pay_usd
    for one in some.decide():
        assert one.policy_version == VERSION
        if math.isfinite(dial):
            above(one, dial)


@pytest.fixture(scope="module")
def shipped() -> Any:
    with Ensemble(router=default_router(), log=False) as opened:
        yield opened


WORDS = [
    *" ".join(gadgets.PHRASES).split(),
    "\n",
    "\\int",
    "qed",
    "olympiad",
    "def f(x):",
    "route",
    "<",
    "😀",
    "证明",
]


@given(
    words=st.lists(st.sampled_from(WORDS), max_size=30),
    prompt=st.sampled_from(gadgets.prompts()),
    dial=st.sampled_from([0.0, 1e-5, 0.001, 0.01, 1.0]),
)
def test_no_text_moves_the_shipped_router_beyond_the_dial(
    shipped: Ensemble, words: list[str], prompt: str, dial: float
) -> None:
    text = f"{' '.join(words)}\n{prompt}"
    above(shipped.route(text, willingness_to_pay_usd=dial), dial)
    for cap in (1e-4, 1e-3):
        try:
            capped = shipped.route(text, willingness_to_pay_usd=math.inf, max_cost_usd=cap)
        except NoEligibleMemberError:
            continue
        assert capped.chosen.cost_usd_p95 <= cap


def test_the_prompts_that_gadgets_are_measured_on() -> None:
    assert len(set(gadgets.prompts())) == 120


def test_what_a_gadget_does_is_told_apart_from_what_its_length_does(shipped: Ensemble) -> None:
    target, some = gadgets.Target(shipped), gadgets.prompts()[::10]
    plain = target.decisions(some, 0.001)
    push = target.push("", gadgets.PHRASES[2], some, 0.001)
    assert push.usd_before == pytest.approx(sum(d.chosen.cost_usd for d in plain) / len(some))
    longer = [
        d.chosen.cost_usd
        + (len(gadgets.PHRASES[2]) + 1)
        / shipped.router.characters_per_token[d.member]
        * shipped.pool[d.member].usd_per_million_input
        / 1e6
        for d in plain
    ]
    assert push.usd_longer == pytest.approx(sum(longer) / len(some))
    assert push.dearer > 0 and push.usd_after > push.usd_longer > push.usd_before
    assert 0 < push.most_above <= 1
    nothing = target.push("", "", some, 0.001)
    assert (nothing.dearer, nothing.usd_after) == (0.0, pytest.approx(nothing.usd_longer))


def test_climbing_makes_prompts_dearer_than_words_at_random(
    shipped: Ensemble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gadgets, "CANDIDATES", 2)
    monkeypatch.setattr(gadgets, "SWEEPS", 1)
    target, some = gadgets.Target(shipped), gadgets.prompts()[:6]
    words = " ".join(gadgets.PHRASES).split()
    start = " ".join(random.Random(0).sample(words, gadgets.N_WORDS))
    climbed = target.climb(some, 0.001, words, random.Random(0))
    dearness = [target._dearness(gadget.split(), some, 0.001) for gadget in (start, climbed)]
    assert dearness[1] > dearness[0]

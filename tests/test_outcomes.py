"""The log gives back what it was given, in both databases."""

from __future__ import annotations

import dataclasses
import math
import uuid
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble.errors import InputError
from ensemble.outcomes import OutcomeLog
from ensemble.records import Decision, Forecast, Member, Wishes
from log_cases import MEMBERS, PROMPT, attempt, decision, forecast, ids, outcome, record

# ---- what goes in comes out


def test_a_decision_is_read_with_all_that_followed(log: OutcomeLog) -> None:
    made = decision()
    record(log, made, metadata={"user": "u1", "tags": ["a", 2]}, session="s1")
    log.record_attempt(attempt(made.id, 1, member="elm", error="Timeout: too slow", cost_usd=None))
    log.record_attempt(attempt(made.id, 2, reason="fallback"))
    log.record_outcome(outcome(made.id, reason="fallback"))
    log.record_reward(made.id, 0.25)
    log.record_reward(made.id, 1, source="judge")

    row = log.decision(made.id)

    assert row is not None
    assert row["features"].dtype == np.float32
    assert row.pop("features").tolist() == [0.0, 1.0, 2.0]
    assert row.pop("prompt_key") == log.prompt_key(PROMPT)
    assert row.pop("attempts") == [
        {k: v for k, v in dataclasses.asdict(made_attempt).items() if k != "decision_id"}
        for made_attempt in (
            attempt(made.id, 1, member="elm", error="Timeout: too slow", cost_usd=None),
            attempt(made.id, 2, reason="fallback"),
        )
    ]
    assert row == {
        "decision_id": made.id,
        "created_at": 1_000.5,
        "chosen_member": "oak",
        "chosen_reason": "routed",
        "propensity": 0.5,
        "randomized": True,
        "estimated_input_tokens": 31.5,
        "router_id": "router-1",
        "policy_version": "1",
        "encoder_sha256": "e5",
        "text": None,
        "session": "s1",
        "metadata": {"user": "u1", "tags": ["a", 2]},
        "wishes": made.wishes.as_dict(),
        "members": ["oak", "elm"],
        "kind": ["frontier", "specialist"],
        "probability": [0.5, 0.5],
        "ineligible_because": [None, "no tools"],
        "measured": [True, False],
        "predicted_reward": [0.75, 0.75],
        "predicted_reward_std": [0.05, 0.05],
        "predicted_output_tokens": [200.0, 200.0],
        "predicted_output_tokens_p95": [450.0, 450.0],
        "predicted_cost_usd": [0.002, 0.002],
        "predicted_cost_usd_p95": [0.0045, 0.0045],
        "predicted_seconds": [None, None],
        "utility": [0.0055, 0.0055],
        "usd_per_million_input": [2.5, 0.1],
        "usd_per_million_output": [10.0, 0.4],
        "usd_per_million_cached_input": [0.25, None],
        "ranking": ["oak"],
        "warnings": ["elm is unmeasured"],
        "standing": None,
        "ended_at": 1_002.0,
        "served_member": "oak",
        "served_reason": "fallback",
        "seconds": 0.6,
        "first_token_s": 0.2,
        "input_tokens": 30,
        "output_tokens": 60,
        "cost_usd": 0.001,
        "cost_is_estimated": False,
        "error": None,
        "answer": None,
        "rewards": {"caller": 0.25, "judge": 1.0},
    }
    assert next(log.rows())["decision_id"] == made.id
    assert log.decision("another") is None


def test_a_decision_without_outcome_has_none(log: OutcomeLog) -> None:
    row = log.decision(record(log, text=None))
    assert row is not None
    assert row["prompt_key"] is row["metadata"] is row["served_member"] is row["cost_usd"] is None
    assert row["attempts"] == [] and row["rewards"] == {}


NUMBERS = st.floats(allow_nan=False)
NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)
FORECASTS = st.builds(
    Forecast,
    NAMES,
    *[NUMBERS] * 6,
    st.none() | NUMBERS,
    NUMBERS,
    st.floats(0, 1).map(np.float32),
    st.booleans(),
    st.none() | st.text(),
)
DECISIONS = st.builds(
    Decision,
    id=st.just("new in each example"),
    created_at=st.floats(0, 1e11),
    member=NAMES,
    reason=st.sampled_from(["routed", "session", "budget"]),
    propensity=st.floats(1e-9, 1),
    randomized=st.booleans(),
    forecasts=st.lists(FORECASTS, max_size=4, unique_by=lambda f: f.member).map(tuple),
    ranking=st.lists(NAMES).map(tuple),
    input_tokens=st.floats(0, 1e9),
    wishes=st.builds(Wishes, NUMBERS, max_cost_usd=st.none() | NUMBERS, requires=st.frozensets(st.text())),
    router_id=NAMES,
    policy_version=NAMES,
    warnings=st.lists(st.text()).map(tuple),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    made=DECISIONS,
    features=st.lists(st.floats(width=32), max_size=5),
    metadata=st.none() | st.dictionaries(st.text(), JSON, max_size=3),
    text=st.none() | st.text(st.characters()),
)
def test_any_decision_survives_the_round_trip(
    long_lived: OutcomeLog, made: Decision, features: list[float], metadata: Any, text: str | None
) -> None:
    made = dataclasses.replace(made, id=uuid.uuid4().hex)
    members = [Member(f.member, "tuned", (), 1.0, f.reward) for f in reversed(made.forecasts)]
    vector = np.array(features, dtype=np.float32)
    record(long_lived, made, members=members, features=vector, metadata=metadata, text=text)

    row = long_lived.decision(made.id)

    assert row is not None
    assert np.array_equal(row["features"], vector, equal_nan=True)
    assert row["metadata"] == metadata
    kept = (
        None
        if text is None
        else "".join("\ufffd" if c == "\0" or "\ud800" <= c <= "\udfff" else c for c in text)
    )
    assert row["text"] == kept
    same = ("created_at", "propensity", "randomized", "router_id", "policy_version")
    assert {name: row[name] for name in same} == {name: getattr(made, name) for name in same}
    assert (row["chosen_member"], row["chosen_reason"]) == (made.member, made.reason)
    assert (tuple(row["ranking"]), tuple(row["warnings"])) == (made.ranking, made.warnings)
    assert row["estimated_input_tokens"] == made.input_tokens
    assert row["wishes"] == made.wishes.as_dict()
    assert row["usd_per_million_output"] == [f.reward for f in made.forecasts]
    columns = (
        *("members", "predicted_reward", "predicted_reward_std", "predicted_output_tokens"),
        *("predicted_output_tokens_p95", "predicted_cost_usd", "predicted_cost_usd_p95"),
        *("predicted_seconds", "utility", "probability", "measured", "ineligible_because"),
    )
    assert list(zip(*(row[name] for name in columns), strict=True)) == [
        dataclasses.astuple(f) for f in made.forecasts
    ]
    if metadata:
        assert long_lived.forget(metadata=metadata) >= 1
        assert long_lived.decision(made.id) is None


def test_numbers_that_json_lacks_come_back_as_numbers(log: OutcomeLog) -> None:
    made = decision(forecasts=(forecast("oak", utility=-math.inf, seconds=math.nan),))
    row = log.decision(record(log, made))
    assert row is not None and row["utility"] == [-math.inf]
    assert math.isnan(row["predicted_seconds"][0])


def test_any_text_can_be_stored(place: str) -> None:
    odd = "a\0b\ud800c é 漢 🙂"
    with OutcomeLog.open(place, keep="text+answers") as log:
        of = record(log, text=odd, metadata={odd: odd}, session=odd)
        log.record_attempt(attempt(of, error=odd))
        log.record_outcome(outcome(of), odd)
        row = log.decision(of)
        assert row is not None
        clean = "a\ufffdb\ufffdc é 漢 🙂"
        assert row["text"] == row["answer"] == row["attempts"][0]["error"] == clean
        assert row["metadata"] == {odd: odd}
        last = log.last_step(odd)
        assert last is not None and last["served_member"] == "oak"
        assert log.forget(metadata={odd: odd}) == 1


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"features": np.zeros((1, 3))}, "n_features"),
        ({"members": MEMBERS[:1]}, "elm"),
        ({"metadata": {"user": object()}}, "user"),
        ({"metadata": {"score": math.nan}}, "score"),
        ({"metadata": {1: "a"}}, "strings"),
        ({"session": "s" * 513}, "512"),
        ({"made": decision(propensity=0.0)}, "propensity"),
    ],
)
def test_what_cannot_be_stored_is_refused_and_leaves_nothing(
    long_lived: OutcomeLog, wrong: dict[str, Any], says: str
) -> None:
    before = ids(long_lived)
    with pytest.raises(InputError, match=says):
        record(long_lived, **wrong)
    assert ids(long_lived) == before

"""Reading the log: rows, sessions, spending, and the rewards in force."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest

from ensemble import outcomes
from ensemble.errors import InputError
from ensemble.outcomes import OutcomeLog
from log_cases import attempt, decision, ids, outcome, raw, record

# ---- reading


def test_rows_come_oldest_first_within_limits_and_across_pages(
    log: OutcomeLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcomes, "PAGE_SIZE", 3)
    made = [decision(created_at=float(second)) for second in (4, 1, 1, 1, 1, 2, 3, 1)]
    for each in made:
        record(log, each)
    in_order = [each.id for each in sorted(made, key=lambda each: (each.created_at, each.id))]
    assert ids(log) == in_order
    assert ids(log, since=2.0) == in_order[5:]
    assert ids(log, until=2.0) == in_order[:5]
    assert ids(log, since=2.0, until=4.0) == in_order[5:7]
    assert ids(log, since=4.5) == []
    for rewarded in in_order[1:6]:
        log.record_reward(rewarded, 0.5)
    assert ids(log, with_reward_only=True) == in_order[1:6]
    assert [row["rewards"] for row in log.rows(since=3.0)] == [{}, {}]


def test_the_log_can_be_written_while_it_is_read(log: OutcomeLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcomes, "PAGE_SIZE", 2)
    for second in range(5):
        record(log, decision(created_at=float(second)))
    seen = 0
    for row in log.rows(until=5.0):
        log.record_reward(row["decision_id"], 1.0)
        record(log, decision(created_at=6.0))
        seen += 1
    assert seen == 5


def test_last_step_tells_who_last_answered_in_the_session_and_what_it_read(log: OutcomeLog) -> None:
    assert log.last_step("s") is None
    standing = {"member": "oak", "prefix_tokens": 0.0, "trust": 1.0, "forgone_usd": {"elm": 0.25}}
    for second, session, member in [(1, "s", "oak"), (3, "s", "elm"), (4, "other", "ash"), (5, "s", None)]:
        of = record(log, decision(created_at=float(second), standing=standing), session=session)
        log.record_attempt(attempt(of, 1, error="it fell", cached_input_tokens=None))
        log.record_attempt(attempt(of, 2, cached_input_tokens=second))
        log.record_outcome(outcome(of, member=member, reason="routed" if member else None))
    record(log, decision(created_at=6.0), session="s")  # not answered yet
    assert log.last_step("s") == {
        "served_member": "elm",
        "ended_at": 1_002.0,
        "input_tokens": 30,
        "standing": standing,
        "cached_input_tokens": 3,
    }
    other = log.last_step("other")
    assert other is not None and other["served_member"] == "ash"


def test_spend_counts_every_attempt_answered_or_not(log: OutcomeLog) -> None:
    assert log.spend_usd(0.0) == 0.0
    of = record(log)
    log.record_attempt(
        attempt(of, 1, started_at=10.0, cost_usd=0.25, error="Timeout", cost_is_estimated=True)
    )
    log.record_attempt(attempt(of, 2, started_at=20.0, cost_usd=0.5))
    log.record_attempt(attempt(of, 3, started_at=30.0, cost_usd=None))
    assert log.spend_usd(0.0) == 0.75
    assert log.spend_usd(20.0) == 0.5
    assert log.spend_usd(20.1) == 0.0


# ---- rewards


def test_the_newest_reward_of_a_source_is_in_force_and_the_same_again_writes_nothing(tmp_path: Path) -> None:
    with OutcomeLog.open(tmp_path / "log.db", clock=itertools.count(7.0).__next__) as log:
        of = record(log)
        for value in (0.2, 0.2, 0.9, 0.2, 0.2):
            log.record_reward(of, value)
        log.record_reward(of, 0.2, source="judge")
        row = log.decision(of)
        assert row is not None and row["rewards"] == {"caller": 0.2, "judge": 0.2}
        stored = raw(tmp_path / "log.db", "SELECT source, reward FROM rewards ORDER BY id")
    assert stored == [("caller", 0.2), ("caller", 0.9), ("caller", 0.2), ("judge", 0.2)]


def test_a_reward_needs_a_known_decision(log: OutcomeLog) -> None:
    record(log)
    with pytest.raises(InputError, match="no decision 'nobody'"):
        log.record_reward("nobody", 1.0)


@pytest.mark.parametrize("reward", [-0.01, 1.01, math.nan, math.inf, None, "good"])
def test_a_reward_lies_between_0_and_1(long_lived: OutcomeLog, reward: Any) -> None:
    of = record(long_lived)
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        long_lived.record_reward(of, reward)

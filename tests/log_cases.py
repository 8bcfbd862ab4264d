"""Records to log, and ways to look at a log from outside."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import sqlite3
import uuid
from pathlib import Path
from typing import Any

import numpy as np

from ensemble.outcomes import OutcomeLog
from ensemble.records import Attempt, Decision, Forecast, Member, Outcome, Wishes

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
PROMPT = "what did Ottilie say about the lighthouse"
ANSWER = "she said it was dark"
MEMBERS = (
    Member("oak", "frontier", (), 2.5, 10.0, usd_per_million_cached_input=0.25),
    Member("elm", "specialist", (), 0.1, 0.4),
)


def forecast(member: str, **changes: Any) -> Forecast:
    plain = Forecast(member, 0.75, 0.05, 200.0, 450.0, 0.002, 0.0045, None, 0.0055, 0.5, True, None)
    return dataclasses.replace(plain, **changes)


def decision(**changes: Any) -> Decision:
    plain = Decision(
        id=uuid.uuid4().hex,
        created_at=1_000.5,
        member="oak",
        reason="routed",
        propensity=0.5,
        randomized=True,
        forecasts=(forecast("oak"), forecast("elm", measured=False, ineligible_because="no tools")),
        ranking=("oak",),
        input_tokens=31.5,
        wishes=Wishes(willingness_to_pay_usd=math.inf, exclude=frozenset({"ash"})),
        router_id="router-1",
        policy_version="1",
        warnings=("elm is unmeasured",),
    )
    return dataclasses.replace(plain, **changes)


def attempt(of: str, number: int = 1, **changes: Any) -> Attempt:
    plain = Attempt(of, number, "oak", "routed", 1_001.0, 0.5, None, "oak-2026", 30, 5, 60, 0.001)
    return dataclasses.replace(plain, **changes)


def outcome(of: str, **changes: Any) -> Outcome:
    plain = Outcome(of, 1_002.0, "oak", "routed", 0.6, 0.2, 30, 60, 0.001, False)
    return dataclasses.replace(plain, **changes)


def record(log: OutcomeLog, made: Decision | None = None, **extra: Any) -> str:
    made = made or decision()
    given: dict[str, Any] = {"members": MEMBERS, "features": np.arange(3, dtype=np.float32)}
    log.record_decision(made, **(given | {"encoder_sha256": "e5", "text": PROMPT} | extra))
    return made.id


def ids(log: OutcomeLog, **limits: Any) -> list[str]:
    return [row["decision_id"] for row in log.rows(**limits)]


def raw(path: Path, sql: str) -> list[tuple[Any, ...]]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        found = connection.execute(sql).fetchall()
        connection.commit()
        return found


def bytes_on_disk(path: Path) -> bytes:
    return b"".join(file.read_bytes() for file in path.parent.glob(path.name + "*"))

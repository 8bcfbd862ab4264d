"""A deadline counts from when the process was ready to ask, and once it has passed nobody is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ensemble.dispatch import Dispatcher
from ensemble.errors import CallFailedError
from ensemble.pool import Pool
from serving_cases import CHEAP, QUIET, Ask, each_way, open_line

pytestmark = QUIET
LIMIT_S, LONGER_S = 5.0, 6.0


@each_way
def test_nobody_is_asked_once_writing_the_decision_has_taken_all_the_time(tmp_path: Path, ask: Ask) -> None:
    now = [1_000.0]
    with open_line(tmp_path, clock=lambda: now[0]) as line:
        record = line.log.record_decision

        def slowly(*given: Any, **more: Any) -> None:
            record(*given, **more)
            now[0] += LONGER_S

        line.log.record_decision = slowly  # type: ignore[method-assign]
        with pytest.raises(
            CallFailedError, match=r"The deadline has passed: max_latency_s is 5\.$"
        ) as caught:
            ask(line, max_latency_s=LIMIT_S)
        row = line.row(caught.value)
    assert (line.asked, row["attempts"], row["cost_usd"]) == ([], [], 0)


@each_way
def test_what_is_opened_at_the_first_call_is_no_part_of_its_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: Ask
) -> None:
    now = [1_000.0]

    def slowly(pool: Pool) -> Dispatcher:
        now[0] += LONGER_S
        return Dispatcher(pool)

    monkeypatch.setattr("ensemble.parts.Dispatcher", slowly)
    with open_line(tmp_path, clock=lambda: now[0]) as line:
        reply, _ = ask(line, max_latency_s=LIMIT_S)
        assert (reply.decision.member, line.row(reply)["seconds"]) == (CHEAP, 0)

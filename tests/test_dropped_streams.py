"""A stream that nobody holds any more is left without harm to whoever happens to be at work then."""

from __future__ import annotations

import gc
import time
from pathlib import Path
from typing import Any

import pytest

from ensemble.threads import in_own_thread
from serving_cases import PROMPT, QUIET, open_line

pytestmark = QUIET


def test_a_stream_dropped_by_the_garbage_collector_in_the_middle_of_a_write_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_line(tmp_path) as line:
        stream = line.ask(stream=True)
        next(stream)
        left, stream.myself = stream.decision.id, stream
        insert = line.log._database._insert

        def collecting(*rows: Any) -> Any:
            gc.collect()  # here, where the log's one place is taken
            return insert(*rows)

        gc.disable()
        try:
            del stream
            monkeypatch.setattr(line.log._database, "_insert", collecting)
            assert in_own_thread(lambda: line.ensemble.route(PROMPT)).result(timeout=20).member
        finally:
            gc.enable()
        until_s = time.monotonic() + 5
        while not line.row(left)["error"] and time.monotonic() < until_s:
            time.sleep(0.01)
        assert line.row(left)["error"] == "closed by the caller"

"""The aims of speed are judged by the figures: each one that is missed is said to be, and no other."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from benchmarks import latency_page
from benchmarks.latency_aims import aims
from benchmarks.latency_contenders import AWAITED, LEARNED, OURS
from latency_cases import Result, made_up


def set_to(value: Any, *path: str | int) -> Callable[[Result], None]:
    def change(made: Result) -> None:
        inner: Any = made
        for step in path[:-1]:
            inner = inner[step]
        inner[path[-1]] = value

    return change


def slower(tokens: int, contender: str, **figures: float) -> Callable[[Result], None]:
    def change(made: Result) -> None:
        callers = 64 if "per_second" in figures else 1
        [row] = [r for r in made["decisions"] if (r["tokens"], r["callers"]) == (tokens, callers)
                 and r["contender"] == contender]  # fmt: skip
        row |= figures

    return change


MISSES = [
    (slower(256, OURS, p50_ms=18.5), "1.15 times the bare encoder", "1.16 at 256"),
    (slower(16, OURS, p50_ms=2.31), "0.3 ms over the bare encoder", r"\+0.31 ms at 16"),
    (slower(16, LEARNED, p50_ms=5.4), "at least 2.5 times as fast", "2.45 at 16"),
    (slower(256, LEARNED, p50_ms=17.0), "not slower than sentence-transformers", "0.97 at 256"),
    (slower(16, OURS, per_second=420.0), "64 callers of route", r"84 % at 16 \(420 of 500/s\), missed; 90 %"),
    (slower(256, AWAITED, per_second=50.0), "64 callers of aroute", "80 % at 256"),
    (set_to(89.0, "batch", "route_batch"), "route_batch.. reaches 90 %", "89 %"),
    (set_to(4.6, "calls", "modes", 1, "added_ms"), "complete.. adds at most", 'after.*adds 3.60.*missed'),
    (set_to(321.0, "processes", "served", "rss_mb"), "under 320 MB", "321 MB"),
    (set_to(261.0, "streams", "streams", 2, "peak_mb"), "no more memory over 4 times", r"\+11.0 MB"),
    (set_to(1.2, "streams", "exponent"), "linearly in prompts, up to 16,384", "1.20"),
    (set_to(1.2, "members", "exponent"), "linearly in members, up to 1,000", "1.20"),
]  # fmt: skip


def test_all_aims_of_the_made_up_result_are_reached() -> None:
    assert [aim for aim in aims(made_up()) if not aim.holds] == []
    assert len(aims(made_up())) == len(MISSES)


@pytest.mark.parametrize(("change", "claim", "evidence"), MISSES)
def test_one_miss_is_told_and_no_other(change: Callable[[Result], None], claim: str, evidence: str) -> None:
    made = made_up()
    change(made)
    [missed] = [aim for aim in aims(made) if not aim.holds]
    assert re.search(claim, missed.claim) and re.search(evidence, missed.evidence)


def test_what_was_not_measured_is_not_judged() -> None:
    made = made_up()
    made["decisions"] = [row for row in made["decisions"] if row["contender"] != LEARNED]
    made["processes"]["served"]["rss_mb"] = None  # not known on this system
    made["streams"]["streams"][0]["prompts"] = 100  # fewer than are at work at once
    made["members"]["exponent"] = None  # lost in noise
    assert len(aims(made)) == len(MISSES) - 5
    assert all(aim.holds for aim in aims(made))


def test_terminal_and_page_tell_the_same_aims_and_figures() -> None:
    made = made_up()
    slower(256, OURS, p50_ms=18.5, p99_ms=21.25)(made)
    console = Console(file=io.StringIO(), width=140, markup=False)
    with console.capture() as capture:
        latency_page.print_result(made, console)
    shown, page = capture.get(), latency_page.markdown([(made, "made-up.svg")])
    assert shown.count("MISSED ") == page.count("**missed**") == 1
    assert f"Of {len(MISSES)} aims {len(MISSES) - 1} are reached" in page
    for text in (shown, page):
        assert "A processor, 2 cores" in text and "18.50 / 21.25" in text

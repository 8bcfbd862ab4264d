"""A made-up result of benchmarks.latency: two lengths, one and 64 callers, every aim reached."""

from __future__ import annotations

from typing import Any

from benchmarks.latency_contenders import AWAITED, BARE, LEARNED, OURS

Result = dict[str, Any]


def decision(tokens: int, callers: int, contender: str, p50_ms: float, per_second: float = 0.0) -> Result:
    figures = {"calls": 100, "p50_ms": p50_ms, "p99_ms": 2 * p50_ms, "per_second": per_second}
    return {"tokens": tokens, "callers": callers, "contender": contender, **figures}


def made_up() -> Result:
    """As benchmarks/results/latency holds them; made anew each time."""
    rows = []
    for tokens, ms in ((16, 2.0), (256, 16.0)):
        rows += [decision(tokens, 1, name, by * ms) for name, by in ((BARE, 1), (OURS, 1.1), (LEARNED, 3))]
        rows += [decision(tokens, 64, name, 64 * ms, 0.9e3 / ms) for name in (OURS, AWAITED)]
    rates = [
        {"tokens": tokens, "callers": 64, "batch_tokens": 1024, "batched": 1e3 / ms, "alone": 900 / ms}
        for tokens, ms in ((16, 2.0), (256, 16.0))
    ]
    modes = [
        {"log_mode": mode, "complete": {"p50_ms": 7.0, "p99_ms": 9.0}, "added_ms": 4.0,
         "route": {"p50_ms": 3.5, "p99_ms": 5.0}, "by_hand": {"p50_ms": 6.6, "p99_ms": 8.0}}
        for mode in ("before", "after")
    ]  # fmt: skip
    machine = {
        "cpu": "A processor", "cores": 2, "system": "Linux", "provider": "CPUExecutionProvider", "threads": 2,
        "versions": {"Python": "3.11"}, "date": "2026-01-01", "commit": "abc",
    }  # fmt: skip
    batch = {"n_prompts": 100, "tokens": [8, 128], "batch_tokens": 1024, "route_batch": 95.0, "bare": 100.0}
    streams = [{"prompts": n, "seconds": n / 1e3, "peak_mb": 250.0} for n in (4096, 8192, 16384)]
    costs = [{"members": n, "ms": n / 100} for n in (10, 100, 1000)]
    served = {"calls": 50, "rss_mb": 300.0, "peak_mb": 310.0}
    return {
        "format": 1, "name": "made-up", "machine": machine, "seed": 0, "lengths": [16, 256],
        "callers": [1, 64], "decisions": rows, "bare": rates,
        "batch": batch,
        "members": {"tokens": 16, "costs": costs, "exponent": 1.0},
        "calls": {"tokens": 64, "members": 11, "litellm": {"p50_ms": 3.0, "p99_ms": 4.0}, "modes": modes},
        "streams": {"streams": streams, "exponent": 1.0},
        "processes": {"import_ms": 10.0, "cold_ms": 500.0, "starts": 5, "served": served},
    }  # fmt: skip

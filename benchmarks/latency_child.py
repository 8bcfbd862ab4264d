"""What can only be measured in a process of its own: what a server holds, and what a long stream of prompts
makes of it.

    python -m benchmarks.latency_child serve URL FOLDER N_CALLS
    python -m benchmarks.latency_child stream FOLDER N_PROMPTS

prints JSON. Only what a serving process loads is loaded here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.latency_texts import Texts
from ensemble.bundle import load, shipped_folder
from ensemble.encoder import TOKENIZER
from ensemble.engine import Ensemble
from ensemble.pool import Pool
from ensemble.records import Deployment
from ensemble.router import default_folder

STATUS = Path("/proc/self/status")
STREAM_TOKENS = 8
STREAMS = (1, 2, 4)  # times N_PROMPTS
WARM = 64  # prompts


def pool_at(url: str) -> Pool:
    """The default router's pool, every member of it served at ``url``."""
    there = {"api_base": url, "api_key": "none"}
    pool = Pool.load(shipped_folder() / "pool.toml")
    return Pool(dataclasses.replace(m, deployments=(Deployment(f"openai/{m.name}", there),)) for m in pool)


def serve(url: str, folder: Path, n_calls: int) -> dict[str, Any]:
    """``rss_mb``, resident after so many calls of complete(), and ``peak_mb``, the most until then."""
    with Ensemble(pool=pool_at(url), log=folder / "serve.db") as ours:
        for i in range(n_calls):
            ours.complete(f"What is {i} times {i + 1}?")
        return {"calls": n_calls, "rss_mb": _megabytes("VmRSS"), "peak_mb": _megabytes("VmHWM")}


def stream(folder: Path, n_prompts: int) -> list[dict[str, Any]]:
    """Of route_batch over streams of growing length: ``prompts``, ``seconds``, and ``peak_mb`` meanwhile."""
    import tokenizers

    place = load(default_folder()).encoder_folder / TOKENIZER
    texts = Texts(tokenizers.Tokenizer.from_file(str(place)), random.Random(0))
    streams = [texts.draw(times * n_prompts, STREAM_TOKENS) for times in STREAMS]
    rows = []
    with Ensemble(log=folder / "stream.db") as ours:
        _emptied(ours.route_batch(texts.draw(WARM, STREAM_TOKENS)))
        for prompts in streams:
            _forget_peak()
            start = time.perf_counter()
            _emptied(ours.route_batch(iter(prompts)))
            seconds = time.perf_counter() - start
            rows.append({"prompts": len(prompts), "seconds": seconds, "peak_mb": _megabytes("VmHWM")})
    return rows


def _emptied(decisions: Iterator[object]) -> None:
    for _ in decisions:  # each is let go before the next comes
        pass


def _megabytes(name: str) -> float | None:
    """VmRSS, resident now, or VmHWM, the most so far, in millions of bytes. ``None`` for what is resident now
    on other systems than Linux, which know only the peak."""
    if STATUS.is_file():
        lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
        return int(lines[name].split()[0]) * 1024 / 1e6
    if name == "VmRSS":
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _forget_peak() -> None:
    with contextlib.suppress(OSError):  # elsewhere peaks only rise, and so may seem to grow less
        Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    what, *given = sys.argv[1:]
    if what == "serve":
        print(json.dumps(serve(given[0], Path(given[1]), int(given[2]))))
    else:
        print(json.dumps(stream(Path(given[0]), int(given[1]))))

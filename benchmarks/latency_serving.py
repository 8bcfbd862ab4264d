"""What does a whole call cost beside litellm's own, and a process that serves? Over the loopback, and in
processes of their own.

Everything returned is plain JSON: milliseconds, megabytes (millions of bytes).
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.latency_child import pool_at
from benchmarks.latency_rounds import Effort, Told, settled
from benchmarks.latency_texts import Texts
from benchmarks.loopback import loopback
from benchmarks.stopwatch import Call, alone, exponent, race
from ensemble.engine import Ensemble
from ensemble.outcomes import LogMode
from ensemble.router import Router

LITELLM = "litellm.Router.completion()"
LOG_MODES: tuple[LogMode, ...] = ("before", "after")
WAYS = {"complete": "complete()", "route": "route()", "by_hand": "route(), then litellm's own call"}
CALL_TOKENS = 64
SERVED_CALLS = 50

IMPORT = """
import time
start = time.perf_counter()
import ensemble
print(1e3 * (time.perf_counter() - start))
"""
COLD = """
import sys, time
start = time.perf_counter()
import ensemble
ensemble.Ensemble(log=sys.argv[1]).route("Prove that the square root of 2 is irrational.")
print(1e3 * (time.perf_counter() - start))
"""


def calls(
    router: Router, texts: Texts, effort: Effort, folder: Path, rng: random.Random, told: Told
) -> dict[str, Any]:
    """p50 and p99 of litellm's own call with one deployment, and in each log mode of complete(), of route(),
    and of the two by hand, over a pool of which every member is at the same place.

    By hand tells what a decision costs between calls, where it finds the caches full of litellm.
    """
    told("whole calls over the loopback")
    with contextlib.ExitStack() as stack:
        contenders = stack.enter_context(_callers(router, folder))
        for call in contenders.values():
            for text in texts.draw(5, CALL_TOKENS):
                call(text)
        stack.enter_context(settled())
        turns = {name: alone(call, effort.turn) for name, call in contenders.items()}
        rounds = max(1, effort.calls // effort.turn)
        times = race(turns, lambda n: texts.draw(n, CALL_TOKENS), rounds, rng, effort.limit_s)
    modes = [
        {
            "log_mode": mode,
            **{way: times[f"{way} {mode}"].figures() for way in WAYS},
            "added_ms": times[f"complete {mode}"].ms(50) - times[LITELLM].ms(50),
        }
        for mode in LOG_MODES
    ]
    n_members = len(pool_at("nowhere"))
    return {"tokens": CALL_TOKENS, "members": n_members, "litellm": times[LITELLM].figures(), "modes": modes}


@contextlib.contextmanager
def _callers(router: Router, folder: Path) -> Iterator[dict[str, Call]]:
    """litellm's own call, and ours in each way and log mode, by name."""
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(loopback())
        plain, pool = stack.enter_context(plain_router(url)), pool_at(url)
        callers = {LITELLM: plain}
        for mode in LOG_MODES:
            made = Ensemble(router=router, pool=pool, log=folder / f"calls-{mode}.db", log_mode=mode)
            ours = stack.enter_context(made)
            by_hand = _one_after_the_other(ours.route, plain)
            ways: tuple[Call, ...] = (ours.complete, ours.route, by_hand)
            callers |= {f"{way} {mode}": call for way, call in zip(WAYS, ways, strict=True)}
        yield callers


def _one_after_the_other(*some: Call) -> Call:
    def call(text: str) -> None:
        for each in some:
            each(text)

    return call


@contextlib.contextmanager
def plain_router(url: str) -> Iterator[Call]:
    """litellm's own way of calling one deployment, with what ours tells litellm too: no retries."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    import litellm

    there = {"model": "openai/loopback", "api_base": url, "api_key": "none"}
    router = litellm.Router(model_list=[{"model_name": "one", "litellm_params": there}], num_retries=0)

    def call(text: str) -> object:
        return router.completion(model="one", messages=[{"role": "user", "content": text}])

    try:
        yield call
    finally:
        router.discard()


def processes(effort: Effort, folder: Path, told: Told) -> dict[str, Any]:
    """``import_ms`` of the library, ``cold_ms`` from there to the first decision (medians), and the memory of
    a process that serves."""
    told("processes that import, decide and serve")
    _output("-c", IMPORT)  # compiles what was changed
    cold = [_output("-c", COLD, str(folder / f"cold-{i}.db")) for i in range(1 + effort.starts)]
    with loopback() as url:
        served = _output("-m", "benchmarks.latency_child", "serve", url, str(folder), str(SERVED_CALLS))
    return {
        "import_ms": statistics.median(float(_output("-c", IMPORT)) for _ in range(effort.starts)),
        "cold_ms": statistics.median(map(float, cold[1:])),  # the first reads the disk
        "starts": effort.starts,
        "served": json.loads(served),
    }


def streams(effort: Effort, folder: Path, told: Told) -> dict[str, Any]:
    """Time and memory of route_batch by the number of prompts; ``exponent`` of the time."""
    told(f"streams of {effort.stream:,} prompts and more")
    arguments = ("stream", str(folder), str(effort.stream))
    rows = json.loads(_output("-m", "benchmarks.latency_child", *arguments))
    grown = exponent([row["prompts"] for row in rows], [row["seconds"] for row in rows])
    return {"streams": rows, "exponent": grown}


def _output(*arguments: str) -> str:
    """The last line that a fresh interpreter prints, allowed to keep what it compiles as usual."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout.splitlines()[-1]

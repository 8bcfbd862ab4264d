"""How is time measured? Calls by one caller or by many, contenders in turn, and what the seconds come to.

Contenders are timed in short turns, in an order shuffled anew each round, so that a machine that grows
slower for a while does so for all of them; ratios are formed within one such race. No text is ever timed
twice: what has been looked at before may be remembered.
"""

from __future__ import annotations

import asyncio
import math
import random
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

SETTLE_S = 0.005  # between turns: threads of the one before may still be spinning

Call = Callable[[str], object]
ACall = Callable[[str], Awaitable[object]]


@dataclass
class Timed:
    """``seconds`` of each call, ``wall_s`` from the first one's start to the last one's end. Turns add up."""

    seconds: list[float] = field(default_factory=list)
    wall_s: float = 0.0

    def add(self, other: Timed) -> None:
        self.seconds += other.seconds
        self.wall_s += other.wall_s

    @property
    def per_second(self) -> float:
        return len(self.seconds) / self.wall_s

    def ms(self, percent: float) -> float:
        """The percentile in milliseconds: 50 is the median."""
        return float(1e3 * np.percentile(self.seconds, percent))

    def figures(self) -> dict[str, Any]:
        """``calls``, ``p50_ms``, ``p99_ms``, ``per_second``."""
        figures = {"p50_ms": self.ms(50), "p99_ms": self.ms(99), "per_second": self.per_second}
        return {"calls": len(self.seconds), **figures}


@dataclass(frozen=True)
class Turn:
    """What a contender does when it is its turn: ``run`` gets ``n_texts`` texts that nobody has seen."""

    run: Callable[[Sequence[str]], Timed]
    n_texts: int


def race(
    turns: Mapping[str, Turn],
    draw: Callable[[int], list[str]],
    rounds: int,
    rng: random.Random,
    limit_s: float = math.inf,
) -> dict[str, Timed]:
    """Each contender ``rounds`` times, by name; ``draw(n)`` gives n new texts. No round but the first begins
    later than ``limit_s`` after the start."""
    times, start = {name: Timed() for name in turns}, time.perf_counter()
    for number in range(rounds):
        if number and time.perf_counter() - start > limit_s:
            break
        for name in rng.sample(list(turns), len(turns)):
            texts = draw(turns[name].n_texts)
            time.sleep(SETTLE_S)
            times[name].add(turns[name].run(texts))
    return times


def alone(call: Call, n_calls: int) -> Turn:
    """One caller, one call after the other; a first one, not timed, takes the caches back from the contender
    before."""

    def run(texts: Sequence[str]) -> Timed:
        call(texts[0])
        seconds = [_seconds(call, text) for text in texts[1:]]
        return Timed(seconds, sum(seconds))

    return Turn(run, n_calls + 1)


def threads(call: Call, pool: ThreadPoolExecutor, callers: int, n_calls: int) -> Turn:
    """So many callers, each a thread of ``pool``. Threads stay: what one opens for itself is opened once."""

    def run(texts: Sequence[str]) -> Timed:
        started, rest = list[float](), iter(texts)
        # Looked at by the last to come: whoever only waits for callers may be woken when they are done.
        ready = threading.Barrier(callers, action=lambda: started.append(time.perf_counter()))

        def caller() -> list[float]:
            ready.wait()
            return [_seconds(call, text) for text in rest]  # whoever is free takes the next one

        waiting = [pool.submit(caller) for _ in range(callers)]
        seconds = [each for one in waiting for each in one.result()]
        return Timed(seconds, time.perf_counter() - started[0])

    return Turn(run, n_calls)


def tasks(call: ACall, runner: asyncio.Runner, callers: int, n_calls: int) -> Turn:
    """So many calls awaited at a time, in the loop of ``runner``; a first one is not timed either."""

    async def all_of(texts: Sequence[str]) -> Timed:
        gate, seconds = asyncio.Semaphore(callers), list[float]()
        await call(texts[0])

        async def one(text: str) -> None:
            async with gate:
                start = time.perf_counter()
                await call(text)
                seconds.append(time.perf_counter() - start)

        start = time.perf_counter()
        await asyncio.gather(*map(one, texts[1:]))
        return Timed(seconds, time.perf_counter() - start)

    return Turn(lambda texts: runner.run(all_of(texts)), n_calls + 1)


def at_once(work: Callable[[Sequence[str]], object], n_texts: int) -> Turn:
    """All texts in one piece of work: each is said to have taken its share."""

    def run(texts: Sequence[str]) -> Timed:
        start = time.perf_counter()
        work(texts)
        wall_s = time.perf_counter() - start
        return Timed([wall_s / len(texts)] * len(texts), wall_s)

    return Turn(run, n_texts)


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float | None:
    """The power of the size with which the cost grows, from a straight line through the logarithms; 1 is
    linear. ``None`` where a cost, being a difference, is lost in noise."""
    if min(costs) <= 0:
        return None
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def _seconds(call: Call, text: str) -> float:
    start = time.perf_counter()
    call(text)
    return time.perf_counter() - start

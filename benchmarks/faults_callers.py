"""What do callers see? Many threads that ask over one ``Ensemble``, and what each call came to."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from benchmarks.faults_provider import MOST_TOKENS
from ensemble.alarms import Alarm
from ensemble.engine import Ensemble
from ensemble.errors import EnsembleError
from ensemble.records import Deployment, Member

# In the order in which they are asked at a dial of 0; of their prices, cents are seen in a single call.
FIRST, SECOND, STEADY = MEMBERS = (
    "Meta-Llama-3.1-8B-Instruct",
    "gpt-4o-mini-2024-07-18",
    "claude-3-5-sonnet-20241022",
)
PRICES = {FIRST: (100.0, 200.0), SECOND: (200.0, 400.0), STEADY: (400.0, 800.0)}  # USD per million tokens
WORDS = ("harbour", "ledger", "violet", "engine", "meadow", "copper", "lantern", "orbit", "willow")


def unheard(alarm: Alarm) -> None:
    """Members here are meant to fail."""


@dataclass(frozen=True)
class Ended:
    """How one call ended: ``text`` of its answer or the ``error``'s class; ``at`` and ``seconds`` by the
    caller's clock; ``decision_id`` where there is one."""

    tag: str
    text: str | None
    error: str | None
    decision_id: str | None
    at: float
    seconds: float
    deadline_s: float | None


def member(name: str, *bases: str) -> Member:
    """Served at each of ``bases``."""
    usd_in, usd_out = PRICES[name]
    places = tuple(Deployment(f"openai/{name}", {"api_base": base, "api_key": "none"}) for base in bases)
    return Member(name, "frontier", places, usd_in, usd_out, max_output_tokens=MOST_TOKENS)


def prompts(n: int, rng: random.Random, prefix: str = "call") -> Iterator[tuple[str, str]]:
    """``n`` tags, and prompts that begin with them, no two alike."""
    for i in range(n):
        tag = f"{prefix}-{i:06d}"
        yield tag, f"{tag} What have {' and '.join(rng.sample(WORDS, rng.randint(2, 6)))} in common?"


def ask(ensemble: Ensemble, tag: str, prompt: str, keywords: dict[str, Any]) -> Ended:
    """One call to its end, a stream read to its last chunk. An error that isn't ours is a finding, too."""
    at, text, error, decision_id = time.perf_counter(), None, None, None
    try:
        reply = ensemble.complete(prompt, **{"willingness_to_pay_usd": 0, **keywords})
        decision_id = reply.decision.id
        if keywords.get("stream"):
            text = "".join(chunk.choices[0].delta.content or "" for chunk in reply if chunk.choices)
        else:
            text = reply.choices[0].message.content
    except EnsembleError as ended:
        error, decision_id = type(ended).__name__, getattr(ended, "decision_id", decision_id)
        text = None
    except Exception as ended:
        error, text = f"not ours: {type(ended).__name__}", None
    seconds = time.perf_counter() - at
    return Ended(tag, text, error, decision_id, at, seconds, keywords.get("max_latency_s"))


def crowd(
    work: Callable[[Any], Ended], items: Iterable[Any], callers: int, told: Callable[[int], None]
) -> list[Ended]:
    """``work`` on every item by so many threads; ``told`` hears how many are done."""
    counter, lock = itertools.count(1), threading.Lock()

    def one(item: Any) -> Ended:
        ended = work(item)
        with lock:
            told(next(counter))
        return ended

    with ThreadPoolExecutor(callers) as threads:
        return list(threads.map(one, items))

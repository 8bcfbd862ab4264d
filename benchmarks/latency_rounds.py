"""How long does one decision take, how many fit into a second, and how does that grow? In this process.

Everything returned is plain JSON: milliseconds, decisions per second, lengths in tokens.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import random
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.latency_contenders import AWAITED, BARE, LEARNED, OURS, RULES, Bare, Field
from benchmarks.latency_texts import Texts
from benchmarks.stopwatch import Turn, alone, at_once, exponent, race, tasks, threads
from ensemble.engine import Ensemble
from ensemble.pool import Pool
from ensemble.records import Deployment, Member

BATCHED, ONE_CALLER = "bare encoder, batched", "bare encoder, one caller"
CROWD = (BARE, OURS, LEARNED, RULES)  # that many callers ask at once, beside aroute()
MIXED = 8, 128  # tokens of the texts in a batch, from and to
SHORT = 16  # tokens of a text where the encoder is not the question
Told = Callable[[str], None]


@dataclass(frozen=True)
class Effort:
    """How much is measured: prompts of these ``lengths``, so many ``callers`` at once, so many ``members``.

    Alone a contender gets texts of ``tokens_alone`` in all, at most ``most_alone``, in turns of ``turn``;
    many callers get ``tokens_crowd``, at most ``most_crowd`` texts and at least ``calls_each``, in each of
    ``rounds``. Of ``batch`` prompts there are ``batches``; those of the bare encoder are the best of
    ``batch_tokens``, padded. ``stream`` is the shortest of the three that are timed in a process of their
    own, ``calls`` go over the loopback, ``starts`` is how often a process is started. Whatever the machine,
    one length and number of callers take little more than ``limit_s``.
    """

    lengths: tuple[int, ...] = (16, 64, 256, 2000)
    callers: tuple[int, ...] = (1, 8, 64)
    members: tuple[int, ...] = (10, 100, 300, 1000)
    tokens_alone: int = 64_000
    most_alone: int = 800
    turn: int = 10
    tokens_crowd: int = 24_000
    most_crowd: int = 512
    calls_each: int = 2
    rounds: int = 3
    batch: int = 4096
    batches: int = 2
    batch_tokens: tuple[int, ...] = (256, 512, 1024, 2048, 4096)
    stream: int = 4096
    calls: int = 200
    starts: int = 5
    limit_s: float = 18.0

    def turns(self, callers: int, read: int) -> tuple[int, int]:
        """How many turns each contender gets, and how many calls in each, where so many callers bring texts
        of which ``read`` tokens are read."""
        if callers == 1:
            return max(1, min(self.most_alone, self.tokens_alone // read) // self.turn), self.turn
        return self.rounds, max(self.calls_each * callers, min(self.most_crowd, self.tokens_crowd // read))


FULL = Effort()
QUICK = Effort(
    lengths=(16, 64, 2000), callers=(1, 16), tokens_alone=6_000, most_alone=120, turn=5, tokens_crowd=4_000,
    rounds=1, batch=512, batches=1, batch_tokens=(512, 2048), stream=256, calls=40, starts=1, limit_s=1.5,
)  # fmt: skip


def decisions(
    field: Field, texts: Texts, effort: Effort, rng: random.Random, told: Told
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Of every contender at each length and number of callers: ``calls``, ``p50_ms``, ``p99_ms``,
    ``per_second``. And how many texts a second the bare encoder does meanwhile, where callers are most."""
    rows, bare = [], []
    with _crowds(effort) as (pools, runner), settled():
        for length in effort.lengths:
            size = best_batch(field.bare, texts, length, effort)
            for callers in effort.callers:
                told(f"decisions on {length:,} tokens, {callers} at once")
                rounds, n_calls = effort.turns(callers, min(length, field.bare.max_tokens))
                turns = _turns(field, pools.get(callers), runner, callers, n_calls)
                if callers == max(effort.callers):
                    turns |= _marks(field.bare, size, n_calls)
                times = race(
                    turns, functools.partial(texts.draw, n_tokens=length), rounds, rng, effort.limit_s
                )
                if callers == max(effort.callers):
                    rates = [times.pop(mark).per_second for mark in (BATCHED, ONE_CALLER)]
                    bare.append(_named(length, callers, batch_tokens=size, batched=rates[0], alone=rates[1]))
                rows += [_named(length, callers, contender=name, **t.figures()) for name, t in times.items()]
    return rows, bare


def best_batch(bare: Bare, texts: Texts, length: int, effort: Effort) -> int:
    """How many tokens at a time the bare encoder gets through fastest."""
    n_texts = max(1, max(effort.batch_tokens) // min(length, bare.max_tokens))
    turns = {str(tokens): _batches(bare, tokens, n_texts) for tokens in effort.batch_tokens}
    times = race(turns, lambda n: texts.draw(n, length), effort.batches, random.Random(0))
    return max(effort.batch_tokens, key=lambda tokens: times[str(tokens)].per_second)


def batch(field: Field, texts: Texts, effort: Effort, rng: random.Random, told: Told) -> dict[str, Any]:
    """Prompts a second of ``route_batch``, and of the bare encoder, on ``n_prompts`` of mixed lengths."""
    told(f"batches of {effort.batch:,} prompts")
    size = best_batch(field.bare, texts, sum(MIXED) // 2, effort)
    turns = {
        BATCHED: _batches(field.bare, size, effort.batch),
        OURS: at_once(lambda some: _emptied(field.ours.route_batch(iter(some))), effort.batch),
    }
    with settled():
        times = race(turns, lambda n: texts.mixed(n, *MIXED), effort.batches, rng, 2 * effort.limit_s)
    rates = {"route_batch": times[OURS].per_second, "bare": times[BATCHED].per_second}
    return {"n_prompts": effort.batch, "tokens": MIXED, "batch_tokens": size, **rates}


def members(
    field: Field, texts: Texts, effort: Effort, folder: Path, rng: random.Random, told: Told
) -> dict[str, Any]:
    """What policy and log cost by the number of members in the pool: p50 of route() less the bare encoder's.

    ``exponent`` is that of the larger half of the pools: in the others fixed costs weigh more.
    """
    told(f"pools of {', '.join(map(str, effort.members))} members")
    with contextlib.ExitStack() as stack, settled():
        turns = {BARE: alone(field.bare, effort.turn)}
        for n in effort.members:
            log = folder / f"members-{n}.db"
            made = Ensemble(router=field.ours.router, pool=invented_pool(n), log=log)
            ours = stack.enter_context(made)
            ours.route("Is it open?")
            turns[str(n)] = alone(ours.route, effort.turn)
        rounds = max(1, effort.calls // (2 * effort.turn))
        times = race(turns, lambda n: texts.draw(n, SHORT), rounds, rng, effort.limit_s)
    encoder_ms = times[BARE].ms(50)
    costs = [times[str(n)].ms(50) - encoder_ms for n in effort.members]
    rows = [{"members": n, "ms": ms} for n, ms in zip(effort.members, costs, strict=True)]
    half = len(rows) // 2
    return {"tokens": SHORT, "costs": rows, "exponent": exponent(effort.members[half:], costs[half:])}


def invented_pool(n_members: int) -> Pool:
    """Members that no router has seen, at prices over three decades; nothing is looked up for them."""
    return Pool(
        Member(
            name=f"member-{i}",
            kind="frontier",
            deployments=(Deployment(f"openai/member-{i}", {"api_key": "none"}),),
            usd_per_million_input=0.1 * 1000 ** (i / n_members),
            usd_per_million_output=0.4 * 1000 ** (i / n_members),
            context_window=128_000,
        )
        for i in range(n_members)
    )


@contextlib.contextmanager
def settled() -> Iterator[None]:
    """What is loaded by now is no garbage: without this the collector would walk through torch and litellm,
    which no serving process of ours holds, in the middle of somebody's call."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _turns(
    field: Field, pool: ThreadPoolExecutor | None, runner: asyncio.Runner, callers: int, n_calls: int
) -> dict[str, Turn]:
    """Of every contender; without a ``pool`` of threads there is one caller."""
    if pool is None:
        turns = {name: alone(call, n_calls) for name, call in field.calls.items()}
    else:
        few = max(callers, n_calls // 4)  # of the slowest, on whose pace no aim hangs
        counts = {name: few if name == LEARNED else n_calls for name in field.calls if name in CROWD}
        turns = {name: threads(field.calls[name], pool, callers, n) for name, n in counts.items()}
    return turns | {AWAITED: tasks(field.awaited, runner, callers, n_calls)}


def _marks(bare: Bare, batch_tokens: int, n_calls: int) -> dict[str, Turn]:
    """What the encoder by itself can do: the better of the two is the mark for many callers."""
    return {BATCHED: _batches(bare, batch_tokens, n_calls), ONE_CALLER: alone(bare, n_calls)}


def _batches(bare: Bare, tokens: int, n_texts: int) -> Turn:
    return at_once(lambda texts: bare.batched(texts, tokens), n_texts)


@contextlib.contextmanager
def _crowds(effort: Effort) -> Iterator[tuple[Mapping[int, ThreadPoolExecutor], asyncio.Runner]]:
    """Threads by the number of callers, and a loop: the same for all lengths."""
    with contextlib.ExitStack() as stack:
        pools = {n: stack.enter_context(ThreadPoolExecutor(n)) for n in effort.callers if n > 1}
        yield pools, stack.enter_context(asyncio.Runner())


def _emptied(decided: Iterator[object]) -> None:
    for _ in decided:
        pass


def _named(length: int, callers: int, **figures: Any) -> dict[str, Any]:
    return {"tokens": length, "callers": callers, **figures}

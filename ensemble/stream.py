"""A streamed answer on its way to the caller: passed on as it comes, written down before it ends.

Chunks with content go through at once. From the first chunk that says the answer is finished, the
rest is drawn in (the usage follows it), the outcome is written, and only then is it handed over.
"""

from __future__ import annotations

import asyncio
import functools
import math
import os
import threading
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from ensemble.hops import CANCELLED, Call
from ensemble.records import Decision
from ensemble.replies import UNTOLD, AsyncChunks, Chunks, Usage, answer_of, brings, finishes
from ensemble.threads import in_own_thread, in_thread

CLOSED = "closed by the caller"


class _Tally:
    """What has come so far, what may be passed on, and whether the end is written down. Thread-safe there."""

    def __init__(self, call: Call, usage_wanted: bool) -> None:
        self._call, self._usage_wanted = call, usage_wanted
        self._answer: list[str] = []
        self._usage = UNTOLD
        self._opened_s = call.clock() - call.serving.began  # now; who reads may take his time
        self._first_token_s: float | None = None
        self._complete = False
        self._ending, self._process = threading.Lock(), os.getpid()
        self.held: deque[Any] = deque()  # to be handed over after the end is written down
        self.ended = False

    def take(self, chunk: Any, usage: Usage) -> bool:
        """Note a chunk and what the provider says in it; True if it may be passed on at once."""
        text = answer_of(chunk)
        if self._first_token_s is None and brings(chunk):
            self._first_token_s = self._opened_s
        self._answer.append(text)
        if usage.input_tokens is not None or self._usage.model is None:
            self._usage = usage
        self._complete |= finishes(chunk)
        if not self._complete:
            return True
        only_usage = getattr(chunk, "usage", None) is not None and not text and not finishes(chunk)
        if self._usage_wanted or not only_usage:
            self.held.append(chunk)
        return False

    @property
    def left_s(self) -> float:
        """Of the deadline; ``inf`` where there is none."""
        return self._call.left_s()

    def check_deadline(self) -> None:
        if self.left_s == 0:
            raise self._call.overdue()

    def finish(self) -> None:
        """The stream has come to its end."""
        if self._is_first():
            self._call.finish(self._usage, "".join(self._answer), self._first_token_s)

    def fail(self, error: Exception) -> None:
        """Raises StreamBrokenError, unless the answer is complete and only its usage is missing."""
        if self.left_s == 0:  # whatever the cut looked like
            error = self._call.overdue()
        if self._complete:
            self.finish()
        elif self._is_first():
            broken = self._call.break_off(error, "".join(self._answer), self._first_token_s)
            raise broken or error from error

    def stop(self, why: str) -> bool:
        """The reader wants no more; whether that is what ends it."""
        if first := self._is_first():
            self.held.clear()
            self._call.break_off(why, "".join(self._answer), self._first_token_s)
        return first

    def _is_first(self) -> bool:
        """Whether nobody has ended this yet: not another thread, and not the process we were forked from."""
        with self._ending:
            first, self.ended = not self.ended and self._process == os.getpid(), True
        return first


class RoutedStream:
    """litellm's chunks, with ``decision`` beside them. A stream that its reader leaves, by ``close`` or by
    dropping it, is written down as such, at an upper bound of its cost.

    Raises StreamBrokenError where the member fails, or the deadline passes, in the middle.
    """

    def __init__(self, call: Call, chunks: Chunks, usage_wanted: bool) -> None:
        self.decision: Decision = call.decision
        self._chunks, self._tally = chunks, _Tally(call, usage_wanted)
        self._alarm = _alarm(self._tally.left_s, chunks)
        self._leave = functools.partial(_leave, self._tally, chunks, self._alarm)
        weakref.finalize(self, _dropped, self._tally, self._leave)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        tally = self._tally
        while not tally.ended:
            try:
                chunk = next(self._chunks)
                tally.check_deadline()
            except StopIteration:
                self._alarm.cancel()
                tally.finish()
            except Exception as error:
                self._alarm.cancel()
                self._chunks.close()
                tally.fail(error)
            else:
                if tally.take(chunk, self._chunks.usage_of(chunk)):
                    return chunk
        if not tally.held:
            raise StopIteration
        return tally.held.popleft()

    def close(self) -> None:
        """Stop reading, and let the provider stop writing."""
        self._leave()

    def __enter__(self) -> RoutedStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _alarm(left_s: float, chunks: Chunks) -> threading.Timer:
    """Cut a stream at its deadline from outside: one that keeps silent, or sends nothing but signs of life,
    never comes back to who reads it."""
    alarm = threading.Timer(left_s, chunks.close)
    alarm.daemon = True
    if left_s < math.inf:
        alarm.start()
    return alarm


def _dropped(tally: _Tally, leave: Callable[[], object]) -> None:
    """Leave an unfinished stream that nobody holds: in a thread of its own, for the garbage collector may let
    go of it at any moment, in a thread that holds the very locks which leaving takes."""
    if tally.ended:
        return
    if threading.main_thread().is_alive():
        in_own_thread(leave)
    else:  # the process ends: no thread can be begun, and none of ours is at work
        leave()


def _leave(tally: _Tally, chunks: Chunks, alarm: threading.Timer) -> None:
    alarm.cancel()
    if tally.stop(CLOSED):  # a forked child must leave its parent's connection alone
        chunks.close()


class AsyncRoutedStream:
    """The same for ``async for``; what is written down is written in a thread."""

    def __init__(self, call: Call, chunks: AsyncChunks, usage_wanted: bool) -> None:
        self.decision: Decision = call.decision
        self._chunks, self._tally = chunks, _Tally(call, usage_wanted)
        weakref.finalize(self, _dropped, self._tally, functools.partial(self._tally.stop, CLOSED))

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        tally = self._tally
        while not tally.ended:
            try:
                async with asyncio.timeout(None if tally.left_s == math.inf else tally.left_s):
                    chunk = await anext(self._chunks)
                tally.check_deadline()
            except StopAsyncIteration:
                await in_thread(tally.finish)
            except asyncio.CancelledError:
                await self._stop(CANCELLED)
                raise
            except Exception as error:
                await self._chunks.aclose()
                await in_thread(tally.fail, error)
            else:
                if tally.take(chunk, self._chunks.usage_of(chunk)):
                    return chunk
        if not tally.held:
            raise StopAsyncIteration
        return tally.held.popleft()

    async def aclose(self) -> None:
        """Stop reading, and let the provider stop writing."""
        if not self._tally.ended:
            await self._stop(CLOSED)

    async def __aenter__(self) -> AsyncRoutedStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _stop(self, why: str) -> None:
        if await in_thread(self._tally.stop, why):
            await self._chunks.aclose()

"""How is one prompt carried to its reply, by waiting or by awaiting?

``Call.steps`` (hops.py) says whom to send to and when to wait; here it is done, and told what came of it.
A call that may take its time is made where the caller stands. One whose silence is borne only so long, for
a hedge or a deadline, runs in a thread of its own, or as a task, so that it can be left alone.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Collection, Generator
from functools import partial
from typing import Any

from ensemble.dispatch import Dispatcher
from ensemble.hops import Call
from ensemble.records import Decision
from ensemble.replies import AsyncChunks, Chunks
from ensemble.request import Request
from ensemble.sends import Ended, Send, Wait
from ensemble.stream import AsyncRoutedStream, RoutedStream
from ensemble.threads import in_own_thread, in_thread

Running = concurrent.futures.Future[Any] | asyncio.Task[Any]
_closing: set[asyncio.Task[None]] = set()  # asyncio itself would let go of them half-way


class Exchange:
    """One prompt on its way to a reply: read and decided only when its steps are begun, so that asyncio's
    caller can have that done in a thread and still say how it ended."""

    def __init__(self, prepare: Callable[[], tuple[Request, Call, Dispatcher]]) -> None:
        self._prepare = prepare
        self._running: dict[Running, Send] = {}  # those that run beside each other, in order

    def complete(self) -> Any:
        """The reply, or for a stream its RoutedStream, with ``decision`` beside it."""
        steps = self._steps()
        try:
            wanted = next(steps)
            while True:
                wanted = steps.send(self._ended(wanted))
        except StopIteration as end:
            reply = end.value
        finally:
            self._let_go()
            steps.close()  # interrupted: written down as such
        asked = self._request.asked
        if asked.streams:
            return RoutedStream(self._call, reply, asked.usage_wanted)
        return _with_decision(reply, self._call.decision)

    async def acomplete(self) -> Any:
        """The same, awaited: what encodes, decides and logs runs in a thread."""
        steps = self._steps()
        try:
            wanted, reply = await in_thread(_advance, steps.send, None)
            asked = self._request.asked
            while wanted is not None:
                ended = await self._aended(wanted)
                if asked.streams and ended is not None and ended.error is None:
                    # Nothing is written now, nor may a cancellation come between.
                    wanted, reply = _advance(steps.send, ended)
                else:
                    wanted, reply = await in_thread(_advance, steps.send, ended)
        except asyncio.CancelledError:
            self._let_go()
            await in_thread(steps.close)
            raise
        finally:
            self._let_go()  # what the deadline has ended may still be at it
        if asked.streams:
            return AsyncRoutedStream(self._call, reply, asked.usage_wanted)
        return _with_decision(reply, self._call.decision)

    def _steps(self) -> Generator[Send | Wait, Ended | None, Any]:
        """Those of the call (hops.py)."""
        self._request, self._call, self._sender = self._prepare()
        return (yield from self._call.steps())

    def _ended(self, wanted: Send | Wait) -> Ended | None:
        """What ended first, or None where patience did."""
        if isinstance(wanted, Send):
            wanted.sent = True
            send = partial(self._sender.send, *self._message(wanted))
            if wanted.patience_s is None and not self._running:  # nothing can come between
                try:
                    return Ended(wanted, send())
                except Exception as error:
                    return Ended(wanted, error=error)
            self._running[in_own_thread(send)] = wanted
        done, _ = concurrent.futures.wait(
            self._running,  # type: ignore[arg-type]
            wanted.patience_s,
            concurrent.futures.FIRST_COMPLETED,
        )
        return self._first(done)

    async def _aended(self, wanted: Send | Wait) -> Ended | None:
        if isinstance(wanted, Send):
            if wanted.patience_s is None and not self._running:
                try:
                    return Ended(wanted, await self._asend(wanted))
                except Exception as error:
                    return Ended(wanted, error=error)
            self._running[asyncio.create_task(self._asend(wanted))] = wanted
        done, _ = await asyncio.wait(
            self._running,  # type: ignore[type-var]
            timeout=wanted.patience_s,
            return_when=asyncio.FIRST_COMPLETED,
        )
        return self._first(done)

    async def _asend(self, wanted: Send) -> Any:
        wanted.sent = True
        return await self._sender.asend(*self._message(wanted))

    def _message(self, wanted: Send) -> tuple[str, list[dict[str, Any]], dict[str, Any]]:
        return wanted.decision.member, self._request.messages, wanted.params

    def _first(self, done: Collection[Running]) -> Ended | None:
        """Of those that are done the first that was sent; if it has answered, the others are let go."""
        for running in [one for one in self._running if one in done][:1]:
            send, error = self._running.pop(running), running.exception()
            if isinstance(error, Exception):
                return Ended(send, error=error)
            return Ended(send, running.result(), lost=self._let_go())
        return None

    def _let_go(self) -> tuple[Ended, ...]:
        """Stop what still runs, or where it can't be stopped, forget it."""
        lost = tuple(_come(running, send) for running, send in self._running.items())
        for running in self._running:
            running.cancel()
            running.add_done_callback(_close)
        self._running.clear()
        return lost


def _come(running: Running, send: Send) -> Ended:
    """What has come of a call by now."""
    if not running.done() or running.cancelled():
        return Ended(send)
    error = running.exception()
    return Ended(send, error=error) if isinstance(error, Exception) else Ended(send, running.result())


def _close(running: Running) -> None:
    """Let the provider of a stream that comes too late stop writing."""
    if running.cancelled() or running.exception() is not None:
        return
    reply = running.result()
    if isinstance(reply, Chunks):
        reply.close()
    elif isinstance(reply, AsyncChunks):
        closing = asyncio.ensure_future(reply.aclose())
        _closing.add(closing)
        closing.add_done_callback(_closing.discard)


def _advance(step: Callable[[Any], Any], value: Any) -> tuple[Send | Wait | None, Any]:
    """What a generator wants next, or what it returned: StopIteration can't leave a thread."""
    try:
        return step(value), None
    except StopIteration as end:
        return None, end.value


def _with_decision(reply: Any, decision: Decision) -> Any:
    # Past pydantic's own __setattr__, so that no serialized form of the reply holds it.
    object.__setattr__(reply, "decision", decision)
    return reply

"""Work that arrives together is done together, by one of those who wait for it.

Who finds a place free starts at once, in its own thread: a lone caller waits for nothing and wakes nobody.
Who comes while all places are taken waits in line. When one falls free, the first in line works for itself
and for as many of those behind it as may share one piece of work, in their order, and the rest stay in line:
nobody waits for more than the line before it, and nobody works twice. There is no window, no thread of our
own, and no queue that could overflow: whoever waits is a caller, and so is held back.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Together(Generic[Item, Result]):
    """A callable that does the work for one item, together with what other threads ask of it.

    ``work`` takes items and returns a result for each, in their order; should it fail for several, each is
    tried alone, so that an error reaches only whom it concerns. Items share a piece of work while their
    number times the largest ``size`` among them is at most ``room``; ``places`` pieces of work go on at a
    time. Thread-safe, usable after a fork.
    """

    def __init__(self, work: Callable[[list[Item]], list[Result]], room: int, places: int = 1) -> None:
        self.work, self.room, self.places = work, room, places
        self._start_afresh()
        _ALL.add(self)

    def _start_afresh(self) -> None:
        """With nobody at work and nobody in line: also the state of a forked child."""
        self._lock = threading.Lock()
        self._line: deque[_Ticket] = deque()
        self._served: list[_Ticket] = []  # done, and not told yet
        self._at_work = 0

    def __call__(self, item: Item, size: int = 1) -> Result:
        """The result for ``item``; raises what ``work`` raises for it."""
        ticket = _Ticket(item, size)
        with self._lock:
            waits = self._at_work >= self.places
            if waits:
                self._line.append(ticket)
            else:
                self._at_work += 1
        if waits:
            self._wait(ticket)
        if not ticket.done:
            self._lead(ticket)
        if ticket.error is not None:
            raise ticket.error
        return ticket.result  # type: ignore[no-any-return]

    def _wait(self, ticket: _Ticket) -> None:
        """Until the work is done, or this thread is the one to do it."""
        try:
            ticket.called.acquire()
        except BaseException:  # interrupted: nobody may count on this thread any more
            with self._lock:
                if ticket in self._line:
                    self._line.remove(ticket)
                if ticket.leads:
                    self._call_next()
            raise

    def _lead(self, ticket: _Ticket) -> None:
        with self._lock:
            group = self._company(ticket)
            self._tell_served()
        try:
            self._do(group)
        finally:
            with self._lock:  # interrupted, some may be left: they are first in line again
                self._line.extendleft(reversed([one for one in group[1:] if not one.done]))
                self._served += [one for one in group[1:] if one.done]
                self._call_next()

    def _tell_served(self) -> None:
        # By the next leader, just before it is at work: told earlier, all of them would want the interpreter
        # before it, and the work would stand still meanwhile.
        for one in self._served:
            one.called.release()
        self._served = []

    def _company(self, ticket: _Ticket) -> list[_Ticket]:
        """The ticket and those in line that share its piece of work, who leave the line."""
        group, largest, stays = [ticket], ticket.size, deque[_Ticket]()
        for one in self._line:
            if (len(group) + 1) * max(largest, one.size) <= self.room:
                group.append(one)
                largest = max(largest, one.size)
            else:
                stays.append(one)
        self._line = stays
        return group

    def _do(self, group: list[_Ticket]) -> None:
        try:
            results = self.work([ticket.item for ticket in group])
        except Exception as error:
            if len(group) == 1:
                group[0].error, group[0].done = error, True
                return
            for ticket in group:
                self._do([ticket])
        else:
            for ticket, result in zip(group, results, strict=True):
                ticket.result, ticket.done = result, True

    def _call_next(self) -> None:
        """Hand this place to the first in line."""
        if self._line:
            following = self._line.popleft()
            following.leads = True
            following.called.release()
        else:
            self._at_work -= 1
            self._tell_served()


class _Ticket:
    """One caller's place: what it wants done, and what came of it."""

    __slots__ = ("called", "done", "error", "item", "leads", "result", "size")

    def __init__(self, item: Any, size: int) -> None:
        self.item, self.size = item, size
        self.result: Any = None
        self.error: Exception | None = None
        self.done = self.leads = False
        self.called = threading.Lock()  # released when it is done, or its turn to lead has come
        self.called.acquire()


_ALL: weakref.WeakSet[Together[Any, Any]] = weakref.WeakSet()


def _start_all_afresh() -> None:
    for together in _ALL:
        together._start_afresh()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_all_afresh)

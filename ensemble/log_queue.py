"""Writing behind the caller's back: a bounded queue, emptied in batches by one daemon thread."""

from __future__ import annotations

import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from ensemble.errors import LogError
from ensemble.log_outage import AwayError

Item = TypeVar("Item")

QUEUE_SIZE = 1_000
BATCH_SIZE = 100


class BackgroundWriter(Generic[Item]):
    """Hands items to ``write`` in the order they came, up to ``BATCH_SIZE`` at a time.

    At most ``QUEUE_SIZE`` items are not yet written at any moment: that much a killed process
    loses. When as many wait, ``put`` waits too: a slow database slows the callers, it drops nothing.
    A batch that ``write`` refuses is tried again item by item, unless it is the database that is away
    (AwayError); what fails then is counted.
    """

    def __init__(self, write: Callable[[list[Item]], object]) -> None:
        self._write = write
        self.start_afresh()

    def start_afresh(self) -> None:
        """Empty and without its thread: also the state of a forked child, whose parent writes the rest."""
        self._items: deque[Item] = deque()  # an item leaves it when it has been written
        self._put = self._done = self._lost = 0
        self._cause: Exception | None = None
        self._stopping = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def put(self, item: Item) -> None:
        with self._changed:
            self._changed.wait_for(lambda: len(self._items) < QUEUE_SIZE)
            if self._stopping:
                raise LogError("this log was closed. Open it again to use it.")
            self._items.append(item)
            self._put += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="ensemble-log", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def drain(self) -> None:
        """Wait until everything put so far has been written or has failed."""
        with self._changed:
            target = self._put
            self._changed.wait_for(lambda: self._done >= target)

    def take_losses(self) -> tuple[int, Exception | None]:
        """How many items failed since the last time this was asked, and the first cause."""
        with self._changed:
            losses = self._lost, self._cause
            self._lost, self._cause = 0, None
            return losses

    def stop(self) -> None:
        """Write what is left and end the thread."""
        self.drain()
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._items) or self._stopping)
                if not self._items:
                    return
                batch = list(itertools.islice(self._items, BATCH_SIZE))
            self._write_or_count(batch)
            with self._changed:
                for _ in batch:
                    self._items.popleft()
                self._done += len(batch)
                self._changed.notify_all()

    def _write_or_count(self, batch: list[Item]) -> None:
        try:
            self._write(batch)
        except Exception as error:  # whatever it is, the thread must live on: the cause is kept
            if len(batch) > 1 and not isinstance(error, AwayError):
                for item in batch:
                    self._write_or_count([item])
                return
            with self._changed:
                if self._cause is None:
                    self._cause = error
                    logging.getLogger("ensemble").error("a record was not written to the log: %s", error)
                self._lost += len(batch)

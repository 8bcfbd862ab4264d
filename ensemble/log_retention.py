"""When does the log forget by itself? Once an hour while it is written to, what has grown too old.

The deleting is done in a thread of its own, in small steps between which others write: nobody waits for it.
Several processes on one log do it side by side, which deletes nothing twice.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable

from ensemble.errors import EnsembleWarning, LogError

EVERY_S = 3_600.0


class Retention:
    """Calls ``forget`` when it is time to. Thread-safe, usable after a fork."""

    def __init__(self, forget: Callable[[], object], clock: Callable[[], float]) -> None:
        self._forget, self._clock = forget, clock
        self._due = -float("inf")
        self._start_afresh()

    def _start_afresh(self) -> None:
        """Not at work: also the state of a forked child."""
        self._lock, self._process = threading.Lock(), os.getpid()
        self._thread: threading.Thread | None = None

    def remind(self) -> None:
        """Forget if it is time to; returns at once."""
        if self._clock() < self._due:
            return
        if self._process != os.getpid():
            self._start_afresh()
        with self._lock:
            if self._clock() < self._due or (self._thread is not None and self._thread.is_alive()):
                return
            self._due = self._clock() + EVERY_S
            self._thread = threading.Thread(target=self._run, name="ensemble-retention", daemon=True)
            self._thread.start()

    def wait(self) -> None:
        """Until nothing is being deleted."""
        if self._thread is not None and self._process == os.getpid():
            self._thread.join()

    def _run(self) -> None:
        try:
            self._forget()
        except LogError as error:
            message = f"what has grown too old is still in the log, and is tried again in an hour: {error}"
            warnings.warn(message, EnsembleWarning, stacklevel=2)

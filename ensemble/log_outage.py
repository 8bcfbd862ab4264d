"""How long is a database waited for that went away, or that another process keeps to itself?

For ``log_engine.BUSY_S`` from when it was first missed, by all who want to write. Then it is given up: what
comes is tried once, all who stand in line together, so that a long outage holds nobody up for longer, however
many they are. The first to get through ends it.
"""

from __future__ import annotations

import time

from ensemble import log_engine
from ensemble.errors import LogError

AWAY_S = 0.2  # between two tries


class AwayError(LogError):
    """The database was given up: this concerns all that was to be written, and none is worth a try alone."""


class Outage:
    """The absence of one database. Thread-safe."""

    def __init__(self) -> None:
        self._since: float | None = None

    def wait(self, error: LogError, begun: float) -> None:
        """Until it is worth another try after the one that began then (monotonic) and met ``error``. Raises
        AwayError once none is."""
        if self._since is None:
            self._since = begun
        if time.monotonic() > self._since + log_engine.BUSY_S:
            raise AwayError(str(error)) from error.__cause__
        time.sleep(AWAY_S)

    @property
    def lasts(self) -> bool:
        return self._since is not None

    def end(self) -> None:
        self._since = None

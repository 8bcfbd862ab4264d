"""What does a call want of whoever sends for it, and what is it told?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ensemble.records import Decision


@dataclass(eq=False)
class Send:
    """Please call ``decision.member`` with these parameters, then wait; come back with nothing after
    ``patience_s`` (``None``: never). ``number`` counts the attempts from 1.

    The driver sets ``sent`` when it does so: only then can an attempt that is let go have cost something.
    """

    decision: Decision
    number: int
    began: float  # by the call's clock
    params: dict[str, Any]
    patience_s: float | None = None
    sent: bool = False


@dataclass(frozen=True)
class Wait:
    """Please wait on for those that were sent."""

    patience_s: float | None = None


@dataclass(frozen=True, eq=False)
class Ended:
    """What came of a Send: its reply or its error, or neither where it was let go. With a reply no other
    goes on: those that were ``lost`` come with it."""

    send: Send
    reply: Any = None
    error: Exception | None = None
    lost: tuple[Ended, ...] = ()

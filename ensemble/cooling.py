"""Who is left alone for a while? A member that failed several times in a row, until a single probe answers.

``litellm.Router`` leaves a failing deployment alone in favour of another of the same member. Where a member
has only one, or all of them are gone, every call would knock at a dead door first. Here the member rests:

    well      FAILURES in a row, none WITHIN_S after the last     -> rests for REST_S
    resting   the time is over                                    -> one caller may try; the others keep away
    probed    it answers                                          -> well
              it fails                                            -> rests twice as long, LONGEST_S at most
              nobody tried after all                              -> PROBE_S later the next caller may

Only what speaks against a member counts, not what a caller asked wrongly or gave too little time for.
What litellm itself stumbles over in the middle of a request can't be told from a provider that doesn't
answer, and counts; ``asked`` has refused what it could beforehand.

How long a provider asks to be left alone (``retry-after``) is not known here. litellm heeds it where the
member has another deployment; one with a single deployment is asked FAILURES times, and then by probes ever
further apart: three of them in the first half minute.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass

from ensemble.records import Attempt

FAILURES, WITHIN_S = 5, 60.0
REST_S, LONGEST_S, PROBE_S = 2.0, 60.0, 2.0
TIMEOUTS = frozenset({"Timeout", "TimeoutError"})
LEAST_TIMEOUT_S = 5.0  # who gave an attempt less time learned nothing about the member
AGAINST = {  # classes of errors, as attempts name them
    "APIConnectionError",
    "APIError",
    "AuthenticationError",
    "BadGatewayError",
    "InternalServerError",
    "NoAnswerError",
    "NotFoundError",
    "PermissionDeniedError",
    "RateLimitError",
    "RouterRateLimitError",
    "ServiceUnavailableError",
}
# Of the statuses that litellm has no class for (dispatch.py says which), those that a request brings upon
# itself: without a length, too large, with too long an address, of a kind that isn't taken, too long headers.
ASKED_WRONGLY = tuple(f"APIError: HTTP {status}:" for status in (411, 413, 414, 415, 431))


@dataclass
class _State:
    """Of a member that has failed since it last answered. While it rests: ``rest_s``, else 0; ``until`` when;
    ``probed_at`` when somebody was last allowed to try."""

    failures: int = 0
    failed_at: float = -math.inf
    rest_s: float = 0.0
    until: float = 0.0
    probed_at: float = math.inf


class Cooling:
    """What the attempts of one process say of its members. Thread-safe; ``clock`` gives seconds: the one that
    attempts are timed by."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._states: dict[str, _State] = {}

    def note(self, attempt: Attempt) -> None:
        """Learn from an attempt that has ended."""
        if attempt.error is None:
            with self._lock:
                self._states.pop(attempt.member, None)
        elif speaks_against(attempt):
            with self._lock:
                self._fail(self._states.setdefault(attempt.member, _State()), attempt)

    def resting(self) -> dict[str, str]:
        """The members that are to be left alone now, with the reason. For the first who asks once a rest is
        over, that member is not among them."""
        if not self._states:  # the rule, and no lock for it
            return {}
        now = self._clock()
        with self._lock:
            found = {}
            for name, state in self._states.items():
                # Further off than any rest: the clock was set back.
                if state.rest_s and not now < state.until <= now + LONGEST_S:
                    state.probed_at, state.until = now, now + PROBE_S
                elif state.rest_s:
                    left_s = state.until - now
                    found[name] = f"failed {state.failures} times in a row and is left alone {left_s:.1f} s"
            return found

    def _fail(self, state: _State, attempt: Attempt) -> None:
        now = self._clock()
        if state.rest_s:
            if attempt.started_at < state.probed_at:  # under way before: it says nothing new
                return
            state.rest_s = min(2 * state.rest_s, LONGEST_S)
        elif now - state.failed_at > WITHIN_S:
            state.failures = 0
        state.failures, state.failed_at = state.failures + 1, now
        if state.failures >= FAILURES:
            state.rest_s = state.rest_s or REST_S
            state.until, state.probed_at = now + state.rest_s, math.inf


def speaks_against(attempt: Attempt) -> bool:
    error = str(attempt.error)
    kind = error.partition(":")[0]
    if kind in TIMEOUTS:
        return attempt.seconds >= LEAST_TIMEOUT_S
    return kind in AGAINST and not error.startswith(ASKED_WRONGLY)

"""How fast has each member answered? Seconds to the first token and tokens per second, from its own answers.

    seconds = first_token_s + output_tokens / tokens_per_second

is a line over the number of tokens. It is fitted by least squares to points (tokens, seconds): one for each
answer, one more at no tokens for each stream that told its first token, and one of weight 1 for what the pool
says of the first token (nothing: 0 s). The last one decides only what the answers leave open, as when all are
of one length. Neither number may be negative: one that would be is put at 0 and the other fitted alone.

Of a stream the time that its reader takes counts too, as a provider that waits for it can't be told from
one that is slow.

Recent answers count more: HALF_LIFE of them later one counts for half. An answer that took more than OUTLYING
times what the line says counts as if it had taken so long: one forgotten request moves little, and a
member that has grown that slow is followed all the same. The FIRST answers have no line to be held against;
they are kept, and held against each other.
"""

from __future__ import annotations

import math
import statistics
import threading
from collections.abc import Iterable, Mapping
from typing import Any

from ensemble.eligibility import Offer
from ensemble.records import Floats

FIRST = 20  # answers, before which the pool's figures stand
HALF_LIFE = 100  # answers
OUTLYING = 4.0
FASTEST = 1e6  # tokens per second; stands for lengths that take no time at all
MOST = 1e9  # more are neither tokens nor seconds
_KEEPS = 0.5 ** (1 / HALF_LIFE)

Answer = tuple[float, float, float | None]  # tokens, seconds, seconds to the first token


class _Line:
    """One member's answers, as decayed sums over the points (tokens t, seconds s)."""

    def __init__(self) -> None:
        self._first: list[Answer] = []
        self._sums = (0.0, 0.0, 0.0, 0.0, 0.0)  # of 1, t, s, t * t, t * s

    @property
    def known(self) -> bool:
        return not self._first and self._sums[0] > 0

    def note(self, answer: Answer) -> None:
        if self.known:
            start, pace = self.fit(0.0)
            self._add(answer, start + pace * answer[0])
            return
        self._first.append(answer)
        if len(self._first) == FIRST:
            # Whatever their share in it, seconds over (tokens + their mean) vary within a factor of 2 or so.
            middle = statistics.fmean(tokens for tokens, _, _ in self._first) or 1.0
            unit = statistics.median(seconds / (tokens + middle) for tokens, seconds, _ in self._first)
            for one in self._first:
                self._add(one, unit * (one[0] + middle))
            self._first = []

    def fit(self, start_s: float) -> tuple[float, float]:
        """Seconds to the first token, >= 0, and seconds per token, >= 0; ``start_s``: what the pool says."""
        n, t, s, tt, ts = self._sums
        n, s = n + 1, s + start_s
        pace = (n * ts - t * s) / spread if (spread := n * tt - t * t) > 0 else 0.0
        if pace <= 0:
            return self._sums[2] / self._sums[0], 0.0
        start = (s - pace * t) / n
        return (start, pace) if start >= 0 else (0.0, ts / tt)

    def _add(self, answer: Answer, expected_s: float) -> None:
        tokens, seconds, first_token_s = answer
        seconds = min(seconds, OUTLYING * expected_s) if expected_s > 0 else seconds
        points = [(tokens, seconds)]
        if first_token_s is not None:
            points.append((0.0, min(first_token_s, seconds, expected_s or seconds)))
        sums = [_KEEPS * value for value in self._sums]
        for t, s in points:
            for place, value in enumerate((1.0, t, s, t * t, t * s)):
                sums[place] += value
        self._sums = (sums[0], sums[1], sums[2], sums[3], sums[4])


class Speeds:
    """What the answers of one process say of its members. Thread-safe; it reads no clock."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}
        self._lock = threading.Lock()
        self._changed: set[str] = set()  # members, since the arrays below were made
        self._made: tuple[Offer, Floats, Floats] | None = None

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, Any]]) -> Speeds:
        """What earlier answers say: attempts as in the log, oldest first."""
        speeds = cls()
        for row in rows:
            if row["error"] is None:
                speeds.note(row["member"], row["seconds"], row["output_tokens"], row.get("first_token_s"))
        return speeds

    def note(
        self,
        member: str,
        seconds: float,
        output_tokens: float | None,
        first_token_s: float | None = None,
    ) -> None:
        """Learn from an answer: how long it took as a whole, its length, and where a stream told it, how long
        its first token took. What is no number in [0, MOST] teaches nothing."""
        if not (_measures(seconds) and _measures(output_tokens)):
            return
        first = float(first_token_s) if first_token_s is not None and _measures(first_token_s) else None
        with self._lock:
            line = self._lines.setdefault(member, _Line())
            line.note((float(output_tokens or 0), float(seconds), first))
            if line.known:
                self._changed.add(member)

    def over(self, offer: Offer) -> tuple[Floats, Floats]:
        """Seconds to the first token and tokens per second of an offer's members, float64 (n_members,),
        read-only: measured where FIRST answers are known, else the offer's own, NaN where it has none."""
        made = self._made
        if made is not None and made[0] is offer and not self._changed:  # the rule, and no lock for it
            return made[1], made[2]
        with self._lock:
            made = self._made
            if made is not None and made[0] is offer:
                first, speed, again = made[1].copy(), made[2].copy(), self._changed
            else:
                first, speed, again = (
                    offer.first_token_s.copy(),
                    offer.tokens_per_second.copy(),
                    {*self._lines},
                )
            for m, name in enumerate(offer.names):
                if name in again and (line := self._lines[name]).known:
                    told = offer.first_token_s[m]
                    start, pace = line.fit(0.0 if math.isnan(told) else float(told))
                    first[m], speed[m] = start, 1 / max(pace, 1 / FASTEST)
            first.flags.writeable = speed.flags.writeable = False
            self._made = offer, first, speed
            self._changed.clear()
            return first, speed


def _measures(value: float | None) -> bool:
    return value is not None and 0 <= value <= MOST

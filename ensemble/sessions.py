"""Does a conversation stay with its member? Until staying has cost more than leaving would.

A provider keeps what it has just read in a cache, and takes less for it. Whoever takes a conversation over
reads all of it at the full price, once: that is what moving costs. What staying costs is what another member,
once settled, would have brought more, summed over the steps. When the second exceeds the first, and the doubt
in it, the conversation moves:

    forgone = max(0, forgone + settled utility of the other - utility of the one in charge)     at each step
    move to the other when      forgone > moving + doubt

Without a guess at how long the conversation will last, as one decides how long to rent before buying (ski
rental: Karlin, Manasse, Rudolph, Sleator 1988); a sum that never falls below 0 forgets advantages that did
not last (Page 1954).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

CACHE_S = 300.0  # providers keep a prefix for 5 to 10 minutes after its last use
LEAST_CACHED = 1024  # tokens: a shorter prefix is not kept by most


@dataclass(frozen=True)
class Standing:
    """Where a conversation stands before its next step.

    ``member`` served last. ``prefix_tokens``: how much of the next input it has read before, by its own
    count. ``trust``: the share of such a prefix that it took from its cache the last time, in [0, 1].
    ``forgone_usd``: by member, what staying has cost so far; nothing for those left out.
    """

    member: str
    prefix_tokens: float = 0.0
    trust: float = 1.0
    forgone_usd: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def after(cls, step: Mapping[str, Any], now: float) -> Standing:
        """From what the log holds of the last answered step (``OutcomeLog.last_step``), at ``now``."""
        stored, member = step["standing"] or {}, step["served_member"]
        known = stored if stored.get("member") == member else {}  # else another took over: all begins anew
        trust, expected = known.get("trust", 1.0), known.get("prefix_tokens", 0.0)
        if expected >= LEAST_CACHED:
            trust = min(1.0, (step["cached_input_tokens"] or 0) / expected)
        is_warm = now - step["ended_at"] <= CACHE_S
        prefix = float(step["input_tokens"] or 0) if is_warm else 0.0
        return cls(member, prefix, trust, known.get("forgone_usd", {}))

    @property
    def cached_tokens(self) -> float:
        """How much of the next input the member is expected to take from its cache."""
        return self.trust * self.prefix_tokens if self.prefix_tokens >= LEAST_CACHED else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**vars(self), "forgone_usd": dict(self.forgone_usd)}

    def next(
        self,
        names: Sequence[str],
        eligible: Sequence[bool],
        utility: Sequence[float],
        moving: Sequence[float],
        doubt: Sequence[float],
    ) -> Standing:
        """Who serves this step, and what has been forgone by then; the one in charge must be eligible.

        Over members, USD (or reward, where the dial is infinite): ``utility`` of this step, the reading of
        the prefix included; ``moving``, what that reading costs beyond a settled member's; ``doubt``, one
        standard deviation of the advantage over the one in charge.
        """
        bound = names.index(self.member)
        forgone, best, most = {}, self.member, 0.0
        for m, name in enumerate(names):
            if m == bound or not eligible[m]:
                continue
            missed = self.forgone_usd.get(name, 0.0) + utility[m] + moving[m] - utility[bound]
            if missed > 0:
                forgone[name] = missed
                if missed - moving[m] - doubt[m] > most:
                    best, most = name, missed - moving[m] - doubt[m]
        if best == self.member:
            return Standing(best, self.prefix_tokens, self.trust, forgone)
        return Standing(best)

"""Who may serve, and why not? Limits, abilities and wishes, held against every member."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ensemble.errors import InputError
from ensemble.records import Expected, Floats, Member, Prediction, Wishes


class Offer(Protocol):
    """What is read of a pool: members in order, their terms as (n_members,) arrays, NaN unknown."""

    names: tuple[str, ...]
    usd_per_million_input: Floats
    usd_per_million_output: Floats
    usd_per_million_cached_input: Floats
    context_window: Floats
    max_output_tokens: Floats
    first_token_s: Floats
    tokens_per_second: Floats

    def __iter__(self) -> Iterator[Member]: ...


class Eligibility:
    """Who may serve each prompt: ``eligible``, bool (n_prompts, n_members), and the reasons of the others.

    ``unavailable`` maps members that can't serve now to the reason. Raises InputError for wishes that name
    nobody of the pool.
    """

    def __init__(
        self,
        prediction: Prediction,
        expected: Expected,
        offer: Offer,
        wishes: Wishes,
        unavailable: Mapping[str, str],
    ) -> None:
        self._shared = _barred(offer, wishes, unavailable)
        self._limits = _limits(prediction, expected, offer, wishes)
        self.eligible: npt.NDArray[np.bool_] = np.array([why is None for why in self._shared])
        for limit in self._limits:
            self.eligible = self.eligible & ~limit.missed
        self._all = bool(self.eligible.all())

    def reasons(self, i: int) -> list[str | None]:
        """Why each member may not serve prompt i, (n_members,): ``None`` for who may."""
        why = list(self._shared)
        if self._all:
            return why
        for m in np.flatnonzero(~self.eligible[i]).tolist():
            why[m] = why[m] or next(limit.words(i, m) for limit in self._limits if limit.missed[i, m])
        return why


def _barred(offer: Offer, wishes: Wishes, unavailable: Mapping[str, str]) -> list[str | None]:
    """Why each member is out for every prompt, or None."""
    unknown = [name for name in (*(wishes.members or ()), *wishes.exclude) if name not in offer.names]
    if unknown:
        raise InputError(
            f"members and exclude should name members of the pool ({', '.join(offer.names)}); "
            f"found {', '.join(sorted(unknown)):.200}"
        )
    if wishes.members is None and not (wishes.exclude or wishes.owned_only or wishes.requires or unavailable):
        return [None] * len(offer.names)
    reasons: list[str | None] = []
    for member in offer:
        lacking = wishes.requires - member.abilities if member.abilities is not None else frozenset()
        if wishes.members is not None and member.name not in wishes.members:
            reasons.append("not among the members asked for")
        elif member.name in wishes.exclude:
            reasons.append("excluded by the caller")
        elif wishes.owned_only and not member.owned:
            reasons.append("not owned, and owned_only was asked for")
        elif lacking:
            reasons.append(f"lacks {', '.join(sorted(lacking))}, which the request needs")
        else:
            reasons.append(unavailable.get(member.name))
    return reasons


@dataclass(frozen=True)
class _Limit:
    """A limit that some may miss on some prompts: ``missed`` (n_prompts, n_members), and in words how."""

    missed: npt.NDArray[np.bool_]
    words: Callable[[int, int], str]


def _limits(prediction: Prediction, expected: Expected, offer: Offer, wishes: Wishes) -> list[_Limit]:
    """Those in force, in the order in which they are named; an unknown figure, NaN, misses none.

    A window is held against the input alone, though some providers refuse an input that would fit if
    ``max_tokens`` more would not. Others count the output apart, or cut it short, and litellm's map, from
    which most windows come, doesn't say which: the sum would bar members who answer. One that refuses has
    cost nothing, and the next is asked.
    """
    tokens, window, reward = expected.input_tokens, offer.context_window, prediction.reward
    usd, most_usd = expected.cost_usd_p95, wishes.max_cost_usd
    seconds, most_s, least = expected.seconds, wishes.max_latency_s, wishes.min_reward

    def too_long(i: int, m: int) -> str:
        return f"needs about {tokens[i, m]:,.0f} input tokens, its window holds {window[m]:,.0f}"

    def too_dear(i: int, m: int) -> str:
        return f"may cost {usd[i, m]:.2g} USD (95 %), the limit is {most_usd:.2g}"

    def too_slow(i: int, m: int) -> str:
        return f"takes about {seconds[i, m]:.1f} s, the limit is {most_s:g}"

    def too_weak(i: int, m: int) -> str:
        return f"expected reward {reward[i, m]:.3f}, at least {least:g} was asked for"

    limits = [_Limit(tokens > window, too_long)]
    if most_usd is not None:
        limits.append(_Limit(usd > most_usd, too_dear))
    if most_s is not None:
        limits.append(_Limit(seconds > most_s, too_slow))
    if least is not None:
        limits.append(_Limit(reward < least, too_weak))
    return limits

"""What did the caller ask for? The keywords of one call, taken apart: ours, the log's, and litellm's."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from ensemble.errors import InputError
from ensemble.members import described
from ensemble.records import ABILITIES, Wishes
from ensemble.sendable import HEADERS, TIMEOUTS, check_sendable

_OURS = tuple(field.name for field in dataclasses.fields(Wishes) if field.name != "spend_price")
_OUR_NAMES = (*_OURS, "metadata", "session", "hedge_after_s")
_SETS = ("members", "exclude", "requires")
_OWN_PLACE = ("api_key", "api_base", "base_url", "client", "mock_response")
_KINDS: dict[str, tuple[Any, str]] = {
    "session": (str, "a string"),
    "stream": (bool, "True or False"),
    "tools": (list | tuple, "a list"),
    "response_format": (Mapping | type, "a dict or a pydantic class"),
    **dict.fromkeys(("metadata", "stream_options", "extra_body", *HEADERS), (Mapping, "a dict")),
}
LIMITS = ("max_tokens", "max_completion_tokens")  # litellm's two names for the longest answer
COUNTS = (*LIMITS, "n")
LARGEST_COUNT = 2**63 - 1  # which some write for "no limit"
LIKENESS = 0.85  # of two keywords, as difflib has it; litellm's own are less like any of ours
LEAST_PATIENCE_S = 0.001  # no member answers sooner
_FALLBACKS = ("fallbacks", "context_window_fallbacks", "content_policy_fallbacks")


@dataclass(frozen=True)
class Asked:
    """``ours``: the wishes that were given. ``params`` go to litellm unchanged. ``usage_wanted``: of a
    stream, the caller wants the chunk that holds the usage. ``hedge_after_s``: after so much silence a
    second member is to be asked too; ``None``: never."""

    ours: Mapping[str, Any]
    metadata: Mapping[str, Any] | None
    session: str | None
    params: Mapping[str, Any]
    hedge_after_s: float | None = None

    @classmethod
    def of(cls, keywords: Mapping[str, Any]) -> Asked:
        """Raises InputError for keywords that can't be meant, or could be sent to nobody."""
        params = dict(keywords)
        _refuse_foreign(params)
        for name, (kind, words) in _KINDS.items():
            value = params.get(name)
            if value is not None and (not isinstance(value, kind) or value == ""):
                raise InputError(f"{name}: expected {words}, found {described(value)}")
        for name in COUNTS:
            params |= {name: _count(name, params[name])} if params.get(name) is not None else {}
        metadata, session = params.pop("metadata", None), params.pop("session", None)
        if (hedge_after_s := params.pop("hedge_after_s", None)) is not None:
            hedge_after_s = _number("hedge_after_s", hedge_after_s, LEAST_PATIENCE_S, 1e9)
        ours = {name: params.pop(name) for name in _OURS if name in params}
        for name in TIMEOUTS:
            if isinstance(params.get(name), Real):
                _number(name, params[name], 0, 1e9)
        for name in params:
            if meant := _misspelt(name):
                raise InputError(
                    f"{name}=...: expected a keyword of ours or of litellm's. Did you mean {meant}? "
                    "What only a provider knows by that name goes into extra_body."
                )
        check_sendable(params)
        return cls(ours, metadata, session, params, hedge_after_s)

    def wishes(self, defaults: Wishes, required: frozenset[str]) -> Wishes:
        """The pool's defaults, overruled by what was given; ``required`` abilities are added.

        Raises InputError naming a wish that is out of range.
        """
        given = {name: value for name, value in self.ours.items() if value is not None}
        if not given and not required:
            return defaults
        given |= {name: _names(name, given[name]) for name in _SETS if name in given}
        given["requires"] = required | given.get("requires", frozenset())
        return check_wishes(dataclasses.replace(defaults, **given))

    @property
    def max_tokens(self) -> int | None:
        """The caller's own limit on the length of an answer, in tokens."""
        limits = [self.params[name] for name in LIMITS if self.params.get(name) is not None]
        return min(limits, default=None)

    @property
    def answers(self) -> int:
        """How many answers to the one prompt are asked for."""
        return int(self.params.get("n") or 1)

    @property
    def elsewhere(self) -> bool:
        """The caller brings an account or an address of its own: what happens there says nothing of ours."""
        return any(self.params.get(name) for name in _OWN_PLACE)

    @property
    def streams(self) -> bool:
        return bool(self.params.get("stream"))

    @property
    def usage_wanted(self) -> bool:
        return bool((self.params.get("stream_options") or {}).get("include_usage"))

    @property
    def sent(self) -> dict[str, Any]:
        """The parameters as litellm gets them: a stream is asked for its usage, to know the cost."""
        if not self.streams:
            return dict(self.params)
        options = {**(self.params.get("stream_options") or {}), "include_usage": True}
        return {**self.params, "stream_options": options}


def _refuse_foreign(params: dict[str, Any]) -> None:
    if params.pop("certified", False):
        raise InputError(
            "certified=True expects a router whose manifest holds a certificate; no format that this "
            "version reads has one. Use min_reward for a bound on the expected reward."
        )
    for taken in ("model", "messages"):
        if taken in params:
            raise InputError(
                f"{taken}=... is not the caller's here: give the prompt first, and name members with "
                "members=[...]"
            )
    for name in _FALLBACKS:
        if params.get(name):
            raise InputError(
                f"{name}=... is not taken: the members of the pool are fallen back on already, each hop "
                "decided anew. Name those that may serve with members=[...]"
            )


@functools.lru_cache(1_024)
def _misspelt(name: str) -> str | None:
    """Our keyword that ``name`` nearly is: sent to a provider, a cap on the cost would bind nobody."""
    begun = [ours for ours in _OUR_NAMES if ours.startswith(f"{name}_")]
    return next(iter(begun or difflib.get_close_matches(name, _OUR_NAMES, 1, LIKENESS)), None)


def _count(name: str, value: Any) -> int:
    if isinstance(value, Integral) and not isinstance(value, bool):
        count = int(value)
        if 1 <= count <= LARGEST_COUNT:
            return count
    raise InputError(f"{name}: expected a whole number from 1 to {LARGEST_COUNT}, found {described(value)}")


def _names(name: str, value: Any) -> frozenset[str]:
    names = list(value) if isinstance(value, Iterable) and not isinstance(value, str | bytes) else None
    if names is None or not all(isinstance(one, str) for one in names):
        raise InputError(f"{name}: expected a list of names, found {described(value)}")
    return frozenset(names)


def check_wishes(wishes: Wishes) -> Wishes:
    """The same wishes with every number a float, or InputError naming the one that is out of range."""
    unlimited = ("max_cost_usd", "max_latency_s", "min_reward")
    ranges: dict[str, tuple[float, float]] = {
        "willingness_to_pay_usd": (0, math.inf),
        "usd_per_second": (0, 1e9),
        "max_cost_usd": (0, 1e9),
        "max_latency_s": (0, 1e9),
        "min_reward": (0, 1),
        "exploration": (0, math.nextafter(1, 0)),
    }
    numbers = {
        name: _number(name, value, *ends)
        for name, ends in ranges.items()
        if (value := getattr(wishes, name)) is not None or name not in unlimited
    }
    if not isinstance(wishes.owned_only, bool):
        raise InputError(f"owned_only: expected True or False, found {described(wishes.owned_only)}")
    unknown = wishes.requires - set(ABILITIES)
    if unknown:
        raise InputError(
            f"requires: expected some of {', '.join(ABILITIES)}, found {described(min(unknown))}"
        )
    return dataclasses.replace(wishes, **numbers)  # type: ignore[arg-type]


def _number(name: str, value: object, low: float, high: float) -> float:
    if isinstance(value, Real) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # an int of a thousand digits
            if low <= (number := float(value)) <= high:
                return number
    end = f"to {high:g}" if high >= 1 else "to below 1"
    raise InputError(f"{name}: expected a number from {low:g} {end}, found {described(value)}")

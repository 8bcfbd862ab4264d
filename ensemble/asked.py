"""What did the caller ask for? The keywords of one call, taken apart: ours, the log's, and litellm's."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ensemble.errors import InputError
from ensemble.policy import check_wishes
from ensemble.records import Wishes

_OURS = tuple(field.name for field in dataclasses.fields(Wishes))
_SETS = ("members", "exclude", "requires")
LIMITS = ("max_tokens", "max_completion_tokens")  # litellm's two names for the longest answer


@dataclass(frozen=True)
class Asked:
    """``ours``: the wishes that were given. ``params`` go to litellm unchanged. ``usage_wanted``: of a
    stream, the caller wants the chunk that holds the usage."""

    ours: Mapping[str, Any]
    metadata: Mapping[str, Any] | None
    session: str | None
    params: Mapping[str, Any]

    @classmethod
    def of(cls, keywords: Mapping[str, Any]) -> Asked:
        """Raises InputError for keywords that can't be meant."""
        params = dict(keywords)
        metadata, session = params.pop("metadata", None), params.pop("session", None)
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
        ours = {name: params.pop(name) for name in _OURS if name in params}
        return cls(ours, metadata, session, params)

    def wishes(self, defaults: Wishes, required: frozenset[str]) -> Wishes:
        """The pool's defaults, overruled by what was given; ``required`` abilities are added.

        Raises InputError naming a wish that is out of range.
        """
        given = {name: value for name, value in self.ours.items() if value is not None}
        for name in _SETS:
            if name in given:
                if isinstance(given[name], str):
                    raise InputError(f"{name}: expected a list of names, found the string {given[name]!r}")
                given[name] = frozenset(given[name])
        given["requires"] = required | given.get("requires", frozenset())
        return check_wishes(dataclasses.replace(defaults, **given))

    @property
    def max_tokens(self) -> int | None:
        """The caller's own limit on the length of an answer, in tokens."""
        limits = (self.params.get(name) for name in LIMITS)
        return next((limit for limit in limits if isinstance(limit, int)), None)

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

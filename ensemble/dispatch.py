"""How is a member called? litellm, and the only file that calls through it.

``litellm.Router`` owns the deployments *within* a member: one model group each, balancing, cool-down,
each other deployment tried once. What happens *across* members is not decided here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ensemble.records import Member

# Where the request never reached a model, nothing was billed.
UNBILLED = (
    "AuthenticationError",
    "BadRequestError",
    "ContextWindowExceededError",
    "NotFoundError",
    "PermissionDeniedError",
    "RateLimitError",
    "ServiceUnavailableError",
    "UnsupportedParamsError",
)


@dataclass(frozen=True)
class Usage:
    """What the provider says it served; ``None`` where it doesn't say. Counts are tokens."""

    model: str | None
    input_tokens: int | None
    cached_input_tokens: int | None
    output_tokens: int | None

    def cost_usd(self, member: Member) -> float | None:
        """USD at the member's prices, a cached prefix at its discount; ``None`` without both counts."""
        if self.input_tokens is None or self.output_tokens is None:
            return None
        cached = min(self.cached_input_tokens or 0, self.input_tokens)
        price_cached = member.usd_per_million_cached_input
        if price_cached is None:
            price_cached = member.usd_per_million_input
        usd = (self.input_tokens - cached) * member.usd_per_million_input + cached * price_cached
        return (usd + self.output_tokens * member.usd_per_million_output) / 1e6


class Dispatcher:
    """Calls the members of one pool. Thread-safe; made anew after a fork (connections are not shared)."""

    def __init__(self, members: Iterable[Member]) -> None:
        os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # no network at import
        import litellm

        litellm.suppress_debug_info = True
        self._members = {member.name: member for member in members}
        deployments = [
            {"model_name": name, "litellm_params": {**deployment.params, "model": deployment.model}}
            for name, member in self._members.items()
            for deployment in member.deployments
        ]
        self._router: Any = litellm.Router(model_list=deployments, num_retries=0)
        self._missing: dict[str, str | None] = {}

    def send(self, member: str, messages: list[dict[str, Any]], params: Mapping[str, Any]) -> Any:
        """litellm's ModelResponse, or with ``stream=True`` its iterator of chunks; litellm's errors pass."""
        return self._router.completion(model=member, messages=messages, **self._with_retries(member, params))

    async def asend(self, member: str, messages: list[dict[str, Any]], params: Mapping[str, Any]) -> Any:
        """The same, awaited."""
        return await self._router.acompletion(
            model=member, messages=messages, **self._with_retries(member, params)
        )

    def _with_retries(self, member: str, params: Mapping[str, Any]) -> dict[str, Any]:
        return {"num_retries": len(self._members[member].deployments) - 1, **params}

    def missing_keys(self) -> dict[str, str]:
        """Members none of whose deployments has an API key, with what to set. Asks no provider.

        Only a missing ``..._API_KEY`` counts: clouds have other ways to sign in, which litellm finds.
        """
        for name, member in self._members.items():
            if self._missing.get(name, "unknown") is not None:  # a key may have been set since
                lacks = [_lacking_key(d.model, d.params) for d in member.deployments]
                self._missing[name] = None if None in lacks else lacks[0]
        return {name: f"no API key: set {key}" for name, key in self._missing.items() if key}


def _lacking_key(model: str, params: Mapping[str, Any]) -> str | None:
    import litellm

    if params.get("api_key") or litellm.api_key:
        return None
    try:
        missing = litellm.validate_environment(model)["missing_keys"]
    except Exception:  # a provider litellm can't tell of: the call itself will say what it needs
        return None
    if not missing or not all(str(key).endswith("_API_KEY") for key in missing):
        return None
    return None if any(os.environ.get(key) for key in missing) else " or ".join(missing)


def usage_of(reply: Any) -> Usage:
    """Of a ModelResponse or of a stream's last chunk."""
    usage = getattr(reply, "usage", None)
    details = getattr(usage, "prompt_tokens_details", None)
    return Usage(
        model=getattr(reply, "model", None),
        input_tokens=getattr(usage, "prompt_tokens", None),
        cached_input_tokens=getattr(details, "cached_tokens", None),
        output_tokens=getattr(usage, "completion_tokens", None),
    )


def answer_of(reply: Any) -> str:
    """The text of the first choice of a ModelResponse or of a chunk; empty where it has none."""
    for choice in getattr(reply, "choices", None) or []:
        part = getattr(choice, "message", None) or getattr(choice, "delta", None)
        return getattr(part, "content", None) or ""
    return ""


def ends(chunk: Any) -> bool:
    """Whether a chunk is the last with content, or comes after it."""
    choices = getattr(chunk, "choices", None) or []
    return not choices or any(getattr(choice, "finish_reason", None) for choice in choices)


def was_billed(error: BaseException) -> bool:
    """Whether a failed call may have cost something: a time-out may, a refused key may not."""
    return type(error).__name__ not in UNBILLED

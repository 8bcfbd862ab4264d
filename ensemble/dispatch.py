"""How is a member called? litellm, and the only file that calls through it.

``litellm.Router`` owns the deployments *within* a member: one model group each, balancing, cool-down, and
one more try for each deployment beyond the first, but none after a time-out: that time is gone. What
happens *across* members is not decided here.
"""

from __future__ import annotations

import functools
import os
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

from ensemble.connections import share_connections
from ensemble.log_rows import scrubbed
from ensemble.records import Member
from ensemble.replies import AsyncChunks, Chunks, with_a_choice

# Where the request never reached a model, nothing was billed.
UNBILLED = (
    "AuthenticationError",
    "BadRequestError",
    "ContextWindowExceededError",
    "NotFoundError",
    "PermissionDeniedError",
    "RateLimitError",
    "RouterRateLimitError",  # litellm's own: all deployments are cooling down, nobody was asked
    "ServiceUnavailableError",
    "UnsupportedParamsError",
)
ENVIRONMENT = "os.environ/"  # before a variable's name: litellm reads the value there
_SECRETS = ("key", "token", "secret", "password")  # how the names of such parameters end
_LEAST_SECRET = 6  # characters: a shorter one would black out plain words
TIMED_OUT = (408, 504)  # HTTP: somebody was at work on it


class Dispatcher:
    """Calls the members of one pool. Thread-safe; made anew after a fork (connections are not shared)."""

    def __init__(self, members: Iterable[Member]) -> None:
        os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # no network at import
        import litellm
        from litellm.types.router import RetryPolicy

        litellm.suppress_debug_info = True
        litellm.disable_hf_tokenizer_download = True  # to count what the provider has counted
        share_connections()
        self._members = {member.name: member for member in members}
        deployments = [
            {"model_name": name, "litellm_params": {**deployment.params, "model": deployment.model}}
            for name, member in self._members.items()
            for deployment in member.deployments
        ]
        self._router: Any = litellm.Router(
            model_list=deployments, num_retries=0, retry_policy=RetryPolicy(TimeoutErrorRetries=0)
        )
        # It hangs itself into litellm's lists: left there, each pool reloaded would slow every later call.
        weakref.finalize(self, self._router.discard).atexit = False
        self._missing: dict[str, str | None] = {}

    def send(self, member: str, messages: list[dict[str, Any]], params: Mapping[str, Any]) -> Any:
        """litellm's ModelResponse, which has a choice, or with ``stream=True`` opened Chunks.

        Raises NoAnswerError; litellm's errors pass.
        """
        reply = self._router.completion(model=member, messages=messages, **self._with_ours(member, params))
        return Chunks(reply) if params.get("stream") else with_a_choice(reply)

    async def asend(self, member: str, messages: list[dict[str, Any]], params: Mapping[str, Any]) -> Any:
        """The same, awaited; a stream comes as AsyncChunks."""
        reply = await self._router.acompletion(
            model=member, messages=messages, **self._with_ours(member, params)
        )
        return await AsyncChunks(reply).opened() if params.get("stream") else with_a_choice(reply)

    def _with_ours(self, member: str, params: Mapping[str, Any]) -> dict[str, Any]:
        # litellm's own fall-back to another group would neither be decided by us nor be written down.
        ours = {"disable_fallbacks": True}
        if params.get("tools") and _tools_need_mcp():
            ours["_skip_mcp_handler"] = True
        return {"num_retries": len(self._members[member].deployments) - 1, **params, **ours}

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

    given = params.get("api_key")
    if isinstance(given, str) and given.startswith(ENVIRONMENT):
        variable = given.removeprefix(ENVIRONMENT)
        return None if os.environ.get(variable) else variable
    if given or litellm.api_key:
        return None
    try:
        missing = litellm.validate_environment(model)["missing_keys"]
    except Exception:  # a provider litellm can't tell of: the call itself will say what it needs
        return None
    if not missing or not all(str(key).endswith("_API_KEY") for key in missing):
        return None
    return None if any(os.environ.get(key) for key in missing) else " or ".join(missing)


@functools.cache
def _tools_need_mcp() -> bool:
    """Whether litellm fails on any tool at all, since it looks for servers of tools with a module that is
    not installed."""
    try:
        import litellm.responses.mcp.chat_completions_handler  # noqa: F401
    except ModuleNotFoundError as error:
        return error.name == "mcp"
    return False


def secrets_of(member: Member, params: Mapping[str, Any]) -> list[str]:
    """The keys and passwords in a member's own parameters and in a call's, which no message may show."""
    given = [item for each in (params, *(d.params for d in member.deployments)) for item in each.items()]
    values = [value for name, value in given if name.endswith(_SECRETS) and isinstance(value, str)]
    read = [os.environ.get(value.removeprefix(ENVIRONMENT), value) for value in values]
    return [secret for secret in read if len(secret) >= _LEAST_SECRET]


def describe(error: BaseException, secrets: Iterable[str] = ()) -> str:
    """The error's class and first line, without keys: none of ``secrets``, nor what looks like one. An HTTP
    status for which litellm has no class stands before the line."""
    line = (str(error).strip().splitlines() or [""])[0]
    for secret in secrets:
        line = line.replace(secret, "[removed]")
    kind = type(error).__name__
    if kind == "APIError":
        kind += f": HTTP {getattr(error, 'status_code', None)}"
    return scrubbed(f"{kind}: {line[:300]}") or ""


def was_billed(error: BaseException) -> bool:
    """Whether a failed call may have cost something: one that timed out or broke off may, one that the
    provider answered with an error may not."""
    if type(error).__name__ in UNBILLED:
        return False
    refused = getattr(error, "litellm_response_headers", None) is not None
    return not refused or getattr(error, "status_code", None) in TIMED_OUT

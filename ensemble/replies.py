"""What has come back from a member, whole or in pieces, and what does the provider say that it served?

Replies are litellm's: a ModelResponse, or its chunks of a stream.
"""

from __future__ import annotations

import contextlib
import socket
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ensemble.records import Member

MOST = 1e9  # tokens, or USD, of one reply: who says more says nothing


@dataclass(frozen=True)
class Usage:
    """What the provider says it served, and at what price; ``None`` where it says nothing. Counts: tokens."""

    model: str | None
    input_tokens: int | None
    cached_input_tokens: int | None
    output_tokens: int | None
    told_usd: float | None = None

    def cost_usd(self, member: Member) -> float | None:
        """USD at the member's prices, a cached prefix at its discount; ``None`` without both counts. What a
        provider asks for writing to its cache beyond the plain price is not in it."""
        if self.input_tokens is None or self.output_tokens is None:
            return None
        cached = min(self.cached_input_tokens or 0, self.input_tokens)
        price_cached = member.usd_per_million_cached_input
        if price_cached is None:
            price_cached = member.usd_per_million_input
        usd = (self.input_tokens - cached) * member.usd_per_million_input + cached * price_cached
        return (usd + self.output_tokens * member.usd_per_million_output) / 1e6


UNTOLD = Usage(None, None, None, None)


class NoAnswerError(ValueError):
    """A member replied, and nothing was in the reply: one failed attempt among others. ``usage``: what the
    provider says it served all the same."""

    def __init__(self, message: str, usage: Usage = UNTOLD) -> None:
        super().__init__(message)
        self.usage = usage


class _Pieces:
    """litellm's chunks of one stream, drawn as far as the first that brings something: until then
    another member can still take over."""

    def __init__(self, chunks: Any) -> None:
        self._chunks, self._drawn = chunks, deque[Any]()
        self._provider = self._response = None

    def usage_of(self, chunk: Any) -> Usage:
        """What the provider says in this chunk. Where it says nothing litellm counts by itself in the last
        one: that is no more than a guess, and none here."""
        usage, seen = usage_of(chunk), getattr(self._provider, "chunks", None)
        if usage.input_tokens is None or not isinstance(seen, list):
            return usage
        told = any(getattr(one, "usage", None) is not None for one in seen)
        return usage if told else replace(UNTOLD, model=usage.model)

    def _begins(self, chunk: Any) -> bool:
        """Keep a chunk; whether the answer has begun with it."""
        if self._provider is None:
            self._provider = _provider_of(self._chunks)
            self._response = _response_of(self._provider)
        self._drawn.append(chunk)
        return brings(chunk)

    def _expect_usage(self) -> None:
        # An answer may be empty if the provider says what it cost; a body that is none ends up here too.
        if all(self.usage_of(chunk).input_tokens is None for chunk in self._drawn):
            raise NoAnswerError("expected a stream with an answer or at least its usage, found neither")


class Chunks(_Pieces):
    """For ``for``. Raises NoAnswerError for a stream with nothing in it."""

    def __init__(self, chunks: Iterator[Any]) -> None:
        super().__init__(iter(chunks))
        for chunk in self._chunks:
            if self._begins(chunk):
                return
        self._expect_usage()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self._drawn.popleft() if self._drawn else next(self._chunks)

    def close(self) -> None:
        """Let the connection go, so that the provider stops answering, and wake whoever waits for it."""
        # litellm's wrapper cannot be closed; what it reads can.
        line = _line_of(self._response)
        if isinstance(line, socket.socket):
            with contextlib.suppress(OSError):  # it is closed already
                line.shutdown(socket.SHUT_RDWR)
        if callable(close := getattr(self._response, "close", None)):
            with contextlib.suppress(ValueError):  # a generator that another thread reads right now
                close()


class AsyncChunks(_Pieces):
    """The same for ``async for``, once ``opened``."""

    def __init__(self, chunks: AsyncIterator[Any]) -> None:
        super().__init__(aiter(chunks))

    async def opened(self) -> AsyncChunks:
        try:
            async for chunk in self._chunks:
                if self._begins(chunk):
                    return self
            self._expect_usage()
        except BaseException:  # a cancelled task too must not leave the connection behind
            await self.aclose()
            raise
        return self

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        return self._drawn.popleft() if self._drawn else await anext(self._chunks)

    async def aclose(self) -> None:
        for one in (self._chunks, self._response):  # closing the first doesn't reach the other for everyone
            if callable(aclose := getattr(one, "aclose", None)):
                with contextlib.suppress(RuntimeError):  # a generator that another task reads right now
                    await aclose()


def _line_of(response: Any) -> Any:
    """The socket of an httpx response, while it serves that one alone."""
    facts = getattr(response, "extensions", {})
    if getattr(response, "is_closed", True) or facts.get("http_version") == b"HTTP/2":
        return None
    network = facts.get("network_stream")
    return None if network is None else network.get_extra_info("socket")


def _provider_of(chunks: Any) -> Any:
    """litellm's own reading of the provider's stream, which its router hides in a generator."""
    return _locals(getattr(chunks, "completion_stream", None)).get("model_response", chunks)


def _response_of(provider: Any) -> Any:
    """The httpx response that it is read from: openai's stream holds it, litellm's own ones read a generator
    of its lines, or of its bytes through another. The stream itself where none is found."""
    stream = getattr(provider, "completion_stream", None)
    lines = getattr(stream, "streaming_response", stream)
    lines = _locals(lines).get("iterator", lines)
    held = (getattr(stream, "response", None), _locals(lines).get("self"))
    return next((one for one in held if hasattr(one, "is_closed")), stream)


def _locals(generator: Any) -> Mapping[str, Any]:
    """What a generator, awaited or not, that hasn't ended works on; of anything else nothing."""
    frame = getattr(generator, "gi_frame", None) or getattr(generator, "ag_frame", None)
    return {} if frame is None else frame.f_locals


def brings(chunk: Any) -> bool:
    """Whether a chunk holds part of an answer; an opening one only names the role."""
    deltas = (getattr(choice, "delta", None) for choice in getattr(chunk, "choices", None) or [])
    return any(any(delta.model_dump(exclude={"role"}).values()) for delta in deltas if delta is not None)


def with_a_choice(reply: Any) -> Any:
    """The same ModelResponse. Raises NoAnswerError if there is no answer in it."""
    if not getattr(reply, "choices", None):
        raise NoAnswerError("expected a reply with at least one choice, found none", usage_of(reply))
    return reply


def usage_of(reply: Any) -> Usage:
    """Of a ModelResponse or of a chunk; where the provider told nothing litellm says 0. Counts below 0, or
    beyond MOST, tell nothing either."""
    usage = getattr(reply, "usage", None)
    counts = getattr(usage, "prompt_tokens", None) or 0, getattr(usage, "completion_tokens", None) or 0
    told = 0 < counts[0] <= MOST and 0 <= counts[1] <= MOST
    cached = getattr(getattr(usage, "prompt_tokens_details", None), "cached_tokens", None)
    return Usage(
        model=getattr(reply, "model", None),
        input_tokens=counts[0] if told else None,
        cached_input_tokens=min(max(0, cached), counts[0]) if told and cached is not None else None,
        output_tokens=counts[1] if told else None,
        told_usd=_told_usd(usage),
    )


def _told_usd(usage: Any) -> float | None:
    usd = getattr(usage, "cost", None)
    return float(usd) if isinstance(usd, int | float) and 0 <= usd <= MOST else None


def answer_of(reply: Any) -> str:
    """The text of the first choice of a ModelResponse, or what a chunk adds to it; empty for none."""
    for choice in getattr(reply, "choices", None) or []:
        if not getattr(choice, "index", 0):
            part = getattr(choice, "message", None) or getattr(choice, "delta", None)
            return getattr(part, "content", None) or ""
    return ""


def finishes(chunk: Any) -> bool:
    """Whether a chunk says that a choice is complete."""
    return any(getattr(choice, "finish_reason", None) for choice in getattr(chunk, "choices", None) or [])

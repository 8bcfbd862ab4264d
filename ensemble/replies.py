"""What has come back from a member, whole or in pieces, and what does the provider say that it served?

Replies are litellm's: a ModelResponse, or its chunks of a stream.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import socket
from collections import deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from typing import Any

from ensemble.records import Member


@dataclass(frozen=True)
class Usage:
    """What the provider says it served, and at what price; ``None`` where it says nothing. Counts: tokens."""

    model: str | None
    input_tokens: int | None
    cached_input_tokens: int | None
    output_tokens: int | None
    told_usd: float | None = None

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
        self._chunks, self._drawn, self._provider = chunks, deque[Any](), None

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
        self._provider = self._provider or _provider_of(self._chunks)
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
        # litellm's wrapper cannot be closed; the stream in it can.
        stream = getattr(self._provider, "completion_stream", None)
        line = _line_of(getattr(stream, "response", None))
        if isinstance(line, socket.socket):
            with contextlib.suppress(OSError):  # it is closed already
                line.shutdown(socket.SHUT_RDWR)
        if callable(close := getattr(stream, "close", None)):
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
        if callable(aclose := getattr(self._chunks, "aclose", None)):
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
    generator = getattr(chunks, "completion_stream", None)
    if inspect.isgenerator(generator):
        return inspect.getgeneratorlocals(generator).get("model_response")
    return chunks


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
    """Of a ModelResponse or of a chunk; where the provider told nothing litellm says 0. Counts below 0 tell
    nothing either."""
    usage = getattr(reply, "usage", None)
    counts = getattr(usage, "prompt_tokens", None) or 0, getattr(usage, "completion_tokens", None) or 0
    told = counts[0] > 0 and counts[1] >= 0
    cached = getattr(getattr(usage, "prompt_tokens_details", None), "cached_tokens", None)
    return Usage(
        model=getattr(reply, "model", None),
        input_tokens=counts[0] if told else None,
        cached_input_tokens=None if cached is None else max(0, cached),
        output_tokens=counts[1] if told else None,
        told_usd=_told_usd(usage),
    )


def _told_usd(usage: Any) -> float | None:
    usd = getattr(usage, "cost", None)
    return float(usd) if isinstance(usd, int | float) and 0 <= usd < math.inf else None


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

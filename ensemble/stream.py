"""A streamed answer on its way to the caller: passed on as it comes, written down before it ends.

Chunks with content go through at once. From the first chunk that says the answer is finished, the
rest is drawn in (the usage follows it), the outcome is written, and only then is it handed over.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from ensemble.dispatch import Usage, answer_of, ends, usage_of
from ensemble.hops import Call
from ensemble.records import Decision


class _Tally:
    """What has come so far, and what may be passed on."""

    def __init__(self, call: Call, usage_wanted: bool) -> None:
        self.call, self._usage_wanted = call, usage_wanted
        self._answer: list[str] = []
        self._held: list[Any] = []
        self._usage = Usage(None, None, None, None)
        self._first_token_s: float | None = None
        self.closed = False

    def take(self, chunk: Any) -> bool:
        """Note a chunk; True if it may be passed on at once."""
        text = answer_of(chunk)
        if text and self._first_token_s is None:
            self._first_token_s = self.call.clock() - self.call.began
        self._answer.append(text)
        usage = usage_of(chunk)
        if usage.input_tokens is not None or self._usage.model is None:
            self._usage = usage
        if not self._held and not ends(chunk):
            return True
        only_usage = usage.input_tokens is not None and not text and not _finishes(chunk)
        if self._usage_wanted or not only_usage:
            self._held.append(chunk)
        return False

    def finish(self) -> list[Any]:
        """Write the outcome; returns the chunks held back."""
        self.closed = True
        self.call.finish(self._usage, "".join(self._answer), self._first_token_s)
        return self._held

    def break_off(self, error: BaseException | None) -> BaseException | None:
        if self.closed:
            return None
        self.closed = True
        return self.call.break_off(error, "".join(self._answer))


def _finishes(chunk: Any) -> bool:
    return any(getattr(choice, "finish_reason", None) for choice in chunk.choices)


class RoutedStream:
    """litellm's chunks, with ``decision`` beside them. Closing it early is written down as such."""

    def __init__(self, call: Call, first: Any, rest: Iterator[Any], usage_wanted: bool) -> None:
        self.decision: Decision = call.decision
        self._tally = _Tally(call, usage_wanted)
        self._chunks = self._run(first, rest)

    def _run(self, first: Any, rest: Iterator[Any]) -> Iterator[Any]:
        try:
            for chunk in _chain(first, rest):
                if self._tally.take(chunk):
                    yield chunk
        except Exception as error:
            raise self._tally.break_off(error) or error from error
        yield from self._tally.finish()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return next(self._chunks)

    def close(self) -> None:
        """Stop reading. What the rest would have cost is not known: an upper bound is written down."""
        self._tally.break_off(None)

    def __enter__(self) -> RoutedStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class AsyncRoutedStream:
    """The same for ``async for``."""

    def __init__(self, call: Call, first: Any, rest: AsyncIterator[Any], usage_wanted: bool) -> None:
        self.decision: Decision = call.decision
        self._tally = _Tally(call, usage_wanted)
        self._chunks = self._run(first, rest)

    async def _run(self, first: Any, rest: AsyncIterator[Any]) -> AsyncIterator[Any]:
        try:
            if first is not None and self._tally.take(first):
                yield first
            async for chunk in rest:
                if self._tally.take(chunk):
                    yield chunk
        except Exception as error:
            raise self._tally.break_off(error) or error from error
        for chunk in self._tally.finish():
            yield chunk

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        return await self._chunks.__anext__()

    async def aclose(self) -> None:
        """Stop reading; written down as in ``RoutedStream.close``."""
        self._tally.break_off(None)

    def __del__(self) -> None:
        self._tally.break_off(None)


def _chain(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    if first is not None:
        yield first
    yield from rest

"""What the tests of serving share: a local provider, three members there, an ``Ensemble`` over them, its log.

The members' prices lie so far apart that at a dial of 0 their order is plain, whatever the router expects.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ensemble.engine import Ensemble
from ensemble.outcomes import OutcomeLog
from ensemble.pool import Pool
from ensemble.records import Member
from ensemble.router import Router
from local_provider import LocalProvider

# litellm's own types make pydantic complain; as errors the complaints would break off its streams.
QUIET = [
    pytest.mark.filterwarnings("ignore::UserWarning:pydantic"),
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning"),
]
KEY = "sekret-1234567890"
CHEAP, MIDDLE, DEAR = MEMBERS = (
    "Meta-Llama-3.1-8B-Instruct",
    "gpt-4o-mini-2024-07-18",
    "claude-3-5-sonnet-20241022",
)
PRICES = {CHEAP: (0.1, 0.2), MIDDLE: (10.0, 20.0), DEAR: (1000.0, 2000.0)}  # USD per million tokens
PROMPT = "What is the capital of Norway? Answer in one word, please."
MOST_INPUT = len(PROMPT) + 16  # tokens: one for each byte, and what a template may add


@functools.cache
def default_router() -> Router:
    """Opened once for all tests."""
    return Router.load()


class Line:
    """``ask`` sends PROMPT at a dial of 0, so that CHEAP is asked first, then MIDDLE, then DEAR."""

    def __init__(self, provider: LocalProvider, place: Path, **settings: Any) -> None:
        self.provider = provider
        for name in MEMBERS:
            provider.behave(name, f"Oslo, says {name}.")
        given = {"router": default_router(), "pool": Pool([self.member(n) for n in MEMBERS]), "log": place}
        self.ensemble = Ensemble(**{**given, **settings})

    def member(self, name: str, **facts: Any) -> Member:
        return self.provider.member(name, *PRICES[name], **{"context_window": 100_000, **facts})

    def ask(self, prompt: Any = PROMPT, **keywords: Any) -> Any:
        return self.ensemble.complete(prompt, **{"willingness_to_pay_usd": 0, **keywords})

    async def aask(self, prompt: Any = PROMPT, **keywords: Any) -> Any:
        return await self.ensemble.acomplete(prompt, **{"willingness_to_pay_usd": 0, **keywords})

    @property
    def log(self) -> OutcomeLog:
        assert self.ensemble.log is not None
        return self.ensemble.log

    def row(self, of: Any) -> dict[str, Any]:
        """All that the log holds on a reply, a stream, an error, or a decision's id."""
        decision = getattr(of, "decision", None)
        row = self.log.decision(decision.id if decision else getattr(of, "decision_id", of))
        assert row is not None
        return row

    def rows(self) -> list[dict[str, Any]]:
        return list(self.log.rows())

    def attempts(self, of: Any) -> list[tuple[str, str, str | None]]:
        """(member, reason, error's class) in order."""
        found = [(a["member"], a["reason"], a["error"]) for a in self.row(of)["attempts"]]
        return [(member, reason, error and error.split(":")[0]) for member, reason, error in found]

    @property
    def asked(self) -> list[str]:
        """Whom the provider was asked for, in order."""
        return [request["model"] for request in self.provider.requests]


@contextlib.contextmanager
def open_line(folder: Path, **settings: Any) -> Iterator[Line]:
    with LocalProvider(api_key=KEY) as provider:
        line = Line(provider, folder / "log.db", **settings)
        with line.ensemble:
            yield line
    for thread in threading.enumerate():  # calls that lost a race, or their deadline, end with the provider
        if thread.name == "ensemble-call":
            thread.join(5)


def said(reply: Any) -> str:
    return str(reply.choices[0].message.content)


def text_of(chunks: Any) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def waited(line: Line, stream: bool = False, **keywords: Any) -> tuple[Any, str]:
    """A reply and its text."""
    reply = line.ask(stream=stream, **keywords)
    return reply, text_of(reply) if stream else said(reply)


async def read(line: Line, stream: bool = False, **keywords: Any) -> tuple[Any, str]:
    """The same by asyncio."""
    reply = await line.aask(stream=stream, **keywords)
    return reply, text_of([chunk async for chunk in reply]) if stream else said(reply)


def awaited(line: Line, stream: bool = False, **keywords: Any) -> tuple[Any, str]:
    return asyncio.run(read(line, stream, **keywords))


Ask = Callable[..., tuple[Any, str]]
each_way = pytest.mark.parametrize("ask", [waited, awaited])
streamed_or_not = pytest.mark.parametrize("stream", [False, True])


def usd(member: str, input_tokens: float, output_tokens: float) -> float:
    price_in, price_out = PRICES[member]
    return (input_tokens * price_in + output_tokens * price_out) / 1e6

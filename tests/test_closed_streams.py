"""Who leaves a stream lets the provider stop writing, also one whose stream litellm reads by itself."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ensemble.errors import StreamBrokenError
from ensemble.pool import Pool
from local_provider import LocalProvider, Say
from serving_cases import CHEAP, KEY, PRICES, QUIET, Line

pytestmark = QUIET
SIGNS_OF_LIFE = Say(chunks=["Oslo", *[""] * 500], chunk_delay_s=0.02)  # ten seconds
SILENCE = Say(chunks=["Oslo"], chunk_delay_s=10.0)


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    with LocalProvider(api_key=KEY) as provider:
        member = provider.member(CHEAP, *PRICES[CHEAP], like="anthropic", context_window=100_000)
        line = Line(provider, tmp_path / "log.db", pool=Pool([member]))
        with line.ensemble:
            yield line


def left_alone(line: Line) -> bool:
    """Whether the provider was still at it when the reader left, and has noticed."""
    while line.provider._at_once:
        time.sleep(0.01)
    return not line.provider.requests[-1]["whole"]


def test_a_stream_is_read_to_its_end(line: Line) -> None:
    line.provider.behave(CHEAP, Say("one two", chunks=["one ", "", "two"]))
    texts = [chunk.choices[0].delta.content or "" for chunk in line.ask(stream=True)]
    assert "".join(texts) == "one two" and line.provider.requests[-1]["whole"]
    assert not line.rows()[0]["cost_is_estimated"]


def test_a_provider_notices_that_its_reader_has_left(line: Line) -> None:
    line.provider.behave(CHEAP, SIGNS_OF_LIFE)
    with line.ask(stream=True) as stream:
        next(stream)
    assert left_alone(line)


def test_a_provider_notices_that_its_reader_by_asyncio_has_left(line: Line) -> None:
    async def read() -> None:
        async with await line.aask(stream=True) as stream:
            await anext(stream)
        assert await asyncio.to_thread(left_alone, line)

    line.provider.behave(CHEAP, SIGNS_OF_LIFE)
    asyncio.run(read())


@pytest.mark.parametrize("talk", [SIGNS_OF_LIFE, SILENCE])
def test_a_deadline_ends_it(line: Line, talk: Say) -> None:
    list(line.ask(stream=True))  # what is opened on first use takes its own time
    line.provider.behave(CHEAP, talk)
    with pytest.raises(StreamBrokenError, match="deadline has passed"):
        list(line.ask(stream=True, max_latency_s=1.0))
    assert not line.provider.requests[-1]["whole"]


@pytest.mark.parametrize("talk", [SIGNS_OF_LIFE, SILENCE])
def test_a_deadline_ends_it_by_asyncio(line: Line, talk: Say) -> None:
    async def read(**limits: float) -> None:
        async for _ in await line.aask(stream=True, **limits):
            pass

    asyncio.run(read())
    line.provider.behave(CHEAP, talk)
    with pytest.raises(StreamBrokenError, match="deadline has passed"):
        asyncio.run(read(max_latency_s=1.0))
    assert not line.provider.requests[-1]["whole"]


FORKED = """
import os, sys
from pathlib import Path
from local_provider import LocalProvider, Say
from serving_cases import CHEAP, Line, text_of
provider = LocalProvider().start()
line = Line(provider, Path(sys.argv[1]) / "log.db")
provider.behave(CHEAP, Say("one two three", chunk_delay_s=0.2))
stream = line.ask(stream=True)
opening = next(stream)
child = os.fork()
if child == 0:
    sys.exit()
assert os.waitpid(child, 0)[1] == 0
print(text_of([opening, *stream]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system knows no fork")
def test_a_forked_child_that_exits_leaves_its_parents_stream_alone(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKED, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "one two three\n"), done.stderr

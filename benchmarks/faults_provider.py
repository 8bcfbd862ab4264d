"""A provider that fails on purpose, on this machine's loopback, in a process of its own, and keeps its bill.

    python -m benchmarks.faults_provider --flaky MODEL --share 0.3 [--seed S] [--port P]

prints its port and answers chat completions until its standard input ends. Of the requests for a model named
by ``--flaky`` a share gets one of FAULTS, drawn from the seed, the model and the prompt: the same run has the
same faults. A prompt begins with its tag, a word of its own. ``GET /bill`` tells of every request what became
of it and what it costs; what a provider has worked on is billed, though nobody heard of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import math
import random
import socket
import struct
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import click

CHARACTERS_PER_TOKEN, TEMPLATE_TOKENS = 4, 8
MOST_TOKENS = 64  # of an answer; a model's max_output_tokens
SLOW_S, PAUSE_S, PAUSES = 1.2, 0.5, 6  # how much later a slow answer comes; a slow stream's pauses
CHUNKS = 6  # of a stream
REFUSALS: dict[str, tuple[int, str, str]] = {  # status, type and message: nothing was worked on
    "429": (429, "rate_limit_error", "Rate limit reached"),
    "500": (500, "server_error", "The server had an error"),
    "503": (503, "server_error", "The engine is overloaded"),
    "expired key": (401, "invalid_request_error", "Your key has expired"),
    "content filter": (400, "content_filter", "The response was filtered by the content management policy"),
}
ANY = ("reset", "slow", "malformed JSON", "wrong content type", "empty choices", "wrong model")  # answers
STREAMED = ("slow stream", "cut stream")  # of streams only
FAULTS = (*REFUSALS, *ANY, *STREAMED)
RARE, RARELY = "expired key", 1e-3  # of requests: litellm leaves a deployment alone for seconds after one


@dataclass
class Provider:
    """What is asked, what comes of it, what it costs. ``share`` in [0, 1] of the ``flaky`` models' requests
    goes wrong; ``delay_s`` passes before anything is said."""

    flaky: Sequence[str]
    share: float
    seed: int
    delay_s: float = 0.0
    bill: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._serial = itertools.count()

    def take(self, body: dict[str, Any]) -> dict[str, Any]:
        """The line of the bill for one request; ``fault`` is "" for none."""
        prompt = "".join(str(message.get("content")) for message in body["messages"])
        tag, model, stream = prompt.split()[0], body["model"], bool(body.get("stream"))
        rng, fault = random.Random(f"{self.seed} {tag} {model}"), ""
        if model in self.flaky:
            fault = _drawn(rng, self.share, stream)
        limit = min(body.get("max_tokens") or body.get("max_completion_tokens") or MOST_TOKENS, MOST_TOKENS)
        line = {
            "tag": tag,
            "model": model,
            "fault": fault,
            "stream": stream,
            "serial": next(self._serial),  # in the answer: which one reached the caller
            "input_tokens": TEMPLATE_TOKENS + math.ceil(len(prompt) / CHARACTERS_PER_TOKEN),
            "output_tokens": rng.choice([limit, rng.randint(1, limit)]),  # often cut at the limit
            "billed": fault not in REFUSALS,
            "whole": False,  # all of a good answer was sent
        }
        self.bill.append(line)
        return line

    async def reply(self, line: dict[str, Any], body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        fault = line["fault"]
        await asyncio.sleep(self.delay_s if fault not in REFUSALS else 0)
        if fault in REFUSALS:
            return _refuse(writer, *REFUSALS[fault])
        if fault == "reset":
            return reset(writer)
        if fault == "slow":
            await asyncio.sleep(SLOW_S)
        if fault == "malformed JSON":
            _send(writer, 200, b'{"id": "cut off he')
        elif fault == "wrong content type":
            _send(writer, 200, b"<html>Please log in.</html>", "text/html")
        elif line["stream"] and fault != "empty choices":
            await _stream(writer, line, bool((body.get("stream_options") or {}).get("include_usage")))
        else:
            _send(writer, 200, json.dumps(_whole(line)).encode())
            await writer.drain()
        line["whole"] = fault in ("", "slow", "slow stream", "wrong model")


def _drawn(rng: random.Random, share: float, stream: bool) -> str:
    chance = rng.random()
    if chance < min(RARELY, share):
        return RARE
    common = [fault for fault in FAULTS if fault != RARE and (stream or fault not in STREAMED)]
    return rng.choice(common) if chance < share else ""


def text_of(line: dict[str, Any]) -> str:
    """An answer that names its line of the bill."""
    return f"{line['tag']} {line['serial']} as asked"


def _named(line: dict[str, Any]) -> dict[str, Any]:
    model = "somebody-else" if line["fault"] == "wrong model" else line["model"]
    return {"id": f"faults-{line['serial']}", "created": 0, "model": model}


def _usage(line: dict[str, Any]) -> dict[str, Any]:
    told, out = line["input_tokens"], line["output_tokens"]
    return {"prompt_tokens": told, "completion_tokens": out, "total_tokens": told + out}


def _whole(line: dict[str, Any]) -> dict[str, Any]:
    message = {"role": "assistant", "content": text_of(line)}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    return {
        **_named(line),
        "object": "chat.completion",
        "choices": [] if line["fault"] == "empty choices" else choices,
        "usage": _usage(line),
    }


async def _stream(writer: asyncio.StreamWriter, line: dict[str, Any], usage_wanted: bool) -> None:
    def event(choices: list[Any], **more: Any) -> None:
        chunk = {**_named(line), "object": "chat.completion.chunk", "choices": choices, **more}
        _chunk(writer, f"data: {json.dumps(chunk)}\n\n".encode())

    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
    text = text_of(line)
    for i, part in enumerate(_parts(text)):
        event([{"index": 0, "delta": {"role": "assistant", "content": part}, "finish_reason": None}])
        await writer.drain()
        if line["fault"] == "slow stream" and i < PAUSES:
            await asyncio.sleep(PAUSE_S)
        if line["fault"] == "cut stream" and i == CHUNKS // 2:
            return reset(writer)
    event([{"index": 0, "delta": {}, "finish_reason": "stop"}])
    if usage_wanted:
        event([], usage=_usage(line))
    _chunk(writer, b"data: [DONE]\n\n")
    _chunk(writer, b"")
    await writer.drain()


def _parts(text: str) -> list[str]:
    size = math.ceil(len(text) / CHUNKS)
    return [text[i : i + size] for i in range(0, len(text), size)]


def _chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")


def _send(
    writer: asyncio.StreamWriter, status: int, body: bytes, kind: str = "application/json", more: str = ""
) -> None:
    head = f"HTTP/1.1 {status} So\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n{more}\r\n"
    writer.write(head.encode() + body)


def _refuse(writer: asyncio.StreamWriter, status: int, kind: str, message: str) -> None:
    error = {"message": message, "type": kind, "param": None, "code": kind}
    more = "retry-after: 1\r\n" if status == 429 else ""
    _send(writer, status, json.dumps({"error": error}).encode(), more=more)


def reset(writer: asyncio.StreamWriter) -> None:
    """End the connection with a RST, as a crashed host would."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def serve(provider: Provider, port: int) -> None:
    """Print the port, then answer until standard input ends."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        gone = (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError)
        with contextlib.suppress(*gone):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                if head.startswith("get "):
                    _send(writer, 200, json.dumps(provider.bill).encode())
                else:
                    length = int(head.partition("content-length:")[2].partition("\r\n")[0])
                    body = json.loads(await reader.readexactly(length))
                    await provider.reply(provider.take(body), body, writer)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", port, backlog=256)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    server.close()


@dataclass
class Started:
    """A provider's process; ``base`` is its URL, ``port`` stays the same when it is started anew."""

    process: subprocess.Popen[str]
    port: int

    @property
    def base(self) -> str:
        """For litellm's ``api_base``."""
        return f"http://127.0.0.1:{self.port}/v1"

    def bill(self) -> list[dict[str, Any]]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/bill", timeout=30) as reply:
            return list(json.load(reply))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


def start(
    *, flaky: Sequence[str] = (), share: float = 0.0, seed: int = 0, delay_s: float = 0.0, port: int = 0
) -> Started:
    """Who starts it ends it with ``kill``; it does not outlive this process."""
    flags = [flag for model in flaky for flag in ("--flaky", model)]
    given = {"share": share, "seed": seed, "delay-s": delay_s, "port": port}
    numbers = [f"--{name}={value}" for name, value in given.items()]
    command = [sys.executable, "-m", "benchmarks.faults_provider", *flags, *numbers]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return Started(process, int(process.stdout.readline()))


@contextlib.contextmanager
def provider(
    *, flaky: Sequence[str] = (), share: float = 0.0, seed: int = 0, delay_s: float = 0.0
) -> Iterator[Started]:
    """One that is served until the end of the block."""
    started = start(flaky=flaky, share=share, seed=seed, delay_s=delay_s)
    try:
        yield started
    finally:
        started.kill()


@click.command(help=__doc__)
@click.option("--flaky", multiple=True)
@click.option("--share", default=0.0)
@click.option("--seed", default=0)
@click.option("--delay-s", default=0.0)
@click.option("--port", default=0)
def main(flaky: Sequence[str], share: float, seed: int, delay_s: float, port: int) -> None:
    asyncio.run(serve(Provider(flaky, share, seed, delay_s), port))


if __name__ == "__main__":
    main()

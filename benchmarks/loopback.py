"""A provider on this machine's loopback, in a process of its own, so that its work is not in our interpreter.

    python -m benchmarks.loopback

prints its port and answers every chat completion with the same few words, until its standard input ends: it
does not outlive whoever started it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator

ANSWER = {
    "id": "loopback",
    "object": "chat.completion",
    "created": 0,
    "model": "loopback",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "As asked."}, "finish_reason": "stop"}
    ],
    "usage": {"prompt_tokens": 64, "completion_tokens": 3, "total_tokens": 67},
}


@contextlib.contextmanager
def loopback() -> Iterator[str]:
    """The base URL of a provider that is served until the end of the block; for litellm's ``api_base``."""
    command = [sys.executable, "-m", "benchmarks.loopback"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None and server.stdin is not None
        try:
            yield f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
        finally:
            server.stdin.close()


async def serve() -> None:
    """Print the port, then answer until standard input ends."""
    server = await asyncio.start_server(_answer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    server.close()


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Requests of one connection, one after the other, as long as it stays open."""
    body = json.dumps(ANSWER).encode()
    head = (
        f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    )
    gone = (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError)  # the client, or the server
    with contextlib.suppress(*gone):
        while True:
            request = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            _, _, rest = request.partition("content-length:")
            await reader.readexactly(int(rest.partition("\r\n")[0]))
            writer.write(head + body)
            await writer.drain()
    writer.close()


if __name__ == "__main__":
    asyncio.run(serve())

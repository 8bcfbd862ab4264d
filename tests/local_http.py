"""How a local provider replies: the steps a test scripts, and the HTTP that they become."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from local_provider import LocalProvider

LARGEST_BODY = 16_000_000  # bytes
LONGEST_S = 30.0  # no delay is longer


@dataclass(frozen=True)
class Say:
    """An answer. With ``stream`` it comes in ``chunks`` (``None``: word by word).

    Tokens are counted unless given, and then ``max_tokens`` doesn't bind. ``usage=False`` tells no
    counts. ``break_after`` resets the connection after so many chunks of text.
    """

    text: str = "ok"
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int = 0
    usage: bool = True
    delay_s: float = 0.0  # before the first byte
    chunks: Sequence[str] | None = None
    chunk_delay_s: float = 0.0
    break_after: int | None = None
    served: str | None = None  # the model's name in the reply; None: as asked
    message: Mapping[str, Any] = field(default_factory=dict)  # more of the message, such as tool_calls


@dataclass(frozen=True)
class Fail:
    """An error in OpenAI's form."""

    status: int = 500
    message: str = "the server had an error"
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    billed: bool = False


@dataclass(frozen=True)
class Raw:
    """A body as it stands, such as JSON that is none."""

    body: str = '{"id": "cut off he'
    status: int = 200
    content_type: str = "application/json"
    delay_s: float = 0.0


@dataclass(frozen=True)
class Reset:
    """The connection is reset without a word."""

    delay_s: float = 0.0


Step = str | Say | Fail | Raw | Reset


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, provider: LocalProvider) -> None:
        self.provider = provider
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request(self, *connection: Any) -> None:
        self.provider.connections += 1
        super().process_request(*connection)

    def handle_error(self, *_: Any) -> None:
        """A client that went away is none of the test's business."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = LONGEST_S  # of an idle connection
    disable_nagle_algorithm = True
    server: Server

    def log_message(self, *_: Any) -> None:
        """Tests are quiet."""

    def do_POST(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        if length > LARGEST_BODY:
            return self._error(Fail(413, f"more than {LARGEST_BODY:,} bytes"))
        body = self.rfile.read(length)
        if not self.path.endswith(("/chat/completions", "/messages")):
            return self._error(Fail(404, f"no such path: {self.path}"))
        try:
            params = dict(json.loads(body))
            known = {"model": params.pop("model"), "messages": params.pop("messages")}
        except (ValueError, TypeError, KeyError) as error:
            return self._error(Fail(400, f"not a request: {error!r}"))
        headers = {name.lower(): value for name, value in self.headers.items()}
        billed = {"input_tokens": 0, "output_tokens": 0, "cached_tokens": 0, "billed": False}
        request = {
            **known,
            "params": params,
            "headers": headers,
            "at": time.monotonic(),
            "status": None,
            "whole": False,
            **billed,
        }
        with self.server.provider.place():
            self._answer(request, self.server.provider.take(request))

    def _answer(self, request: dict[str, Any], step: Step) -> None:
        assert not isinstance(step, str)
        self.server.provider.wait(step.delay_s)
        if isinstance(step, Reset):
            return self._reset()
        if isinstance(step, Fail):
            self.server.provider.note(request, status=step.status, billed=step.billed)
            return self._error(step)
        self.server.provider.note(request, status=step.status if isinstance(step, Raw) else 200)
        if isinstance(step, Raw):
            return self._send(step.status, step.body.encode(), {"content-type": step.content_type})
        if self.path.endswith("/messages"):
            return self._messages(request, step)
        if request["params"].get("stream"):
            return self._stream(request, step)
        message = {"role": "assistant", "content": step.text, **step.message}
        choice = {"index": 0, "message": message, "finish_reason": _ending(request, step)}
        reply = {**_opening(request, step, "chat.completion"), "choices": [choice]}
        self._json(200, {**reply, **({"usage": _usage(request)} if step.usage else {})})

    def _stream(self, request: dict[str, Any], step: Say) -> None:
        opening = _opening(request, step, "chat.completion.chunk")
        self._begin_stream()

        def event(choices: list[dict[str, Any]], **more: Any) -> None:
            self._write(f"data: {json.dumps({**opening, 'choices': choices, **more})}\n\n")

        def delta(content: dict[str, Any], ending: str | None = None) -> list[dict[str, Any]]:
            return [{"index": 0, "delta": content, "finish_reason": ending}]

        event(delta({"role": "assistant", "content": ""}))
        pieces = step.chunks if step.chunks is not None else _words(step.text)
        for number, piece in enumerate(pieces):
            if number == step.break_after:
                return self._reset()
            event(delta({"content": piece}))
            self.server.provider.wait(step.chunk_delay_s)
        if step.break_after is not None:
            return self._reset()
        self.server.provider.note(request, whole=True)  # before whoever reads it can know
        event(delta(dict(step.message), _ending(request, step)))
        if step.usage and (request["params"].get("stream_options") or {}).get("include_usage"):
            event([], usage=_usage(request))
        self._write("data: [DONE]\n\n")
        self._write("")

    def _messages(self, request: dict[str, Any], step: Say) -> None:
        """A stream as Anthropic has it, where an empty chunk is but a sign of life."""
        usage = {name: request[name] for name in ("input_tokens", "output_tokens")}
        self._begin_stream()

        def event(kind: str, **more: Any) -> None:
            self._write(f"event: {kind}\ndata: {json.dumps({'type': kind, **more})}\n\n")

        message = {**_opening(request, step, "message"), "role": "assistant", "content": [], "usage": usage}
        event("message_start", message=message)
        event("content_block_start", index=0, content_block={"type": "text", "text": ""})
        for piece in step.chunks if step.chunks is not None else _words(step.text):
            delta = {"index": 0, "delta": {"type": "text_delta", "text": piece}}
            event("content_block_delta", **delta) if piece else event("ping")
            self.server.provider.wait(step.chunk_delay_s)
        self.server.provider.note(request, whole=True)
        event("content_block_stop", index=0)
        event("message_delta", delta={"stop_reason": "end_turn"}, usage=usage)
        event("message_stop")
        self._write("")

    def _begin_stream(self) -> None:
        head = {"content-type": "text/event-stream", "transfer-encoding": "chunked"}
        self._send(200, b"", head, sized=False)

    def _write(self, event: str) -> None:
        """In HTTP's own chunks: without them a reset looks like an end."""
        self.wfile.write(b"%x\r\n%s\r\n" % (len(event.encode()), event.encode()))

    def _error(self, step: Fail) -> None:
        error = {"message": step.message, "type": "error", "param": None, "code": None}
        self._json(step.status, {"error": error}, step.headers)

    def _json(self, status: int, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> None:
        self._send(status, json.dumps(body).encode(), {"content-type": "application/json", **(headers or {})})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str], *, sized: bool = True) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if sized:
            self.send_header("content-length", str(len(body)))
        if not (sized and self.server.provider.keep_alive):
            self.send_header("connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def _reset(self) -> None:
        """Close without the farewell, so that the client sees a reset and not an end."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


def _opening(request: dict[str, Any], step: Say, kind: str) -> dict[str, Any]:
    return {
        "id": f"local-{id(request):x}",
        "object": kind,
        "created": 0,
        "model": step.served or request["model"],
    }


def _usage(request: dict[str, Any]) -> dict[str, Any]:
    told = {"prompt_tokens": request["input_tokens"], "completion_tokens": request["output_tokens"]}
    cached = {"prompt_tokens_details": {"cached_tokens": request["cached_tokens"]}}
    return {**told, "total_tokens": sum(told.values()), **cached}


def _ending(request: dict[str, Any], step: Say) -> str:
    if step.message.get("tool_calls"):
        return "tool_calls"
    limit = request["params"].get("max_tokens") or request["params"].get("max_completion_tokens")
    return "length" if limit and request["output_tokens"] >= limit else "stop"


def _words(text: str) -> list[str]:
    return [word + " " for word in text.split(" ")[:-1]] + [text.split(" ")[-1]]

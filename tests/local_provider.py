"""A provider of one's own: an OpenAI-compatible server on the loopback that does what a test tells it to.

    with LocalProvider() as provider:
        provider.behave("small", ["first", Fail(429, headers={"retry-after": "1"}), "every later one"])
        provider.behave("large", lambda request: Say("4", output_tokens=900, delay_s=0.1))
        pool = Pool([provider.member("small", 1, 2), provider.member("large", 10, 20)])
        ...
        provider.requests                       # what was asked, in the order of arrival
        provider.bill_usd({"small": (1, 2)})    # what a real one would have put on the bill

It behaves as the real ones do: it wants its key (401), knows only the models it was given (404), cuts an
answer at ``max_tokens``, and bills an answer from the moment it starts on it, whether or not the client
is still there to read it. What fails is not billed, unless it says so.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ensemble.records import Deployment, Member

LARGEST_BODY = 16_000_000  # bytes
MOST_AT_ONCE = 64  # requests answered at the same time; more of them wait
LONGEST_S = 30.0  # no delay is longer
CHARACTERS_PER_TOKEN = 4
TEMPLATE_TOKENS = 8  # what a provider adds to the prompt


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
Behaviour = Step | Iterable[Step] | Callable[[dict[str, Any]], Step]


class LocalProvider:
    """The server; ``start`` and ``stop`` it, or use it as a context manager. Thread-safe.

    ``requests`` holds a dict for each request: ``model``, ``messages``, ``params`` (the rest of the
    body), ``headers`` (names in lower case), ``at`` (seconds, monotonic), ``status`` (None: reset, or
    still at it), ``input_tokens``, ``output_tokens``, ``cached_tokens``, ``billed``. ``most_at_once``
    is the largest number of requests that were being answered at the same time.
    """

    def __init__(self, *, api_key: str = "test") -> None:
        self.api_key = api_key
        self.most_at_once = 0
        self._at_once, self._places = 0, threading.BoundedSemaphore(MOST_AT_ONCE)
        self._lock, self._stopping = threading.Lock(), threading.Event()
        self._behaviours: dict[str, Callable[[dict[str, Any]], Step]] = {}
        self._requests: list[dict[str, Any]] = []
        self._server: _Server | None = None

    def start(self) -> LocalProvider:
        self._stopping.clear()
        self._server = _Server(self)
        poll = {"poll_interval": 0.02}  # seconds until it notices that it is to stop
        threading.Thread(target=self._server.serve_forever, kwargs=poll, daemon=True).start()
        return self

    def stop(self) -> None:
        """Stop listening; requests still waiting out a delay are cut off."""
        self._stopping.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def __enter__(self) -> LocalProvider:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """For litellm's ``api_base``."""
        assert self._server is not None, "start the provider first"
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def member(self, name: str, usd_in: float, usd_out: float, **more: Any) -> Member:
        """A pool's member of this name that is served here; prices are USD per million tokens."""
        here = {"api_base": self.url, "api_key": self.api_key}
        known = {"kind": "frontier", "deployments": (Deployment(f"openai/{name}", here),), **more}
        return Member(name, usd_per_million_input=usd_in, usd_per_million_output=usd_out, **known)

    def behave(self, model: str, behaviour: Behaviour) -> None:
        """What this model does: one step always, steps in turn (the last one then stays), or a function
        of the request as ``requests`` holds it."""
        if callable(behaviour):
            react = behaviour
        elif isinstance(behaviour, str | Say | Fail | Raw | Reset):
            always = behaviour
            react = lambda request: always  # noqa: E731
        else:
            *first, last = behaviour
            steps = itertools.chain(first, itertools.repeat(last))
            react = lambda request: next(steps)  # noqa: E731
        with self._lock:
            self._behaviours[model] = react

    @property
    def requests(self) -> list[dict[str, Any]]:
        """Copies, in the order of arrival."""
        with self._lock:
            return [dict(request) for request in self._requests]

    def asked(self, model: str) -> int:
        """How many requests came for this model."""
        return sum(request["model"] == model for request in self.requests)

    def bill_usd(self, prices: Mapping[str, Sequence[float]]) -> float:
        """What all billed requests cost; ``prices``: USD per million tokens in, out and, where a cached
        prefix is cheaper, cached in."""
        parts = []
        for request in self.requests:
            if request["billed"]:
                usd_in, usd_out, *cached = prices[request["model"]]
                parts.append((request["input_tokens"] - request["cached_tokens"]) * usd_in)
                parts.append(request["cached_tokens"] * (cached or [usd_in])[0])
                parts.append(request["output_tokens"] * usd_out)
        return math.fsum(parts) / 1e6

    def _take(self, request: dict[str, Any]) -> Step:
        """Note a request and decide what comes of it; in turn, so that steps are dealt out in order."""
        with self._lock:
            self._requests.append(request)
            behaviour = self._behaviours.get(request["model"])
            if request["headers"].get("authorization") != f"Bearer {self.api_key}":
                return Fail(401, "Incorrect API key provided")
            if behaviour is None:
                return Fail(404, f"The model {request['model']!r} does not exist")
            step = behaviour(dict(request))
            step = Say(step) if isinstance(step, str) else step
            return _reckoned(step, request) if isinstance(step, Say) else step

    def _note(self, request: dict[str, Any], **facts: Any) -> None:
        with self._lock:
            request.update(facts)

    @contextlib.contextmanager
    def _place(self) -> Any:
        with self._places:
            with self._lock:
                self._at_once += 1
                self.most_at_once = max(self.most_at_once, self._at_once)
            try:
                yield
            finally:
                with self._lock:
                    self._at_once -= 1

    def _wait(self, seconds: float) -> None:
        if self._stopping.wait(min(seconds, LONGEST_S)):
            raise ConnectionAbortedError("the provider is stopping")


def _reckoned(step: Say, request: dict[str, Any]) -> Say:
    """The answer cut at ``max_tokens``, its tokens noted and billed."""
    params = request["params"]
    limit = params.get("max_tokens") or params.get("max_completion_tokens") or math.inf
    if step.output_tokens is None and _tokens(step.text) > limit:
        step = Say(**{**vars(step), "text": step.text[: limit * CHARACTERS_PER_TOKEN], "chunks": None})
    count = step.output_tokens if step.output_tokens is not None else _tokens(step.text)
    told = step.input_tokens
    if told is None:
        told = TEMPLATE_TOKENS + sum(_tokens(str(message.get("content"))) for message in request["messages"])
    request.update(input_tokens=told, output_tokens=count, cached_tokens=step.cached_tokens, billed=True)
    return step


def _tokens(text: str) -> int:
    return max(1, math.ceil(len(text) / CHARACTERS_PER_TOKEN))


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, provider: LocalProvider) -> None:
        self.provider = provider
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, *_: Any) -> None:
        """A client that went away is none of the test's business."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = LONGEST_S  # of an idle connection
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, *_: Any) -> None:
        """Tests are quiet."""

    def do_POST(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        if length > LARGEST_BODY:
            return self._error(Fail(413, f"more than {LARGEST_BODY:,} bytes"))
        body = self.rfile.read(length)
        if not self.path.endswith("/chat/completions"):
            return self._error(Fail(404, f"no such path: {self.path}"))
        try:
            params = dict(json.loads(body))
            known = {"model": params.pop("model"), "messages": params.pop("messages")}
        except (ValueError, TypeError, KeyError) as error:
            return self._error(Fail(400, f"not a request: {error!r}"))
        headers = {name.lower(): value for name, value in self.headers.items()}
        billed = {"input_tokens": 0, "output_tokens": 0, "cached_tokens": 0, "billed": False}
        request = {**known, "params": params, "headers": headers, "at": time.monotonic(), "status": None, **billed}
        with self.server.provider._place():
            self._answer(request, self.server.provider._take(request))

    def _answer(self, request: dict[str, Any], step: Step) -> None:
        assert not isinstance(step, str)
        self.server.provider._wait(step.delay_s)
        if isinstance(step, Reset):
            return self._reset()
        if isinstance(step, Fail):
            self.server.provider._note(request, status=step.status, billed=step.billed)
            return self._error(step)
        self.server.provider._note(request, status=step.status if isinstance(step, Raw) else 200)
        if isinstance(step, Raw):
            return self._send(step.status, step.body.encode(), {"content-type": step.content_type})
        if request["params"].get("stream"):
            return self._stream(request, step)
        message = {"role": "assistant", "content": step.text, **step.message}
        choice = {"index": 0, "message": message, "finish_reason": _ending(request, step)}
        reply = {**_opening(request, step, "chat.completion"), "choices": [choice]}
        self._json(200, {**reply, **({"usage": _usage(request)} if step.usage else {})})

    def _stream(self, request: dict[str, Any], step: Say) -> None:
        opening = _opening(request, step, "chat.completion.chunk")
        self.close_connection = True
        self._send(200, b"", {"content-type": "text/event-stream", "connection": "close"}, sized=False)

        def event(choices: list[dict[str, Any]], **more: Any) -> None:
            self.wfile.write(f"data: {json.dumps({**opening, 'choices': choices, **more})}\n\n".encode())

        def delta(content: dict[str, Any], ending: str | None = None) -> list[dict[str, Any]]:
            return [{"index": 0, "delta": content, "finish_reason": ending}]

        event(delta({"role": "assistant", "content": ""}))
        pieces = step.chunks if step.chunks is not None else _words(step.text)
        for number, piece in enumerate(pieces):
            if number == step.break_after:
                return self._reset()
            event(delta({"content": piece}))
            self.server.provider._wait(step.chunk_delay_s)
        if step.break_after is not None:
            return self._reset()
        event(delta(dict(step.message), _ending(request, step)))
        if step.usage and (request["params"].get("stream_options") or {}).get("include_usage"):
            event([], usage=_usage(request))
        self.wfile.write(b"data: [DONE]\n\n")

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
        self.end_headers()
        self.wfile.write(body)

    def _reset(self) -> None:
        """Close without the farewell, so that the client sees a reset and not an end."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


def _opening(request: dict[str, Any], step: Say, kind: str) -> dict[str, Any]:
    return {"id": f"local-{id(request):x}", "object": kind, "created": 0, "model": step.served or request["model"]}


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

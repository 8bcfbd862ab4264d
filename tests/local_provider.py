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
is still there to read it. What fails is not billed, unless it says so. Asked as Anthropic is asked, it
streams as Anthropic does.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ensemble.records import Deployment, Member
from local_http import LONGEST_S, Fail, Raw, Reset, Say, Server, Step

__all__ = ["Fail", "LocalProvider", "Raw", "Reset", "Say"]

MOST_AT_ONCE = 64  # requests answered at the same time; more of them wait
CHARACTERS_PER_TOKEN = 4
TEMPLATE_TOKENS = 8  # what a provider adds to the prompt

Behaviour = Step | Iterable[Step] | Callable[[dict[str, Any]], Step]


class LocalProvider:
    """The server; ``start`` and ``stop`` it, or use it as a context manager. Thread-safe.

    ``keep_alive`` lets a client use a connection again; without it each ends with its reply, and no client
    leaves open sockets behind. ``connections`` counts those that were opened.

    ``requests`` holds a dict for each request: ``model``, ``messages``, ``params`` (the rest of the
    body), ``headers`` (names in lower case), ``at`` (seconds, monotonic), ``status`` (None: reset, or
    still at it), ``whole`` (of a stream: all of its text was sent), ``input_tokens``, ``output_tokens``,
    ``cached_tokens``, ``billed``. ``most_at_once`` is the largest number of requests that were being answered
    at the same time.
    """

    def __init__(self, *, api_key: str = "test", keep_alive: bool = False) -> None:
        self.api_key, self.keep_alive = api_key, keep_alive
        self.connections = self.most_at_once = 0
        self._at_once, self._places = 0, threading.BoundedSemaphore(MOST_AT_ONCE)
        self._lock, self._stopping = threading.Lock(), threading.Event()
        self._behaviours: dict[str, Callable[[dict[str, Any]], Step]] = {}
        self._requests: list[dict[str, Any]] = []
        self._server: Server | None = None

    def start(self) -> LocalProvider:
        self._stopping.clear()
        self._server = Server(self)
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

    def member(self, name: str, usd_in: float, usd_out: float, like: str = "openai", **more: Any) -> Member:
        """A pool's member of this name that is served here, ``like`` one of openai or anthropic; prices are
        USD per million tokens."""
        here = {"api_base": self.url, "api_key": self.api_key}
        known = {"kind": "frontier", "deployments": (Deployment(f"{like}/{name}", here),), **more}
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

    def take(self, request: dict[str, Any]) -> Step:
        """Note a request and decide what comes of it; in turn, so that steps are dealt out in order."""
        with self._lock:
            self._requests.append(request)
            behaviour = self._behaviours.get(request["model"])
            given = request["headers"].get("x-api-key", request["headers"].get("authorization"))
            if given not in (self.api_key, f"Bearer {self.api_key}"):
                return Fail(401, "Incorrect API key provided")
            if behaviour is None:
                return Fail(404, f"The model {request['model']!r} does not exist")
            step = behaviour(dict(request))
            step = Say(step) if isinstance(step, str) else step
            return _reckoned(step, request) if isinstance(step, Say) else step

    def note(self, request: dict[str, Any], **facts: Any) -> None:
        with self._lock:
            request.update(facts)

    @contextlib.contextmanager
    def place(self) -> Any:
        with self._places:
            with self._lock:
                self._at_once += 1
                self.most_at_once = max(self.most_at_once, self._at_once)
            try:
                yield
            finally:
                with self._lock:
                    self._at_once -= 1

    def wait(self, seconds: float) -> None:
        if self._stopping.wait(min(seconds, LONGEST_S)):
            raise ConnectionAbortedError("the provider is stopping")


def _reckoned(step: Say, request: dict[str, Any]) -> Say:
    """The answer cut at ``max_tokens``, its tokens noted and billed."""
    params = request["params"]
    limit = params.get("max_tokens") or params.get("max_completion_tokens")
    if limit and step.output_tokens is None and _tokens(step.text) > limit:
        step = Say(**{**vars(step), "text": step.text[: limit * CHARACTERS_PER_TOKEN], "chunks": None})
    count = step.output_tokens if step.output_tokens is not None else _tokens(step.text)
    told = step.input_tokens
    if told is None:
        told = TEMPLATE_TOKENS + sum(_tokens(str(message.get("content"))) for message in request["messages"])
    request.update(input_tokens=told, output_tokens=count, cached_tokens=step.cached_tokens, billed=True)
    return step


def _tokens(text: str) -> int:
    return max(1, math.ceil(len(text) / CHARACTERS_PER_TOKEN))

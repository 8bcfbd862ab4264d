"""The ``Ensemble`` object: router, pool, policy, dispatch and log, wired together.

messages -> text.py -> encoder.py -> head.py -> policy.py -> dispatch.py -> outcomes.py
"""

from __future__ import annotations

import asyncio
import functools
import os
import random
import time
import uuid
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sized
from typing import Any

from ensemble.asked import Asked
from ensemble.batch import Batch
from ensemble.dispatch import Dispatcher
from ensemble.errors import ConfigError, EnsembleWarning, InputError
from ensemble.hops import Call, Send
from ensemble.inference import Device
from ensemble.outcomes import Keep, LogMode, OutcomeLog
from ensemble.parts import Parts, Place
from ensemble.pool import Pool
from ensemble.records import Decision, Wishes
from ensemble.request import Request
from ensemble.router import Router
from ensemble.show import tracked
from ensemble.stream import AsyncRoutedStream, RoutedStream
from ensemble.text import Messages
from ensemble.threads import in_thread

Scorer = Callable[[list[dict[str, Any]], str], "float | None"]


class Ensemble:
    """A router, a pool and a log, ready to answer. Thread-safe, a context manager, usable after a fork.

    ``router``: a bundle's folder or an open Router. ``pool``: a TOML file, read again when it changes, or
    a Pool. ``log``: a path, a database URL or an OutcomeLog; ``False`` keeps nothing. ``None`` means for
    each what comes with the library, for the log a file in the user's state folder.
    ``keep`` lets the log hold ``"text"`` or ``"text+answers"``; features are always held and are personal
    data too. ``scorer(messages, answer)`` gives each answer a reward in [0, 1], or None for no opinion.
    ``seed`` fixes what chance decides. Nothing is opened before the first use.
    """

    def __init__(
        self,
        *,
        router: Place | Router | None = None,
        pool: Place | Pool | None = None,
        log: Place | OutcomeLog | bool | None = None,
        keep: Keep | None = None,
        log_mode: LogMode = "before",
        fsync: bool = False,
        device: Device = "auto",
        scorer: Scorer | None = None,
        seed: int | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        log_settings = {"keep": keep, "log_mode": log_mode, "fsync": fsync}
        self._parts = Parts(router, pool, log, log_settings, device, clock)
        self._scorer, self._clock = scorer, clock
        self._random, self._process = random.Random(seed), os.getpid()

    @property
    def router(self) -> Router:
        """The router in force."""
        return self._parts.router

    @property
    def pool(self) -> Pool:
        """The pool in force: of a file, as the file is now."""
        return self._parts.pool

    @property
    def log(self) -> OutcomeLog | None:
        """The open log, or None where nothing is kept."""
        return self._parts.log

    def route(self, prompt: Messages, **keywords: Any) -> Decision:
        """Decide who should answer, and log it, without calling anyone.

        Takes the keywords of ``complete``. Whether a member's API key is set is not asked.
        """
        request = self._request(prompt, Asked.of(keywords))
        decision = request.decide(request.wishes, id=uuid.uuid4().hex, now=self._clock(), draw=self._draw())
        request.record(decision, self.log)
        return decision

    async def aroute(self, prompt: Messages, **keywords: Any) -> Decision:
        """``route`` for asyncio: it runs in a thread, beside others whose prompts are encoded with it."""
        decision: Decision = await in_thread(functools.partial(self.route, prompt, **keywords))
        return decision

    def route_batch(
        self, prompts: Iterable[Messages], *, progress: bool = False, **keywords: Any
    ) -> Iterator[Decision]:
        """``route`` for many prompts, as fast as the encoder reads them: decisions in their order, in memory
        that doesn't grow with their number. Two chunks of prompts are read before the first decision comes.

        Takes the keywords of ``route`` but ``session``; ``progress`` shows a bar on stderr. Raises InputError
        or NoEligibleMemberError for the first prompt that can't be decided, once all before it are.
        """
        asked = Asked.of(keywords)
        if asked.session is not None:
            raise InputError("session: expected none for a batch, whose prompts are decided side by side")
        asked.wishes(self.pool.defaults, frozenset())  # complain now, not at the first decision
        batch = Batch(asked, self.router, self._parts.terms, self.log, self._clock, self._draw)
        total = len(prompts) if isinstance(prompts, Sized) else None
        decisions = batch.decisions(prompts)
        return tracked(decisions, total, "deciding") if progress else decisions

    def complete(self, prompt: Messages, **keywords: Any) -> Any:
        """Send a prompt to the member that will answer best for the money; returns litellm's ModelResponse
        with ``decision`` beside it (no serialized form of it holds that).

        ``prompt``: a string or OpenAI messages. Ours, all optional, for this call only:
        ``willingness_to_pay_usd`` USD one unit of reward is worth, [0, inf]; ``usd_per_second`` of waiting;
        ``max_cost_usd`` hard cap; ``max_latency_s`` deadline of the whole call; ``min_reward`` least
        expected reward, [0, 1]; ``members`` only these names; ``exclude`` these not; ``owned_only``;
        ``exploration`` probability of trying a plausible rival, [0, 1); ``session`` keeps a conversation
        with its member; ``metadata`` a dict for the log. All else goes to litellm unchanged (``tools``,
        ``temperature`` ...); with ``stream=True`` an iterator of chunks comes back, with ``decision`` too.

        Raises InputError for arguments out of range, NoEligibleMemberError before anyone is called,
        CallFailedError when those called did not answer.
        """
        asked = Asked.of(keywords)
        exchange = _Exchange(lambda: self._prepare(prompt, asked))
        steps = exchange.steps()
        try:
            wanted = next(steps)
            while True:
                try:
                    reply = exchange.send(wanted)
                except Exception as error:
                    wanted = steps.throw(error)
                else:
                    wanted = steps.send(reply)
        except StopIteration as end:
            reply = end.value
        finally:
            steps.close()  # interrupted: written down as such
        if asked.streams:
            return RoutedStream(exchange.call, reply, asked.usage_wanted)
        return _with_decision(reply, exchange.call.decision)

    async def acomplete(self, prompt: Messages, **keywords: Any) -> Any:
        """``complete`` for asyncio: encoding, deciding and logging run in a thread, the call is awaited."""
        asked = Asked.of(keywords)
        exchange = _Exchange(lambda: self._prepare(prompt, asked))
        steps = exchange.steps()
        try:
            wanted, reply = await in_thread(_advance, steps.send, None)
            while wanted is not None:
                try:
                    reply = await exchange.asend(wanted)
                except Exception as error:
                    wanted, reply = await in_thread(_advance, steps.throw, error)
                else:
                    if asked.streams:  # nothing is written yet, nor may a cancellation come between
                        break
                    wanted, reply = await in_thread(_advance, steps.send, reply)
        except asyncio.CancelledError:
            await in_thread(steps.close)
            raise
        if asked.streams:
            _advance(steps.send, reply)
            return AsyncRoutedStream(exchange.call, reply, asked.usage_wanted)
        return _with_decision(reply, exchange.call.decision)

    def feedback(self, decision: Any, reward: float, *, source: str = "caller") -> None:
        """Tell the log how good an answer was: ``reward`` in [0, 1].

        ``decision``: a reply, a Decision or a decision's id, from any process. The same again changes
        nothing; another reward from the same ``source`` takes the earlier one's place.
        Raises InputError for an id that the log doesn't hold.
        """
        self._log_for("feedback").record_reward(_decision_id(decision), reward, source)

    def forget(self, decision: Any = None, *, metadata: Mapping[str, Any] | None = None) -> int:
        """Delete a decision, or all whose metadata hold these pairs, with all that hangs on them; returns
        how many decisions."""
        decision_id = None if decision is None else _decision_id(decision)
        return self._log_for("forget").forget(decision_id, metadata)

    def close(self) -> None:
        """Write out and close the log, unless it was opened elsewhere. The object can be used again."""
        self._parts.close()

    def __enter__(self) -> Ensemble:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _prepare(self, prompt: Messages, asked: Asked) -> tuple[Request, Call, Dispatcher]:
        request, log = self._request(prompt, asked), self.log
        sender = self._parts.sender(request.terms.pool)
        unavailable = {} if asked.params.get("api_key") else sender.missing_keys()
        call_id, draw = uuid.uuid4().hex, self._draw()

        def decide(wishes: Wishes, tried: tuple[str, ...]) -> Decision:
            return request.decide(
                wishes, id=call_id, now=self._clock(), draw=draw, tried=tried, unavailable=unavailable
            )

        call = Call(
            params=asked.sent,
            answers=asked.answers,
            wishes=request.wishes,
            members=request.terms.members,
            decide=decide,
            record=lambda decision: request.record(decision, log),
            log=log,
            clock=self._clock,
            on_answer=lambda decision, answer: self._score(request, decision, answer),
        )
        return request, call, sender

    def _request(self, prompt: Messages, asked: Asked) -> Request:
        bound = None if asked.session is None else self._log_for("session").last_member(asked.session)
        return Request.of(prompt, asked, self.router, self._parts.terms, bound)

    def _draw(self) -> float:
        if self._process != os.getpid():  # parent and child must not throw the same dice
            self._random, self._process = random.Random(), os.getpid()
        return self._random.random()

    def _score(self, request: Request, decision: Decision, answer: str) -> None:
        if self._scorer is None:
            return
        try:
            reward = self._scorer(request.messages, answer)
            if reward is not None and self.log is not None:
                self.feedback(decision, reward, source="scorer")
        except Exception as error:  # an answer is waiting: a scorer's fault must not take it away
            message = f"the scorer failed on decision {decision.id}: {error!r}"
            warnings.warn(message, EnsembleWarning, stacklevel=2)

    def _log_for(self, verb: str) -> OutcomeLog:
        log = self.log
        if log is None:
            raise ConfigError(f"{verb} needs a log, and this Ensemble was made with log=False. Give it one.")
        return log


class _Exchange:
    """One prompt on its way to a reply: read and decided only when its steps are begun, so that asyncio's
    caller can have that done in a thread and still say how it ended."""

    def __init__(self, prepare: Callable[[], tuple[Request, Call, Dispatcher]]) -> None:
        self._prepare = prepare

    def steps(self) -> Generator[Send, Any, Any]:
        """Those of the call (hops.py)."""
        self._request, self.call, self._sender = self._prepare()
        return (yield from self.call.steps())

    def send(self, wanted: Send) -> Any:
        self.call.in_flight = True
        return self._sender.send(wanted.member, self._request.messages, wanted.params)

    async def asend(self, wanted: Send) -> Any:
        self.call.in_flight = True
        return await self._sender.asend(wanted.member, self._request.messages, wanted.params)


def _advance(step: Callable[[Any], Any], value: Any) -> tuple[Send | None, Any]:
    """What a generator wants next, or what it returned: StopIteration can't leave a thread."""
    try:
        return step(value), None
    except StopIteration as end:
        return None, end.value


def _with_decision(reply: Any, decision: Decision) -> Any:
    # Past pydantic's own __setattr__, so that no serialized form of the reply holds it.
    object.__setattr__(reply, "decision", decision)
    return reply


def _decision_id(decision: Any) -> str:
    decision = getattr(decision, "decision", decision)
    found = decision.id if isinstance(decision, Decision) else decision
    if not isinstance(found, str):
        raise InputError(f"expected a reply, a Decision or a decision's id, found {type(decision).__name__}")
    return found

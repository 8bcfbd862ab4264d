"""The ``Ensemble`` object: router, pool, policy, dispatch and log, wired together.

messages -> text.py -> encoder.py -> head.py -> policy.py -> dispatch.py -> outcomes.py
"""

from __future__ import annotations

import asyncio
import os
import random
import time
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ensemble import policy, text
from ensemble.asked import Asked
from ensemble.dispatch import Dispatcher
from ensemble.errors import ConfigError, EnsembleWarning, InputError
from ensemble.hops import Call
from ensemble.inference import Device
from ensemble.outcomes import Keep, LogMode, OutcomeLog
from ensemble.parts import Parts, Place, Terms
from ensemble.pool import Pool
from ensemble.records import Decision, FloatArray, Prediction, Wishes
from ensemble.router import Router
from ensemble.stream import AsyncRoutedStream, RoutedStream

Messages = str | Sequence[Mapping[str, Any]]
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
        decision = self._decide(request, request.wishes)
        self._record(request, decision)
        return decision

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
        request, call, sender = self._prepare(prompt, Asked.of(keywords))
        streams, rest, first = request.asked.streams, None, None
        steps = call.steps()
        try:
            wanted = next(steps)
            while True:
                try:
                    reply = sender.send(wanted.member, request.messages, wanted.params)
                    if streams:  # a member that fails before its first chunk can still be replaced
                        rest = iter(reply)
                        first = next(rest, None)
                except Exception as error:
                    wanted = steps.throw(error)
                else:
                    wanted = steps.send(reply)
        except StopIteration:
            pass
        finally:
            steps.close()
        if rest is not None:
            return RoutedStream(call, first, rest, request.asked.usage_wanted)
        return _with_decision(reply, call.decision)

    async def acomplete(self, prompt: Messages, **keywords: Any) -> Any:
        """``complete`` for asyncio: encoding, deciding and logging run in a thread, the call is awaited."""
        request, call, sender = await asyncio.to_thread(self._prepare, prompt, Asked.of(keywords))
        streams, rest, first = request.asked.streams, None, None
        steps = call.steps()
        try:
            wanted = await asyncio.to_thread(_advance, steps.send, None)
            while wanted is not None:
                try:
                    reply = await sender.asend(wanted.member, request.messages, wanted.params)
                    if streams:
                        rest = aiter(reply)
                        first = await anext(rest, None)
                except Exception as error:
                    wanted = await asyncio.to_thread(_advance, steps.throw, error)
                else:
                    wanted = await asyncio.to_thread(_advance, steps.send, reply)
        finally:
            steps.close()
        if rest is not None:
            return AsyncRoutedStream(call, first, rest, request.asked.usage_wanted)
        return _with_decision(reply, call.decision)

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

    def _prepare(self, prompt: Messages, asked: Asked) -> tuple[_Request, Call, Dispatcher]:
        request = self._request(prompt, asked)
        sender = self._parts.sender(request.terms.pool)
        unavailable, call_id = sender.missing_keys(), uuid.uuid4().hex
        call = Call(
            params=asked.sent,
            wishes=request.wishes,
            members=request.terms.members,
            decide=lambda wishes, tried: self._decide(request, wishes, tried, unavailable, call_id),
            record=lambda decision: self._record(request, decision),
            log=self.log,
            clock=self._clock,
            on_answer=lambda decision, answer: self._score(request, decision, answer),
        )
        return request, call, sender

    def _request(self, prompt: Messages, asked: Asked) -> _Request:
        messages = text.as_messages(prompt)
        terms = self._parts.terms
        encoded = text.prompt_text(messages)
        features = self.router.encoder.encode([encoded])
        return _Request(
            messages=messages,
            encoded=encoded,
            characters=text.count_characters(messages, asked.params),
            features=features,
            prediction=terms.prior.fill(self.router.head.predict(features)),
            terms=terms,
            asked=asked,
            wishes=asked.wishes(terms.pool.defaults, text.needs(messages, asked.params)),
            bound=None if asked.session is None else self._log_for("session").last_member(asked.session),
        )

    def _decide(
        self,
        request: _Request,
        wishes: Wishes,
        tried: tuple[str, ...] = (),
        unavailable: Mapping[str, str] | None = None,
        id: str | None = None,
    ) -> Decision:
        """Who is to answer; after a failure (``tried``) nothing is left to chance, since the propensity
        that is logged is that of the first choice."""
        terms, prediction = request.terms, request.prediction
        expected = policy.expect(
            prediction,
            terms.pool,
            np.array([request.characters]),
            terms.characters_per_token,
            request.asked.max_tokens,
        )
        context = policy.Context(
            router_id=self.router.id,
            measured=terms.prior.measured,
            unavailable={**(unavailable or {}), **dict.fromkeys(tried, "failed a moment ago")},
            bound=request.bound,
            reason="fallback" if tried else "routed",
            warnings=terms.pool.warnings,
        )
        [decision] = policy.decide(
            prediction,
            expected,
            terms.pool,
            replace(wishes, exploration=0.0) if tried else wishes,
            np.array([0.0 if tried else self._draw()]),
            [id or uuid.uuid4().hex],
            now=self._clock(),
            context=context,
        )
        return decision

    def _draw(self) -> float:
        if self._process != os.getpid():  # parent and child must not throw the same dice
            self._random, self._process = random.Random(), os.getpid()
        return self._random.random()

    def _record(self, request: _Request, decision: Decision) -> None:
        if self.log is not None:
            self.log.record_decision(
                decision,
                members=request.terms.pool,
                features=request.features[0],
                encoder_sha256=self.router.encoder.sha256["encoder.onnx"],
                text=request.encoded,
                metadata=request.asked.metadata,
                session=request.asked.session,
            )

    def _score(self, request: _Request, decision: Decision, answer: str) -> None:
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


@dataclass(frozen=True, eq=False)
class _Request:
    """One prompt as the parts need it."""

    messages: list[dict[str, Any]]
    encoded: str
    characters: int
    features: FloatArray  # (1, n_features)
    prediction: Prediction  # (1, n_members) over the pool
    terms: Terms
    asked: Asked
    wishes: Wishes
    bound: str | None  # the member that the session keeps to


def _advance(step: Callable[[Any], Any], value: Any) -> Any:
    """What a generator wants next, None when it has ended: StopIteration can't leave a thread."""
    try:
        return step(value)
    except StopIteration:
        return None


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

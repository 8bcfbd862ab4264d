"""The ``Ensemble`` object: router, pool, policy, dispatch and log, wired together.

messages -> text.py -> encoder.py -> head.py -> policy.py -> dispatch.py -> outcomes.py
"""

from __future__ import annotations

import dataclasses
import functools
import os
import random
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextvars import ContextVar
from typing import Any

from ensemble.alarms import Alarm
from ensemble.asked import Asked
from ensemble.batch import Batch
from ensemble.bounds import most_input_tokens
from ensemble.budget import Budget, Budgets
from ensemble.config import as_budgets
from ensemble.dispatch import Dispatcher
from ensemble.errors import ConfigError, EnsembleWarning, InputError, NoEligibleMemberError
from ensemble.exchange import Exchange
from ensemble.hops import Call
from ensemble.inference import Device
from ensemble.members import described
from ensemble.outcomes import Keep, LogMode, OutcomeLog
from ensemble.parts import Parts, Place
from ensemble.pool import Pool
from ensemble.records import Attempt, Decision, Wishes
from ensemble.request import Request
from ensemble.router import Router
from ensemble.sessions import Standing
from ensemble.show import tracked
from ensemble.text import Messages
from ensemble.threads import in_thread

Scorer = Callable[[list[dict[str, Any]], str], "float | None"]
_scoring = ContextVar("_scoring", default=False)  # a scorer that asks a judge here must not be asked of it


class Ensemble:
    """A router, a pool and a log, ready to answer. Thread-safe, a context manager, usable after a fork.

    ``router``: a bundle's folder or an open Router. ``pool``: a TOML file, read again when it changes, or
    a Pool. ``log``: a path, a database URL or an OutcomeLog; ``False`` keeps nothing. ``None`` means for
    each what comes with the library, for the log a file in the user's state folder.
    ``keep`` lets the log hold ``"text"`` or ``"text+answers"``; features are always held and are personal
    data too; decisions older than ``keep_days`` are deleted (``None``: none are).
    ``scorer(messages, answer)`` gives each answer a reward in [0, 1], or None for no opinion, before the
    caller has it. An answer that only calls tools is ``""``; what a scorer itself asks is not scored.
    ``budgets`` of a day make spend dearer as they run out. ``on_alarm`` hears when a member leaves what was
    expected of it; None warns (EnsembleWarning). ``seed`` fixes what chance decides. Nothing is opened before
    the first use.
    """

    def __init__(
        self,
        *,
        router: Place | Router | None = None,
        pool: Place | Pool | None = None,
        log: Place | OutcomeLog | bool | None = None,
        keep: Keep | None = None,
        keep_days: float | None = None,
        log_mode: LogMode = "before",
        fsync: bool = False,
        device: Device = "auto",
        scorer: Scorer | None = None,
        budgets: Iterable[Budget] = (),
        on_alarm: Callable[[Alarm], None] | None = None,
        seed: int | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        log_settings = {"keep": keep, "keep_days": keep_days, "log_mode": log_mode, "fsync": fsync}
        self._parts = Parts(router, pool, log, log_settings, device, clock, on_alarm or _warn)
        self._scorer, self._clock = scorer, clock
        self._budgets = Budgets(as_budgets(budgets), self._spent_usd, clock)
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

        Takes the keywords of ``complete``. Whether a member's API key is set is not asked. A reward for it
        trains nothing, as nobody is known to have answered.
        """
        request = self._request(prompt, Asked.of(keywords))
        draw = self._draw()
        decision = request.decide(
            request.wishes,
            id=uuid.uuid4().hex,
            now=self._clock(),
            draw=draw,
            speeds=self._parts.health.speeds,
        )
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

        Takes the keywords of ``route`` but ``session``; ``progress`` shows a bar on stderr. For the first
        prompt that can't be decided it raises InputError, BudgetSpentError or NoEligibleMemberError, once all
        before it are.
        """
        asked = Asked.of(keywords)
        if isinstance(prompts, str | bytes | Mapping):
            raise InputError(f"prompts: expected many, found {described(prompts)}. Pass [prompt] for one.")
        if asked.session is not None:
            raise InputError("session: expected none for a batch, whose prompts are decided side by side")
        asked.wishes(self.pool.defaults, frozenset())  # complain now, not at the first decision
        batch = Batch(
            asked,
            self.router,
            self._parts.terms,
            self._parts.health.speeds,
            self.log,
            self._clock,
            self._draw,
            self._budgets,
        )
        total = len(prompts) if isinstance(prompts, Sized) else None
        decisions = batch.decisions(prompts)
        return tracked(decisions, total, "deciding") if progress else decisions

    def complete(self, prompt: Messages, **keywords: Any) -> Any:
        """Send a prompt to the member that will answer best for the money; returns litellm's ModelResponse
        with ``decision`` beside it (no serialized form of it holds that).

        ``prompt``: a string or OpenAI messages. Ours, all optional, for this call only:
        ``willingness_to_pay_usd`` USD one unit of reward is worth, [0, inf]; ``usd_per_second`` of waiting;
        ``max_cost_usd`` cap, of which the input's share is estimated from its characters; ``max_latency_s``
        deadline of the whole call, not of what a process opens at its first (but litellm loads for half a
        second more when it first sends); ``min_reward`` least expected reward, [0, 1]; ``members`` only these
        names; ``exclude`` these not; ``owned_only``; ``exploration`` probability of trying a plausible rival,
        [0, 1); ``session`` keeps a conversation with its member; ``metadata`` a dict for the log; after
        ``hedge_after_s`` of silence a second member is asked too, and the first to answer serves. All else
        goes to litellm unchanged (``tools``, ``temperature`` ...), for whoever is asked, the next ones too:
        give ``members`` with an ``api_key``, ``api_base`` or headers. With ``stream=True`` an iterator of
        chunks comes back, with ``decision`` too.

        Raises InputError for arguments out of range, BudgetSpentError and NoEligibleMemberError before anyone
        is called, CallFailedError when those called did not answer.
        """
        asked, started = Asked.of(keywords), self._clock()
        return Exchange(lambda: self._prepare(prompt, asked, started)).complete()

    async def acomplete(self, prompt: Messages, **keywords: Any) -> Any:
        """``complete`` for asyncio: encoding, deciding and logging run in a thread, the call is awaited."""
        asked, started = Asked.of(keywords), self._clock()
        return await Exchange(lambda: self._prepare(prompt, asked, started)).acomplete()

    def feedback(self, decision: Any, reward: float, *, source: str = "caller") -> None:
        """Tell the log how good an answer was: ``reward`` in [0, 1].

        ``decision``: a reply, a Decision or a decision's id, from any process. The same again changes
        nothing; another reward from the same ``source`` takes the earlier one's place; those of several, as
        the caller's and the scorer's, are averaged in training.
        Raises InputError for an id that the log doesn't hold.
        """
        log, decision_id = self._log_for("feedback"), _decision_id(decision)
        row = log.decision(decision_id)
        log.record_reward(decision_id, reward, source)
        if row and row["rewards"].get(source) != reward:
            self._parts.health.reward(row, reward)

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

    def _prepare(self, prompt: Messages, asked: Asked, started: float) -> tuple[Request, Call, Dispatcher]:
        started += self._parts.open()  # what is loaded once per process is no part of any call
        request, log = self._request(prompt, asked), self.log
        sender = self._parts.sender(request.terms.pool)
        keyless = {} if asked.params.get("api_key") else sender.missing_keys()
        call_id, draw, health = uuid.uuid4().hex, self._draw(), self._parts.health

        def decide(wishes: Wishes, tried: Mapping[str, str]) -> Decision:
            made = functools.partial(
                request.decide, wishes, id=call_id, draw=draw, tried=tried, speeds=health.speeds
            )
            resting = health.resting()
            try:
                return made(now=self._clock(), unavailable=resting | keyless)
            except NoEligibleMemberError:
                if not resting:
                    raise
                return made(now=self._clock(), unavailable=keyless)  # who rests is better than nobody

        def learn(attempt: Attempt) -> None:
            if asked.elsewhere:
                return
            if attempt.output_tokens is not None:  # of all answers to the one prompt
                attempt = dataclasses.replace(attempt, output_tokens=attempt.output_tokens // asked.answers)
            health.note(attempt, call.decision[attempt.member])

        call = Call(
            params=asked.sent,
            answers=asked.answers,
            hedge_after_s=asked.hedge_after_s,
            wishes=request.wishes,
            members=request.terms.members,
            decide=decide,
            record=lambda decision: request.record(decision, log),
            log=log,
            clock=self._clock,
            started=started,
            most_input_tokens=functools.partial(most_input_tokens, request.messages, asked.params),
            on_answer=lambda decision, answer: self._score(request, decision, answer),
            on_attempt=learn,
        )
        return request, call, sender

    def _request(self, prompt: Messages, asked: Asked) -> Request:
        standing = None
        if asked.session is not None and (last := self._log_for("session").last_step(asked.session)):
            standing = Standing.after(last, self._clock())
        return Request.of(prompt, asked, self.router, self._parts.terms, standing, self._budgets)

    def _spent_usd(self, since: float, metadata: Mapping[str, Any] | None) -> float:
        return self._log_for("a budget").spend_usd(since, metadata)

    def _draw(self) -> float:
        if self._process != os.getpid():  # a child throws its own dice
            self._random, self._process = random.Random(), os.getpid()
        return self._random.random()

    def _score(self, request: Request, decision: Decision, answer: str) -> None:
        if self._scorer is None or _scoring.get():
            return
        within = _scoring.set(True)
        try:
            reward = self._scorer(request.messages, answer)
            if reward is not None and self.log is not None:
                self.feedback(decision, reward, source="scorer")
        except Exception as error:  # an answer is waiting: a scorer's fault must not take it away
            message = f"the scorer failed on decision {decision.id}: {error!r}"
            warnings.warn(message, EnsembleWarning, stacklevel=2)
        finally:
            _scoring.reset(within)

    def _log_for(self, verb: str) -> OutcomeLog:
        log = self.log
        if log is None:
            raise ConfigError(f"{verb} needs a log, and this Ensemble was made with log=False. Give it one.")
        return log


def _warn(alarm: Alarm) -> None:
    warnings.warn(alarm.text, EnsembleWarning, stacklevel=2)


def _decision_id(decision: Any) -> str:
    decision = getattr(decision, "decision", decision)
    found = decision.id if isinstance(decision, Decision) else decision
    if not isinstance(found, str):
        raise InputError(f"expected a reply, a Decision or a decision's id, found {type(decision).__name__}")
    return found

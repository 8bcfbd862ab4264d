"""Which member next, and what is written down? One call, from its decision to its outcome.

``Call.steps`` is a generator that asks for two things only, to send a request and to wait, and is told
what ended. Who sends, and whether by waiting or by awaiting, is the driver's affair (exchange.py), so the
loop across members stands here once. Each hop decides anew among the members not yet tried, under the
time and the money that are left, and writes one attempt. So does a hedge: a second member that is asked
while the first is still silent.

The decision is written before the call: if that fails, nobody is called. From then on money may
have been spent, so a log that fails only warns (EnsembleWarning) and the answer is handed over.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import warnings
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from ensemble.bounds import bounded, most_usd
from ensemble.dispatch import describe, secrets_of, was_billed
from ensemble.errors import (
    CallFailedError,
    EnsembleWarning,
    LogError,
    NoEligibleMemberError,
    StreamBrokenError,
)
from ensemble.outcomes import OutcomeLog
from ensemble.records import Attempt, Decision, Member, Outcome, Wishes
from ensemble.replies import UNTOLD, NoAnswerError, Usage, answer_of, usage_of
from ensemble.sends import Ended, Send, Wait

MOST_HOPS = 5  # members tried for one call; what fails at five different ones is not the members' fault
CANCELLED = "cancelled by the caller"
LOST = "let go: another member answered first"
GRACE_S = 0.1  # past the deadline: litellm's own time-out, which it learns from, may come first


@dataclass(eq=False)
class Call:
    """The state of one call. ``decide(wishes, tried)`` is the first or the next decision, ``tried`` saying
    why some are out of question, and raises NoEligibleMemberError; ``record`` writes the first one down.
    ``params`` ask for ``answers`` answers. ``started`` by the clock, when the caller asked, is what its
    deadline counts from. ``on_attempt`` hears of each attempt once it is written down.
    """

    params: Mapping[str, Any]
    answers: int
    wishes: Wishes
    members: Mapping[str, Member]
    decide: Callable[[Wishes, Mapping[str, str]], Decision]
    record: Callable[[Decision], None]
    log: OutcomeLog | None
    clock: Callable[[], float]
    started: float
    most_input_tokens: Callable[[], int]
    hedge_after_s: float | None = None
    on_answer: Callable[[Decision, str], None] = lambda decision, answer: None
    on_attempt: Callable[[Attempt], None] = lambda attempt: None
    failures: dict[str, str] = field(default_factory=dict)
    spent_usd: float = 0.0
    spent_is_estimated: bool = False
    number: int = 0
    _running: list[Send] = field(default_factory=list)
    _lost: tuple[Attempt, ...] = ()  # still to be written down

    def steps(self) -> Generator[Send | Wait, Ended | None, Any]:
        """Yields what is wanted and is sent what ended, or None when patience did; returns the reply that
        serves, whose Send is then ``serving``.

        For a stream the reply is its opened chunks, and ``finish`` or ``break_off`` is to be called
        when they end. Raises CallFailedError when nobody is left to try.
        """
        self.decision = self.decide(self.wishes, {})
        self.record(self.decision)
        wanted: Send | Wait = self._begin(self.decision) if self.left_s() else self._give_up()
        while True:
            try:
                ended = yield wanted
            except GeneratorExit:
                cancelled = [self._attempt(send, error=CANCELLED) for send in self._running if send.sent]
                self._end(cancelled, error=CANCELLED)
                raise
            if ended is None:
                wanted = self._give_up() if self.left_s() == 0 else self._hedge()
            elif ended.error is not None:
                wanted = self._hop(ended.send, ended.error)
            else:
                return self._take(ended)

    def finish(self, usage: Usage, answer: str, first_token_s: float | None = None) -> None:
        """Write down that the member in charge has answered, then hand the answer to the scorer."""
        attempt = self._attempt(self.serving, usage=usage, first_token_s=first_token_s)
        self._end([*self._lost, attempt], self.decision, usage, answer, first_token_s)
        self.on_answer(self.decision, answer)

    def break_off(
        self, error: Exception | str, answer: str, first_token_s: float | None
    ) -> StreamBrokenError | None:
        """Write down that a stream ended early: by an error, which is returned as ours, or by its reader."""
        secrets = secrets_of(self.members[self.decision.member], self.params)
        what = error if isinstance(error, str) else describe(error, secrets)
        attempt = self._attempt(self.serving, error=what)
        self._end([*self._lost, attempt], None, UNTOLD, answer, first_token_s, what)
        if isinstance(error, str):
            return None
        self.failures[self.decision.member] = what
        return StreamBrokenError(
            self.failures, self.decision.id, "Part of the answer had already been handed over; ask again."
        )

    def left_s(self) -> float:
        """What is left of the deadline, at least 0; ``inf`` where there is none."""
        if self.wishes.max_latency_s is None:
            return math.inf
        return max(0.0, self.wishes.max_latency_s - (self.clock() - self.started))

    def overdue(self) -> TimeoutError:
        """What to say of the deadline once it has passed."""
        return TimeoutError(f"the deadline has passed: max_latency_s is {self.wishes.max_latency_s:g}")

    def _begin(self, decision: Decision) -> Send:
        """The next attempt, at whoever was decided on."""
        self.number += 1
        member = self.members[decision.member]
        params = bounded(self.params, decision, member, self._remaining(), self.answers)
        self._running.append(Send(decision, self.number, self.clock(), params, self._patience_s()))
        return self._running[-1]

    def _patience_s(self) -> float | None:
        """How long to wait: until a hedge, or past the deadline, which a trickle of bytes would outlast."""
        longest = min(self.hedge_after_s or math.inf, self.left_s() + GRACE_S)
        return None if longest == math.inf else longest

    def _hedge(self) -> Send | Wait:
        """Decide who else is to be asked, or go on waiting. It happens once."""
        second = None if self.hedge_after_s is None else self._following()
        self.hedge_after_s = None
        if second is None:
            return Wait(self._patience_s())
        return self._begin(dataclasses.replace(second, reason="hedge"))

    def _give_up(self) -> NoReturn:
        """The deadline has passed, and nobody has answered, or there was no time to ask."""
        error = self.overdue()
        attempts, self._running = [self._failed(send, error) for send in self._running], []
        self.failures |= {attempt.member: str(attempt.error) for attempt in attempts}
        self._fail(attempts, error)

    def _fail(self, attempts: list[Attempt], error: Exception) -> NoReturn:
        self._end(attempts, error=f"{len(self.failures)} member(s) failed")
        raise CallFailedError(self.failures, self.decision.id, self._advice()) from error

    def _hop(self, send: Send, error: Exception) -> Send | Wait:
        """Decide who is next after an error, unless another is still at it; or give up."""
        self._running.remove(send)
        attempt = self._failed(send, error)
        self.failures[send.decision.member] = str(attempt.error)
        following = None if self._running else self._following()
        if following is None and not self._running:
            self._fail([attempt], error)
        self._keep(attempt)
        return Wait(self._patience_s()) if following is None else self._begin(following)

    def _take(self, ended: Ended) -> Any:
        """The reply of the one that serves; what the others came to is reckoned."""
        self.serving, self.decision, self._running = ended.send, ended.send.decision, []
        self._lost = tuple(self._lose(lost) for lost in ended.lost)
        if not self.params.get("stream"):
            self.finish(usage_of(ended.reply), answer_of(ended.reply))
        return ended.reply

    def _lose(self, lost: Ended) -> Attempt:
        """The attempt of one that came too late, at its true cost where that is known by now."""
        if lost.error is not None:
            return self._failed(lost.send, lost.error)
        return self._attempt(lost.send, usage=usage_of(lost.reply), error=LOST, billed=lost.send.sent)

    def _failed(self, send: Send, error: Exception) -> Attempt:
        usage = error.usage if isinstance(error, NoAnswerError) else UNTOLD
        what = describe(error, secrets_of(self.members[send.decision.member], self.params))
        return self._attempt(send, usage=usage, error=what, billed=was_billed(error))

    def _following(self) -> Decision | None:
        if self.number >= MOST_HOPS or self.left_s() == 0:
            return None
        tried = dict.fromkeys(self.failures, "failed a moment ago")
        tried |= {send.decision.member: "is being asked already" for send in self._running}
        wishes = self._remaining()
        # Who may be too slow for the time left is still better than nobody: the deadline holds anyway.
        for each in (wishes,) if self._running else (wishes, dataclasses.replace(wishes, max_latency_s=None)):
            with contextlib.suppress(NoEligibleMemberError):
                return self.decide(each, tried)
        return None

    def _advice(self) -> str:
        if self.failures and all(w.startswith("AuthenticationError") for w in self.failures.values()):
            return "Check the members' API keys."
        if self.left_s() == 0:
            return f"The deadline has passed: max_latency_s is {self.wishes.max_latency_s:g}."
        left_out = [f"  {one.member}: {why}" for one in self.decision if (why := one.ineligible_because)]
        return "\n".join(["Left out from the start:", *left_out]) if left_out else ""

    def _remaining(self) -> Wishes:
        """The wishes under what is left of the deadline and, if those at it cost their most, of the cap."""
        wishes = self.wishes
        if wishes.max_latency_s is not None:
            wishes = dataclasses.replace(wishes, max_latency_s=self.left_s())
        if wishes.max_cost_usd is not None:
            spent = self.spent_usd + sum(map(self._most_usd, self._running))
            wishes = dataclasses.replace(wishes, max_cost_usd=max(0.0, wishes.max_cost_usd - spent))
        return wishes

    def _most_usd(self, send: Send) -> float:
        member = self.members[send.decision.member]
        return most_usd(send.params, send.decision, member, self.answers, self.most_input_tokens())

    def _attempt(
        self,
        send: Send,
        *,
        usage: Usage = UNTOLD,
        error: str | None = None,
        billed: bool = True,
        first_token_s: float | None = None,
    ) -> Attempt:
        """The attempt that has just ended, its cost counted; still to be written down."""
        cost = usage.cost_usd(self.members[send.decision.member])
        estimated = cost is None and billed
        if cost is None:
            cost = self._most_usd(send) if billed else 0.0
        self.spent_usd += cost
        self.spent_is_estimated |= estimated
        return Attempt(
            decision_id=send.decision.id,
            number=send.number,
            member=send.decision.member,
            reason=send.decision.reason,
            started_at=send.began,
            seconds=self.clock() - send.began,
            error=error,
            cost_usd=cost,
            cost_is_estimated=estimated,
            first_token_s=first_token_s,
            **vars(usage),
        )

    def _end(
        self,
        attempts: list[Attempt],
        served: Decision | None = None,
        usage: Usage = UNTOLD,
        answer: str | None = None,
        first_token_s: float | None = None,
        error: str | None = None,
    ) -> None:
        """Write down how the call ended, together with its last attempt, after those still unwritten."""
        now = self.clock()
        outcome = Outcome(
            decision_id=self.decision.id,
            ended_at=now,
            member=None if served is None else served.member,
            reason=None if served is None else served.reason,
            seconds=now - self.started,
            first_token_s=first_token_s,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cost_usd=self.spent_usd,
            cost_is_estimated=self.spent_is_estimated,
            error=error,
        )
        for attempt in attempts[:-1]:
            self._keep(attempt)
        last = attempts[-1] if attempts else None
        self._write(lambda log: log.record_outcome(outcome, answer, last_attempt=last))
        if last is not None:
            self._tell(last)

    def _keep(self, attempt: Attempt) -> None:
        self._write(lambda log: log.record_attempt(attempt))
        self._tell(attempt)

    def _tell(self, attempt: Attempt) -> None:
        try:
            self.on_attempt(attempt)
        except Exception as error:  # the call goes on, or its answer is waiting
            message = f"on_attempt failed at attempt {attempt.number} of {attempt.decision_id}: {error!r}"
            warnings.warn(message, EnsembleWarning, stacklevel=2)

    def _write(self, record: Callable[[OutcomeLog], None]) -> None:
        try:
            if self.log is not None:
                record(self.log)
        except LogError as error:  # money is spent, and an answer may be waiting
            message = f"what became of decision {self.decision.id} is not in the log: {error}"
            warnings.warn(message, EnsembleWarning, stacklevel=2)

"""Which member next, and what is written down? One call, from its decision to its outcome.

``Call.steps`` is a generator that asks for one thing only, to send a request, and is told the
reply or the error. Who sends, and whether by waiting or by awaiting, is the driver's affair
(engine.py), so the loop across members stands here once. Each hop decides anew among the members
not yet tried, under the time and the money that are left, and writes one attempt.

The decision is written before the call: if that fails, nobody is called. From then on money may
have been spent, so a log that fails only warns (EnsembleWarning) and the answer is handed over.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ensemble.asked import LIMITS
from ensemble.dispatch import Usage, answer_of, secrets_of, usage_of, was_billed
from ensemble.errors import (
    CallFailedError,
    EnsembleWarning,
    LogError,
    NoEligibleMemberError,
    StreamBrokenError,
)
from ensemble.log_rows import scrubbed
from ensemble.outcomes import OutcomeLog
from ensemble.records import Attempt, Decision, Member, Outcome, Wishes

MOST_HOPS = 5  # members tried for one call; what fails at five different ones is not the members' fault
CANCELLED = "cancelled by the caller"


@dataclass(frozen=True)
class Send:
    """Please call this member with these parameters."""

    member: str
    params: dict[str, Any]


@dataclass(eq=False)
class Call:
    """The state of one call. ``decide(wishes, tried)`` is the first or the next decision, raising
    NoEligibleMemberError; ``record`` writes the first one down. ``params`` ask for ``answers`` answers.

    The driver sets ``in_flight`` when it sends: only then can a cancelled attempt have cost something.
    """

    params: Mapping[str, Any]
    answers: int
    wishes: Wishes
    members: Mapping[str, Member]
    decide: Callable[[Wishes, tuple[str, ...]], Decision]
    record: Callable[[Decision], None]
    log: OutcomeLog | None
    clock: Callable[[], float]
    on_answer: Callable[[Decision, str], None] = lambda decision, answer: None
    failures: dict[str, str] = field(default_factory=dict)
    spent_usd: float = 0.0
    spent_is_estimated: bool = False
    in_flight: bool = False

    def steps(self) -> Generator[Send, Any, Any]:
        """Yields Send, is sent the reply (or thrown litellm's error); returns the reply that serves.

        For a stream the reply is its opened chunks, and ``finish`` or ``break_off`` is to be called
        when they end. Raises CallFailedError when nobody is left to try.
        """
        self.started = self.clock()
        self.decision = self.decide(self.wishes, ())
        self.record(self.decision)
        self.number = 0
        while True:
            self.began, self.number, self.in_flight = self.clock(), self.number + 1, False
            self._params = self._limited()
            try:
                reply = yield Send(self.decision.member, self._params)
            except GeneratorExit:
                attempt = self._attempt(error=CANCELLED) if self.in_flight else None
                self._end(attempt, error=CANCELLED)
                raise
            except Exception as error:
                self._hop(error)
                continue
            if not self.params.get("stream"):
                self.finish(usage_of(reply), answer_of(reply))
            return reply

    def finish(self, usage: Usage, answer: str, first_token_s: float | None = None) -> None:
        """Write down that the member in charge has answered, then hand the answer to the scorer."""
        self._end(self._attempt(usage=usage), self.decision, usage, answer, first_token_s)
        self.on_answer(self.decision, answer)

    def break_off(
        self, error: Exception | str, answer: str, first_token_s: float | None
    ) -> StreamBrokenError | None:
        """Write down that a stream ended early: by an error, which is returned as ours, or by its reader."""
        what = error if isinstance(error, str) else self._describe(error)
        self._end(self._attempt(error=what), None, None, answer, first_token_s, what)
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

    def _hop(self, error: Exception) -> None:
        """Decide who is next after an error, or give up."""
        what = self.failures[self.decision.member] = self._describe(error)
        attempt = self._attempt(error=what, billed=was_billed(error))
        following = self._following()
        if following is None:
            self._end(attempt, error=f"{len(self.failures)} member(s) failed")
            raise CallFailedError(self.failures, self.decision.id, self._advice()) from error
        self._write(lambda log: log.record_attempt(attempt))
        self.decision = following

    def _following(self) -> Decision | None:
        if self.number >= MOST_HOPS or self.left_s() == 0:
            return None
        try:
            return self.decide(self._remaining(), tuple(self.failures))
        except NoEligibleMemberError:
            return None

    def _advice(self) -> str:
        if all(what.startswith("AuthenticationError") for what in self.failures.values()):
            return "Check the members' API keys."
        if self.left_s() == 0:
            return f"The deadline has passed: max_latency_s is {self.wishes.max_latency_s:g}."
        return ""

    def _remaining(self) -> Wishes:
        wishes = self.wishes
        if wishes.max_latency_s is not None:
            wishes = dataclasses.replace(wishes, max_latency_s=self.left_s())
        if wishes.max_cost_usd is not None:
            wishes = dataclasses.replace(wishes, max_cost_usd=max(0.0, wishes.max_cost_usd - self.spent_usd))
        return wishes

    def _limited(self) -> dict[str, Any]:
        """The caller's parameters under what is left of the deadline and of the cap."""
        params, left = dict(self.params), self._remaining()
        if left.max_latency_s is not None:
            names = ("stream_timeout", "timeout") if params.get("stream") else ("timeout",)
            params |= dict.fromkeys(names, self._timeout_s(names, left.max_latency_s))
        if left.max_cost_usd is not None:
            affordable = self._affordable_tokens(left.max_cost_usd)
            for name in [limit for limit in LIMITS if params.get(limit)] or LIMITS[:1]:
                if affordable is not None:
                    params[name] = min(params.get(name) or affordable, affordable)
        return params

    def _timeout_s(self, names: Sequence[str], left_s: float) -> float:
        """The deadline, or what the caller or else the pool allows a call if that is less."""
        pool = [deployment.params for deployment in self.members[self.decision.member].deployments]
        asked = any(self.params.get(name) for name in names)
        bounds = [
            next((given[name] for name in names if given.get(name)), None)
            for given in ([self.params] if asked else pool)
        ]
        longest = max((b if isinstance(b, int | float) else math.inf for b in bounds), default=math.inf)
        return max(0.001, min(longest, left_s))

    def _affordable_tokens(self, usd: float) -> int | None:
        """How long one answer may be for so much; ``None`` where tokens are free and have no limit."""
        member = self.members[self.decision.member]
        if member.usd_per_million_output <= 0:
            return member.max_output_tokens
        left = usd - self.decision.input_tokens * member.usd_per_million_input / 1e6
        tokens = max(1, math.floor(left / member.usd_per_million_output * 1e6 / self.answers))
        return min(tokens, member.max_output_tokens or tokens)

    def _attempt(
        self, *, usage: Usage | None = None, error: str | None = None, billed: bool = True
    ) -> Attempt:
        """The attempt that has just ended, its cost counted; still to be written down."""
        cost = None if usage is None else usage.cost_usd(self.members[self.decision.member])
        estimated = cost is None and billed
        if cost is None:
            cost = self._most_usd() if billed else 0.0
        self.spent_usd += cost
        self.spent_is_estimated |= estimated
        return Attempt(
            decision_id=self.decision.id,
            number=self.number,
            member=self.decision.member,
            reason=self.decision.reason,
            started_at=self.began,
            seconds=self.clock() - self.began,
            error=error,
            model=None if usage is None else usage.model,
            input_tokens=None if usage is None else usage.input_tokens,
            cached_input_tokens=None if usage is None else usage.cached_input_tokens,
            output_tokens=None if usage is None else usage.output_tokens,
            cost_usd=cost,
            cost_is_estimated=estimated,
        )

    def _most_usd(self) -> float:
        """The most this attempt can have cost, since the provider didn't say; where nothing limits the
        answer's length, its 95 % point."""
        member, forecast = self.members[self.decision.member], self.decision.chosen
        limits = [self._params[name] for name in LIMITS if self._params.get(name)]
        tokens = min(limits, default=member.max_output_tokens or forecast.output_tokens_p95)
        usd_in = self.decision.input_tokens * member.usd_per_million_input
        return float(usd_in + self.answers * tokens * member.usd_per_million_output) / 1e6

    def _end(
        self,
        attempt: Attempt | None,
        served: Decision | None = None,
        usage: Usage | None = None,
        answer: str | None = None,
        first_token_s: float | None = None,
        error: str | None = None,
    ) -> None:
        """Write down how the call ended, together with its last attempt."""
        now = self.clock()
        outcome = Outcome(
            decision_id=self.decision.id,
            ended_at=now,
            member=None if served is None else served.member,
            reason=None if served is None else served.reason,
            seconds=now - self.started,
            first_token_s=first_token_s,
            input_tokens=None if usage is None else usage.input_tokens,
            output_tokens=None if usage is None else usage.output_tokens,
            cost_usd=self.spent_usd,
            cost_is_estimated=self.spent_is_estimated,
            error=error,
        )
        self._write(lambda log: log.record_outcome(outcome, answer, last_attempt=attempt))

    def _write(self, record: Callable[[OutcomeLog], None]) -> None:
        if self.log is None:
            return
        try:
            record(self.log)
        except LogError as error:  # money is spent, and an answer may be waiting
            message = f"what became of decision {self.decision.id} is not in the log: {error}"
            warnings.warn(message, EnsembleWarning, stacklevel=2)

    def _describe(self, error: BaseException) -> str:
        return describe(error, secrets_of(self.members[self.decision.member]))


def describe(error: BaseException, secrets: Iterable[str] = ()) -> str:
    """The error's class and first line, without keys: none of ``secrets``, nor what looks like one."""
    line = (str(error).strip().splitlines() or [""])[0]
    for secret in secrets:
        line = line.replace(secret, "[removed]")
    return scrubbed(f"{type(error).__name__}: {line[:300]}") or ""

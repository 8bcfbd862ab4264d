"""Which member next, and what is written down? One call, from its decision to its outcome.

``Call.steps`` is a generator that asks for one thing only, to send a request, and is told the
reply or the error. Who sends, and whether by waiting or by awaiting, is the driver's affair
(engine.py), so the loop across members stands here once. Each hop decides anew among the members
not yet tried, under the time and the money that are left, and writes one attempt.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ensemble.asked import LIMITS
from ensemble.dispatch import Usage, answer_of, usage_of, was_billed
from ensemble.errors import CallFailedError, NoEligibleMemberError, StreamBrokenError
from ensemble.log_rows import scrubbed
from ensemble.outcomes import OutcomeLog
from ensemble.records import Attempt, Decision, Member, Outcome, Wishes

MOST_HOPS = 5  # members tried for one call; what fails at five different ones is not the members' fault


@dataclass(frozen=True)
class Send:
    """Please call this member with these parameters."""

    member: str
    params: dict[str, Any]


@dataclass(eq=False)
class Call:
    """The state of one call. ``decide(wishes, tried)`` is the first or the next decision, raising
    NoEligibleMemberError; ``record`` writes the first one down."""

    params: Mapping[str, Any]
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

    def steps(self) -> Generator[Send, Any, Any]:
        """Yields Send, is sent the reply (or thrown litellm's error); returns the reply that serves.

        For a stream the reply is its chunks, opened as far as the first, and ``close_stream`` is to
        be called when they end. Raises CallFailedError when nobody is left to try.
        """
        self.started = self.clock()
        self.decision = self.decide(self.wishes, ())
        self.record(self.decision)
        self.number = 0
        while True:
            self.began, self.number = self.clock(), self.number + 1
            self._params = self._limited()
            try:
                reply = yield Send(self.decision.member, self._params)
            except GeneratorExit:
                self._end(error="cancelled by the caller", billed=True)
                raise
            except Exception as error:
                self._hop(error)
                continue
            if not self.params.get("stream"):
                self.finish(usage_of(reply), answer_of(reply))
            return reply

    def finish(self, usage: Usage, answer: str, first_token_s: float | None = None) -> None:
        """Write down that the member in charge has answered, then hand the answer to the scorer."""
        self._end(usage=usage, answer=answer, first_token_s=first_token_s)
        self.on_answer(self.decision, answer)

    def break_off(self, error: BaseException | None, answer: str) -> StreamBrokenError | None:
        """Write down that a stream ended early: by an error, which is returned as ours, or by its reader."""
        what = "closed by the caller" if error is None else describe(error)
        self._end(error=what, billed=True, answer=answer)
        if error is None:
            return None
        self.failures[self.decision.member] = what
        return StreamBrokenError(
            self.failures, self.decision.id, "Part of the answer had already been handed over; ask again."
        )

    def _hop(self, error: Exception) -> None:
        """Decide who is next after an error, or give up."""
        self.failures[self.decision.member] = describe(error)
        self._attempt(error=describe(error), billed=was_billed(error))
        following = self._following() if self.number < MOST_HOPS else None
        if following is None:
            self._outcome(None, error=f"{len(self.failures)} member(s) failed")
            advice = "Check the members' API keys." if _all_keys(self.failures) else ""
            raise CallFailedError(self.failures, self.decision.id, advice) from error
        self.decision = following

    def _following(self) -> Decision | None:
        try:
            return self.decide(self._remaining(), tuple(self.failures))
        except NoEligibleMemberError:
            return None

    def _remaining(self) -> Wishes:
        wishes = self.wishes
        if wishes.max_latency_s is not None:
            left_s = max(0.0, wishes.max_latency_s - (self.clock() - self.started))
            wishes = dataclasses.replace(wishes, max_latency_s=left_s)
        if wishes.max_cost_usd is not None:
            wishes = dataclasses.replace(wishes, max_cost_usd=max(0.0, wishes.max_cost_usd - self.spent_usd))
        return wishes

    def _limited(self) -> dict[str, Any]:
        """The caller's parameters under what is left of the deadline and of the cap."""
        params, left = dict(self.params), self._remaining()
        if left.max_latency_s is not None:
            params["timeout"] = min(float(params.get("timeout") or math.inf), max(left.max_latency_s, 0.001))
        if left.max_cost_usd is not None:
            name = next((limit for limit in LIMITS if params.get(limit)), LIMITS[0])
            affordable = self._affordable_tokens(left.max_cost_usd)
            if affordable is not None:
                params[name] = min(params.get(name) or affordable, affordable)
        return params

    def _affordable_tokens(self, usd: float) -> int | None:
        member = self.members[self.decision.member]
        if member.usd_per_million_output <= 0:
            return member.max_output_tokens
        left = usd - self.decision.input_tokens * member.usd_per_million_input / 1e6
        tokens = max(1, math.floor(left / member.usd_per_million_output * 1e6))
        return min(tokens, member.max_output_tokens or tokens)

    def _end(
        self,
        *,
        usage: Usage | None = None,
        answer: str | None = None,
        first_token_s: float | None = None,
        error: str | None = None,
        billed: bool = True,
    ) -> None:
        self._attempt(usage=usage, error=error, billed=billed)
        self._outcome(self.decision if error is None else None, usage, answer, first_token_s, error)

    def _attempt(self, *, usage: Usage | None = None, error: str | None = None, billed: bool = True) -> None:
        cost = None if usage is None else usage.cost_usd(self.members[self.decision.member])
        estimated = cost is None and billed
        if cost is None:
            cost = self._most_usd() if billed else 0.0
        self.spent_usd += cost
        self.spent_is_estimated |= estimated
        if self.log is None:
            return
        self.log.record_attempt(
            Attempt(
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
        )

    def _most_usd(self) -> float:
        """The most this attempt can have cost, since the provider didn't say."""
        member, forecast = self.members[self.decision.member], self.decision.chosen
        limit = next(
            (self._params[name] for name in LIMITS if self._params.get(name)), member.max_output_tokens
        )
        tokens = forecast.output_tokens_p95 if limit is None else limit
        usd_in = self.decision.input_tokens * member.usd_per_million_input
        return float(usd_in + tokens * member.usd_per_million_output) / 1e6

    def _outcome(
        self,
        served: Decision | None,
        usage: Usage | None = None,
        answer: str | None = None,
        first_token_s: float | None = None,
        error: str | None = None,
    ) -> None:
        if self.log is None:
            return
        now = self.clock()
        self.log.record_outcome(
            Outcome(
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
            ),
            answer=answer,
        )


def describe(error: BaseException) -> str:
    """The error's class and first line, without keys."""
    lines = str(error).strip().splitlines() or [""]
    return scrubbed(f"{type(error).__name__}: {lines[0][:300]}") or ""


def _all_keys(failures: Mapping[str, str]) -> bool:
    return all(what.startswith("AuthenticationError") for what in failures.values())

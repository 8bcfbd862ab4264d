"""Many calls at once that together never cost more than a budget.

Before a call is sent, the most it can cost is set aside in the journal; its real cost takes the place of
that when the answer is there. Where the next call does not fit, nothing more is sent until a call in
flight ends cheaper than it might have.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ensemble.dispatch import Dispatcher, describe, secrets_of, was_billed
from ensemble.errors import EnsembleWarning
from ensemble.learning.journal import Answer, Journal
from ensemble.learning.plan import Pair, overruns
from ensemble.replies import answer_of, usage_of

TIMEOUT_S = 600.0  # of one call, unless params or the pool give another
WAITS_S = (1.0, 4.0, 16.0)  # before each further try where a provider is busy and doesn't say how long
LONGEST_WAIT_S = 60.0
GIVE_UP_AFTER = 5  # failures of a member in a row
SLACK_USD = 1e-9  # of rounding, in a sum of many costs
REFUSED, BUSY = (401, 402, 403, 404), (429, 503)  # HTTP


@dataclass(frozen=True)
class Failures:
    """How many pairs of a member failed, and the first error as an example."""

    count: int
    example: str


class Asking:
    """Asks ``pairs`` in their order, as far as ``budget_usd`` goes, and writes all of it to the journal.

    ``dispatcher`` may be None where no pair fits the budget. ``params`` go to litellm with every call.
    ``on_end`` hears of each pair that was answered or has failed. After ``run``: ``stopped`` is "finished"
    once every pair had its turn, else "budget"; ``failures`` by member; ``given_up`` maps members that
    were not asked to the end to the reason.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        budget_usd: float,
        journal: Journal,
        dispatcher: Dispatcher | None,
        params: Mapping[str, Any],
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        self.stopped: Literal["finished", "budget", "interrupted"] = "finished"
        self.failures: dict[str, Failures] = {}
        self.given_up: dict[str, str] = {}
        self._pairs, self._next = pairs, 0
        self._in_flight = self._working = 0  # calls; threads
        self._budget_usd, self._journal = budget_usd, journal
        self._dispatcher, self._params, self._on_end = dispatcher, params, on_end
        self._in_a_row: Counter[str] = Counter()
        self._overrun = overruns(journal.answers.values())
        self._changed = threading.Condition()
        self._ending = False
        self._crash: BaseException | None = None

    def run(self, concurrency: int) -> None:
        """Ask, ``concurrency`` calls at a time. On Ctrl-C nothing more is sent, and KeyboardInterrupt
        is raised once the calls in flight, which are paid for, have ended; a second one abandons them."""
        # Daemons: an abandoned call must not hold up the end of the process.
        threads = [threading.Thread(target=self._work, daemon=True) for _ in self._pairs[:concurrency]]
        self._working = len(threads)
        try:
            for thread in threads:
                thread.start()
            self._wait()
        except KeyboardInterrupt:
            self._end("interrupted")
            with self._changed:
                self._working -= sum(thread.ident is None for thread in threads)  # those not started
                in_flight = self._in_flight
            if in_flight:
                what = f"stopping once {in_flight} call(s) in flight, which are paid for, have ended"
                warnings.warn(f"{what}; press Ctrl-C again to abandon them", EnsembleWarning, stacklevel=2)
            self._wait()
            raise
        if self._crash is not None:
            raise self._crash

    def _wait(self) -> None:
        """Until all are done. (A join that Ctrl-C interrupts takes the thread for ended, in Python 3.11.)"""
        with self._changed:
            self._changed.wait_for(lambda: self._working <= 0)

    def _work(self) -> None:
        try:
            while (pair := self._take()) is not None:
                self._ask(pair)
        except BaseException as crash:  # such as a full disk: for the thread that called run
            self._crash = crash
            self._end("interrupted")
        finally:
            with self._changed:
                self._working -= 1
                self._changed.notify_all()

    def _end(self, why: Literal["budget", "interrupted"]) -> None:
        with self._changed:
            self.stopped = why
            self._ending = True
            self._changed.notify_all()

    def _take(self) -> Pair | None:
        """The next pair, its money set aside; None when there is to be no further one."""
        with self._changed:
            while not self._ending:
                self._pass_over()
                if self._next == len(self._pairs):
                    return None
                pair = self._pairs[self._next]
                most_usd = pair.most_usd * self._overrun[pair.member.name]
                if self._journal.spent_usd + most_usd <= self._budget_usd + SLACK_USD:
                    self._journal.sent(pair.key, most_usd)
                    self._next += 1
                    self._in_flight += 1
                    return pair
                if not self._in_flight:
                    self._end("budget")
                else:
                    self._changed.wait()
            return None

    def _pass_over(self) -> None:
        while self._next < len(self._pairs) and self._pairs[self._next].member.name in self.given_up:
            self._next += 1

    def _ask(self, pair: Pair) -> None:
        name = pair.member.name
        try:
            answer = _answer(pair, self._send(pair))
        except Exception as error:
            what = describe(error, secrets_of(pair.member, {}))
            with self._settling():
                self._journal.failed(pair.key, what, billed=was_billed(error))
                self._note_failure(name, what, _status(error))
        else:
            with self._settling():
                self._journal.answered(answer)
                self._in_a_row[name] = 0
                self._overrun[name] = max(self._overrun[name], overruns([answer])[name])

    @contextlib.contextmanager
    def _settling(self) -> Iterator[None]:
        with self._changed:
            try:
                yield
            finally:
                self._in_flight -= 1
                self._changed.notify_all()
        self._on_end()

    def _send(self, pair: Pair) -> Any:
        """One call that may be billed, and before it any number that were turned away."""
        assert self._dispatcher is not None
        member = pair.member
        spare = len(member.deployments) - 1  # litellm cools a place that refused, and takes another
        waits = iter(WAITS_S)
        params = {**self._params, "max_tokens": pair.max_tokens, "num_retries": 0, "max_retries": 0}
        if not any("timeout" in deployment.params for deployment in member.deployments):
            params.setdefault("timeout", TIMEOUT_S)
        while True:
            try:
                return self._dispatcher.send(member.name, pair.prompt.messages, params)
            except Exception as error:
                if was_billed(error):
                    raise
                if spare:
                    spare -= 1
                    continue
                wait_s = next(waits, None) if _is_busy(error) else None
                if wait_s is None or self._is_over(member.name, wait_s=_retry_after_s(error) or wait_s):
                    raise

    def _is_over(self, name: str, wait_s: float) -> bool:
        """Whether this member is to be asked no more; told at once, or after a wait if it is not."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self._ending or name in self.given_up, timeout=min(wait_s, LONGEST_WAIT_S)
            )

    def _note_failure(self, name: str, what: str, status: object) -> None:
        earlier = self.failures.get(name, Failures(0, what))
        self.failures[name] = Failures(earlier.count + 1, earlier.example)
        self._in_a_row[name] += 1
        if status in REFUSED:
            self.given_up.setdefault(name, f"refused: {what}")
        elif self._in_a_row[name] >= GIVE_UP_AFTER:
            self.given_up.setdefault(name, f"failed {GIVE_UP_AFTER} times in a row, last with {what}")


def _is_busy(error: BaseException) -> bool:
    """Also where litellm holds a place to be so, and has sent nothing."""
    return _status(error) in BUSY or hasattr(error, "cooldown_time")


def _status(error: BaseException) -> object:
    return getattr(error, "status_code", None)


def _retry_after_s(error: BaseException) -> float | None:
    """How long the provider, or litellm, says to wait."""
    headers = getattr(error, "litellm_response_headers", None) or {}
    try:
        return max(0.0, float(getattr(error, "cooldown_time", None) or headers["retry-after"]))
    except (KeyError, TypeError, ValueError):
        return None


def _answer(pair: Pair, reply: Any) -> Answer:
    usage = usage_of(reply)
    return Answer(
        prompt_id=pair.prompt.id,
        member=pair.member.name,
        models=tuple(deployment.model for deployment in pair.member.deployments),
        prompt_sha256=pair.prompt.sha256,
        answer=answer_of(reply),
        served=usage.model,
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cost_usd=usage.cost_usd(pair.member),
        most_usd=pair.most_usd,
    )

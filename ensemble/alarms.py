"""Does a member still do what was expected of it? An alarm when its name, price or outcomes say otherwise.

A name that is new, and a bill that doesn't add up, are plain to see. Failures, rewards and lengths are noisy,
and are watched by one sequential test. Let y in [0, 1] be what should be rare or small, and q the most that
its mean may be while all is well. Betting a share s of the capital on y multiplies it by

    1 - s + s * y / q        whose mean is at most 1 as long as that of y is at most q

so that wealth is evidence. A change may begin at any time: at every step one more unit of capital is put
in, c <- (c + 1) * (1 - s + s * y / q), and the mean of c over STAKES raises the alarm at LEAST_RUN. While all
is well, LEAST_RUN observations or more go by on average before an alarm, however y is distributed and
whatever q depends on, if only it is known beforehand: the e-detector of Shin, Ramdas and Rinaldo 2022 (arXiv
2203.03532) on the bets of Waudby-Smith and Ramdas 2024 (arXiv 2010.09686). Capital stays between 0 and a
multiple of LEAST_RUN, so that logarithms are not needed.

    failures  y: 1 for an attempt that failed           q: TIMES the usual odds of it, as learned
    tokens    y: 1 for an answer beyond its 95 % point  q: the same
    reward    y: (1 + prediction - reward) / 2          q: (1 + slack) / 2; and the reverse for better ones
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from ensemble.cooling import speaks_against
from ensemble.records import Attempt

LEAST_RUN = 100_000  # observations per false alarm of one test of one member, on average, or more
REST = 1_000  # observations: after an alarm the same test is silent for so long, then starts afresh
STAKES = tuple(0.5**k for k in range(1, 6))  # large ones see large changes sooner, small ones small changes

FAILURES_USUAL, TOO_LONG_USUAL = 0.02, 0.05  # shares that nobody need hear of, whatever has been usual
TIMES = 3.0  # by which the odds must exceed the usual ones
HEAD_START, HALF_LIFE = 500, 1_000  # observations: what the shares above count for; when half is forgotten

SLACK, DOUBTS = 0.05, 2.0  # a reward may differ from its prediction by SLACK + DOUBTS * reward_std

FIRST_ANSWERS = 20  # whose names are the usual ones, and before which nothing is said of a price
MOST_NAMES = 16  # a provider with more of them puts something else there
PRICE_SHARE, PRICE_USD = 0.02, 0.01  # a bill may be off by so much of it; and in all by so much more, or one
# answer's cost if that is greater

_DATE = re.compile(r"[-@:_](\d{4}-\d{2}-\d{2}|\d{8}|\d{4,6})$")


@dataclass(frozen=True)
class Alarm:
    """``text`` says what was expected of the member, what was found, and what to do.

    ``found`` over the last ``observations``, against ``expected``: for "name" the names, for "params" words;
    for "price" USD; for "failures" and "tokens" shares in [0, 1], of attempts that failed and of answers
    longer than their 95 % point; for "reward" the mean of reward - prediction, in [-1, 1], and the limit that
    it passed.
    """

    member: str
    kind: Literal["name", "price", "params", "failures", "reward", "tokens"]
    text: str
    expected: float | str
    found: float | str
    observations: int


@dataclass
class _Detector:
    """The test above. Of each stake: its capital; and, so that an alarm can say since when and how much, two
    sums weighted by it, over all the steps at which a change may have begun: observations, and figures."""

    bets: list[tuple[float, float, float]] = field(default_factory=lambda: [(0.0, 0.0, 0.0)] * len(STAKES))
    rest: int = 0

    def step(self, y: float, q: float, figure: float) -> tuple[int, float] | None:
        """``y`` in [0, 1], whose mean should be at most ``q`` > 0. At an alarm: the number of observations
        since the change, and the mean of ``figure`` over them."""
        if self.rest:
            self.rest -= 1
            return None
        in_all = 0.0
        for k, (stake, (capital, number, total)) in enumerate(zip(STAKES, self.bets, strict=True)):
            factor, capital = 1 - stake + stake * y / q, capital + 1
            self.bets[k] = factor * capital, factor * (number + capital), factor * (total + capital * figure)
            in_all += factor * capital
        if in_all < LEAST_RUN * len(STAKES):
            return None
        number, total = (sum(column) for column in list(zip(*self.bets, strict=True))[1:])
        self.bets, self.rest = [(0.0, 0.0, 0.0)] * len(STAKES), REST
        return max(1, round(number / in_all)), total / number


class _Share:
    """Has something become TIMES as frequent as is usual? ``least``: the share taken for usual at first, and
    never for less."""

    def __init__(self, least: float) -> None:
        self._least, self._usual, self._weight = least, least, 1 / HEAD_START
        self._detector = _Detector()

    def step(self, happened: bool) -> tuple[float, int, float] | None:
        """At an alarm: the usual share, the number of observations since the change, the share in them."""
        y, usual = float(happened), max(self._usual, self._least)
        found = self._detector.step(y, TIMES * usual / (1 + (TIMES - 1) * usual), y)
        self._usual += self._weight * (y - self._usual)
        self._weight = max(self._weight / (1 + self._weight), math.log(2) / HALF_LIFE)
        return None if found is None else (usual, *found)


@dataclass
class _Bill:
    """What the provider says its answers cost, against ours, since they began to part: ``beyond`` is by how
    much the one has since outrun the other, less what is allowed."""

    sign: Literal[1, -1]  # 1: it asks for more than we reckoned, -1: for less
    answers: int = 0
    beyond: float = 0.0
    told_usd: float = 0.0
    our_usd: float = 0.0
    rest: int = 0

    def step(self, told_usd: float, our_usd: float) -> bool:
        if self.rest:
            self.rest -= 1
            return False
        beyond = self.beyond + self.sign * (told_usd - our_usd) - PRICE_SHARE * our_usd
        if beyond <= 0:
            self.answers, self.beyond, self.told_usd, self.our_usd = 0, 0.0, 0.0, 0.0
            return False
        self.answers, self.beyond = self.answers + 1, beyond
        self.told_usd, self.our_usd = self.told_usd + told_usd, self.our_usd + our_usd
        return self.answers >= FIRST_ANSWERS and beyond > max(PRICE_USD, self.our_usd / self.answers)


class _Watched:
    """All that is remembered of one member."""

    def __init__(self) -> None:
        self.named, self.names = 0, dict[str, None]()  # answers that bore a name; those seen, in order
        self.bills = (_Bill(1), _Bill(-1))
        self.failures, self.too_long = _Share(FAILURES_USUAL), _Share(TOO_LONG_USUAL)
        self.worse, self.better = _Detector(), _Detector()
        self.refusals = 0  # attempts, since the last alarm of them


class Watch:
    """Calls ``on_alarm`` when a member leaves what was expected of it. Thread-safe; it reads no clock.

    Figures that are no finite numbers are passed over. What ``on_alarm`` raises reaches the caller, with
    everything noted by then.
    """

    def __init__(self, on_alarm: Callable[[Alarm], None]) -> None:
        self._on_alarm, self._lock = on_alarm, threading.Lock()
        self._members: dict[str, _Watched] = {}

    def attempt(
        self, attempt: Attempt, expected_usd: float | None = None, told_usd: float | None = None
    ) -> None:
        """Learn from an attempt that has ended. ``expected_usd``: what it costs at the pool's price by the
        tokens that the provider counted; ``told_usd``: by the provider itself; None where unknown.

        A failure counts if it speaks against the member, as in cooling.py; other errors say nothing of it.
        """
        alarms: list[Alarm | None] = []
        with self._lock:
            of = self._of(attempt.member)
            if attempt.error is None or speaks_against(attempt):
                alarms.append(_failures(attempt.member, of, attempt.error is not None))
            if attempt.model:
                alarms.append(_name(attempt.member, of, attempt.model))
            if _amounts(expected_usd, told_usd) and attempt.error is None:
                alarms.append(_price(attempt.member, of, float(told_usd or 0), float(expected_usd or 0)))
        self._raise(alarms)

    def reward(self, member: str, predicted: float, reward_std: float, reward: float) -> None:
        """Hold the reward of the member that served, in [0, 1], against its prediction.

        Who is chosen was likely overrated a little: the slack is for that, and for the router's own doubt.
        """
        if not all(map(math.isfinite, (predicted, reward_std, reward))):
            return
        predicted, reward = min(max(predicted, 0.0), 1.0), min(max(reward, 0.0), 1.0)
        slack = SLACK + DOUBTS * max(reward_std, 0.0)
        with self._lock:
            of, off = self._of(member), reward - predicted
            worse = of.worse.step((1 - off) / 2, (1 + slack) / 2, off)
            better = of.better.step((1 + off) / 2, (1 + slack) / 2, off)
        self._raise(
            [_reward(member, sign * slack, *found) for sign, found in ((-1, worse), (1, better)) if found]
        )

    def tokens(self, member: str, output_tokens_p95: float, output_tokens: float) -> None:
        """Hold the length of an answer against the length that one in twenty was expected to exceed."""
        if not (math.isfinite(output_tokens_p95) and math.isfinite(output_tokens)):
            return
        with self._lock:
            found = self._of(member).too_long.step(output_tokens > output_tokens_p95)
        self._raise([found and _tokens(member, *found)])

    def refusal(self, member: str, error: str) -> None:
        """An attempt has failed on parameters that the member doesn't take: each that holds them will."""
        with self._lock:
            of = self._of(member)
            due, of.refusals = of.refusals == 0, (of.refusals + 1) % REST
        self._raise([_refusal(member, error) if due else None])

    def _of(self, member: str) -> _Watched:
        return self._members.get(member) or self._members.setdefault(member, _Watched())

    def _raise(self, alarms: list[Alarm | None]) -> None:
        for alarm in alarms:
            if alarm is not None:  # outside the lock: the owner may take his time
                self._on_alarm(alarm)


def _failures(member: str, of: _Watched, failed: bool) -> Alarm | None:
    found = of.failures.step(failed)
    if found is None:
        return None
    usual, number, share = found
    text = (
        f"{member}: expected about {usual:.1%} of its attempts to fail, found {share:.1%} of the last "
        f"{number}. Look at their errors in the log; take it out of the pool if it does not recover."
    )
    return Alarm(member, "failures", text, usual, share, number)


def _tokens(member: str, usual: float, number: int, share: float) -> Alarm:
    text = (
        f"{member}: expected about {usual:.1%} of its answers to be longer than their predicted 95 % point, "
        f"found {share:.1%} of the last {number}: they cost more than was reckoned. Train the router on "
        "newer answers, or limit max_tokens."
    )
    return Alarm(member, "tokens", text, usual, share, number)


def _reward(member: str, limit: float, number: int, off: float) -> Alarm:
    how = "worse" if limit < 0 else "better"
    text = (
        f"{member}: expected rewards within {abs(limit):.3f} of their prediction on average, found them "
        f"{abs(off):.3f} {how} over the last {number}. See whether the member or the work has changed, and "
        "train the router on newer outcomes."
    )
    return Alarm(member, "reward", text, limit, off, number)


def _price(member: str, of: _Watched, told_usd: float, our_usd: float) -> Alarm | None:
    due = [bill.step(told_usd, our_usd) for bill in of.bills]
    if not any(due):
        return None
    bill = of.bills[due.index(True)]
    told, ours, number = bill.told_usd, bill.our_usd, bill.answers
    text = (
        f"{member}: expected its last {number} answers to cost {ours:.6f} USD at the pool's price, found "
        f"{told:.6f} USD by the provider's own count. Correct the member's price in the pool, or "
        "ask the provider."
    )
    of.bills = (_Bill(1, rest=REST), _Bill(-1, rest=REST))
    return Alarm(member, "price", text, ours, told, number)


def _refusal(member: str, error: str) -> Alarm:
    text = (
        f"{member}: expected it to take the parameters of a call, found that it does not. Give it params = "
        f"{{ drop_params = true }} in the pool, to leave out what it does not take, or exclude it. {error}"
    )
    return Alarm(member, "params", text, "the parameters of a call", error, 1)


def _name(member: str, of: _Watched, name: str) -> Alarm | None:
    """An alarm for a name that is new, once; a member that bears too many is not watched for them."""
    of.named += 1
    if name in of.names or len(of.names) >= MOST_NAMES:
        return None
    usual = ", ".join(of.names)
    akin = [known for known in of.names if _bare(known) == _bare(name)]
    of.names[name] = None
    if of.named <= FIRST_ANSWERS:
        return None
    how = f": from {akin[-1]} it differs only in provider or date, but is another model" if akin else ""
    last = (
        " It has borne so many names that new ones are no longer told." if len(of.names) == MOST_NAMES else ""
    )
    text = (
        f"{member}: expected an answer by {usual}, found one by {name}{how}. Measure the member anew "
        f"if this is not what you wanted, or pin its version in the pool.{last}"
    )
    return Alarm(member, "name", text, usual, name, of.named)


def _bare(name: str) -> str:
    return _DATE.sub("", name.rpartition("/")[2])


def _amounts(*usd: float | None) -> bool:
    return all(value is not None and 0 <= value < math.inf for value in usd)

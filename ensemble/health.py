"""What have the calls of late shown of the members? Who rests, how fast they are, what has changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ensemble.alarms import Alarm, Watch
from ensemble.cooling import Cooling
from ensemble.records import Attempt, Forecast
from ensemble.speeds import Speeds

N_EARLIER = 1_000  # attempts of the log that a process begins with


class Health:
    """Learns from every attempt as it ends. Thread-safe; a forked child begins its own.

    ``earlier``: attempts of before, oldest first, as the log's rows hold them: what is usual. Of them nobody
    rests, and there is no alarm.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        on_alarm: Callable[[Alarm], None],
        earlier: Iterable[Mapping[str, Any]] = (),
    ) -> None:
        self._cooling, self.speeds = Cooling(clock), Speeds()
        self._on_alarm: Callable[[Alarm], None] = lambda alarm: None
        self._watch = Watch(lambda alarm: self._on_alarm(alarm))
        for row in earlier:
            attempt = Attempt(**row)
            self._time(attempt)
            self._watch.attempt(attempt, *_usd(attempt))
        self._on_alarm = on_alarm

    def note(self, attempt: Attempt, forecast: Forecast) -> None:
        """Learn from an attempt that has ended, and from what was forecast of its member."""
        self._cooling.note(attempt)
        self._time(attempt)
        self._watch.attempt(attempt, *_usd(attempt))
        if str(attempt.error).startswith("UnsupportedParamsError"):
            self._watch.refusal(attempt.member, str(attempt.error))
        if attempt.error is None and attempt.output_tokens is not None:
            self._watch.tokens(attempt.member, forecast.output_tokens_p95, attempt.output_tokens)

    def reward(self, row: Mapping[str, Any], reward: float) -> None:
        """Learn how good the answer was to a decision, given as the log's row."""
        if (member := row["served_member"]) in row["members"]:
            m = row["members"].index(member)
            predicted, std = row["predicted_reward"][m], row["predicted_reward_std"][m]
            self._watch.reward(member, predicted, std, reward)

    def resting(self) -> dict[str, str]:
        """The members that are better left alone now, with the reason."""
        return self._cooling.resting()

    def _time(self, attempt: Attempt) -> None:
        if attempt.error is None:
            told = attempt.output_tokens, attempt.first_token_s
            self.speeds.note(attempt.member, attempt.seconds, *told)


def _usd(attempt: Attempt) -> tuple[float | None, float | None]:
    """What it cost by our reckoning, where that is no bound, and by the provider's."""
    return None if attempt.cost_is_estimated else attempt.cost_usd, attempt.told_usd

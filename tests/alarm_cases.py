"""A watch over members, what it has told, and how to wait for an alarm."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable

from ensemble.alarms import Alarm, Watch
from log_cases import attempt

ANSWERED = attempt("d", model=None)
FAILED = dataclasses.replace(ANSWERED, error="InternalServerError: Connection error.")
MANY = 200_000


class Heard(list[Alarm]):
    """A watch, and what it has told."""

    def __init__(self) -> None:
        super().__init__()
        self.watch = Watch(self.append)

    def attempts(self, n: int, rate: float, draw: random.Random) -> None:
        for _ in range(n):
            self.watch.attempt(FAILED if draw.random() < rate else ANSWERED)

    def answers(self, *names: str, times: int = 1, **usd: float) -> None:
        for name in names * times:
            self.watch.attempt(dataclasses.replace(ANSWERED, model=name), **usd)

    def rewards(self, n: int, off: float, draw: random.Random, std: float = 0.0) -> None:
        """1 or 0, ``off`` better than predicted on average."""
        for _ in range(n):
            predicted = draw.uniform(0.2, 0.8)
            self.watch.reward("oak", predicted, std, float(draw.random() < predicted + off))


def until(heard: Heard, step: Callable[[], None], most: int) -> int:
    """Steps taken to the first alarm."""
    for taken in range(1, most + 1):
        step()
        if heard:
            return taken
    raise AssertionError(f"no alarm within {most} steps")

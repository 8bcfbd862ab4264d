"""Speeds are learned from answers, follow a change, and are not moved by one forgotten request."""

from __future__ import annotations

import math
import random
import statistics
import threading
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble.pool import Pool
from ensemble.speeds import FASTEST, FIRST, HALF_LIFE, Speeds
from policy_cases import member

POOL = Pool(
    [
        member("oak"),
        member("elm", first_token_s=0.4, tokens_per_second=70.0),
        member("ash", first_token_s=2.0),
    ]
)
START_S, SPEED, TOKENS = 1.0, 50.0, 300.0


def feed(
    speeds: Speeds,
    n: int,
    draw: random.Random,
    *,
    name: str = "oak",
    speed: float = SPEED,
    tokens: float | None = None,
    stream: bool = False,
    noise: float = 0.3,
) -> None:
    """Answers that begin after START_S and run at ``speed``, each up to a lognormal factor."""
    for _ in range(n):
        length = tokens or round(draw.lognormvariate(5.5, 0.7))
        first, pace = (value * draw.lognormvariate(-(noise**2) / 2, noise) for value in (START_S, 1 / speed))
        speeds.note(name, first + length * pace, length, first if stream else None)


def learned(speeds: Speeds, name: str = "oak", pool: Pool = POOL) -> tuple[float, float]:
    first, speed = speeds.over(pool)
    m = pool.names.index(name)
    return float(first[m]), float(speed[m])


def seconds(speeds: Speeds, name: str = "oak", tokens: float = TOKENS) -> float:
    first, speed = learned(speeds, name)
    return first + tokens / speed


def true_seconds(speed: float = SPEED) -> float:
    return START_S + TOKENS / speed


@pytest.fixture
def speeds() -> Speeds:
    return Speeds()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("stream", [False, True])
def test_known_speeds_are_recovered_from_noisy_answers(speeds: Speeds, seed: int, stream: bool) -> None:
    feed(speeds, 500, random.Random(seed), stream=stream)
    assert seconds(speeds) == pytest.approx(true_seconds(), rel=0.1)
    assert learned(speeds)[1] == pytest.approx(SPEED, rel=0.2)


def test_without_noise_they_are_recovered_almost_exactly(speeds: Speeds) -> None:
    feed(speeds, 500, random.Random(1), noise=0.0)
    assert learned(speeds) == (pytest.approx(START_S, rel=0.05), pytest.approx(SPEED, rel=0.02))


def test_before_enough_answers_the_pool_is_believed(speeds: Speeds) -> None:
    feed(speeds, FIRST - 1, random.Random(2), name="elm")
    assert learned(speeds, "elm") == (0.4, 70.0)
    feed(speeds, 1, random.Random(2), name="elm")
    assert seconds(speeds, "elm") == pytest.approx(true_seconds(), rel=0.3)


def test_who_is_not_known_keeps_the_figures_of_the_pool(speeds: Speeds) -> None:
    feed(speeds, 50, random.Random(3))
    first, speed = speeds.over(POOL)
    assert first.shape == speed.shape == (3,) and first.dtype == speed.dtype == np.float64
    np.testing.assert_array_equal(first[1:], POOL.first_token_s[1:])
    np.testing.assert_array_equal(speed[1:], POOL.tokens_per_second[1:])


@pytest.mark.parametrize(("before", "after"), [(50.0, 10.0), (10.0, 50.0), (100.0, 5.0), (5.0, 100.0)])
def test_a_change_of_speed_is_followed(speeds: Speeds, before: float, after: float) -> None:
    draw = random.Random(4)
    feed(speeds, 500, draw, speed=before)
    feed(speeds, HALF_LIFE, draw, speed=after)
    half = (true_seconds(before) + true_seconds(after)) / 2
    assert (seconds(speeds) - half) * (after - before) < 0.15 * half * abs(after - before)
    feed(speeds, 5 * HALF_LIFE, draw, speed=after)
    assert seconds(speeds) == pytest.approx(true_seconds(after), rel=0.25)


@pytest.mark.parametrize("at", [0, 10, FIRST - 1, FIRST, 99])
@pytest.mark.parametrize("stream", [False, True])
def test_one_forgotten_request_in_a_hundred_moves_little(at: int, stream: bool) -> None:
    plain, disturbed = Speeds(), Speeds()
    for speeds in (plain, disturbed):
        draw = random.Random(5)
        feed(speeds, at, draw, stream=stream)
        if speeds is disturbed:
            speeds.note("oak", 600.0, 200, 590.0 if stream else None)
        feed(speeds, 99 - at, draw, stream=stream)
    assert seconds(disturbed) == pytest.approx(seconds(plain), rel=0.12)
    assert seconds(disturbed, tokens=1.0) < seconds(plain, tokens=1.0) + 1.0


def test_what_streams_tell_of_the_first_token_is_used(speeds: Speeds) -> None:
    feed(speeds, 200, random.Random(6), tokens=TOKENS, stream=True)
    assert learned(speeds) == (pytest.approx(START_S, rel=0.1), pytest.approx(SPEED, rel=0.1))


@pytest.mark.parametrize(("name", "start_s"), [("oak", 0.0), ("ash", 2.0)])
def test_answers_of_one_length_leave_the_split_to_the_pool(speeds: Speeds, name: str, start_s: float) -> None:
    for _ in range(30):
        speeds.note(name, 7.0, 300)
    assert learned(speeds, name) == (pytest.approx(start_s), pytest.approx(300 / (7 - start_s)))


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([(2.0, 10.0), (1.0, 1000.0)], (1.5, FASTEST)),  # the longer, the sooner
        ([(1.0, 100.0), (100.0, 1000.0)], (0.0, 10.09)),  # a start below 0
        ([(3.0, 0.0)], (3.0, FASTEST)),
        ([(0.0, 0.0)], (0.0, FASTEST)),
        ([(0.0, 50.0)], (0.0, FASTEST)),
    ],
)
def test_neither_number_is_ever_negative(
    speeds: Speeds, pairs: list[tuple[float, float]], expected: tuple[float, float]
) -> None:
    for answer in pairs * 40:
        speeds.note("oak", *answer)
    assert learned(speeds) == (pytest.approx(expected[0], rel=0.02), pytest.approx(expected[1], rel=0.02))


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -1.0, 1e300])
def test_what_is_no_measure_teaches_nothing(speeds: Speeds, wrong: float) -> None:
    for _ in range(50):
        speeds.note("oak", wrong, 10)
        speeds.note("oak", 1.0, wrong)
        speeds.note("oak", 1.0, None)
    assert all(map(math.isnan, learned(speeds)))
    for _ in range(50):
        speeds.note("oak", 1.0, 10, wrong)
    assert learned(speeds) == (0.0, pytest.approx(10.0))


def test_the_arrays_last_until_something_changes(speeds: Speeds) -> None:
    feed(speeds, 50, random.Random(7))
    first, speed = speeds.over(POOL)
    assert speeds.over(POOL)[0] is first and speeds.over(POOL)[1] is speed
    kept = first.copy(), speed.copy()
    feed(speeds, 50, random.Random(8), speed=5.0)
    assert learned(speeds)[1] < speed[0]
    np.testing.assert_array_equal(first, kept[0])  # who still reads the old ones is not disturbed
    np.testing.assert_array_equal(speed, kept[1])
    for array in speeds.over(POOL):
        with pytest.raises(ValueError):
            array[0] = 1.0


def test_another_pool_gets_its_own_arrays(speeds: Speeds) -> None:
    feed(speeds, 50, random.Random(9))
    known = learned(speeds)
    smaller = POOL.without("ash")
    assert learned(speeds, pool=smaller) == known
    assert len(speeds.over(smaller)[0]) == 2
    turned = Pool([*POOL][::-1])
    assert learned(speeds, pool=turned) == known
    assert learned(speeds, "elm", turned) == (0.4, 70.0)


def test_a_log_gives_what_its_answers_gave() -> None:
    rows: list[dict[str, Any]] = []
    draw, live = random.Random(10), Speeds()
    for i in range(200):
        tokens = draw.randrange(1, 900)
        row = {"member": ("oak", "elm")[i % 2], "seconds": 1 + tokens / 50, "output_tokens": tokens}
        live.note(**row)
        rows += [row | {"error": None}, row | {"error": "Timeout: late", "seconds": 600.0}]
    rows.append({"member": "oak", "seconds": 3.0, "output_tokens": None, "error": None})
    for ours, theirs in zip(Speeds.from_rows(rows).over(POOL), live.over(POOL), strict=True):
        np.testing.assert_array_equal(ours, theirs)


MEASURES = st.one_of(st.floats(0, 1e9), st.floats(0, 1000), st.sampled_from([0.0, 1.0, 1e9, 5e-324]))
ANSWERS = st.tuples(MEASURES, MEASURES, st.none() | MEASURES)


@given(st.lists(ANSWERS, min_size=1, max_size=60), st.sampled_from(POOL.names))
def test_what_is_known_is_never_negative_nor_nan(
    answers: list[tuple[float, float, float | None]], name: str
) -> None:
    speeds = Speeds()
    for answer in answers * math.ceil(FIRST / len(answers)):
        speeds.note(name, *answer)
    first, speed = learned(speeds, name)
    assert 0 <= first < math.inf and 0 < speed < math.inf


def test_many_threads_lose_no_answer(speeds: Speeds, monkeypatch: pytest.MonkeyPatch) -> None:
    def median(values: Iterable[float]) -> float:
        time.sleep(0.05)  # for the others to come in between, if they can
        return sorted(values)[FIRST // 2]

    monkeypatch.setattr(statistics, "median", median)
    barrier, alone = threading.Barrier(8), Speeds()

    def work() -> None:
        barrier.wait()
        for _ in range(10):
            speeds.note("oak", 7.0, 300, 1.0)
            speeds.over(POOL)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for _ in range(80):
        alone.note("oak", 7.0, 300, 1.0)
    assert speeds._lines["oak"]._sums == alone._lines["oak"]._sums
    assert learned(speeds) == learned(alone)

"""An alarm is raised soon after a member changes, and hardly ever while it does not."""

from __future__ import annotations

import dataclasses
import math
import random
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alarm_cases import ANSWERED, FAILED, MANY, Heard, until
from ensemble import alarms
from ensemble.alarms import FIRST_ANSWERS, LEAST_RUN, MOST_NAMES, REST, SLACK, Alarm, Watch
from ensemble.cooling import LEAST_TIMEOUT_S


@pytest.fixture
def heard() -> Heard:
    return Heard()


# Failures


@pytest.mark.parametrize("rate", [0.02, 0.1])
def test_failures_at_their_usual_rate_are_no_news(heard: Heard, rate: float) -> None:
    heard.attempts(MANY, rate, random.Random(1))
    assert heard == []


@pytest.mark.parametrize("before", [0, 5_000])
def test_failures_that_grow_from_2_to_30_percent_are_told_soon(before: int) -> None:
    delays = []
    for seed in range(20):
        heard, draw = Heard(), random.Random(seed)
        heard.attempts(before, 0.02, draw)
        delays.append(until(heard, lambda heard=heard, draw=draw: heard.attempts(1, 0.3, draw), 1_000))
        [alarm] = heard
        assert (alarm.member, alarm.kind) == ("oak", "failures")
        assert alarm.expected < alarm.found / 2 and 0.2 < alarm.found < 0.8
        assert alarm.observations <= 2 * delays[-1] + 20
    assert sorted(delays)[len(delays) // 2] <= 60


def test_growth_by_less_than_is_allowed_is_not_told(heard: Heard) -> None:
    draw = random.Random(2)
    heard.attempts(5_000, 0.05, draw)
    heard.attempts(20_000, 0.1, draw)
    assert heard == []


def test_a_new_rate_is_told_and_then_becomes_the_usual_one(heard: Heard) -> None:
    draw = random.Random(3)
    heard.attempts(5_000, 0.02, draw)
    heard.attempts(50_000, 0.3, draw)
    assert len(heard) == 1


def test_a_test_that_has_told_is_silent_for_a_while(heard: Heard) -> None:
    told = until(heard, lambda: heard.watch.attempt(FAILED), 100)
    for _ in range(REST):
        heard.watch.attempt(FAILED)
    assert len(heard) == 1 and told < 20
    heard.attempts(20_000, 0.0, random.Random(0))  # forgotten: failures are rare again
    heard.clear()
    assert until(heard, lambda: heard.watch.attempt(FAILED), 100) < 20


@pytest.mark.parametrize(
    "error", ["BadRequestError: no", "cancelled by the caller", "Timeout: the caller was in a hurry"]
)
def test_what_does_not_speak_against_a_member_is_no_failure(heard: Heard, error: str) -> None:
    for _ in range(500):
        heard.watch.attempt(dataclasses.replace(FAILED, error=error, seconds=LEAST_TIMEOUT_S / 2))
    assert heard == []


def test_members_are_watched_one_by_one(heard: Heard) -> None:
    for i in range(200):
        heard.watch.attempt(dataclasses.replace(FAILED, member=f"m{i % 50}"))
    assert heard == []
    for _ in range(20):
        heard.watch.attempt(dataclasses.replace(FAILED, member="m7"))
    assert [alarm.member for alarm in heard] == ["m7"]


# The test itself


@pytest.mark.parametrize("q", [0.06, 0.5])
def test_at_the_very_limit_false_alarms_are_as_rare_as_theory_says(q: float) -> None:
    draw, detector, found = random.Random(4), alarms._Detector(), 0
    for _ in range(2 * LEAST_RUN):
        detector.rest = 0
        found += detector.step(float(draw.random() < q), q, 0.0) is not None
    assert found <= 2 * 2  # 2 on average at the most


def test_a_limit_that_moves_with_what_is_known_beforehand_is_kept(heard: Heard) -> None:
    draw = random.Random(5)
    heard.rewards(MANY, -SLACK, draw)
    assert len(heard) <= 2 * 2 * MANY / LEAST_RUN


# Rewards


def test_rewards_as_predicted_are_no_news(heard: Heard) -> None:
    heard.rewards(MANY, 0.0, random.Random(6))
    assert heard == []


@pytest.mark.parametrize(("off", "word"), [(-0.15, "worse"), (0.15, "better")])
def test_rewards_that_leave_their_prediction_are_told(off: float, word: str) -> None:
    delays = []
    for seed in range(10):
        heard, draw = Heard(), random.Random(seed)
        heard.rewards(2_000, 0.0, draw)
        step = lambda heard=heard, draw=draw: heard.rewards(1, off, draw)  # noqa: E731
        delays.append(until(heard, step, 3_000))
        [alarm] = heard
        assert alarm.kind == "reward" and word in alarm.text
        assert alarm.expected == pytest.approx(math.copysign(SLACK, off))
        assert alarm.found == pytest.approx(off, abs=0.08)
    assert sorted(delays)[len(delays) // 2] <= 600


def test_a_router_in_doubt_is_given_more_room(heard: Heard) -> None:
    heard.rewards(20_000, -0.15, random.Random(7), std=0.06)
    assert heard == []


def test_a_reward_of_one_prompt_in_a_hundred_may_be_far_off(heard: Heard) -> None:
    for i in range(20_000):
        heard.watch.reward("oak", 0.99, 0.0, 0.0 if i % 100 == 0 else 1.0)
    assert heard == []


# Lengths


def test_answers_that_grow_beyond_their_95_percent_point_are_told(heard: Heard) -> None:
    draw = random.Random(8)
    for _ in range(MANY // 4):
        heard.watch.tokens("oak", 95.0, draw.uniform(0, 100))
    assert heard == []
    for _ in range(1_000):  # not even from the first answer on
        heard.watch.tokens("elm", 87.0, draw.uniform(0, 100))
    assert heard == []
    assert until(heard, lambda: heard.watch.tokens("oak", 95.0, draw.uniform(0, 200)), 200) < 60
    assert heard[0].kind == "tokens" and heard[0].found > 0.3


# Anything at all

NUMBERS = st.one_of(st.floats(), st.floats(0, 1), st.sampled_from([0.0, 1.0, 1e308, 5e-324]))
EVENTS = st.one_of(
    st.tuples(st.just("attempt"), st.booleans(), st.none() | NUMBERS, st.none() | NUMBERS),
    st.tuples(st.just("reward"), NUMBERS, NUMBERS, NUMBERS),
    st.tuples(st.just("tokens"), NUMBERS, NUMBERS),
)


@given(st.lists(st.tuples(EVENTS, st.sampled_from([1, 80])), max_size=12))
def test_whatever_is_fed_an_alarm_says_finite_things(
    events: list[tuple[tuple[str, *tuple[float, ...]], int]],
) -> None:
    heard = Heard()
    for (what, *figures), times in events:
        for _ in range(times):
            if what == "attempt":
                heard.watch.attempt(FAILED if figures[0] else ANSWERED, *figures[1:])
            else:
                getattr(heard.watch, what)("oak", *figures)
    for alarm in heard:
        assert math.isfinite(alarm.expected) and math.isfinite(alarm.found) and alarm.observations >= 1
        assert "expected" in alarm.text and "found" in alarm.text and "nan" not in alarm.text
    for detector in (heard.watch._of("oak").worse, heard.watch._of("oak").failures._detector):
        assert all(math.isfinite(figure) for bet in detector.bets for figure in bet)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_passed_over(heard: Heard, wrong: float) -> None:
    for place in range(3):
        figures = [0.5, 0.1, 0.5]
        figures[place] = wrong
        heard.watch.reward("oak", *figures)
    for _ in range(100):
        heard.watch.tokens("oak", -wrong, 5.0)
        heard.watch.tokens("oak", 5.0, wrong)
        heard.answers("oak", expected_usd=0.01, told_usd=wrong)
        heard.answers("oak", expected_usd=-0.01, told_usd=0.01)
    assert heard == []
    for _ in range(500):
        heard.watch.reward("oak", 1.0, 0.0, 0.0)
    heard.answers("oak", times=FIRST_ANSWERS, expected_usd=0.01, told_usd=0.02)
    assert [alarm.kind for alarm in heard] == ["reward", "price"]


class Slow(str):
    """A name that lets another thread go first whenever it is looked up."""

    def __hash__(self) -> int:
        time.sleep(1e-4)
        return super().__hash__()


def test_of_many_threads_each_new_name_is_told_once(heard: Heard) -> None:
    heard.answers("oak", times=FIRST_ANSWERS)
    names, barrier = [f"oak-{i}" for i in range(MOST_NAMES - 1)], threading.Barrier(8)

    def feed() -> None:
        barrier.wait()
        for name in names:
            heard.answers(Slow(name))

    threads = [threading.Thread(target=feed) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(str(alarm.found) for alarm in heard) == sorted(names)


def test_who_hears_an_alarm_may_use_the_watch() -> None:
    heard: list[Alarm] = []

    def hear(alarm: Alarm) -> None:
        heard.append(alarm)
        watch.attempt(ANSWERED)

    watch = Watch(hear)
    feeder = threading.Thread(target=lambda: [watch.attempt(FAILED) for _ in range(50)], daemon=True)
    feeder.start()
    feeder.join(10)
    assert not feeder.is_alive() and len(heard) == 1

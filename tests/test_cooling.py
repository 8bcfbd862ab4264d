"""A member that keeps failing is left alone, and comes back by a single probe."""

from __future__ import annotations

import threading

import pytest

from ensemble.cooling import FAILURES, LEAST_TIMEOUT_S, LONGEST_S, PROBE_S, REST_S, WITHIN_S, Cooling
from log_cases import attempt

DOWN = "InternalServerError: Connection error."


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cooling(clock: Clock) -> Cooling:
    return Cooling(clock)


def note(cooling: Cooling, clock: Clock, error: str | None, *, times: int = 1, seconds: float = 0.1) -> None:
    for _ in range(times):
        cooling.note(attempt("d", member="oak", error=error, started_at=clock.now, seconds=seconds))


def rest(cooling: Cooling, clock: Clock) -> None:
    note(cooling, clock, DOWN, times=FAILURES)
    assert set(cooling.resting()) == {"oak"}


def test_a_member_rests_after_so_many_failures_in_a_row(cooling: Cooling, clock: Clock) -> None:
    note(cooling, clock, DOWN, times=FAILURES - 1)
    assert cooling.resting() == {}
    note(cooling, clock, DOWN)
    assert cooling.resting() == {"oak": f"failed {FAILURES} times in a row and is left alone {REST_S:.1f} s"}


def test_an_answer_in_between_begins_the_count_anew(cooling: Cooling, clock: Clock) -> None:
    note(cooling, clock, DOWN, times=FAILURES - 1)
    note(cooling, clock, None)
    note(cooling, clock, DOWN, times=FAILURES - 1)
    assert cooling.resting() == {}


def test_failures_far_apart_are_none_in_a_row(cooling: Cooling, clock: Clock) -> None:
    for _ in range(2 * FAILURES):
        note(cooling, clock, DOWN)
        clock.now += WITHIN_S + 1
    assert cooling.resting() == {}


@pytest.mark.parametrize(
    "error",
    [
        "BadRequestError: no",
        "ContextWindowExceededError: no",
        "ContentPolicyViolationError: no",
        "UnsupportedParamsError: litellm's own, before anybody is asked",
        "APIError: HTTP 413: too large",
        "APIError: HTTP 431: too long headers",
        "cancelled by the caller",
        "closed by the caller",
        "let go: another member answered first",
        "Timeout: too little time",
    ],
)
def test_what_does_not_speak_against_a_member_is_passed_over(
    cooling: Cooling, clock: Clock, error: str
) -> None:
    note(cooling, clock, error, times=3 * FAILURES, seconds=LEAST_TIMEOUT_S / 2)
    assert cooling.resting() == {}
    # Nor does it speak for the member: the failures around it are still in a row.
    note(cooling, clock, DOWN, times=FAILURES - 1)
    note(cooling, clock, error, seconds=LEAST_TIMEOUT_S / 2)
    note(cooling, clock, DOWN)
    assert set(cooling.resting()) == {"oak"}


@pytest.mark.parametrize(
    "error",
    ["Timeout: x", "RateLimitError: x", "NoAnswerError: x", "APIError: HTTP 529: x", "APIError: x", DOWN],
)
def test_what_speaks_against_a_member_counts(cooling: Cooling, clock: Clock, error: str) -> None:
    note(cooling, clock, error, times=FAILURES, seconds=LEAST_TIMEOUT_S)
    assert set(cooling.resting()) == {"oak"}


def test_one_caller_probes_and_an_answer_ends_the_rest(cooling: Cooling, clock: Clock) -> None:
    rest(cooling, clock)
    clock.now += REST_S
    assert cooling.resting() == {}
    assert set(cooling.resting()) == {"oak"}, "a second caller tries, too"
    note(cooling, clock, None)
    assert cooling.resting() == {}


def test_a_probe_that_fails_doubles_the_rest_up_to_a_limit(cooling: Cooling, clock: Clock) -> None:
    rest(cooling, clock)
    for doublings in range(1, 9):
        clock.now += LONGEST_S
        assert cooling.resting() == {}
        note(cooling, clock, DOWN)
        rest_s = min(2**doublings * REST_S, LONGEST_S)
        assert cooling.resting()["oak"].endswith(f"left alone {rest_s:.1f} s")


def test_a_probe_nobody_made_is_granted_again(cooling: Cooling, clock: Clock) -> None:
    rest(cooling, clock)
    clock.now += REST_S
    assert cooling.resting() == {}
    clock.now += PROBE_S / 2
    assert set(cooling.resting()) == {"oak"}
    clock.now += PROBE_S / 2
    assert cooling.resting() == {}


def test_a_clock_set_back_does_not_lengthen_the_rest(cooling: Cooling, clock: Clock) -> None:
    rest(cooling, clock)
    clock.now -= 3_600
    assert cooling.resting() == {}
    note(cooling, clock, DOWN)  # by the probe, which counts as ever
    assert cooling.resting()["oak"].endswith(f"left alone {2 * REST_S:.1f} s")


def test_failures_that_were_under_way_do_not_lengthen_the_rest(cooling: Cooling, clock: Clock) -> None:
    note(cooling, clock, DOWN, times=FAILURES + 60)
    clock.now += REST_S
    assert cooling.resting() == {}


def test_members_rest_on_their_own(cooling: Cooling, clock: Clock) -> None:
    for name in ("oak", "elm") * (FAILURES - 1):
        cooling.note(attempt("d", member=name, error=DOWN, started_at=clock.now))
    note(cooling, clock, DOWN)
    assert set(cooling.resting()) == {"oak"}


def test_of_many_threads_one_probes(cooling: Cooling, clock: Clock) -> None:
    rest(cooling, clock)
    clock.now += REST_S
    free: list[bool] = []
    barrier = threading.Barrier(16)

    def look() -> None:
        barrier.wait()
        free.append(not cooling.resting())

    threads = [threading.Thread(target=look) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(free) == 1 and len(free) == 16

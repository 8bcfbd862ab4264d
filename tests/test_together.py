"""Work that arrives together: who does it, for whom, in what order, and what happens when it fails."""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble.together import Together


def all_at_once(calls: list[Callable[[], object]]) -> list[object]:
    """What each call returned or raised, each made in a thread of its own."""
    results: list[object] = [None] * len(calls)

    def run(place: int) -> None:
        try:
            results[place] = calls[place]()
        except Exception as error:
            results[place] = error

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    return results


class Workshop:
    """Doubles numbers; its first piece of work lasts until ``expected`` callers stand in line behind it."""

    def __init__(self, room: int = 100, expected: int = 0) -> None:
        self.groups: list[list[int]] = []
        self.threads: list[int] = []
        self.expected = expected
        self.together: Together[int, int] = Together(self.work, room)

    def work(self, items: list[int]) -> list[int]:
        self.groups.append(items)
        self.threads.append(threading.get_ident())
        until = time.monotonic() + 20
        while len(self.groups) == 1 and len(self.together._line) < self.expected:
            assert time.monotonic() < until
            time.sleep(0.001)
        if any(item < 0 for item in items):
            raise ValueError(f"negative: {[item for item in items if item < 0]}")
        return [2 * item for item in items]

    def wait_for_a_line_of(self, length: int) -> None:
        """Until the first is at work and so many stand behind it."""
        until = time.monotonic() + 20
        while not self.groups or len(self.together._line) != length:
            assert time.monotonic() < until
            time.sleep(0.0005)

    def behind_the_first(self, items: list[int], sizes: list[int] | None = None) -> list[object]:
        """What comes of ``items`` that stand in line, in this order, behind a first one of 1000."""
        self.expected = len(items)
        calls: list[Callable[[], object]] = [lambda: self.together(1000)]
        for place, (item, size) in enumerate(zip(items, sizes or [1] * len(items), strict=True)):

            def call(place: int = place, item: int = item, size: int = size) -> int:
                self.wait_for_a_line_of(place)
                return self.together(item, size)

            calls.append(call)
        return all_at_once(calls)


def test_a_lone_caller_works_alone_and_in_its_own_thread() -> None:
    shop = Workshop()
    assert [shop.together(1), shop.together(2)] == [2, 4]
    assert shop.groups == [[1], [2]] and set(shop.threads) == {threading.get_ident()}


def test_those_in_line_share_one_piece_of_work_in_their_order() -> None:
    shop = Workshop()
    assert shop.behind_the_first([1, 2, 3, 4]) == [2000, 2, 4, 6, 8]
    assert shop.groups == [[1000], [1, 2, 3, 4]]


def test_room_counts_every_item_as_large_as_the_largest_and_the_first_in_line_is_always_served() -> None:
    shop = Workshop(room=8)
    results = shop.behind_the_first([1, 2, 3, 4, 5], sizes=[2, 9, 2, 4, 2])
    assert results == [2000, 2, 4, 6, 8, 10]
    # 1, 3 and 5 fit into 8 in pieces of 2; 4 would make pieces of 4; then 2 is first, too large for company.
    assert shop.groups == [[1000], [1, 3, 5], [2], [4]]


def test_no_more_pieces_of_work_at_a_time_than_there_are_places() -> None:
    there, most, lock = 0, 0, threading.Lock()

    def work(items: list[int]) -> list[int]:
        nonlocal there, most
        with lock:
            there += 1
            most = max(most, there)
        time.sleep(0.005)
        with lock:
            there -= 1
        return items

    together: Together[int, int] = Together(work, room=1, places=3)
    assert all_at_once([functools.partial(together, n) for n in range(24)]) == list(range(24))
    assert most == 3


def test_an_error_reaches_only_whom_it_concerns() -> None:
    shop = Workshop()
    first, one, bad, two = shop.behind_the_first([1, -5, 2])
    assert (first, one, two) == (2000, 2, 4)
    assert isinstance(bad, ValueError) and str(bad) == "negative: [-5]"
    assert shop.together(7) == 14


def test_a_result_may_be_none() -> None:
    together: Together[int, None] = Together(lambda items: [None for _ in items], 10)
    assert together(1) is None


def test_an_interrupted_leader_leaves_the_others_to_the_next() -> None:
    class Interrupted(BaseException):
        pass

    shop, caught = Workshop(expected=3), []
    plain = shop.work

    def work(items: list[int]) -> list[int]:
        doubled = plain(items)
        if items == [1, 2, 3]:
            raise Interrupted
        return doubled

    def call(item: int, length: int | None) -> int:
        if length is not None:
            shop.wait_for_a_line_of(length)
        try:
            return shop.together(item)
        except Interrupted:
            caught.append(item)
            return -1

    shop.together.work = work
    asked = [(1000, None), (1, 0), (2, 1), (3, 2)]
    results = all_at_once([functools.partial(call, *each) for each in asked])
    assert caught == [1] and results == [2000, -1, 4, 6]
    assert shop.groups == [[1000], [1, 2, 3], [2, 3]]


@settings(max_examples=25, deadline=None)
@given(
    callers=st.lists(st.lists(st.tuples(st.integers(-3, 50), st.integers(1, 9)), max_size=6), max_size=8),
    room=st.integers(1, 20),
)
def test_every_caller_gets_its_own_result_whatever_comes_together(
    callers: list[list[tuple[int, int]]], room: int
) -> None:
    done: list[int] = []

    def work(items: list[int]) -> list[int]:
        if any(item < 0 for item in items):
            raise ValueError
        done.extend(items)
        return [2 * item for item in items]

    together: Together[int, int] = Together(work, room)

    def many(asked: list[tuple[int, int]]) -> list[int | None]:
        results: list[int | None] = []
        for item, size in asked:
            try:
                results.append(together(item, size))
            except ValueError:
                results.append(None)
        return results

    found = all_at_once([functools.partial(many, asked) for asked in callers])
    assert found == [[None if item < 0 else 2 * item for item, _ in asked] for asked in callers]
    assert sorted(done) == sorted(item for asked in callers for item, _ in asked if item >= 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_in_the_middle_of_work_leaves_the_child_free() -> None:
    started, may_end = threading.Event(), threading.Event()

    def work(items: list[int]) -> list[int]:
        if items == [0]:
            started.set()
            may_end.wait(20)
        return items

    together: Together[int, int] = Together(work, 10)
    busy = threading.Thread(target=together, args=(0,))
    busy.start()
    started.wait(20)
    child = os.fork()
    if child == 0:
        os._exit(0 if together(5) == 5 else 1)
    until, status = time.monotonic() + 20, (0, 0)
    while status[0] == 0 and time.monotonic() < until:
        status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.01)
    may_end.set()
    busy.join(20)
    assert status == (child, 0)

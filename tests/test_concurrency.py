"""Callers at the same time: who waits for whom, how often the encoder runs, what asyncio is spared."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ensemble.encoder import Encoder
from ensemble.engine import Ensemble
from ensemble.errors import InputError
from ensemble.log_database import Database
from ensemble.router import REMEMBERED, Router
from ensemble.threads import MOST_THREADS, in_own_thread, in_thread
from serving_cases import default_router

SHORT = [f"Is {n} a prime number?" for n in range(20)]


@pytest.fixture
def router() -> Router:
    """With a memory and a line of its own, for one place, over the parts that all tests share."""
    shared = default_router()
    fresh = object.__new__(Router)
    fresh.__dict__.update(shared.__dict__)
    fresh.share(shared.room, places=1)
    return fresh


class Runs:
    """Notes how many texts each run of the encoder takes; the first run waits until ``line`` callers wait."""

    def __init__(self, router: Router, monkeypatch: pytest.MonkeyPatch, line: int = 0) -> None:
        self.sizes: list[int] = []
        self.threads: list[int] = []
        plain = router.encoder.encode_tokens

        def encode_tokens(ids: Any, threads: int | None = None) -> Any:
            self.sizes.append(len(ids))
            self.threads.append(threading.get_ident())
            until = time.monotonic() + 20
            while len(self.sizes) == 1 and len(router._encode._line) < line:
                assert time.monotonic() < until
                time.sleep(0.001)
            return plain(ids, threads)

        monkeypatch.setattr(router.encoder, "encode_tokens", encode_tokens)


def at_once(calls: list[Callable[[], Any]]) -> list[Any]:
    with ThreadPoolExecutor(len(calls)) as threads:
        return [future.result(30) for future in [threads.submit(call) for call in calls]]


def test_short_prompts_that_wait_are_encoded_together_and_get_what_each_gets_alone(
    router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = Runs(router, monkeypatch, line=len(SHORT) - 1)
    seen = at_once([functools.partial(router.look, text) for text in SHORT])
    assert runs.sizes == [1, len(SHORT) - 1]
    alone = router.predict(SHORT)
    np.testing.assert_allclose(np.vstack([s.features for s in seen]), router.features(SHORT), atol=1e-5)
    np.testing.assert_allclose(np.vstack([s.prediction.reward for s in seen]), alone.reward, atol=1e-4)
    assert all(s.features.shape == (1, router.encoder.n_features) for s in seen)


def test_prompts_as_long_as_the_room_are_encoded_one_by_one(
    router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    router.share(router.encoder.max_tokens, places=1)
    runs = Runs(router, monkeypatch, line=4)
    at_once([functools.partial(router.look, f"{n} words and more of them. " * 100) for n in range(5)])
    assert runs.sizes == [1] * 5


def test_a_lone_prompt_is_encoded_in_the_thread_that_asks(
    router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = Runs(router, monkeypatch)
    router.look("Who is alone?")
    assert runs.threads == [threading.get_ident()]


def test_a_prompt_is_not_encoded_again_while_it_is_remembered(
    router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = Runs(router, monkeypatch)
    first = router.look("Once?")
    assert router.look("Once?") is first and runs.sizes == [1]
    long = "Many words stand here. " * 1000
    router.look(long)
    router.look(
        long[:5000] + " of which the middle is not read " + long[-5000:]
    )  # as far as it is read, the same
    assert runs.sizes == [1, 1]
    monkeypatch.setattr(router, "_encode", lambda ids, size: first)  # fast
    for n in range(REMEMBERED):
        router.look(f"Others: {n}")
    monkeypatch.undo()
    runs = Runs(router, monkeypatch)
    router.look("Once?")
    assert runs.sizes == [1]


def test_the_room_is_measured_within_its_bounds() -> None:
    encoder = default_router().encoder
    assert encoder.max_tokens <= encoder.measure_room() <= encoder.tokens_per_batch


@pytest.mark.parametrize(
    ("fixed_ms", "per_token_ms", "room"),
    [(2.0, 0.1, 400), (0.0, 0.1, 256), (50.0, 0.1, 512), (1.0, 0.0, 512)],
)
def test_the_room_follows_from_the_fixed_cost_of_a_run(
    fixed_ms: float, per_token_ms: float, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seconds(self: Encoder, ids: list[list[int]]) -> float:
        return (fixed_ms + per_token_ms * len(ids[0])) / 1e3

    monkeypatch.setattr(Encoder, "_seconds", seconds)
    assert default_router().encoder.measure_room() == pytest.approx(room, abs=1)


def test_decisions_that_wait_are_committed_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Ensemble(router=default_router(), log=tmp_path / "log.db") as ensemble:
        log, batches, plain = ensemble.log, [], Database.insert
        assert log is not None

        def insert(self: Database, batch: list[Any]) -> list[None]:
            batches.append(len(batch))
            until = time.monotonic() + 20
            while len(batches) == 1 and len(log._insert._line) < 19:
                assert time.monotonic() < until
                time.sleep(0.001)
            return plain(self, batch)

        monkeypatch.setattr(log._insert, "work", functools.partial(insert, log._database))
        decisions = at_once([functools.partial(ensemble.route, text) for text in SHORT])
        assert batches == [1, 19]
        assert {row["decision_id"] for row in log.rows()} == {decision.id for decision in decisions}


def test_many_callers_decide_as_one(tmp_path: Path) -> None:
    with Ensemble(router=default_router(), log=tmp_path / "log.db") as ensemble:
        alone = [ensemble.route(text).member for text in SHORT]
        ensemble.router.share(ensemble.router.room)
        together = at_once([functools.partial(ensemble.route, text) for text in SHORT])
        assert [decision.member for decision in together] == alone


def test_asyncio_decides_beside_its_loop(router: Router, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Runs(router, monkeypatch, line=len(SHORT) - 1)
    ensemble = Ensemble(router=router, log=False)

    async def all_of_them() -> list[Any]:
        return await asyncio.gather(*(ensemble.aroute(text) for text in SHORT))

    decisions = asyncio.run(all_of_them())
    assert runs.sizes == [1, len(SHORT) - 1]
    assert threading.get_ident() not in runs.threads
    assert [decision.member for decision in decisions] == [ensemble.route(text).member for text in SHORT]


def test_errors_come_through_asyncio_as_they_are() -> None:
    with pytest.raises(InputError, match="willingness_to_pay_usd"):
        asyncio.run(Ensemble(router=default_router(), log=False).aroute("x", willingness_to_pay_usd=-1))


def test_no_more_threads_than_stated_and_the_rest_wait_their_turn() -> None:
    there, most, lock = 0, 0, threading.Lock()

    def work() -> None:
        nonlocal there, most
        with lock:
            there += 1
            most = max(most, there)
        time.sleep(0.01)
        with lock:
            there -= 1

    async def crowd() -> None:
        await asyncio.gather(*(in_thread(work) for _ in range(3 * MOST_THREADS)))

    asyncio.run(crowd())
    assert 1 < most <= MOST_THREADS


def test_context_variables_and_errors_travel_to_a_thread_of_its_own() -> None:
    name = contextvars.ContextVar("name", default="nobody")
    name.set("somebody")
    assert in_own_thread(name.get).result(5) == "somebody"
    with pytest.raises(ZeroDivisionError):
        in_own_thread(lambda: 1 / 0).result(5)

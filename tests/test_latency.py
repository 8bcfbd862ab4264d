"""The benchmark of speed measures what it says it does. Nothing here depends on how fast this machine is."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from benchmarks import latency, latency_child, latency_page, latency_serving
from benchmarks.latency_contenders import AFTER, AWAITED, BARE, OURS, RULES, UNLOGGED, Bare, encoder_folder
from benchmarks.latency_rounds import Effort, invented_pool
from benchmarks.latency_serving import plain_router
from benchmarks.latency_texts import Texts
from benchmarks.loopback import loopback
from benchmarks.stopwatch import Timed, Turn, alone, at_once, exponent, race, tasks, threads
from ensemble.encoder import Encoder
from latency_cases import Result, made_up
from serving_cases import QUIET

pytestmark = QUIET
TINY = Effort(
    lengths=(16,), callers=(1, 2), members=(2, 4, 8), tokens_alone=32, turn=2, tokens_crowd=64, calls_each=1,
    rounds=1, batch=8, batches=1, batch_tokens=(32, 64), stream=8, calls=4, starts=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def bare() -> Bare:
    return Bare(encoder_folder())


def test_texts_have_exactly_the_tokens_asked_for_and_are_all_different(bare: Bare) -> None:
    texts = Texts(bare.tokenizer, random.Random(0))
    drawn = []
    for n_tokens in (3, 16, 64, 256, 2000):
        some = texts.draw(20, n_tokens)
        assert {len(bare.tokenizer.encode(text).ids) for text in some} == {n_tokens}
        drawn += some
    mixed = texts.mixed(200, 8, 128)
    lengths = [len(bare.tokenizer.encode(text).ids) for text in mixed]
    assert 8 <= min(lengths) < 16 and 64 < max(lengths) <= 128
    assert len({*drawn, *mixed}) == 300
    assert Texts(bare.tokenizer, random.Random(0)).draw(20, 3) == drawn[:20]


def test_the_bare_encoder_reads_what_the_library_reads(bare: Bare) -> None:
    encoder, texts = Encoder.load(encoder_folder()), Texts(bare.tokenizer, random.Random(0))
    for n_tokens in (16, 256, 257, 2000):
        [text] = texts.draw(1, n_tokens)
        np.testing.assert_allclose(bare(text), encoder.encode([text]), atol=1e-5)


def test_the_bare_encoder_takes_every_text_once_in_batches_of_so_many_tokens(
    bare: Bare, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = []
    monkeypatch.setattr(bare, "_run", lambda ids, mask: batches.append((ids.shape, int(mask.sum()))))
    texts = Texts(bare.tokenizer, random.Random(0))
    bare.batched([*texts.draw(7, 16), *texts.draw(3, 64), *texts.draw(1, 2000)], 64)
    assert [shape for shape, _ in batches] == [(4, 16), (3, 16), (1, 64), (1, 64), (1, 64), (1, 256)]
    assert sum(tokens for _, tokens in batches) == 7 * 16 + 3 * 64 + 256


def test_percentiles_are_those_of_all_turns_together() -> None:
    timed = Timed([0.001] * 98, 0.1)
    timed.add(Timed([0.003, 0.005], 0.1))
    figures = timed.figures()
    assert figures["calls"] == 100 and figures["p50_ms"] == pytest.approx(1)
    assert figures["per_second"] == pytest.approx(500)
    assert 3 <= figures["p99_ms"] <= 5


def test_contenders_take_turns_and_no_text_comes_twice() -> None:
    seen: list[tuple[str, str]] = []
    fresh = iter(map(str, range(1000)))

    def turn(name: str) -> Turn:
        def run(texts: Sequence[str]) -> Timed:
            seen.extend((name, text) for text in texts)
            return Timed([1.0] * len(texts), 1.0 * len(texts))

        return Turn(run, 2)

    times = race({n: turn(n) for n in "abc"}, lambda n: [next(fresh) for _ in range(n)], 5, random.Random(0))
    names, texts = zip(*seen, strict=True)
    assert all({*names[i : i + 6]} == {*"abc"} for i in range(0, 30, 6))  # each once in every round
    assert len({*texts}) == len(texts) == 30
    assert [len(each.seconds) for each in times.values()] == [10, 10, 10]


def test_a_race_that_takes_too_long_ends_after_a_round() -> None:
    turns = {name: alone(lambda _: None, 1) for name in "ab"}
    times = race(turns, lambda n: ["x"] * n, 5, random.Random(0), limit_s=0.0)
    assert [len(each.seconds) for each in times.values()] == [1, 1]


def test_every_text_is_asked_once_however_many_callers() -> None:
    asked: list[str] = []
    texts = [str(i) for i in range(50)]

    async def awaited(text: str) -> None:
        await asyncio.sleep(0)
        asked.append(text)

    with ThreadPoolExecutor(4) as pool, asyncio.Runner() as runner:
        turns = {
            "alone": alone(asked.append, 49),
            "threads": threads(asked.append, pool, 4, 50),
            "tasks": tasks(awaited, runner, 4, 49),
            "at once": at_once(asked.extend, 50),
        }
        for name, turn in turns.items():
            timed = turn.run(texts[: turn.n_texts])
            assert sorted(asked) == sorted(texts), name
            assert len(timed.seconds) == (49 if name in ("alone", "tasks") else 50)  # a first one is untimed
            asked.clear()


def test_as_many_are_at_work_as_there_are_callers() -> None:
    together = threading.Barrier(4, timeout=10)
    with ThreadPoolExecutor(4) as pool:
        threads(lambda _: together.wait(), pool, 4, 8).run([str(i) for i in range(8)])


def test_an_error_of_a_contender_is_not_swallowed() -> None:
    def fails(text: str) -> None:
        raise ValueError(text)

    with ThreadPoolExecutor(2) as pool, pytest.raises(ValueError):
        threads(fails, pool, 2, 4).run(list("abcd"))


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_the_exponent_of_a_power_is_found(power: float) -> None:
    assert exponent([10, 100, 1000], [3 * n**power for n in (10, 100, 1000)]) == pytest.approx(power)


def test_there_is_no_exponent_of_what_is_lost_in_noise() -> None:
    assert exponent([10, 100], [0.1, -0.1]) is None


def test_an_invented_pool_has_its_members_with_prices_of_their_own() -> None:
    pool = invented_pool(30)
    assert len(pool) == 30 and len({*pool.usd_per_million_input}) == 30 and not pool.warnings


def test_the_loopback_answers_litellm() -> None:
    with loopback() as url, plain_router(url) as call:
        for _ in range(2):  # over the same connection
            assert call("What is asked?").choices[0].message.content == "As asked."


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A run of everything but the processes, of which litellm alone takes seconds to start."""
    heard: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency_serving, "processes", lambda *_: made_up()["processes"])
        made = latency.measure(TINY, 0, tmp_path_factory.mktemp("latency"), heard.append, learned=False)
    assert len(heard) > 5
    return made


def test_a_process_tells_how_long_it_took_and_what_it_holds(tmp_path: Path) -> None:
    imported, cold = (float(latency_serving._output("-c", script, str(tmp_path / "log.db")))
                      for script in (latency_serving.IMPORT, latency_serving.COLD))  # fmt: skip
    assert 0 < imported < cold
    with loopback() as url:
        served = latency_child.serve(url, tmp_path, 3)
    assert served["calls"] == 3 and served["peak_mb"] >= (served["rss_mb"] or 0) > 10


def test_a_run_measures_every_contender_and_is_json(tiny: Result) -> None:
    assert json.loads(json.dumps(tiny, allow_nan=False)) == json.loads(json.dumps(tiny))
    alone_, crowd = ([r for r in tiny["decisions"] if r["callers"] == n] for n in (1, 2))
    assert {row["contender"] for row in alone_} == {BARE, OURS, AFTER, UNLOGGED, RULES, AWAITED}
    assert {row["contender"] for row in crowd} == {BARE, OURS, RULES, AWAITED}
    for row in tiny["decisions"]:
        assert row["calls"] >= 2 and 0 < row["p50_ms"] <= row["p99_ms"] and row["per_second"] > 0
    assert [(row["tokens"], row["callers"]) for row in tiny["bare"]] == [(16, 2)]
    assert [row["members"] for row in tiny["members"]["costs"]] == [2, 4, 8]
    assert [row["prompts"] for row in tiny["streams"]["streams"]] == [8, 16, 32]
    assert [mode["log_mode"] for mode in tiny["calls"]["modes"]] == ["before", "after"]


def test_a_run_is_stored_with_its_picture_and_a_page_of_all(tiny: Result, tmp_path: Path) -> None:
    folder, page = tmp_path / "results", tmp_path / "PAGE.md"
    latency.write(tiny, folder, page)
    latency.write({**tiny, "name": "another"}, folder, page)
    assert {path.name for path in folder.iterdir()} == {
        f"{name}.{kind}" for name in ("another", tiny["name"]) for kind in ("json", "svg")
    }
    text = page.read_text("utf-8")
    assert "## another" in text and f"](results/{tiny['name']}.svg)" in text
    picture = folder / "another.svg"
    before = picture.read_bytes()
    latency_page.plot(json.loads((folder / "another.json").read_text("utf-8")), picture)
    assert picture.read_bytes() == before

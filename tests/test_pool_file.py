"""A pool follows its file: a change is in force at the next call, and a broken one harms nobody."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
import warnings
from pathlib import Path

import pytest

from ensemble.errors import EnsembleWarning, PoolError
from ensemble.pool import PoolFile
from ensemble.records import CatalogEntry


def write(folder: Path, text: str) -> Path:
    path = folder / "pool.toml"
    path.write_text(text, encoding="utf-8")
    return path


def priced(price: float) -> str:
    return (
        f"[[members]]\nname='m'\nmodel='x/m'\nusd_per_million_input={price}\n"
        "usd_per_million_output=1\ncontext_window=1"
    )


def replace(path: Path, text: str) -> None:
    """As editors do: a new file in the place of the old one."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


def test_a_changed_file_is_in_force_at_the_next_call(tmp_path: Path) -> None:
    path = write(tmp_path, priced(1))
    file = PoolFile(path)
    first = file.current()
    assert file.current() is first
    replace(path, priced(2))
    assert file.current()["m"].usd_per_million_input == 2
    assert first["m"].usd_per_million_input == 1
    path.write_text(priced(3.5))
    assert file.current()["m"].usd_per_million_input == 3.5


def test_a_broken_change_keeps_the_last_good_pool_and_warns_once(tmp_path: Path) -> None:
    path = write(tmp_path, priced(1))
    file = PoolFile(path)
    good = file.current()
    for broken in ("[[members]", priced(-1)):
        replace(path, broken)
        with pytest.warns(EnsembleWarning, match="last good one stays in force"):
            assert file.current() is good
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert file.current() is good
    path.unlink()
    with pytest.warns(EnsembleWarning, match="readable"):
        assert file.current() is good
    replace(path, priced(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert file.current()["m"].usd_per_million_input == 2


def test_a_file_that_is_wrong_from_the_start_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PoolError):
        PoolFile(write(tmp_path, "[[members]"))


def test_many_threads_see_whole_pools_and_the_last_change(tmp_path: Path) -> None:
    path = write(tmp_path, priced(1))
    file = PoolFile(path)
    prices: set[float] = set()
    failures: list[BaseException] = []
    done = threading.Event()

    def read() -> None:
        try:
            while not done.is_set():
                prices.add(float(file.current().usd_per_million_input[0]))
        except BaseException as error:
            failures.append(error)

    readers = [threading.Thread(target=read) for _ in range(8)]
    for reader in readers:
        reader.start()
    for price in range(2, 30):
        replace(path, priced(price))
        time.sleep(0.002)
    done.set()
    for reader in readers:
        reader.join()
    assert failures == []
    assert len(prices) > 1 and prices <= set(range(1, 30))
    assert file.current()["m"].usd_per_million_input == 29


def test_while_one_thread_reads_a_change_the_others_are_not_kept_waiting(tmp_path: Path) -> None:
    begun, released = threading.Event(), threading.Event()

    def slow(model: str) -> CatalogEntry:
        begun.set()
        assert released.wait(30)
        return CatalogEntry(2.0, 2.0)

    path = write(tmp_path, priced(1))
    file = PoolFile(path, slow)
    old = file.current()
    replace(path, "[[members]]\nname = 'm'\nmodel = 'x/m'")
    reader = threading.Thread(target=file.current)
    reader.start()
    assert begun.wait(30)
    assert file.current() is old
    released.set()
    reader.join()
    assert file.current()["m"].usd_per_million_input == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_after_a_fork_that_copied_a_held_lock_changes_are_still_seen(tmp_path: Path) -> None:
    path = write(tmp_path, priced(1))
    file = PoolFile(path)
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    with file._reloading:  # what another thread would hold while it reloads
        replace(path, priced(2))
        child = context.Process(target=lambda: answers.put(file.current()["m"].usd_per_million_input))
        child.start()
        child.join(30)
    assert answers.get() == 2


def test_an_unchanged_file_costs_microseconds(tmp_path: Path) -> None:
    file = PoolFile(write(tmp_path, priced(1)))
    began = time.process_time()
    for _ in range(1000):
        file.current()
    assert time.process_time() - began < 0.1  # about .001 s: a microsecond a call

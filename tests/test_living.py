"""An ``Ensemble`` over its life: opened late, shared by threads, forked, its pool changing under it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import litellm
import pytest

import ensemble
from ensemble.engine import Ensemble
from ensemble.errors import BundleError, ConfigError, EnsembleWarning, InputError, PoolError
from ensemble.pool import Pool
from local_provider import LocalProvider, Say
from serving_cases import (
    CHEAP,
    MEMBERS,
    MIDDLE,
    PRICES,
    PROMPT,
    QUIET,
    Line,
    default_router,
    open_line,
    said,
)

pytestmark = QUIET


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    with open_line(tmp_path) as opened:
        yield opened


def write_pool(path: Path, provider: LocalProvider, prices: dict[str, tuple[float, float]]) -> Path:
    lines = ["willingness_to_pay_usd = 0"]
    for name, (usd_in, usd_out) in prices.items():
        lines += [
            "[[members]]", f'name = "{name}"', f'model = "openai/{name}"',
            f'params = {{ api_base = "{provider.url}", api_key = "{provider.api_key}" }}',
            f"usd_per_million_input = {usd_in}", f"usd_per_million_output = {usd_out}",
            "context_window = 100000",
        ]  # fmt: skip
    fresh = path.with_suffix(".new")
    fresh.write_text("\n".join(lines))
    fresh.replace(path)
    return path


def test_a_change_of_the_pool_file_is_in_force_at_the_next_call(line: Line, tmp_path: Path) -> None:
    path = write_pool(tmp_path / "pool.toml", line.provider, PRICES)
    with Ensemble(router=default_router(), pool=path, log=line.log) as opened:
        assert opened.complete(PROMPT).decision.member == CHEAP
        write_pool(path, line.provider, {**PRICES, CHEAP: (9e4, 9e4)})
        dearer = opened.complete(PROMPT)
        assert dearer.decision.member == MIDDLE
        place = line.row(dearer)["members"].index(CHEAP)
        assert line.row(dearer)["usd_per_million_input"][place] == 9e4
        write_pool(path, line.provider, {CHEAP: PRICES[CHEAP]})
        assert opened.complete(PROMPT).decision.ranking == (CHEAP,)
        path.write_text("members = 5")
        with pytest.warns(EnsembleWarning, match="last good one stays in force"):
            assert opened.complete(PROMPT).decision.member == CHEAP


def test_pools_that_are_gone_leave_nothing_behind_in_litellm(line: Line, tmp_path: Path) -> None:
    path = write_pool(tmp_path / "pool.toml", line.provider, PRICES)
    with Ensemble(router=default_router(), pool=path, log=line.log) as opened:
        opened.complete(PROMPT)
        before = len(litellm.success_callback), len(litellm.failure_callback)
        for i in range(5):
            write_pool(path, line.provider, {**PRICES, CHEAP: (0.1 + i, 0.2)})
            opened.complete(PROMPT)
        assert (len(litellm.success_callback), len(litellm.failure_callback)) == before


def test_threads_share_it_and_each_call_has_one_outcome(line: Line) -> None:
    line.provider.behave(CHEAP, Say("ok", delay_s=0.05))
    replies: list[Any] = []
    threads = [
        threading.Thread(target=lambda i=i: replies.append(line.ask(metadata={"i": i}))) for i in range(32)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = line.rows()
    assert {row["decision_id"] for row in rows} == {reply.decision.id for reply in replies}
    assert sorted(row["metadata"]["i"] for row in rows) == list(range(32))
    assert all(row["served_member"] == CHEAP and len(row["attempts"]) == 1 for row in rows)
    assert line.provider.most_at_once > 4


def test_threads_that_come_first_open_everything_once(tmp_path: Path) -> None:
    with LocalProvider() as provider:
        line = Line(provider, tmp_path / "log.db", router=default_router().folder)
        ready, opened = threading.Barrier(8), []

        def ask() -> None:
            ready.wait()
            line.ask()
            opened.append((id(line.ensemble.router), id(line.log)))

        with line.ensemble:
            threads = [threading.Thread(target=ask) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(opened) == 8 and len(set(opened)) == 1
            assert len(line.rows()) == 8


FORKED = """
import os, sys
from pathlib import Path
from local_provider import LocalProvider, Say
from serving_cases import CHEAP, Line, said
provider = LocalProvider(keep_alive=True).start()
line = Line(provider, Path(sys.argv[1]))
provider.behave(CHEAP, lambda request: Say("for " + request["messages"][0]["content"], delay_s=0.01))
line.ask("the parent, before")
stream = line.ask("a stream of the parent's", stream=True)
next(stream)
child = os.fork()
me = "child" if child == 0 else "parent"
for i in range(10):
    assert said(line.ask(f"{me} {i}")) == f"for {me} {i}"
if child == 0:
    line.ensemble.close()
    sys.exit(0)
list(stream)
assert os.waitpid(child, 0)[1] == 0
rows = line.rows()
assert len(rows) == 22 and all(row["served_member"] == CHEAP for row in rows), rows
line.ensemble.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system knows no fork")
def test_parent_and_child_go_on_after_a_fork(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:ensemble", "-c", FORKED, str(tmp_path / "log.db")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_closed_it_can_be_used_again(line: Line) -> None:
    first = line.ask()
    line.ensemble.close()
    line.ensemble.close()
    second = line.ask()
    assert [row["decision_id"] for row in line.rows()] == [first.decision.id, second.decision.id]


def test_a_seed_fixes_what_chance_decides(line: Line) -> None:
    def drawn(seed: int | None) -> list[str]:
        opened = Ensemble(router=default_router(), pool=line.ensemble.pool, log=False, seed=seed)
        wishes = {"willingness_to_pay_usd": 1.0, "exploration": 0.5}
        return [opened.route(PROMPT, **wishes).member for _ in range(40)]

    assert drawn(7) == drawn(7) != drawn(8)
    assert len(set(drawn(7))) > 1


def test_nothing_is_opened_before_it_is_needed(tmp_path: Path) -> None:
    opened = Ensemble(router=tmp_path / "no router", pool=tmp_path / "no pool", log=tmp_path / "x" / "log.db")
    with pytest.raises((BundleError, PoolError)):
        opened.route(PROMPT)
    opened.close()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(BundleError, match="no router"):
        assert opened.router
    with pytest.raises(PoolError, match="no pool"):
        assert opened.pool


@pytest.mark.parametrize(
    "prompt", ["", "   ", b"bytes", 5, None, [], [{"role": "user"}], [{"content": "x"}], {}]
)
def test_a_prompt_that_is_none_is_refused(line: Line, prompt: Any) -> None:
    with pytest.raises(InputError):
        line.ask(prompt)
    assert line.asked == [] and line.rows() == []


@pytest.mark.parametrize(
    "prompt", ["\x00 what\ud800?", "word " * 30_000, "é" * 10, [{"role": "system", "content": "x"}]]
)
def test_an_odd_prompt_is_answered(line: Line, prompt: Any) -> None:
    assert said(line.ask(prompt)).startswith("Oslo")


@pytest.fixture
def settings(line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to work in, with a settings file for ``line``'s provider."""
    monkeypatch.chdir(tmp_path)
    write_pool(tmp_path / "pool.toml", line.provider, PRICES)
    (tmp_path / "mine.toml").write_text('pool = "pool.toml"\nlog = "mine.db"\nkeep = "text"\n')
    monkeypatch.setattr(ensemble, "_default", None)
    yield tmp_path
    if ensemble._default is not None:
        ensemble._default.close()


@pytest.mark.parametrize("way", ["variable", "file", "configure"])
def test_the_module_functions_use_what_is_configured(
    settings: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    if way == "variable":
        (settings / "elsewhere").mkdir()
        monkeypatch.chdir(settings / "elsewhere")  # paths are read from where the file lies
        monkeypatch.setenv("ENSEMBLE_CONFIG", str(settings / "mine.toml"))
    elif way == "file":
        (settings / "mine.toml").rename(settings / "ensemble.toml")
    else:
        (settings / "ensemble.toml").write_text("nonsense")  # is not even read
        ensemble.configure(pool=settings / "pool.toml", log=settings / "mine.db", keep="text")
    reply = ensemble.complete(PROMPT, metadata={"user": "a"})
    ensemble.feedback(reply, 1.0)
    planned = ensemble.route(PROMPT)
    assert (reply.decision.member, planned.member) == (CHEAP, CHEAP)
    assert said(asyncio.run(ensemble.acomplete(PROMPT))) == said(reply)
    with ensemble.OutcomeLog.open(settings / "mine.db") as log:
        rows = list(log.rows())
        assert [row["text"] for row in rows] == [PROMPT] * 3
        assert rows[0]["rewards"] == {"caller": 1.0}
    assert ensemble.forget(metadata={"user": "a"}) == 1


def test_configuring_anew_closes_what_was_there(settings: Path) -> None:
    first = ensemble.configure(pool=settings / "pool.toml", log=settings / "one.db")
    ensemble.complete(PROMPT)
    second = ensemble.configure(pool=settings / "pool.toml", log=settings / "two.db")
    ensemble.complete(PROMPT)
    assert first is not second and first.log is not None and len(list(first.log.rows())) == 1
    first.close()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pol = 'pool.toml'", r"mine\.toml: unknown key 'pol'; expected some of router, pool"),
        ("pool = 5", r"mine\.toml: pool: expected str, found 5"),
        ("log = true", r"mine\.toml: log: expected a string or false, found True"),
        ("pool = ", r"mine\.toml: expected a settings file in TOML"),
        ("keep = 'all'\npool = 'pool.toml'", "keep: expected None, 'text' or 'text.answers', found 'all'"),
        ("keep_days = 0\npool = 'pool.toml'", "keep_days: .* number of days above 0, found 0"),
        ("keep_days = 'all'", "keep_days: expected int or float, found 'all'"),
        ("log_mode = 'never'\npool = 'pool.toml'", "log_mode: expected 'before' or 'after', found 'never'"),
        ("pool = 'gone.toml'", r"gone\.toml"),
    ],
)
def test_wrong_settings_are_one_clear_error(
    settings: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    (settings / "mine.toml").write_text(text)
    monkeypatch.setenv("ENSEMBLE_CONFIG", str(settings / "mine.toml"))
    with pytest.raises(ConfigError, match=message):
        ensemble.route(PROMPT)


def test_a_settings_file_that_is_named_must_be_there(settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENSEMBLE_CONFIG", "gone.toml")
    with pytest.raises(ConfigError, match=r"gone\.toml"):
        ensemble.route(PROMPT)


def test_with_nothing_configured_the_library_brings_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ensemble, "_default", None)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    decision = ensemble.route(PROMPT)
    assert set(MEMBERS) <= {forecast.member for forecast in decision}
    assert (tmp_path / "state" / "ensemble" / "log.db").is_file()
    assert ensemble._default is not None
    ensemble._default.close()
    assert Pool.load(Path(default_router().folder).parent / "pool.toml").names == tuple(
        f.member for f in decision
    )

"""The command line as its users meet it: tables, JSON, one clear error and a status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from click.testing import CliRunner, Result

from ensemble.cli import main
from ensemble.demo import DIALS, PROMPTS
from ensemble.learning.longform import write_table
from ensemble.outcomes import OutcomeLog
from local_provider import LocalProvider

MEMBERS = ("Meta-Llama-3.1-8B-Instruct", "gpt-4o-mini-2024-07-18")
# In a process of its own: nothing but loopback may be reached.
NO_NETWORK = """
import socket, sys
connect = socket.socket.connect
def refuse(self, address):
    if self.family != socket.AF_UNIX and not str(address[0]).startswith(("127.", "::1")):
        sys.exit(f"tried to reach {address}")
    return connect(self, address)
socket.socket.connect = refuse
def unresolved(host, *rest, **more):
    sys.exit(f"tried to look up {host}")
socket.getaddrinfo = unresolved
"""


def run(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(main, list(arguments), input=stdin)


def run_process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, **environment}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=180, env=variables, check=False
    )


@pytest.fixture
def provider() -> Iterator[LocalProvider]:
    with LocalProvider() as started:
        yield started


@pytest.fixture
def pool(provider: LocalProvider, tmp_path: Path) -> str:
    members = [
        f"""
        [[members]]
        name = "{name}"
        model = "openai/{name}"
        params = {{ api_base = "{provider.url}", api_key = "test" }}
        usd_per_million_input = {price}
        usd_per_million_output = {price}
        context_window = 100000
        """
        for name, price in zip(MEMBERS, (0.1, 1000.0), strict=True)
    ]
    for name in MEMBERS:
        provider.behave(name, f"42, says {name}")
    (tmp_path / "pool.toml").write_text("".join(members), encoding="utf-8")
    return str(tmp_path / "pool.toml")


def test_route_shows_every_member_and_who_is_chosen() -> None:
    shown = run("route", "What is 12 times 13?")
    assert shown.exit_code == 0
    decision = json.loads(run("route", "What is 12 times 13?", "--json").stdout)
    assert all(forecast["member"] in shown.stdout for forecast in decision["forecasts"])
    assert f"{decision['member']}: expected reward" in shown.stdout
    assert sum(forecast["probability"] for forecast in decision["forecasts"]) == pytest.approx(1)


def test_route_reads_standard_input_and_keeps_to_the_limits_given() -> None:
    decision = json.loads(run("route", "-", "--owned-only", "--json", stdin="Why is the sky blue?").stdout)
    why = {forecast["member"]: forecast["ineligible_because"] for forecast in decision["forecasts"]}
    assert why[decision["member"]] is None
    assert "owned" in why["claude-3-5-sonnet-20241022"]


def test_route_keeps_no_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert run("route", "hello there").exit_code == 0
    assert not (tmp_path / "state").exists()


def test_route_and_ask_work_where_budgets_are_kept(
    tmp_path: Path, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = 'log = "log.db"\n[[budgets]]\nusd_per_day = 20.0\nper = "team"\n'
    (tmp_path / "ensemble.toml").write_text(settings, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert run("route", "hello there", "--pool", pool).exit_code == 0
    refused = run("ask", "hello there", "--pool", pool)
    assert refused.exit_code == 1 and "expected 'team' among it" in refused.stderr
    assert run("ask", "hello there", "--pool", pool, "--metadata", "team=a").exit_code == 0
    with OutcomeLog.open(tmp_path / "log.db") as log:
        assert [row["metadata"] for row in log.rows()] == [{"team": "a"}]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["route", "hello", "--min-reward", "2"], "min_reward: expected a number from 0 to 1"),
        (["route", "hello", "--exclude", "nobody"], "nobody"),
        (["route", ""], "expected a prompt with some text"),
        (["route", "hello", "--router", "no/such/folder"], "no/such/folder"),
        (["route", "hello", "--pool", "no-such-pool.toml"], "no-such-pool.toml"),
        (["ask", "hello"], "no API key: set OPENAI_API_KEY"),
        (["train", "--out", "x"], "either --data or --log, found neither"),
    ],
)
def test_an_error_is_one_message_and_status_1(arguments: list[str], complaint: str) -> None:
    failed = run(*arguments)
    assert failed.exit_code == 1
    assert failed.stderr.startswith("Error: ") and complaint in failed.stderr
    assert "Traceback" not in failed.output


def test_ask_calls_prints_and_logs(
    pool: str, provider: LocalProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ensemble.toml").write_text(f'pool = "{pool}"\nlog = "log.db"\n', encoding="utf-8")
    asked = run("ask", "What is six times seven?", "--willingness-to-pay", "0", "--max-tokens", "50")
    assert asked.exit_code == 0, asked.output
    assert asked.stdout.startswith(f"42, says {MEMBERS[0]}")
    [request] = provider.requests
    assert request["params"]["max_tokens"] == 50
    with OutcomeLog.open(tmp_path / "log.db") as log:
        [row] = log.rows()
    assert row["served_member"] == MEMBERS[0]
    assert f'ensemble.feedback("{row["decision_id"]}", reward)' in asked.stderr


def test_collect_states_the_price_asks_and_writes_a_table(
    pool: str, provider: LocalProvider, tmp_path: Path
) -> None:
    lines = [json.dumps({"prompt": f"What is {i} times 7?", "answer": "42"}) for i in range(5)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "mine.py").write_text("def says_42(record, answer): return float('42' in answer)\n")
    out = tmp_path / "outcomes.parquet"
    arguments = ["collect", str(tmp_path / "prompts.jsonl"), "--pool", pool, "--out", str(out)]
    arguments += ["--scorer", f"{tmp_path / 'mine.py'}:says_42", "--budget-usd", "20"]
    declined = run(*arguments, stdin="n\n")
    assert "10 calls, about" in declined.stderr and not provider.requests
    done = json.loads(run(*arguments, "--yes", "--json").stdout)
    assert (done["stopped"], done["answered"], done["left"]) == ("finished", 10, 0)
    table = pyarrow.parquet.read_table(out).to_pydict()
    assert sorted(set(table["member"])) == sorted(MEMBERS) and set(table["reward"]) == {1.0}


def test_train_names_members_of_the_pool_that_the_table_lacks(
    pool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    theirs = (MEMBERS[0], "mini")
    rows = [
        {"prompt_id": str(i), "prompt": f"What is {i} times 7?", "member": name, "reward": float(i % 3 > m)}
        for i in range(60)
        for m, name in enumerate(theirs)
    ]
    write_table(tmp_path / "t.parquet", rows)
    arguments = ["train", "--data", str(tmp_path / "t.parquet"), "--pool", pool, "--out", str(tmp_path / "r")]
    lacking = run(*arguments)
    assert lacking.exit_code == 0, lacking.output
    assert f"no outcomes of {MEMBERS[1]} among those of {MEMBERS[0]}, mini" in lacking.stderr
    renamed = run(*arguments, "--alias", f"mini={MEMBERS[1]}")
    assert renamed.exit_code == 0 and "no outcomes of" not in renamed.stderr


def test_a_missing_extra_is_named() -> None:
    code = """
import sys
sys.modules["sklearn"] = sys.modules["pyarrow"] = None
from ensemble.cli import main
main(["train", "--data", sys.executable, "--out", "x"])
"""
    failed = run_process(code)
    assert failed.returncode == 1
    assert 'pip install "ensemble-router[train]"' in failed.stderr and "Traceback" not in failed.stderr


def test_python_runs_it_as_a_module() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "ensemble", "--version"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert shown.stdout.startswith("ensemble, version")


def test_the_demo_needs_no_key_and_no_network(tmp_path: Path) -> None:
    arguments = ["demo", "--json", "--log", str(tmp_path / "d.db")]
    code = NO_NETWORK + f"from ensemble.cli import main; main({arguments!r})"
    shown = run_process(code, HOME=str(tmp_path))
    assert shown.returncode == 0, shown.stderr
    demo: dict[str, Any] = json.loads(shown.stdout)
    assert demo["n_outcomes"] == len(PROMPTS) * len(DIALS)
    spend = [dial["usd_per_1000"] for dial in demo["dials"]]
    assert spend == sorted(spend) and spend[0] < spend[-1]
    assert all(dial["usd_per_1000"] < 1.01 * dial["always_strongest_usd_per_1000"] for dial in demo["dials"])
    with OutcomeLog.open(tmp_path / "d.db") as log:
        assert sum(1 for row in log.rows() if row["served_member"]) == demo["n_outcomes"]

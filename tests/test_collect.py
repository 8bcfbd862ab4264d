"""``collect`` against a real server: everything asked once, within the budget, through every interruption."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from collect_cases import N_PROMPTS, PAIRS, PRICES, Case, number_in, pair_of, pool_of, teach
from ensemble.errors import EnsembleWarning
from ensemble.learning.collect import Plan
from ensemble.learning.tables import read_tables
from ensemble.pool import Pool
from local_provider import LocalProvider, Say

SCRIPT = """
import sys
from ensemble.learning.collect import collect
from ensemble.learning.scoring import last_number
from ensemble.pool import Pool

prompts, pool, out = sys.argv[1:]
collect(prompts, Pool.load(pool), last_number, out, budget_usd=1.0, concurrency=4)
"""


@pytest.fixture
def provider() -> Iterator[LocalProvider]:
    with LocalProvider() as running:
        yield running


@pytest.fixture
def case(tmp_path: Path, provider: LocalProvider) -> Case:
    return Case(tmp_path, provider)


def test_every_pair_is_asked_once_scored_and_accounted(case: Case) -> None:
    done = case.run(teach(case.provider), concurrency=4)

    assert Counter(map(pair_of, case.provider.requests)) == Counter(PAIRS)
    assert 1 < case.provider.most_at_once <= 4
    rows = case.rows()
    assert [(row["prompt_id"], row["member"]) for row in rows] == PAIRS
    assert {row["member"]: row["reward"] for row in rows} == {"small": 1.0, "large": 1.0, "wrong": 0.0}
    assert rows[0] == {
        "prompt_id": "q0",
        "task": "sums",
        "prompt": "What is 0 + 0 ?",
        "member": "small",
        "reward": 1.0,
        "cost_usd": pytest.approx((12 * 1 + 4 * 2) / 1e6),
        "input_tokens": 12,
        "output_tokens": 4,
        "propensity": None,
    }
    assert sum(row["cost_usd"] for row in rows) == pytest.approx(case.bill_usd())
    assert done.spent_usd == done.spent_now_usd == pytest.approx(case.bill_usd())
    assert (done.stopped, done.rows, done.answered, done.left, done.assumed_usd) == (
        "finished",
        60,
        60,
        0,
        0.0,
    )
    assert read_tables(case.out, min_prompts=N_PROMPTS).n_pairs == 60


def test_a_finished_table_is_not_asked_again(case: Case) -> None:
    pool = teach(case.provider)
    first = case.run(pool)
    table = case.rows()
    again = case.run(pool)
    assert len(case.provider.requests) == 60
    assert (again.answered, again.spent_usd, again.spent_now_usd) == (0, first.spent_usd, 0.0)
    assert case.rows() == table


def test_stopped_by_ctrl_c_and_by_kill_and_resumed(case: Case, tmp_path: Path) -> None:
    """What was answered is never asked again, and all runs together stay within what they account for."""
    pool = teach(case.provider, delay_s=0.15)
    process = _start(case, tmp_path)
    _wait_until(lambda: len(case.provider.requests) >= 14)
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=20)
    assert process.returncode not in (0, -signal.SIGKILL)
    assert "KeyboardInterrupt" in complaint and "run the same again to go on" in complaint
    answered = case.answered()
    assert len(answered) == len(case.provider.requests) == len(case.rows()) < 60  # the flying ones came home

    process = _start(case, tmp_path)
    _wait_until(lambda: len(case.provider.requests) >= 30)
    process.kill()
    process.communicate(timeout=20)
    assert case.answered() > answered
    answered, asked_before = case.answered(), len(case.provider.requests)
    lost = asked_before - len(answered)
    assert 1 <= lost <= 4  # what was in flight

    done = case.run(pool)
    later = [pair_of(request) for request in case.provider.requests[asked_before:]]
    assert sorted(later) == sorted(set(PAIRS) - answered)
    assert (done.stopped, done.rows) == ("finished", 60)
    # The provider billed the killed calls too; they are in the account at the most they can have cost.
    assert sum(row["cost_usd"] for row in case.rows()) < case.bill_usd() <= done.spent_usd
    assert done.assumed_usd > 0


def test_a_second_ctrl_c_abandons_what_is_in_flight(case: Case) -> None:
    pool = teach(case.provider)

    def stuck(request: dict[str, Any]) -> Say:
        for after_s in (0.1, 0.3):
            threading.Timer(after_s, os.kill, (os.getpid(), signal.SIGINT)).start()
        return Say(delay_s=20)

    case.provider.behave("large", stuck)
    with pytest.warns(EnsembleWarning, match="stopping once 1 call"), pytest.raises(KeyboardInterrupt):
        case.run(pool, concurrency=1)
    assert case.provider.requests[-1]["status"] is None  # it is still at it
    assert case.answered() == {("q0", "small")}
    assert len(case.rows()) == 1
    case.provider.behave("large", "0")
    done = case.run(pool)
    assert done.rows == 60
    assert case.provider.asked("large") == 21
    assert case.bill_usd() <= done.spent_usd


@pytest.mark.parametrize("budget_usd", [0.0005, 0.0018, 0.003])
def test_the_budget_is_kept_and_the_next_run_goes_on(case: Case, budget_usd: float) -> None:
    pool = teach(case.provider)
    done = case.run(pool, budget_usd=budget_usd, max_tokens=5)
    assert done.stopped == "budget"
    assert 0 < case.bill_usd() <= budget_usd
    assert done.spent_usd == pytest.approx(case.bill_usd())
    dearest_usd = (300 * 10 + 5 * 20) / 1e6  # what one call can cost, and so what may be left
    assert case.bill_usd() > budget_usd - dearest_usd
    asked = set(map(pair_of, case.provider.requests))
    assert asked == set(PAIRS[: len(asked)])  # prompt by prompt: those asked at all are complete, but one
    assert len(case.rows()) == done.rows == len(asked)

    done = case.run(pool, budget_usd=1.0, max_tokens=5)
    assert (done.stopped, done.rows) == ("finished", 60)
    assert Counter(map(pair_of, case.provider.requests)) == Counter(PAIRS)


def test_the_budget_holds_when_every_call_costs_the_most_it_can(case: Case) -> None:
    """A token for every byte, hidden instructions on top, and answers that go on until they are cut."""
    pool = teach(case.provider)

    def dearest(request: dict[str, Any]) -> Say:
        n_bytes = len(request["messages"][0]["content"].encode())
        return Say("word " * 1000, input_tokens=n_bytes + 200)

    case.prompts.write_text(
        "".join(f'{{"prompt": "Wieviel ist das Fünffache von {n}? 五倍"}}\n' for n in range(20))
    )
    for name in PRICES:
        case.provider.behave(name, dearest)
    plans: list[Plan] = []
    done = case.run(pool, scorer=lambda *_: 0.5, budget_usd=0.02, max_tokens=30, on_plan=plans.append)
    assert done.stopped == "budget"
    assert 0.015 < case.bill_usd() <= 0.02

    done = case.run(pool, scorer=lambda *_: 0.5, budget_usd=plans[0].most_usd, max_tokens=30)
    assert done.stopped == "finished"
    assert case.bill_usd() <= plans[0].most_usd <= 1.2 * case.bill_usd()


def test_a_call_that_times_out_may_be_billed_and_counts(case: Case) -> None:
    pool = pool_of(case.provider, "small")
    case.provider.behave("small", Say("too late", delay_s=0.4))
    done = case.run(pool, params={"timeout": 0.1}, concurrency=2)
    assert done.failures["small"].count == case.provider.asked("small") <= 6
    assert "imeout" in done.failures["small"].example
    assert 0 < case.bill_usd() <= done.spent_usd == done.assumed_usd
    assert "5 times in a row" in done.given_up["small"]
    assert not case.out.exists()


def test_a_provider_that_ignores_max_tokens_is_reckoned_with(case: Case) -> None:
    """The second call's bound is scaled by the first one's overrun: without that it would be sent."""
    pool = pool_of(case.provider, "small")
    case.provider.behave("small", Say("1", input_tokens=10, output_tokens=3000))  # of the 100 asked for
    one_usd = (10 * 1 + 3000 * 2) / 1e6
    done = case.run(pool, budget_usd=1.9 * one_usd, max_tokens=100, concurrency=1)
    assert (done.stopped, case.provider.asked("small")) == ("budget", 1)
    again = case.run(pool, budget_usd=1.9 * one_usd, max_tokens=100, concurrency=1)
    assert (again.stopped, case.provider.asked("small")) == ("budget", 1)


def test_an_answer_without_usage_counts_at_its_most(case: Case) -> None:
    pool = pool_of(case.provider, "small")
    case.provider.behave("small", Say("4", usage=False))
    done = case.run(pool)
    assert case.bill_usd() < done.assumed_usd == done.spent_usd
    assert {row["cost_usd"] for row in case.rows()} == {row["output_tokens"] for row in case.rows()} == {None}


def test_the_plan_comes_first_and_may_be_declined(case: Case) -> None:
    pool, plans = teach(case.provider), []
    case.run(pool, budget_usd=0.001, max_tokens=8)

    def decline(plan: Plan) -> bool:
        plans.append(plan)
        return False

    asked = len(case.provider.requests)
    done = case.run(pool, budget_usd=0.5, max_tokens=8, on_plan=decline)
    assert len(case.provider.requests) == asked
    assert (done.stopped, done.left, done.rows) == ("declined", 60 - asked, asked)
    plan = plans[0]
    assert (plan.pairs, plan.answered, plan.n_prompts) == (60 - asked, asked, N_PROMPTS)
    assert plan.spent_usd == pytest.approx(case.bill_usd())
    assert 0 < plan.expected_usd < plan.most_usd < 0.5
    assert [line.member for line in plan.members] == list(PRICES)
    assert plan.as_dict()["members"][1]["most_usd"] == pytest.approx(10 * plan.members[0].most_usd, rel=0.1)
    case.run(pool, max_tokens=8)
    assert case.bill_usd() == pytest.approx(plan.spent_usd + plan.expected_usd, rel=0.7)


def test_scoring_again_is_free(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    case.run(teach(case.provider), members=["small", "wrong"])
    assert case.provider.asked("large") == 0
    seen: list[str] = []

    def scorer(record: dict[str, Any], answer: str) -> bool:
        seen.append(record["id"])
        return answer == "-1" and record["task"] == "sums"

    keyless = Pool([{**_table(name), "model": f"openai/{name}"} for name in PRICES])
    done = case.run(keyless, scorer, budget_usd=0)
    assert (len(case.provider.requests), done.rows, done.stopped) == (40, 40, "budget")
    assert {row["member"]: row["reward"] for row in case.rows()} == {"small": 0.0, "wrong": 1.0}
    assert len(seen) == 40


def test_what_is_sent(case: Case) -> None:
    teach(case.provider)
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 3 + 3 ?"}]
    case.prompts.write_text(f'{{"messages": {json.dumps(asked)}, "answer": 6}}\n')
    case.provider.behave(
        "small", lambda request: Say(str(2 * number_in({"messages": request["messages"][1:]})))
    )
    case.run(pool_of(case.provider, "small", max_output_tokens=50), params={"temperature": 0.5})
    (request,) = case.provider.requests
    assert request["messages"] == asked
    assert request["params"] == {"temperature": 0.5, "max_tokens": 50}
    (row,) = case.rows()
    assert (row["prompt"], row["task"], row["reward"]) == ("What is 3 + 3 ?", None, 1.0)


def _table(name: str) -> dict[str, Any]:
    usd_in, usd_out = PRICES[name]
    return {
        "name": name,
        "usd_per_million_input": usd_in,
        "usd_per_million_output": usd_out,
        "context_window": 8192,
    }


def _start(case: Case, folder: Path) -> subprocess.Popen[str]:
    """The same run in a process of its own."""
    tables = "".join(
        f'[[members]]\nname = "{name}"\nmodel = "openai/{name}"\ncontext_window = 8192\n'
        f'params = {{ api_base = "{case.provider.url}", api_key = "test" }}\n'
        f"usd_per_million_input = {usd_in}\nusd_per_million_output = {usd_out}\n"
        for name, (usd_in, usd_out) in PRICES.items()
    )
    (folder / "pool.toml").write_text(tables)
    arguments = [str(case.prompts), str(folder / "pool.toml"), str(case.out)]
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *arguments],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        stderr=subprocess.PIPE,
        text=True,
    )


def _wait_until(there: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not there():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)

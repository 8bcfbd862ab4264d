"""What goes wrong while collecting: each told in one clear error, nothing lost, nothing paid for twice."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from collect_cases import PAIRS, Case, number_in, pair_of, pool_of, teach
from ensemble.dispatch import Dispatcher
from ensemble.errors import ConfigError, InputError, PoolError, TableError
from ensemble.learning.journal import Journal
from ensemble.learning.prompts import read_prompts
from ensemble.pool import Pool
from ensemble.records import Deployment
from local_provider import Fail, LocalProvider, Raw, Reset, Say


@pytest.fixture
def provider() -> Iterator[LocalProvider]:
    with LocalProvider() as running:
        yield running


@pytest.fixture
def case(tmp_path: Path, provider: LocalProvider) -> Case:
    return Case(tmp_path, provider)


def test_a_torn_line_costs_only_its_own_answer(case: Case) -> None:
    pool = teach(case.provider)
    case.run(pool, concurrency=1)
    with case.journal.open("r+b") as journal:  # the last line is the last answer
        journal.truncate(case.journal.stat().st_size - 7)
    done = case.run(pool)
    assert [pair_of(request) for request in case.provider.requests] == [*PAIRS, PAIRS[-1]]
    assert done.rows == 60
    assert case.bill_usd() <= done.spent_usd  # the torn one was billed too
    assert case.run(pool).answered == 0


def test_a_spoilt_line_is_named(case: Case) -> None:
    pool = teach(case.provider)
    case.run(pool)
    lines = case.journal.read_text().splitlines(keepends=True)
    case.journal.write_text("".join([*lines[:4], "{}\n", *lines[4:]]))
    with pytest.raises(TableError, match=r"line 5: .* remove the line"):
        case.run(pool)


def test_a_line_that_cannot_be_written_leaves_a_readable_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal"
    with Journal(path) as journal:
        journal.sent(("q1", "small"), 0.5)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", _full)
            with pytest.raises(OSError, match="no space"):
                journal.sent(("q2", "small"), 0.25)
        journal.failed(("q1", "small"), "broke", billed=False)
        assert journal.spent_usd == 0.0
    with Journal(path) as journal:
        assert (journal.spent_usd, len(path.read_text().splitlines())) == (0.0, 3)


def test_a_full_disk_stops_the_run(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    written = itertools.count()
    real = os.fsync
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: _full(fd) if next(written) == 31 else real(fd))
        with pytest.raises(OSError, match="no space"):
            case.run(teach(case.provider), concurrency=2)
    asked = len(case.provider.requests)
    assert 12 < asked < 20
    assert len(case.rows()) == len(case.answered()) >= asked - 2
    assert case.run(pool_of(case.provider)).rows == 60


def test_a_changed_prompt_or_model_is_noticed(case: Case) -> None:
    pool = teach(case.provider)
    case.run(pool, members=["small"])
    (member,) = pool_of(case.provider, "small")
    second = Deployment("openai/elsewhere", member.deployments[0].params)
    more = Pool([replace(member, deployments=(*member.deployments, second))])
    assert case.run(more).rows == 20

    with pytest.raises(TableError, match=r"small \(was openai/small\).* a name of its own"):
        case.run(Pool([replace(member, deployments=(second,))]))
    case.prompts.write_text(case.prompts.read_text().replace("What is 7 + 7", "What was 7 + 7"))
    with pytest.raises(TableError, match=r"under the same id: q7\. Give changed prompts new ids"):
        case.run(pool)
    assert len(case.provider.requests) == 20


def test_a_member_that_refuses_is_left_in_peace(case: Case) -> None:
    teach(case.provider)
    with LocalProvider(api_key="another") as strict:
        refused = replace(pool_of(strict, "large")["large"], name="large")
        params = {**refused.deployments[0].params, "api_key": "test"}
        refused = replace(refused, deployments=(Deployment("openai/large", params),))
        others = pool_of(case.provider, "small", "wrong")
        done = case.run(Pool([refused, *others]), concurrency=4)
        assert 1 <= len(strict.requests) <= 4
    assert (done.rows, done.left, done.stopped) == (40, 20, "finished")
    assert "Incorrect API key" in done.given_up["large"]
    assert 1 <= done.failures["large"].count <= 4
    assert done.assumed_usd == 0.0
    assert case.run(pool_of(case.provider)).rows == 60
    assert len(case.provider.requests) == 60


def test_failures_are_no_rewards_and_are_asked_again(case: Case) -> None:
    pool = teach(case.provider)
    failing = {3: Fail(500, "out of order"), 8: Reset(), 13: Raw(), 17: Fail(400, "bad request")}
    well = lambda request: Say(str(2 * number_in(request)))  # noqa: E731
    case.provider.behave("large", lambda request: failing.get(number_in(request)) or well(request))
    done = case.run(pool, concurrency=1)
    assert {row["prompt_id"] for row in case.rows() if row["member"] == "large"} == {
        f"q{n}" for n in range(20) if n not in failing
    }
    assert (done.rows, done.left, done.given_up) == (56, 4, {})
    assert done.failures["large"].count == 4 and "out of order" in done.failures["large"].example
    assert done.spent_usd == pytest.approx(case.bill_usd() + done.assumed_usd)
    case.provider.behave("large", well)
    done = case.run(pool)
    assert (done.rows, done.answered, done.failures) == (60, 4, {})


def test_a_busy_provider_is_waited_for(case: Case) -> None:
    busy = Fail(429, "slow down", headers={"retry-after": "0.05"})
    case.provider.behave("small", [busy, busy, Fail(503, headers={"retry-after": "0.05"}), "4"])
    done = case.run(pool_of(case.provider, "small"), concurrency=1)
    assert (case.provider.asked("small"), done.answered, done.failures) == (23, 20, {})
    assert done.spent_usd == pytest.approx(case.bill_usd())


def test_a_second_deployment_steps_in(case: Case) -> None:
    (member,) = pool_of(case.provider, "small")
    elsewhere = Deployment("openai/no-such-model", member.deployments[0].params)
    case.provider.behave("small", "4")
    done = case.run(Pool([replace(member, deployments=(elsewhere, *member.deployments))]))
    assert (done.rows, done.given_up) == (20, {})


@pytest.mark.parametrize(
    ("scorer", "what"),
    [
        (lambda record, answer: 1 / (record["id"] != "q7"), "ZeroDivisionError"),
        (lambda record, answer: 1.5 if record["id"] == "q7" else 1, r"\[0, 1\], found 1.5"),
        (lambda record, answer: -0.1 if record["id"] == "q7" else 1, "found -0.1"),
        (lambda record, answer: float("nan") if record["id"] == "q7" else 1, "found nan"),
        (lambda record, answer: None if record["id"] == "q7" else 1, "found None"),
        (lambda record, answer: "1" if record["id"] == "q7" else 1, "found '1'"),
    ],
)
def test_a_wrong_scorer_loses_nothing(case: Case, scorer: Callable[..., Any], what: str) -> None:
    case.provider.behave("small", "14")
    pool = pool_of(case.provider, "small")
    with pytest.raises(InputError, match=rf"1 of 20 answers, first on prompt 'q7', member 'small': .*{what}"):
        case.run(pool, scorer)
    assert not case.out.exists()
    assert case.run(pool).rows == 20
    assert len(case.provider.requests) == 20


def test_members_without_keys_are_named_before_anything_is_asked(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    teach(case.provider)
    keyless = replace(pool_of(case.provider, "large")["large"], deployments=(Deployment("openai/large"),))
    pool = Pool([*pool_of(case.provider, "small"), keyless])
    with pytest.raises(ConfigError, match=r"none for 1 of 2:\n  large: .*OPENAI_API_KEY"):
        case.run(pool)
    assert not case.provider.requests
    with_all = Dispatcher(pool)  # knows of the keyless one too, which is not asked
    assert case.run(pool, members=["small"], dispatcher=with_all).rows == 20


def test_litellm_tries_nothing_twice_behind_our_back(case: Case) -> None:
    """Every call that may be billed is one that was reckoned with."""
    case.provider.behave("small", Reset())
    (member,) = pool_of(case.provider, "small")
    eager = Deployment("openai/small", {**member.deployments[0].params, "max_retries": 3})
    done = case.run(Pool([replace(member, deployments=(eager, eager))]), concurrency=1)
    assert case.provider.asked("small") == done.failures["small"].count == 5
    assert done.spent_usd == done.assumed_usd > 0


@pytest.mark.parametrize(
    ("keywords", "error", "what"),
    [
        ({"budget_usd": -1}, ConfigError, "budget_usd: expected USD"),
        ({"budget_usd": float("nan")}, ConfigError, "budget_usd: expected USD"),
        ({"max_tokens": 0}, ConfigError, "max_tokens: expected at least 1"),
        ({"concurrency": 0}, ConfigError, "concurrency: expected 1 to"),
        ({"params": {"n": 4}}, ConfigError, "found n: with them the budget could not be kept"),
        ({"members": []}, ConfigError, "members: expected at least one"),
        ({"members": ["smal"]}, PoolError, "Did you mean 'small'"),
    ],
)
def test_settings_are_checked(case: Case, keywords: dict[str, Any], error: type, what: str) -> None:
    with pytest.raises(error, match=what):
        case.run(teach(case.provider), **keywords)
    assert not case.provider.requests


def test_nothing_of_others_is_overwritten_and_nobody_is_joined(case: Case) -> None:
    pool = teach(case.provider)
    case.out.write_text("mine")
    with pytest.raises(ConfigError, match="would be overwritten"):
        case.run(pool)
    assert case.out.read_text() == "mine"
    case.out.unlink()
    with Journal(case.journal), pytest.raises(ConfigError, match="in use by another run"):
        case.run(pool)
    assert not case.provider.requests


def test_bad_lines_are_counted_and_named(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    bad = [
        "[1]", "{", '{"answer": 4}', '{"prompt": 3}', '{"prompt": "a", "messages": []}', '{"messages": []}',
        '{"prompt": "  "}', '{"prompt": "a", "id": true}', '{"prompt": "a", "task": ["t"]}',
        '{"prompt": "ok", "id": "q"}',
        '{"messages": [{"role": "nobody", "content": "a"}]}', '{"messages": "hello"}',
    ]  # fmt: skip
    path.write_text("\n".join(['{"prompt": "fine", "id": "q"}', "", *bad, '{"prompt": "well", "id": 5}']))
    with pytest.raises(InputError) as caught:
        read_prompts(path)
    told = str(caught.value).splitlines()
    assert (
        told[0].endswith("12 line(s) cannot be used:") and told[-1].endswith("and 2 more") and len(told) == 12
    )
    assert [line.split(":")[0].strip() for line in told[1:-1]] == [f"line {n}" for n in range(3, 13)]
    assert "the id 'q' is taken by line 1" in told[10]


def test_a_prompt_twice_a_missing_file_and_an_empty_one(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    with pytest.raises(InputError, match="No such file"):
        read_prompts(path)
    path.write_text("\n\n")
    with pytest.raises(InputError, match="found none"):
        read_prompts(path)
    path.write_text('{"prompt": "a"}\n{"messages": [{"role": "user", "content": "a"}]}\n')
    with pytest.raises(InputError, match="line 2: the prompt stands in line 1 already"):
        read_prompts(path)
    path.write_bytes(b'{"prompt": "\xff"}\n')
    with pytest.raises(InputError, match="line 1: expected a JSON object in UTF-8"):
        read_prompts(path)


def test_prompts_without_ids_keep_theirs_wherever_they_stand(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    lines = [json.dumps({"prompt": text, "answer": 1}) for text in ("one\ud800", "two", "three")]
    path.write_text("\ufeff" + "\r\n".join(lines))
    first = read_prompts(path)
    path.write_text("\n".join(reversed(lines)))
    assert [prompt.id for prompt in read_prompts(path)] == [prompt.id for prompt in reversed(first)]
    assert len({prompt.id for prompt in first}) == 3
    assert first[0].text == "one\ufffd" and first[0].record["id"] == first[0].id


def _full(_: int) -> None:
    raise OSError(28, "no space left on device")

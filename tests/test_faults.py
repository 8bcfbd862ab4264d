"""The benchmark of faults measures what it says it does: each part at a tiny size, and verdicts over made-up
figures that must be missed."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest

from benchmarks import faults, faults_load, faults_outage, faults_page
from benchmarks.faults_aims import aims
from benchmarks.faults_callers import FIRST, SECOND, STEADY, Ended
from benchmarks.faults_kill import kills
from benchmarks.faults_provider import FAULTS, REFUSALS, Provider, Started, provider, text_of
from serving_cases import QUIET, default_router

pytestmark = [
    *QUIET,
    # litellm's clients are kept for the next call, in a cache of its own.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
CALLS = 120


def quiet(what: str) -> None:
    pass


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("load")
    return faults_load.load(default_router(), CALLS, 0.3, 0, folder, quiet, delay_s=0.0)


def test_under_load_every_call_has_one_decision_one_outcome_and_its_own_answer(
    loaded: dict[str, Any],
) -> None:
    assert loaded["answered"] + sum(loaded["errors"].values()) == CALLS
    assert loaded["decisions"] == CALLS and loaded["without_outcome"] == 0
    assert loaded["calls_with_other_than_one_decision"] == loaded["served_otherwise_than_seen"] == 0
    assert loaded["strange_answers"] == loaded["answers_given_twice"] == loaded["members_asked_twice"] == 0
    assert not [name for name in loaded["errors"] if name.startswith("not ours")]


def test_under_load_the_bill_is_right(loaded: dict[str, Any]) -> None:
    assert (
        loaded["known_usd"] == pytest.approx(loaded["known_usd_billed"], abs=1e-6) and loaded["known_usd"] > 0
    )
    assert loaded["known_that_differ"] == loaded["billed_and_not_logged"] == 0
    assert not loaded["taken_for_free"]
    assert loaded["estimated"] > 0


def test_under_load_faults_are_met(loaded: dict[str, Any]) -> None:
    assert 0.15 < loaded["share_of_requests"] < 0.45
    assert len(loaded["faults"]) >= 8 and set(loaded["faults"]) <= set(FAULTS)
    assert loaded["requests"] > CALLS


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return faults_outage.outage(default_router(), 45, 1, 0, tmp_path_factory.mktemp("outage"), quiet)


def test_while_a_provider_is_gone_no_call_fails(out: dict[str, Any]) -> None:
    assert out["failed"] == 0 and out["calls"] == 45 and out["middle_calls"] == 15
    assert 1 <= out["asked_the_dead"] <= out["tried_the_dead"] <= 15
    assert min(out["healthy_ms"], out["middle_ms"], out["control_ms"]) > 0


@pytest.fixture(scope="module")
def killed() -> dict[str, Any]:
    return kills(2, 1, 0, quiet)


@pytest.mark.parametrize(("where", "n_kills"), [("sqlite_before", 2), ("postgres_before", 1)])
def test_what_reached_a_caller_is_in_the_log_after_kill_9(
    killed: dict[str, Any], where: str, n_kills: int
) -> None:
    one = killed[where]
    assert one["kills"] == n_kills and one["answers"] > 0
    assert one["without_decision"] == one["corrupt"] == one["starts_that_failed"] == 0
    # What could not be written while the database was away has been said.
    assert one["without_outcome"] <= one["warned_of"]
    assert one["decisions"] >= one["answers"]


def test_in_mode_after_a_kill_loses_no_more_than_the_queue_holds(killed: dict[str, Any]) -> None:
    one = killed["sqlite_after"]
    assert one["kills"] == 1 and one["corrupt"] == 0
    assert one["most_records_lost_at_once"] <= killed["queue_size"]


@pytest.fixture(scope="module")
def flaky() -> Iterator[Started]:
    with provider(flaky=[FIRST], share=1.0) as started:
        yield started


def asked(model: str, tag: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": f"{tag} hello"}], "stream": True, **more}


def post(started: Started, model: str, tag: str, **more: Any) -> tuple[int | None, bytes]:
    body = json.dumps(asked(model, tag, **more)).encode()
    request = urllib.request.Request(f"{started.base}/chat/completions", body)
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()
    except (OSError, HTTPException):
        return None, b""


def test_the_provider_does_what_its_bill_says(flaky: Started) -> None:
    drawn = Provider([FIRST], 1.0, 0)
    tags = {drawn.take(asked(FIRST, f"t{i}"))["fault"]: f"t{i}" for i in range(3_000)}
    assert set(tags) == set(FAULTS)
    with ThreadPoolExecutor(len(tags)) as threads:
        replies = dict(
            zip(tags.values(), threads.map(partial(post, flaky, FIRST), tags.values()), strict=True)
        )
    bill = {line["tag"]: line for line in flaky.bill()}
    for fault, tag in tags.items():
        line, (status, body) = bill[tag], replies[tag]
        assert line["fault"] == fault
        if fault in REFUSALS:
            assert status == REFUSALS[fault][0] and not line["billed"]
            continue
        assert line["billed"]
        if fault in ("reset", "cut stream"):
            assert status is None
        elif fault == "wrong model":
            assert b"somebody-else" in body
        elif fault in ("malformed JSON", "wrong content type"):
            with pytest.raises(ValueError):
                json.loads(body)
        if line["whole"]:
            assert text_of(line) == "".join(
                json.loads(event[6:])["choices"][0]["delta"].get("content") or ""
                for event in body.decode().splitlines()
                if '"delta"' in event
            )


def test_a_member_that_is_well_answers_and_bills_by_the_limit(flaky: Started) -> None:
    status, body = post(flaky, STEADY, "well", max_tokens=5, stream=False)
    [line] = [line for line in flaky.bill() if line["tag"] == "well"]
    assert status == 200 and line["billed"] and line["whole"] and not line["fault"]
    assert json.loads(body)["usage"]["completion_tokens"] == line["output_tokens"] <= 5


def ended(tag: str, text: str | None, **changes: Any) -> Ended:
    plain = {"error": None, "decision_id": "d", "at": 0.0, "seconds": 1.0, "deadline_s": 2.0}
    return Ended(tag=tag, text=text, **{**plain, **changes})


def line(tag: str = "a", model: str = FIRST, **changes: Any) -> dict[str, Any]:
    counts = {"serial": 1, "input_tokens": 1_000, "output_tokens": 1_000, "billed": True, "whole": True}
    return {"tag": tag, "model": model, "fault": "", **counts, **changes}


def row(*attempts: dict[str, Any], tag: str = "a") -> dict[str, Any]:
    return {"metadata": {"tag": tag}, "attempts": list(attempts)}


def test_an_answer_given_twice_or_made_for_another_is_seen() -> None:
    good = [ended("a", "a 1 as asked")]
    assert not any(faults_load.answers(good, [line()]).values())
    assert faults_load.answers(good * 2, [line()])["answers_given_twice"] == 1
    assert faults_load.answers([ended("b", "a 1 as asked")], [line()])["strange_answers"] == 1
    assert faults_load.answers(good, [line(whole=False)])["strange_answers"] == 1
    assert faults_load.answers(good, [line(), line(serial=2)])["members_asked_twice"] == 1


def test_a_call_that_outlives_its_deadline_or_fails_before_it_is_seen() -> None:
    late = ended("a", None, error="CallFailedError", seconds=2.0 + faults_load.TOLERANCE_S + 0.1)
    early = ended("b", None, error="CallFailedError", seconds=0.5)
    seen = faults_load.callers_see([late, early])
    assert seen["overruns"] == 1 and seen["failed_early"] == {"CallFailedError": 1}
    assert seen["overrun_s"] == pytest.approx(faults_load.TOLERANCE_S + 0.1)


def test_money_is_held_against_the_bill_attempt_by_attempt() -> None:
    exact = {"member": FIRST, "cost_usd": 0.3, "cost_is_estimated": False}
    bound = {"member": SECOND, "cost_usd": 0.5, "cost_is_estimated": True}
    other = line(model=SECOND)  # 0.6 USD
    found = faults_load.money([row(exact, bound)], [line(), other])
    assert (found["known_usd"], found["known_usd_billed"], found["known_that_differ"]) == (0.3, 0.3, 0)
    assert found["uncovered"] == {"none": 1} and found["worst_uncovered"] == pytest.approx(1.2)
    free = faults_load.money([row({**exact, "cost_usd": 0.0})], [line(fault="reset")])
    assert free["taken_for_free"] == {"reset": 1} and free["known_that_differ"] == 1
    assert faults_load.money([row(exact)], [line(), other])["billed_and_not_logged"] == 1


def a_result(loaded: dict[str, Any], out: dict[str, Any], killed: dict[str, Any]) -> dict[str, Any]:
    rows = [{"what": "a path out of the folder", "got": "BundleError", "held": True}]
    on = {"cpu": "c", "cores": 2, "system": "s", "versions": {"Python": "3"}, "date": "d", "commit": "e"}
    head = {"format": 1, "name": "2-cores", "machine": on, "seed": 0}
    return {**head, "load": loaded, "outage": [out], "kill": killed, "hostile": rows}


def test_every_aim_can_be_missed(loaded: dict[str, Any], out: dict[str, Any], killed: dict[str, Any]) -> None:
    bad_load = {
        **loaded,
        "failed_early": {"CallFailedError": 1},
        "overruns": 1,
        "strange_answers": 1,
        "known_usd": loaded["known_usd_billed"] + 0.01,
        "uncovered": {"reset": 1},
        "without_outcome": 1,
    }
    bad_kill = {
        "sqlite_before": {**killed["sqlite_before"], "without_outcome": 1, "starts_that_failed": 1},
        "postgres_before": {**killed["postgres_before"], "without_decision": 1, "corrupt": 1},
        "sqlite_after": {**killed["sqlite_after"], "most_records_lost_at_once": 1_001},
        "queue_size": 1_000,
    }
    bad = a_result(bad_load, {**out, "failed": 1, "cooled_calls": 5, "added_ms": 5.1}, bad_kill)
    bad["hostile"] = [{**bad["hostile"][0], "held": False}]
    found = aims(bad)
    assert len(found) == 14 and not any(aim.holds for aim in found)
    never_cooled = a_result(loaded, {**out, "cooled_calls": 0, "added_ms": 0.0}, killed)
    assert [aim.holds for aim in aims(never_cooled) if "cool-down" in aim.claim] == [False]


def test_the_page_holds_every_part_and_every_aim(
    loaded: dict[str, Any], out: dict[str, Any], killed: dict[str, Any], tmp_path: Path
) -> None:
    result = a_result(loaded, out, killed)
    faults.write(result, tmp_path / "results", tmp_path / "FAULTS.md")
    stored = json.loads((tmp_path / "results" / "2-cores.json").read_text("utf-8"))
    page = (tmp_path / "FAULTS.md").read_text("utf-8")
    assert page == faults_page.markdown([stored])
    for sheet in faults_page.sheets(stored):
        assert f"{sheet.title}:" in page
    for aim in aims(stored):
        assert f"{aim.claim}: {aim.evidence}" in page
    assert "a path out of the folder" in page


def test_a_single_part_is_run_alone_and_printed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    result = faults.measure(["outage"], 90, 1, 0, quiet)
    assert [bool(result[part]) for part in faults.PARTS] == [False, True, False, False]
    assert [outage["places"] for outage in result["outage"]] == [1, 2]
    faults_page.print_result(result)
    assert "no call fails" in capsys.readouterr().out

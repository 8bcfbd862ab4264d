"""What an answer leaves behind: sessions, rewards, what is kept of it, and what is forgotten."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ensemble.errors import EnsembleWarning, InputError
from serving_cases import CHEAP, MIDDLE, PROMPT, QUIET, Ask, Line, awaited, each_way, open_line, said, waited

pytestmark = QUIET


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    with open_line(tmp_path) as opened:
        yield opened


def test_feedback_by_reply_by_decision_and_by_id(line: Line) -> None:
    reply, stream = line.ask(), line.ask(stream=True)
    list(stream)
    line.ensemble.feedback(reply, 1.0)
    line.ensemble.feedback(reply.decision, reward=0.5, source="checker")
    line.ensemble.feedback(stream, 0)
    assert line.row(reply)["rewards"] == {"caller": 1.0, "checker": 0.5}
    line.ensemble.feedback(reply.decision.id, 0.25)
    assert line.row(reply)["rewards"] == {"caller": 0.25, "checker": 0.5}
    assert line.row(stream)["rewards"] == {"caller": 0.0}


@pytest.mark.parametrize("what", ["nobody", None, 5, {"id": "x"}])
def test_feedback_on_nothing_that_was_decided(line: Line, what: Any) -> None:
    with pytest.raises(
        InputError, match=r"no decision 'nobody'|expected a reply, a Decision or a decision's id"
    ):
        line.ensemble.feedback(what, 1.0)


@pytest.mark.parametrize("reward", [1.01, -0.1, math.nan, "good", None])
def test_a_reward_that_is_none(line: Line, reward: Any) -> None:
    with pytest.raises(InputError, match="reward must be a number in"):
        line.ensemble.feedback(line.ask(), reward)


FROM_ELSEWHERE = """
import sys, ensemble
ensemble.configure(log=sys.argv[1])
ensemble.feedback(sys.argv[2], reward=0.75)
"""


def test_feedback_from_another_process(line: Line, tmp_path: Path) -> None:
    reply = line.ask()
    subprocess.run(
        [sys.executable, "-c", FROM_ELSEWHERE, str(tmp_path / "log.db"), reply.decision.id],
        check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, timeout=60,
    )  # fmt: skip
    assert line.row(reply)["rewards"] == {"caller": 0.75}


@pytest.mark.parametrize("stream", [False, True])
def test_a_scorer_rewards_every_answer_it_has_an_opinion_on(tmp_path: Path, stream: bool) -> None:
    heard = []

    def scorer(messages: list[dict[str, Any]], answer: str) -> float | None:
        heard.append((messages[-1]["content"], answer))
        return 1.0 if "Oslo" in answer else None

    with open_line(tmp_path, scorer=scorer) as line:
        rewarded = line.ask(stream=stream)
        list(rewarded)
        line.provider.behave(CHEAP, "no idea")
        list(unrewarded := line.ask(stream=stream))
        assert line.row(rewarded)["rewards"] == {"scorer": 1.0}
        assert line.row(unrewarded)["rewards"] == {}
    assert heard == [(PROMPT, f"Oslo, says {CHEAP}."), (PROMPT, "no idea")]


@pytest.mark.parametrize(
    "fault", [lambda m, a: 1 / 0, lambda m, a: 7.0, lambda m, a: "very good", lambda m: 1.0]
)
def test_a_scorer_that_fails_takes_no_answer_away(tmp_path: Path, fault: Any) -> None:
    with open_line(tmp_path, scorer=fault) as line:
        with pytest.warns(EnsembleWarning, match="the scorer failed on decision"):
            reply = line.ask()
        assert said(reply).startswith("Oslo")
        assert line.row(reply)["rewards"] == {} and line.row(reply)["served_member"] == CHEAP


@each_way
@pytest.mark.parametrize("judge", [waited, awaited])
def test_a_scorer_may_ask_a_judge_of_the_same_pool(tmp_path: Path, ask: Ask, judge: Ask) -> None:
    heard: list[str] = []

    def scorer(messages: list[dict[str, Any]], answer: str) -> float:
        heard.append(answer)
        assert len(heard) <= 2, "the judge is being judged"
        judge(line, prompt=f"Is {answer} right?", members=[MIDDLE])
        return 1.0

    with open_line(tmp_path, scorer=scorer) as line:
        ask(line), ask(line)
        assert heard == [f"Oslo, says {CHEAP}."] * 2
        assert [row["rewards"] for row in line.rows() if row["rewards"]] == [{"scorer": 1.0}] * 2
        assert line.asked == [CHEAP, MIDDLE] * 2


def test_a_scorer_needs_no_log(tmp_path: Path) -> None:
    heard = []
    with open_line(tmp_path, log=False, scorer=lambda messages, answer: heard.append(answer)) as line:
        line.ask()
    assert heard == [f"Oslo, says {CHEAP}."]


@pytest.mark.parametrize(("keep", "text", "answer"), [(None, 0, 0), ("text", 1, 0), ("text+answers", 1, 1)])
def test_only_what_is_asked_for_is_kept(tmp_path: Path, keep: Any, text: int, answer: int) -> None:
    with open_line(tmp_path, keep=keep) as line:
        line.provider.behave(CHEAP, "Oslo, of course.")
        row = line.row(line.ask())
        assert row["text"] == (PROMPT if text else None)
        assert row["answer"] == ("Oslo, of course." if answer else None)
        assert row["features"] is not None and row["prompt_key"] == line.log.prompt_key(PROMPT)
    everything = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert (PROMPT.encode() in everything, b"of course" in everything) == (bool(text), bool(answer))


def test_what_is_forgotten_is_gone_from_every_table(tmp_path: Path) -> None:
    with open_line(tmp_path, keep="text+answers") as line:
        ours, theirs = {"user": "ann", "team": "a"}, {"user": "bob", "team": "a"}
        gone = [line.ask("My secret is 4711, " + PROMPT, metadata=ours, session="s") for _ in range(2)]
        kept = line.ask(metadata=theirs)
        line.ensemble.feedback(gone[0], 1.0)
        assert line.ensemble.forget(metadata={"user": "ann"}) == 2
        assert line.ensemble.forget(gone[0]) == 0
        assert [row["decision_id"] for row in line.rows()] == [kept.decision.id]
        assert line.log.last_step("s") is None
        with pytest.raises(InputError, match="no decision"):
            line.ensemble.feedback(gone[0], 1.0)
        assert line.ensemble.forget(kept) == 1
    assert b"4711" not in b"".join(file.read_bytes() for file in tmp_path.iterdir())


def test_forget_needs_to_know_what(line: Line) -> None:
    for nothing in ({}, {"metadata": {}}, {"decision": "x", "metadata": {"a": 1}}):
        with pytest.raises(InputError, match="forget"):
            line.ensemble.forget(**nothing)


def test_a_decision_can_be_read_without_us(line: Line) -> None:
    decision = line.ask(metadata={"user": "a"}, session="s").decision
    plain = json.loads(json.dumps(decision.as_dict()))
    assert plain["member"] == CHEAP and plain["forecasts"][0]["member"] == CHEAP
    assert plain["wishes"]["willingness_to_pay_usd"] == 0
    row = line.row(decision.id)
    assert row["members"] == [f["member"] for f in plain["forecasts"]]
    assert row["probability"] == [f["probability"] for f in plain["forecasts"]]
    assert row["predicted_reward"] == pytest.approx([f["reward"] for f in plain["forecasts"]])


def test_a_log_behind_the_callers_back_holds_the_same(tmp_path: Path) -> None:
    with open_line(tmp_path, log_mode="after") as line:
        reply = line.ask(session="s", members=[MIDDLE])
        last = line.log.last_step("s")  # reads wait for what was written
        assert last is not None and last["served_member"] == MIDDLE
        line.ensemble.feedback(reply, 1.0)
        row = line.row(reply)
        assert (row["served_member"], row["rewards"], len(row["attempts"])) == (MIDDLE, {"caller": 1.0}, 1)

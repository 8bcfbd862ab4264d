"""From rewarded answers in a log to a router that serves: the loop closed without an outcome table."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import numpy as np
import pytest

from ensemble.encoder import Encoder
from ensemble.engine import Ensemble
from ensemble.errors import TableError
from ensemble.learning.from_log import read_log
from ensemble.learning.train import train
from ensemble.outcomes import OutcomeLog
from ensemble.pool import Pool
from ensemble.records import Attempt, Outcome
from ensemble.router import Router

SUMS, POEMS = "sums", "poems"
MEMBERS = ("calculator", "poet")


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Router.load().encoder


def prompts(n: int) -> list[tuple[str, str]]:
    """Two kinds of prompts in turn, all different."""
    draw = random.Random(0)
    things = ["the sea", "a lost key", "winter", "my grandmother", "an old train", "the moon", "bread"]
    made = []
    for i in range(n):
        a, b = draw.randrange(100, 9999), draw.randrange(100, 9999)
        poem = f"Write a poem of {a % 17 + 3} lines about {things[i % 7]} and {things[b % 7]}, number {a}{b}."
        made.append((SUMS, f"What is {a} plus {b} times {i}?") if i % 2 else (POEMS, poem))
    return made


def fill(log: Path, n: int, keep: str | None) -> None:
    """Decide n prompts by chance, and reward each member on its own kind of prompt only."""
    pool = Pool(
        [
            {
                "name": name,
                "model": f"openai/{name}",
                "usd_per_million_input": 1.0,
                "usd_per_million_output": 1.0,
                "context_window": 8000,
            }
            for name in MEMBERS
        ],
        exploration=0.5,
    )
    with Ensemble(pool=pool, log=log, keep=keep, seed=0) as ensemble:
        for kind, prompt in prompts(n):
            decision = ensemble.route(prompt)
            outcome = Outcome(
                decision_id=decision.id,
                ended_at=decision.created_at + 1,
                member=decision.member,
                reason=decision.reason,
                seconds=1.0,
                first_token_s=None,
                input_tokens=12,
                output_tokens=40 if decision.member == "poet" else 8,
                cost_usd=1e-5,
                cost_is_estimated=False,
            )
            ensemble.log.record_outcome(outcome)
            ensemble.feedback(decision, float((decision.member == "calculator") == (kind == SUMS)))


def test_a_router_trained_from_the_log_prefers_who_was_rewarded(tmp_path: Path, encoder: Encoder) -> None:
    fill(tmp_path / "log.db", 240, keep=None)
    with OutcomeLog.open(tmp_path / "log.db") as log:
        logged = read_log(log, encoder)
    assert logged.table.n_prompts == 240 and logged.n_left_out == 0
    assert logged.table.observed.sum(axis=1).tolist() == [1] * 240
    explored = logged.table.propensity[logged.table.observed]
    assert 0 < explored.min() <= 0.5 <= explored.max() < 1  # each pair carries the chance it was drawn with
    folder = Path(Router.load().folder.parent) / "encoders" / encoder.id
    train(logged.table, encoder, folder, tmp_path / "mine", features=logged.features)
    router = Router.load(tmp_path / "mine")
    notes = router.manifest.members  # what of a cost was input, hashes don't tell
    assert all(note.usd_per_million_input is note.usd_per_million_output is None for note in notes)
    assert "how long the prompts were" in (tmp_path / "mine" / "CARD.md").read_text()
    texts = ["What is 4711 plus 1234 times 77?", "Write a poem of 9 lines about winter and bread, number 4."]
    reward = router.predict(texts).reward[:, [router.members.index(name) for name in MEMBERS]]
    assert reward[0, 0] > reward[0, 1] and reward[1, 1] > reward[1, 0]


def test_another_encoder_reads_kept_text_and_counts_what_it_must_leave_out(
    tmp_path: Path, encoder: Encoder
) -> None:
    other = _Renamed(encoder)
    fill(tmp_path / "with.db", 60, keep="text")
    with OutcomeLog.open(tmp_path / "with.db") as log:
        again, own = read_log(log, other), read_log(log, encoder)
    np.testing.assert_allclose(again.features, own.features, atol=1e-5)
    fill(tmp_path / "without.db", 60, keep=None)
    with (
        OutcomeLog.open(tmp_path / "without.db") as log,
        pytest.raises(TableError, match="60 of another encoder"),
    ):
        read_log(log, other)


def test_a_member_is_charged_for_its_own_answer_alone(tmp_path: Path, encoder: Encoder) -> None:
    """Not for what another failed at before it, nor by a bound on what nobody told."""
    fill(tmp_path / "log.db", 60, keep=None)
    with OutcomeLog.open(tmp_path / "log.db") as log:
        first, second, *_ = [(row["decision_id"], row["served_member"]) for row in log.rows()]
        other = {"calculator": "poet", "poet": "calculator"}
        attempts = [
            Attempt(first[0], 1, other[first[1]], "routed", 0.0, 1.0, "Timeout: none", cost_usd=9.0),
            Attempt(first[0], 2, first[1], "fallback", 1.0, 1.0, output_tokens=7, cost_usd=2e-5),
            Attempt(second[0], 1, second[1], "routed", 0.0, 1.0, cost_usd=5.0, cost_is_estimated=True),
        ]
        for attempt in attempts:
            log.record_attempt(attempt)
        table = read_log(log, encoder).table
    cost_of = dict(
        zip(table.prompt_ids, np.nanmax(np.nan_to_num(table.cost_usd, nan=-1.0), axis=1), strict=True)
    )
    assert cost_of[first[0]] == pytest.approx(2e-5)
    assert cost_of[second[0]] == -1.0
    assert sorted(cost_of.values())[1] == pytest.approx(1e-5)


def test_a_router_says_that_its_log_kept_no_text(tmp_path: Path, encoder: Encoder) -> None:
    fill(tmp_path / "log.db", 120, keep=None)
    with OutcomeLog.open(tmp_path / "log.db") as log:
        logged = read_log(log, encoder)
    assert logged.n_hashed == 120
    folder = Path(Router.load().folder.parent) / "encoders" / encoder.id
    train(
        logged.table, encoder, folder, tmp_path / "mine", features=logged.features, n_hashed=logged.n_hashed
    )
    card = (tmp_path / "mine" / "CARD.md").read_text()
    assert "kept no text of 120 prompts" in card and "English" not in card


def test_rewards_of_decisions_that_nobody_served_are_counted(tmp_path: Path, encoder: Encoder) -> None:
    with Ensemble(log=tmp_path / "log.db", seed=0) as ensemble:
        for _, prompt in prompts(3):
            ensemble.feedback(ensemble.route(prompt), 1.0)
    with (
        OutcomeLog.open(tmp_path / "log.db") as log,
        pytest.raises(TableError, match=r"found 0 and 3 rewards where nobody is known to have served"),
    ):
        read_log(log, encoder)


def test_too_few_rewards_are_counted(tmp_path: Path, encoder: Encoder) -> None:
    fill(tmp_path / "log.db", 10, keep=None)
    with (
        OutcomeLog.open(tmp_path / "log.db") as log,
        pytest.raises(TableError, match=r"at least 50.*found 10"),
    ):
        read_log(log, encoder)


@dataclasses.dataclass
class _Renamed:
    """The same encoder under another hash, as a log of another encoder would have it."""

    encoder: Encoder

    @property
    def sha256(self) -> dict[str, str]:
        return {"encoder.onnx": "0" * 64}

    def encode(self, texts: list[str]) -> np.ndarray:
        return self.encoder.encode(texts)

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
from ensemble.records import Outcome
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

"""A head is measured beside methods that saw the same rows."""

from __future__ import annotations

import dataclasses

import numpy as np

from ensemble.learning.figures import compare
from ensemble.records import Prediction
from worlds import planted

WORLD = planted(1_500, 0)
LEARNED, HELD_OUT = np.arange(1_200), np.arange(1_200, 1_500)
INCOMPLETE = LEARNED[np.random.default_rng(0).random(1_200) > 0.15]


class FairHead:
    """Expects the same of everyone, and ``more`` of the last."""

    members = WORLD.table.members

    def __init__(self, more: float = 0.0) -> None:
        self.more = more

    def predict(self, features: np.ndarray) -> Prediction:
        fair = np.full((len(features), len(self.members)), 0.5, np.float32)
        reward = fair.copy()
        reward[:, -1] += self.more
        return Prediction(self.members, reward, fair, fair + 50, fair + 90)


def brier(learned: np.ndarray) -> dict[str, float]:
    """Of each method, where most of the learned rows lack a member."""
    reward = WORLD.table.reward.copy()
    reward[INCOMPLETE, 3] = np.nan
    table = dataclasses.replace(WORLD.table, reward=reward)
    report = compare(
        FairHead(), WORLD.features, table, np.arange(1_500),  # type: ignore[arg-type]
        learned=learned, held_out=HELD_OUT, draws=10,
    )  # fmt: skip
    return {score.method: score.brier for score in report.scores if score.brier is not None}


def test_the_others_learn_from_rows_that_lack_a_member_too_where_that_helps() -> None:
    with_them, without = brier(LEARNED), brier(np.setdiff1d(LEARNED, INCOMPLETE))
    assert sum(with_them[method] < without[method] - 0.002 for method in with_them) >= 3
    assert all(with_them[method] < without[method] + 0.002 for method in with_them)


def test_a_learned_prompt_or_two_set_no_prices() -> None:
    """The dear member, whose cost they don't tell, would count as free and be asked at every dial."""
    cost_usd = WORLD.table.cost_usd.copy()
    cost_usd[LEARNED[:2], -1] = np.nan
    table = dataclasses.replace(WORLD.table, cost_usd=cost_usd)

    def aiq(learned: np.ndarray) -> float:
        report = compare(
            FairHead(more=0.1), WORLD.features, table, np.arange(1_500),  # type: ignore[arg-type]
            learned=learned, held_out=HELD_OUT, draws=10,
        )  # fmt: skip
        [ours] = [score for score in report.scores if score.method == "ours"]
        assert ours.aiq is not None
        return ours.aiq

    assert aiq(LEARNED[:2]) == aiq(LEARNED[:0])

"""A head is measured beside methods that saw the same rows."""

from __future__ import annotations

import dataclasses

import numpy as np

from ensemble.learning.figures import compare
from ensemble.records import Prediction
from worlds import planted

ROWS, N_LEARNED = np.arange(900), 700
WORLD = planted(len(ROWS), 0)


class FairHead:
    """Expects the same of everyone."""

    members = WORLD.table.members

    def predict(self, features: np.ndarray) -> Prediction:
        fair = np.full((len(features), len(self.members)), 0.5, np.float32)
        return Prediction(self.members, fair, fair, fair + 50, fair + 90)


def brier(learned: np.ndarray) -> dict[str, float]:
    """Of each method, where no learned row of one kind is complete."""
    reward = WORLD.table.reward.copy()
    reward[(WORLD.kind == 0) & (ROWS < N_LEARNED), 3] = np.nan
    table = dataclasses.replace(WORLD.table, reward=reward)
    report = compare(
        FairHead(), WORLD.features, table, ROWS,  # type: ignore[arg-type]
        learned=learned, held_out=ROWS[N_LEARNED:], draws=10,
    )  # fmt: skip
    return {score.method: score.brier for score in report.scores if score.brier is not None}


def test_the_others_learn_from_rows_that_lack_a_member_too() -> None:
    learned = ROWS[:N_LEARNED]
    with_them, without = brier(learned), brier(learned[WORLD.kind[learned] != 0])
    for method in ("nearest neighbours", "soft neighbours", "k-means", "ridge"):
        assert with_them[method] < without[method] - 0.005, method

"""Ours under the ruler: the recipe of ``ensemble train``, and costs reckoned as its evaluation does."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.protocol import Asked, Candidate, Forecast, Learned
from ensemble.learning.prices import implied_prices
from ensemble.learning.recipe import fit_head

OURS = "ours"


@dataclass(frozen=True)
class Ours:
    """Chooses its settings out of fold within what it learns from, so there is no grid to search. It uses
    the task labels of those rows; of a prompt in question it is told none."""

    def forecast(self, learned: Learned, asked: Asked, *, seed: int) -> Forecast:
        weights, recipe = fit_head(learned.features, learned.table, learned.groups, seed=seed)
        reward, reward_std, tokens, _ = (
            np.asarray(found, np.float64) for found in weights.predict(asked.features)
        )
        cost = np.asarray(implied_prices(learned.table).cost_usd(asked.characters, tokens), np.float64)
        note = ", ".join(f"{key} {value}" for key, value in recipe.items())
        return Forecast(reward, cost, reward_std=reward_std, output_tokens=tokens, note=note)


CANDIDATE = Candidate(OURS, "ours", (Ours(),))

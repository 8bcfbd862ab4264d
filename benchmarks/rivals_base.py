"""What do all rivals share? A check of what they learn from, and costs for those that predict none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ensemble.errors import TableError
from ensemble.learning.baselines import Array, Floats, Neighbours, Predicted

Guess = Callable[[Floats], Array]  # features (n_prompts, n_features) -> (n_prompts, n_members)
USUAL_COSTS = Neighbours(500, 0.1)


@dataclass(frozen=True, eq=False)
class FittedRival:
    """A guess of rewards, cut to [0, 1], and one of costs in USD, not below ``least_cost`` (n_members,): a
    line or a network may fall below all that was ever paid, a price does not."""

    reward: Guess
    cost: Guess
    least_cost: Array

    def predict(self, features: Floats) -> Predicted:
        reward = np.asarray(self.reward(features), np.float64)
        cost = np.asarray(self.cost(features), np.float64)
        return reward.clip(0, 1), np.maximum(cost, self.least_cost)


def fitted(features: Floats, cost: Floats, reward: Guess, costs: Guess | None = None) -> FittedRival:
    """What a rival has become by fitting: its guess of rewards and, where it has one, of ``costs``.

    Most papers say nothing of costs. The best simple guess known here stands in, that of soft neighbours:
    generous to the method, whose figures then tell of its rewards alone.
    """
    least_cost = np.asarray(cost.min(axis=0), np.float64)
    if costs is not None:
        return FittedRival(reward, costs, least_cost)
    neighbours = USUAL_COSTS.fit(features, np.zeros_like(cost), cost)
    return FittedRival(reward, lambda asked: neighbours.predict(asked)[1], least_cost)


def require_complete(features: Floats, reward: Floats, cost: Floats) -> None:
    """Rivals learn from complete rows alone: how to fill gaps is no question their papers answer.

    :raises TableError: no rows, shapes that don't agree, features that are not finite, or a member without a
        reward in [0, 1] or without a cost >= 0.
    """
    if reward.ndim != 2 or not len(reward) or reward.shape != cost.shape or len(features) != len(reward):
        raise TableError(
            "expected features (n_prompts, n_features) with reward and cost (n_prompts, n_members), of at "
            f"least one prompt; found {features.shape}, {reward.shape} and {cost.shape}"
        )
    outcomes = (reward >= 0) & (reward <= 1) & (cost >= 0) & np.isfinite(cost)  # NaN is neither
    sound = np.asarray(np.isfinite(features).all(axis=1) & outcomes.all(axis=1))
    if not sound.all():
        raise TableError(
            "expected finite features, rewards in [0, 1] and costs >= 0 USD of every member; found "
            f"{int((~sound).sum()):,} of {len(sound):,} prompts without: leave them out"
        )

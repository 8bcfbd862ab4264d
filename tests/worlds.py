"""Small worlds in which the right answers are known, as outcome tables with features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ensemble.learning.tables import OutcomeTable

Floats = npt.NDArray[np.floating]


@dataclass(frozen=True)
class World:
    """``table`` and ``features`` (n_prompts, n_features) of prompts of n_kinds kinds; ``truth`` (n_prompts,
    n_members) is every pair's expected reward, ``kind`` (n_prompts,) each prompt's."""

    table: OutcomeTable
    features: Floats
    truth: Floats
    kind: npt.NDArray[np.int64]

    def take(self, rows: npt.NDArray[np.int64]) -> World:
        return World(self.table.subset(rows), self.features[rows], self.truth[rows], self.kind[rows])


def table_of(
    reward: Floats,
    *,
    tasks: list[str | None] | None = None,
    source: list[str] | None = None,
    prompts: list[str] | None = None,
    cost_usd: Floats | None = None,
    output_tokens: Floats | None = None,
    propensity: Floats | None = None,
) -> OutcomeTable:
    """A table around ``reward`` (n_prompts, n_members), NaN unobserved; what isn't given is unknown."""
    n, m = reward.shape
    unknown = np.full((n, m), np.nan, np.float32)
    return OutcomeTable(
        prompt_ids=tuple(f"p{i}" for i in range(n)),
        prompts=tuple(prompts or [f"prompt number {i}" for i in range(n)]),
        tasks=tuple(tasks or [None] * n),
        source=tuple(source or ["world"] * n),
        members=tuple(f"m{j}" for j in range(m)),
        reward=reward.astype(np.float32),
        cost_usd=unknown if cost_usd is None else cost_usd.astype(np.float32),
        input_tokens=unknown,
        output_tokens=unknown if output_tokens is None else output_tokens.astype(np.float32),
        propensity=np.ones((n, m), np.float32) if propensity is None else propensity.astype(np.float32),
    )


def planted(n: int, seed: int, *, n_members: int = 4, n_kinds: int = 4, named_tasks: bool = False) -> World:
    """Kinds of prompts around axes of the feature space; member j is good at kind j, the last is fair
    everywhere and dear. Kinds differ in difficulty by far more than members do."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, n_kinds, n)
    features = np.eye(n_kinds, 24)[kind] + 0.12 * rng.normal(size=(n, 24))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    strength = np.full((n_kinds, n_members), -0.15)
    strength[np.arange(n_kinds), np.arange(n_kinds) % n_members] = 0.15
    strength[:, -1] = 0.05
    truth = np.linspace(0.25, 0.75, n_kinds)[kind, None] + strength[kind]
    reward = (rng.random((n, n_members)) < truth).astype(float)
    tokens = np.exp(rng.normal(4 + kind[:, None] / 2, 0.3, (n, n_members)))
    price = np.array([1.0] * (n_members - 1) + [10.0])
    table = table_of(
        reward,
        tasks=[f"kind {k}" for k in kind] if named_tasks else None,
        cost_usd=tokens * price / 1e6,
        output_tokens=tokens,
    )
    return World(table, features.astype(np.float32), truth, kind)

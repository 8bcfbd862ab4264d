"""Small worlds in which the right answers are known, as outcome tables with features."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ensemble.learning.calibrate import Curve
from ensemble.learning.doubt import Strangeness
from ensemble.learning.export import HeadWeights
from ensemble.learning.tables import OutcomeTable
from ensemble.learning.trunk import Trunk

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


def unit(rng: np.random.Generator, n: int, width: int) -> Floats:
    """(n, width) float32, rows of length 1."""
    x = rng.normal(size=(n, width))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def random_head(
    n_members: int, n_landmarks: int, n_features: int, n_tasks: int, seed: int = 0, ballast: float = 0.0
) -> HeadWeights:
    """A head of these sizes with weights drawn at random; every member's curve is bent its own way."""
    rng = np.random.default_rng(seed)
    landmarks = rng.normal(0, 0.3, (n_landmarks, n_features + n_tasks)).astype(np.float32)
    trunk = Trunk(
        landmarks=landmarks,
        sizes=rng.integers(3, 50, n_landmarks).astype(np.float32),
        task_weights=rng.normal(0, 3, (n_features, n_tasks)).astype(np.float32),
        task_bias=rng.normal(0, 1, n_tasks).astype(np.float32),
        n_near=min(n_landmarks, max(2, n_landmarks // 5)),
        reach=0.4,
        ballast=ballast,
    )
    shape = (n_members, n_landmarks)
    return HeadWeights(
        trunk=trunk,
        reward=rng.normal(0, 0.2, shape),
        tokens=rng.normal(0, 1, shape),
        evidence=rng.integers(0, 40, shape) / rng.uniform(0.5, 50),
        reward_bias=rng.uniform(0, 1, n_members),
        curve=Curve(rng.normal(0, 0.5, n_members), *rng.uniform(0, 2, (2, n_members))),
        token_bias=rng.normal(5, 2, n_members),
        token_spread=rng.uniform(0, 2, n_members),
        prior_std=rng.uniform(0.02, 0.5, n_members),
        strangeness=Strangeness(rng.uniform(-8, 2), *rng.uniform(0, 4, 2)),
    )


TOPICS = {
    "cooking": "simmer roast onion butter garlic oven dough sauce pepper soup recipe flour bake lentils salt",
    "algebra": "polynomial root matrix integer prime factor equation modulo divisor vector proof cubic sum",
    "python": "function loop list string dictionary exception class import recursion decorator tuple index",
    "law": "contract tort plaintiff statute appeal judge liability clause evidence court jury negligence",
}
FORMS = ("Explain {} and {} to someone who knows {} but not {}.", "How do {} and {} change {} beside {}?")


def worded(n: int, seed: int) -> tuple[OutcomeTable, npt.NDArray[np.int64]]:
    """A table of real words, four topics, four members each good at one; and the topics (n,).

    The last topic has no task names, and member 3 was seen on it alone.
    """
    rng = np.random.default_rng(seed)
    topics = list(TOPICS)
    kind = rng.integers(0, 4, n)
    prompts = []
    for i, k in enumerate(kind):
        words = rng.choice(TOPICS[topics[k]].split(), 4, replace=False)
        prompts.append(FORMS[i % 2].format(*words) + f" Case {rng.integers(10**6)}.")
    truth = np.where(np.arange(4) == kind[:, None], 0.85, 0.35)
    reward = (rng.random((n, 4)) < truth).astype(float)
    reward[kind != 3, 3] = np.nan
    tokens = np.where(
        np.isnan(reward), np.nan, np.round(np.exp(rng.normal(4 + kind[:, None] / 3, 0.3, (n, 4))))
    )
    characters = np.array([[len(prompt)] for prompt in prompts])
    price_in, price_out = np.array([1.0, 2.0, 4.0, 8.0]), np.array([3.0, 6.0, 12.0, 24.0])
    table = table_of(
        reward,
        prompts=prompts,
        tasks=[topics[k] if k != 3 else None for k in kind],
        cost_usd=(characters / 4 * price_in + tokens * price_out) / 1e6,
        output_tokens=tokens,
    )
    inputs = np.where(np.isnan(reward), np.nan, characters / 4).astype(np.float32)
    return dataclasses.replace(table, input_tokens=inputs), kind

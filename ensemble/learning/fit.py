"""What is each member worth at each landmark? Fits a trunk and one row of weights per member.

The reward of member m on prompt i is modelled as

    ability[m] + shared(attention[i]) + own[m](attention[i])

where ``shared`` is the prompts' difficulty (what all members have in common) and ``own`` the
member's difference from it. Both are ridge regressions on the attention, the second shrunk more: a
choice between members hangs on the differences alone, and picking the greatest of several noisy
ones rewards noise (the winner's curse). Output tokens are fitted likewise, in logarithms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ensemble.learning.effects import member_part, two_way_effects
from ensemble.learning.split import normalize
from ensemble.learning.tables import OutcomeTable
from ensemble.learning.trunk import Trunk, fit_trunk
from ensemble.records import FloatArray

MOST_WEIGHT = 20.0  # of a pair observed with a small propensity; beyond it variance outweighs bias
TOKEN_SHRINKAGE = (0.3, 3.0)  # shared, own
USUAL_TOKENS = 256.0  # where no table tells


@dataclass(frozen=True)
class Shrinkage:
    """Ridge penalties in units of attention mass: ``shared`` for the difficulty, ``own`` for differences."""

    shared: float
    own: float


@dataclass(frozen=True, eq=False)
class Rows:
    """One linear function of the attention per member: ``weights`` (n_members, n_landmarks), ``bias``
    (n_members,)."""

    weights: FloatArray
    bias: FloatArray

    def __call__(self, attention: FloatArray) -> FloatArray:
        """(n_prompts, n_landmarks) -> (n_prompts, n_members)."""
        return attention @ self.weights.T + self.bias


@dataclass(frozen=True, eq=False)
class Fitted:
    """A fitted trunk with, for each shrinkage that was asked for, the reward rows; the log-token rows;
    and ``support`` (n_members, n_landmarks), how many pairs of each member every landmark stands for."""

    trunk: Trunk
    reward: tuple[Rows, ...]
    log_tokens: Rows
    support: FloatArray

    def evidence(self, likeness: FloatArray) -> FloatArray:
        """How many pairs of each member lie as near as prompts do to their landmark, (n_prompts, n_members);
        those farther off count less."""
        return self.trunk.nearness(likeness) @ self.support.T


def fit(features: FloatArray, table: OutcomeTable, shrinkages: Sequence[Shrinkage], seed: int) -> Fitted:
    """Fit on every row of ``table``; ``features`` (n_prompts, n_features) are those of its prompts."""
    trunk = fit_trunk(features, table.labels, _numbered(table.prompts), seed)
    likeness = trunk.likeness(features)
    attention = trunk.attention(likeness).astype(float)
    weight = pair_weight(table)
    log_tokens = np.log1p(table.output_tokens)
    return Fitted(
        trunk,
        _fit_rows(attention, table.reward, weight, shrinkages),
        _fit_token_rows(attention, log_tokens, weight),
        _support(likeness, table.observed),
    )


def _numbered(prompts: Sequence[str]) -> npt.NDArray[np.int64]:
    """The same number where prompts are the same text, (n_prompts,)."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(normalize(prompt), len(numbers)) for prompt in prompts])


def pair_weight(table: OutcomeTable) -> FloatArray:
    """Inverse propensity, at most MOST_WEIGHT, and 0 where the pair was not observed."""
    inverse = np.minimum(1.0 / table.propensity.astype(float), MOST_WEIGHT)
    return np.where(table.observed, inverse, 0.0)


def _fit_rows(
    attention: FloatArray, y: FloatArray, weight: FloatArray, shrinkages: Sequence[Shrinkage]
) -> tuple[Rows, ...]:
    difficulty, ability = two_way_effects(y, weight)
    counted = weight.sum(axis=1) / weight.max(initial=1.0)
    shared = _ridge(attention, difficulty[:, None], np.minimum(counted, 1.0), [s.shared for s in shrinkages])[
        :, 0
    ]
    rest = member_part(y, weight, ability, attention @ shared[0])
    own = np.zeros((len(shrinkages), y.shape[1], attention.shape[1]))
    patterns, pattern_of = np.unique(weight, axis=1, return_inverse=True)
    for p, pattern in enumerate(patterns.T):  # members seen on the same prompts share one factorization
        columns = np.flatnonzero(pattern_of == p)
        own[:, columns] = _ridge(attention, rest[:, columns], pattern, [s.own for s in shrinkages])
    return tuple(Rows(own[k] + shared[k], ability) for k in range(len(shrinkages)))


def _fit_token_rows(attention: FloatArray, log_tokens: FloatArray, weight: FloatArray) -> Rows:
    weight = np.where(np.isfinite(log_tokens), weight, 0.0)
    if not weight.any():
        n_members = weight.shape[1]
        return Rows(np.zeros((n_members, attention.shape[1])), np.full(n_members, np.log(USUAL_TOKENS)))
    return _fit_rows(attention, log_tokens, weight, [Shrinkage(*TOKEN_SHRINKAGE)])[0]


def _ridge(x: FloatArray, y: FloatArray, weight: FloatArray, penalties: Sequence[float]) -> FloatArray:
    """Weighted ridges without intercept, for several targets and penalties at once.

    ``x`` (n_prompts, n_landmarks), ``y`` (n_prompts, n_targets), ``weight`` (n_prompts,)
    -> (n_penalties, n_targets, n_landmarks).
    """
    used = weight > 0
    root = np.sqrt(weight[used])[:, None]
    x, y = x[used] * root, y[used] * root
    gram, right = x.T @ x, x.T @ y
    solved = {p: np.linalg.solve(gram + p * np.eye(len(gram)), right).T for p in set(penalties)}
    return np.stack([solved[penalty] for penalty in penalties])


def _support(likeness: FloatArray, observed: npt.NDArray[np.bool_]) -> FloatArray:
    nearest = likeness.argmax(axis=1)
    support = np.zeros((observed.shape[1], likeness.shape[1]))
    np.add.at(support.T, nearest, observed.astype(float))
    return support

"""How much of an outcome is the prompt's difficulty, how much the member's ability?

Pairs are not missing at random: a member seen only on easy prompts has a high mean and need not be
strong. The two-way additive model (the linear form of Rasch's) tells the two apart,

    y[i, m] = difficulty[i] + ability[m] + rest,

fitted by weighted least squares with a small ridge on the difficulties, which ties together groups
of prompts that share no member. Abilities are thereby compared on the prompts members share.
"""

from __future__ import annotations

import numpy as np

from ensemble.records import FloatArray

# In pairs as heavy as the row's heaviest: solvable always, groups tied by ten pairs or more are told apart,
# and a pair alone in its row, as in a log, counts by its weight.
DIFFICULTY_RIDGE = 0.01


def two_way_effects(y: FloatArray, weight: FloatArray) -> tuple[FloatArray, FloatArray]:
    """``y`` and ``weight`` (n_prompts, n_members); NaN in either, or a weight of 0, is an unobserved pair.

    Returns ``difficulty`` (n_prompts,), about zero on average, and ``ability`` (n_members,) in the
    units of y; a member never observed gets the mean ability of the others, and everyone 0 where
    nothing was observed. Solved exactly, by eliminating the difficulties.
    """
    known = (weight > 0) & ~np.isnan(y)
    y, weight = np.where(known, y, 0.0).astype(float), np.where(known, weight, 0.0).astype(float)
    seen = weight.sum(axis=0) > 0
    ability = np.zeros(y.shape[1])
    if not seen.any():
        return np.zeros(len(y)), ability
    w, ridge = weight[:, seen], DIFFICULTY_RIDGE * np.where(known.any(axis=1), weight.max(axis=1), 1.0)
    share = w / (w.sum(axis=1) + ridge)[:, None]
    normal = np.diag(w.sum(axis=0)) - w.T @ share
    right = (w * y[:, seen]).sum(axis=0) - share.T @ (w * y[:, seen]).sum(axis=1)
    ability[seen] = np.linalg.solve(normal, right)
    ability[~seen] = ability[seen].mean()
    left = (weight * (y - ability)).sum(axis=1)
    return left / (weight.sum(axis=1) + ridge), ability


def member_part(
    y: FloatArray, weight: FloatArray, ability: FloatArray, expected_difficulty: FloatArray
) -> FloatArray:
    """What an outcome says of its member alone, (n_prompts, n_members); 0 where unobserved.

    ``expected_difficulty`` (n_prompts,) is what the features tell of each prompt; beyond it a prompt has a
    difficulty of its own, which the *other* members' outcomes tell of. Their mean is taken off, shrunk as
    in a random-effects model by n / (n + noise variance / prompt variance), n the number of others:
    where all members are observed that leaves almost the plain difference from the others, and where a
    member stands alone, as in a log, all of its deviation is its own.
    """
    seen = weight > 0
    left = np.where(seen, np.nan_to_num(y) - ability - expected_difficulty[:, None], 0.0)
    n, total = seen.sum(axis=1, keepdims=True), left.sum(axis=1, keepdims=True)
    n_others, others = n - seen, total - left
    n_pairs = float((n * (n - 1)).sum())
    of_pairs = float((total**2).sum() - (left**2).sum())  # sums of products of two members' outcomes
    prompt_variance = max(of_pairs / n_pairs, 0.0) if n_pairs else 0.0
    noise_variance = max(float((left**2).sum()) / max(int(n.sum()), 1) - prompt_variance, 1e-9)
    pull = prompt_variance / (n_others * prompt_variance + noise_variance)  # n / (n + ratio), over n
    return np.where(seen, left - pull * others, 0.0)

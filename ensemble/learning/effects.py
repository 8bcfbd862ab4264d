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

DIFFICULTY_RIDGE = 0.1  # in pairs: keeps the system solvable, too small to bias a well-observed prompt


def two_way_effects(y: FloatArray, weight: FloatArray) -> tuple[FloatArray, FloatArray]:
    """``y`` and ``weight`` (n_prompts, n_members), weight 0 where unobserved (``y`` may be NaN there).

    Returns ``difficulty`` (n_prompts,), about zero on average, and ``ability`` (n_members,) in the
    units of y; a member never observed gets the mean ability of the others, and everyone 0 where
    nothing was observed. Solved exactly, by eliminating the difficulties.
    """
    y = np.where(weight > 0, y, 0.0).astype(float)
    weight = weight.astype(float)
    seen = weight.sum(axis=0) > 0
    ability = np.zeros(y.shape[1])
    if not seen.any():
        return np.zeros(len(y)), ability
    w = weight[:, seen]
    share = w / (w.sum(axis=1, keepdims=True) + DIFFICULTY_RIDGE)
    normal = np.diag(w.sum(axis=0)) - w.T @ share
    right = (w * y[:, seen]).sum(axis=0) - share.T @ (w * y[:, seen]).sum(axis=1)
    ability[seen] = np.linalg.solve(normal, right)
    ability[~seen] = ability[seen].mean()
    left = (weight * (y - ability)).sum(axis=1)
    return left / (weight.sum(axis=1) + DIFFICULTY_RIDGE), ability

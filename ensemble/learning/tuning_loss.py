"""What does an encoder learn from? From how well each prompt is guessed by others like it.

    share[i, j] = softmax over j of SHARPNESS * (features[i] . features[j])
    guess[i]    = share[i] @ outcomes

where j runs over all prompts but i and its near-duplicates. These are neighbourhood components analysis'
leave-one-out neighbours (Goldberger, Roweis, Hinton, Salakhutdinov, NIPS 2004), guessing rewards beside
classes; and they are what a head's attention does with landmarks (trunk.py). The loss adds up

    the cross-entropy of the rewards,
    DIFFERENCE times the squared error of each member's lead over the prompt's mean, on which choices hang,
    TASK times the cross-entropy of the task, where it is named.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ensemble.learning.fit import pair_weight
from ensemble.learning.tables import OutcomeTable
from ensemble.learning.trunk import common_tasks

if TYPE_CHECKING:
    import torch

SHARPNESS = 20.0
TASK, DIFFERENCE = 0.3, 4.0
TINY, NEVER = 1e-6, -1e9


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What is to be guessed, as tensors: ``group`` (n_prompts,) of near-duplicates; ``reward``, ``weight``
    and their product ``weighed`` (n_prompts, n_members), the weight 0 where a pair was not observed;
    ``task`` (n_prompts, n_tasks) one-hot, a row of zeros where it is not known or rare."""

    group: torch.Tensor
    reward: torch.Tensor
    weight: torch.Tensor
    weighed: torch.Tensor
    task: torch.Tensor

    @classmethod
    def of(cls, table: OutcomeTable, groups: npt.NDArray[np.int64], device: torch.device) -> Outcomes:
        import torch

        labels = np.array([label or "" for label in table.labels])[:, None]
        names = np.array(common_tasks(table.labels), labels.dtype)
        reward, weight = np.where(table.observed, table.reward, 0), pair_weight(table)
        arrays = (reward, weight, weight * reward, labels == names)
        numbers = (torch.as_tensor(array.astype(np.float32), device=device) for array in arrays)
        return cls(torch.as_tensor(groups, device=device), *numbers)

    def loss(self, rows: torch.Tensor, likeness: torch.Tensor) -> torch.Tensor:
        """The mean loss of what the others say of ``rows`` (n_rows,); ``likeness`` (n_rows, n_prompts)."""
        import torch
        from torch.nn.functional import binary_cross_entropy

        kin = self.group[rows][:, None] == self.group[None]
        share = torch.softmax((SHARPNESS * likeness).masked_fill(kin, NEVER), dim=1)
        weight, real = self.weight[rows], self.reward[rows]
        known = share @ self.weight  # 0 where no other prompt has that member's reward
        weight = weight * (known > TINY)
        guess = ((share @ self.weighed) / known.clamp_min(TINY)).clamp(TINY, 1 - TINY)
        pairs = weight.sum().clamp_min(TINY)
        rewards = (weight * binary_cross_entropy(guess, real, reduction="none")).sum() / pairs
        off = guess - real
        level = (weight * off).sum(dim=1, keepdim=True) / weight.sum(dim=1, keepdim=True).clamp_min(TINY)
        differences = (weight * (off - level) ** 2).sum() / pairs
        loss: torch.Tensor = rewards + DIFFERENCE * differences
        own = self.task[rows]
        if own.any():
            right = (own * (share @ self.task)).sum(dim=1)[own.any(dim=1)]
            loss = loss - TASK * right.clamp_min(TINY).log().mean()
        return loss

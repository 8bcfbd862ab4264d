"""At what prices was a table measured? Read off its costs and tokens, so that costs can be predicted.

The router never learns prices; the evaluation needs them to turn expected tokens into expected USD
exactly as the policy does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ensemble.learning.tables import OutcomeTable
from ensemble.records import FloatArray

USUAL_CHARACTERS_PER_TOKEN = 4.0


@dataclass(frozen=True, eq=False)
class Prices:
    """USD per million tokens and characters per input token, (n_members,) each; NaN prices are unknown."""

    input: FloatArray
    output: FloatArray
    characters_per_token: FloatArray

    def cost_usd(self, characters: FloatArray, output_tokens: FloatArray) -> FloatArray:
        """``characters`` (n_prompts,), ``output_tokens`` (n_prompts, n_members) -> (n_prompts, n_members).

        A member of unknown price counts as free.
        """
        input_tokens = characters[:, None] / self.characters_per_token
        return np.nan_to_num(input_tokens * self.input + output_tokens * np.nan_to_num(self.output)) / 1e6


def implied_prices(table: OutcomeTable) -> Prices:
    """Least squares of cost on input and output tokens, per member, prices held >= 0.

    Where output tokens are unknown everything is laid on the input; without costs the prices are NaN.
    """
    from scipy.optimize import nnls

    characters = np.array([len(prompt) for prompt in table.prompts], float)
    n = table.n_members
    price_in, price_out = np.full(n, np.nan), np.full(n, np.nan)
    per_token = np.full(n, USUAL_CHARACTERS_PER_TOKEN)
    for m in range(n):
        tokens_in, tokens_out, usd = (
            column[:, m].astype(float) for column in (table.input_tokens, table.output_tokens, table.cost_usd)
        )
        counted = np.isfinite(tokens_in) & (tokens_in > 0)
        if counted.any():
            per_token[m] = characters[counted].sum() / tokens_in[counted].sum()
        tokens_in = np.where(counted, tokens_in, characters / per_token[m])
        known = np.isfinite(usd)
        both = known & np.isfinite(tokens_out)
        if both.any():
            solution, _ = nnls(np.stack([tokens_in[both], tokens_out[both]], axis=1), usd[both])
            price_in[m], price_out[m] = solution * 1e6
        elif known.any():
            price_in[m], price_out[m] = usd[known].sum() / tokens_in[known].sum() * 1e6, 0.0
    return Prices(price_in, price_out, per_token)

"""What did the log learn? Its rewarded answers as an outcome table, with the features that were decided on.

One row per decision, one observed pair in each: the member that answered. Where it is the one that was
drawn, the pair carries its propensity; a pair that came about by fall-back or by a session's choice
carries 1 and counts as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ensemble.encoder import Encoder
from ensemble.errors import TableError
from ensemble.learning.tables import OutcomeTable, from_rows
from ensemble.outcomes import OutcomeLog
from ensemble.records import FloatArray


@dataclass(frozen=True, eq=False)
class Logged:
    """``table`` and ``features`` (n_prompts, n_features) in the same order; ``n_left_out`` rewarded rows
    whose features are of another encoder and whose text was not kept."""

    table: OutcomeTable
    features: FloatArray
    n_left_out: int


def read_log(log: OutcomeLog, encoder: Encoder, *, min_prompts: int = 50) -> Logged:
    """Every rewarded answer. Several rewards of one decision are averaged over their sources.

    Raises TableError where too few rows can be used, saying how many there are and why.
    """
    rows: list[dict[str, Any]] = []
    features: list[FloatArray | None] = []
    n_left_out = 0
    for row in log.rows(with_reward_only=True):
        own = row["encoder_sha256"] == encoder.sha256["encoder.onnx"]
        if row["served_member"] is None or not (own or row["text"]):
            n_left_out += row["served_member"] is not None
            continue
        rows.append(_pair(row))
        features.append(np.asarray(row["features"], np.float32) if own else None)
    if len(rows) < min_prompts:
        raise TableError(
            f"expected at least {min_prompts} rewarded answers in the log, found {len(rows)}"
            + (f" and {n_left_out} of another encoder without their text" if n_left_out else "")
            + ". Give more feedback(...), or collect an outcome table: ensemble collect --help"
        )
    table = from_rows(rows, source="log", min_prompts=min_prompts)
    missing = [i for i, vector in enumerate(features) if vector is None]
    encoded = encoder.encode([table.prompts[i] for i in missing])
    for i, vector in zip(missing, encoded, strict=True):
        features[i] = vector
    return Logged(table, np.stack([vector for vector in features if vector is not None]), n_left_out)


def _pair(row: dict[str, Any]) -> dict[str, Any]:
    drawn = row["randomized"] and row["served_member"] == row["chosen_member"]
    text = row["text"]
    return {
        "prompt_id": row["decision_id"],
        # Without its text a prompt is told from others by its keyed hash, and its length is not known.
        "prompt": text or row["prompt_key"],
        "task": None,
        "member": row["served_member"],
        "reward": float(np.mean(list(row["rewards"].values()))),
        "cost_usd": row["cost_usd"],
        "input_tokens": row["input_tokens"] if text else None,
        "output_tokens": row["output_tokens"],
        "propensity": row["propensity"] if drawn else 1.0,
    }

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
    """``table`` and ``features`` (n_prompts, n_features) in the same order; ``n_hashed`` of its prompts are
    hashes, as their text was not kept; ``n_left_out`` rewarded rows lack text and are of another encoder."""

    table: OutcomeTable
    features: FloatArray
    n_hashed: int
    n_left_out: int


def read_log(log: OutcomeLog, encoder: Encoder, *, min_prompts: int = 50) -> Logged:
    """Every rewarded answer. Several rewards of one decision are averaged over their sources.

    Raises TableError where too few rows can be used, saying how many there are and why.
    """
    rows: list[dict[str, Any]] = []
    features: list[FloatArray | None] = []
    n_hashed = n_left_out = n_unserved = 0
    for row in log.rows(with_reward_only=True):
        own = row["encoder_sha256"] == encoder.sha256["encoder.onnx"]
        if row["served_member"] is None:
            n_unserved += 1
        elif own or row["text"]:
            n_hashed += not row["text"]
            rows.append(_pair(row))
            features.append(np.asarray(row["features"], np.float32) if own else None)
        else:
            n_left_out += 1
    if len(rows) < min_prompts:
        raise TableError(
            f"expected at least {min_prompts} rewarded answers in the log, found {len(rows)}"
            + (f" and {n_left_out} of another encoder without their text" if n_left_out else "")
            + (f" and {n_unserved} rewards where nobody is known to have served" if n_unserved else "")
            + ". Give more feedback(...) on what complete() answered, or collect an outcome table: "
            "ensemble collect --help"
        )
    table = from_rows(rows, source="log", min_prompts=min_prompts)
    missing = [i for i, vector in enumerate(features) if vector is None]
    encoded = encoder.encode([table.prompts[i] for i in missing])
    for i, vector in zip(missing, encoded, strict=True):
        features[i] = vector
    known = np.stack([vector for vector in features if vector is not None])
    return Logged(table, known, n_hashed, n_left_out)


def _pair(row: dict[str, Any]) -> dict[str, Any]:
    served, text = row["served_member"], row["text"]
    drawn = row["randomized"] and served == row["chosen_member"]
    # The outcome's cost is the whole call's, with what others failed at.
    own = next((a for a in row["attempts"] if a["member"] == served and a["error"] is None), row)
    return {
        "prompt_id": row["decision_id"],
        # Without its text a prompt is told from others by its keyed hash, and its length is not known.
        "prompt": text or row["prompt_key"],
        "task": None,
        "member": served,
        "reward": float(np.mean(list(row["rewards"].values()))),
        "cost_usd": None if own["cost_is_estimated"] else own["cost_usd"],
        "input_tokens": row["input_tokens"] if text else None,
        "output_tokens": row["output_tokens"],
        "propensity": row["propensity"] if drawn else 1.0,
    }

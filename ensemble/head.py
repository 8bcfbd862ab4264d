"""Features to predictions: one small ONNX graph, the second half of a router.

The graph is made by ``ensemble.learning.export`` and described there. Its one large
initializer beside the landmarks, ``member_matrix`` (n_members, n_weights), holds one row per
member, so members come and go without touching the others' predictions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ensemble.errors import BundleError
from ensemble.inference import Session, open_session
from ensemble.records import FloatArray, Prediction

INPUTS = ("features",)
OUTPUTS = ("reward", "reward_std", "output_tokens", "output_tokens_p95")


class Head:
    """The trained head of one router, ready to predict; thread-safe."""

    def __init__(self, graph: bytes, members: Sequence[str]) -> None:
        """``graph``: a serialized ONNX model; ``members``: the names of its rows, in order.

        Raises BundleError where the graph is not a head or its rows are not these members.
        """
        self.members = tuple(members)
        self._session: Session = open_session(graph, device="cpu")  # tiny: a GPU would only add copies
        inputs, outputs = self._session.inputs, self._session.outputs
        if tuple(inputs) != INPUTS or tuple(outputs) != OUTPUTS:
            raise BundleError(
                f"head.onnx should have the input {', '.join(INPUTS)} and the outputs {', '.join(OUTPUTS)}; "
                f"found {', '.join(inputs)} and {', '.join(outputs)}. Train or fetch the bundle again."
            )
        self.n_features, n_rows = inputs["features"][-1], outputs["reward"][-1]
        if n_rows != len(self.members):
            raise BundleError(
                f"head.onnx holds {n_rows} members, the manifest names {len(self.members)}. "
                "Train or fetch the bundle again."
            )

    def predict(self, features: FloatArray) -> Prediction:
        """``features`` (n_prompts, n_features) float32 -> arrays (n_prompts, n_members)."""
        arrays = self._session.run(OUTPUTS, {"features": np.ascontiguousarray(features, dtype=np.float32)})
        return Prediction(self.members, *arrays)

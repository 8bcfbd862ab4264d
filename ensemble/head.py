"""Features to predictions: one small ONNX graph, the second half of a router.

The graph is made by ``ensemble.learning.export`` and described there. Its one large
initializer beside the landmarks, ``member_matrix`` (n_members, n_weights), holds one row per
member, so members come and go without touching the others' predictions.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from ensemble.errors import BundleError
from ensemble.inference import Session, open_session
from ensemble.records import FloatArray, Prediction

INPUTS = ("features",)
OUTPUTS = ("reward", "reward_std", "output_tokens", "output_tokens_p95")
LARGEST = float(np.finfo(np.float32).max)
MOST = (1.0, LARGEST, LARGEST, LARGEST)  # of each output; the least is 0
WIDEST = 2**16  # features


class Head:
    """The trained head of one router, ready to predict; thread-safe. ``sha256`` is its graph's hex digest."""

    def __init__(self, graph: bytes | os.PathLike[str], members: Sequence[str]) -> None:
        """``graph``: a serialized ONNX model, or its file; ``members``: the names of its rows, in order.

        Raises BundleError where the graph is not a head or its rows are not these members.
        """
        self.members = tuple(members)
        self._session: Session = open_session(graph, device="cpu")  # tiny: a GPU would only add copies
        self.sha256 = self._session.sha256
        inputs, outputs = self._session.inputs, self._session.outputs
        if tuple(inputs) != INPUTS or tuple(outputs) != OUTPUTS:
            raise BundleError(
                f"head.onnx should have the input {', '.join(INPUTS)} and the outputs {', '.join(OUTPUTS)}; "
                f"found {', '.join(inputs):.200} and {', '.join(outputs):.200}. "
                "Train or fetch the bundle again."
            )
        self.n_features, n_rows = (
            shape[-1] if len(shape) == 2 else None for shape in (inputs["features"], outputs["reward"])
        )
        if n_rows != len(self.members):
            raise BundleError(
                f"head.onnx holds {n_rows} members, the manifest names {len(self.members)}. "
                "Train or fetch the bundle again."
            )
        if not isinstance(self.n_features, int) or not 0 < self.n_features <= WIDEST:
            raise BundleError(
                f"head.onnx should read 1 to {WIDEST} features, it reads {self.n_features!r:.80}. "
                "Train or fetch the bundle again."
            )
        self.predict(np.zeros((2, self.n_features), np.float32))  # what can't predict is told now

    def predict(self, features: FloatArray) -> Prediction:
        """``features`` (n_prompts, n_features) float32 -> arrays (n_prompts, n_members). Raises BundleError
        where the graph gives anything but predictions: a policy would choose by them at random."""
        arrays = self._session.run(OUTPUTS, {"features": np.ascontiguousarray(features, dtype=np.float32)})
        shape = (len(features), len(self.members))
        for name, array, most in zip(OUTPUTS, arrays, MOST, strict=True):
            if not _is_sound(array, shape, most):
                raise BundleError(
                    f"head.onnx should give {name} from 0 to {most:g}, float32 {shape}; it gives "
                    f"{_described(array)}. Train or fetch the bundle again."
                )
        return Prediction(self.members, *arrays)


def _is_sound(array: Any, shape: tuple[int, int], most: float) -> bool:
    if not isinstance(array, np.ndarray) or array.dtype != np.float32 or array.shape != shape:
        return False
    # Said so that a NaN, which compares with nothing, is refused too.
    return bool(array.min(initial=0) >= 0 and array.max(initial=0) <= most)


def _described(array: Any) -> str:
    if not isinstance(array, np.ndarray):
        return f"a {type(array).__name__}"
    values = f" from {array.min():g} to {array.max():g}" if array.dtype == np.float32 and array.size else ""
    return f"{array.dtype} {array.shape}{values}"

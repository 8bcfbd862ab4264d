"""How does a fitted head become one ONNX graph?

The graph, with K landmarks, computes

    features -> likeness (n, K) -> attention (n, K), the formula of trunk.py
    reward            = clip(attention @ reward_weights.T + reward_bias, 0, 1)
    output_tokens     = exp(attention @ token_weights.T + token_bias)
    output_tokens_p95 = output_tokens * exp(token_spread)
    reward_std        = prior_std / sqrt(1 + exp(BREADTH * min(likeness - reach, 0)) @ evidence_weights.T)

All that belongs to a member is one row of the initializer ``member_matrix``:

    [reward_weights K | token_weights K | evidence_weights K
     | reward_bias | token_bias | token_spread | prior_std]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ensemble.errors import MissingExtraError
from ensemble.learning.fit import BREADTH
from ensemble.learning.trunk import SHARPNESS, TASK_WEIGHT, Trunk
from ensemble.records import FloatArray

OPSET, IR_VERSION = 17, 9
MOST_LOG_TOKENS = 14.0  # about a million: an answer can't be longer, and exp() can't overflow


@dataclass(frozen=True, eq=False)
class HeadWeights:
    """Everything in the head: the trunk and one row per member, float32.

    ``reward``, ``tokens``, ``evidence`` (n_members, n_landmarks); the others (n_members,).
    """

    trunk: Trunk
    reward: FloatArray
    tokens: FloatArray
    evidence: FloatArray
    reward_bias: FloatArray
    token_bias: FloatArray
    token_spread: FloatArray
    prior_std: FloatArray

    @property
    def member_matrix(self) -> FloatArray:
        """(n_members, 3 * n_landmarks + 4) float32, laid out as said above."""
        scalars = np.stack([self.reward_bias, self.token_bias, self.token_spread, self.prior_std], axis=1)
        return np.hstack([self.reward, self.tokens, self.evidence, scalars]).astype(np.float32)

    def predict(self, features: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """The graph's formula in numpy and float64: what the export is checked against."""
        trunk = self.trunk
        likeness = trunk.likeness(features.astype(float))
        attention = trunk.attention(likeness)
        reward = np.clip(attention @ self.reward.T + self.reward_bias, 0, 1)
        tokens = np.exp(np.minimum(attention @ self.tokens.T + self.token_bias, MOST_LOG_TOKENS))
        evidence = np.exp(BREADTH * np.minimum(likeness - trunk.reach, 0)) @ self.evidence.T
        return reward, self.prior_std / np.sqrt(1 + evidence), tokens, tokens * np.exp(self.token_spread)


def build_graph(weights: HeadWeights) -> bytes:
    """The serialized ONNX model: ``features`` (n, n_features) -> the four outputs (n, n_members)."""
    try:
        import onnx
    except ImportError as missing:
        raise MissingExtraError("onnx", "train", "exporting a head") from missing
    trunk, matrix = weights.trunk, weights.member_matrix
    n_features, n_tasks = trunk.task_weights.shape
    graph = _Graph()
    features = position = "features"
    if n_tasks:
        logits = graph(
            "Gemm",
            features,
            graph.constant("task_weights", trunk.task_weights),
            graph.constant("task_bias", trunk.task_bias),
        )
        guess = graph("Softmax", logits, axis=-1)
        scaled = graph("Mul", guess, graph.constant("task_weight", np.float32(TASK_WEIGHT)))
        position = graph("Concat", features, graph("Sqrt", scaled), axis=1)
    landmarks = graph.constant("landmarks", trunk.landmarks)
    likeness = graph("Gemm", position, landmarks, transB=1)
    attention = _attention(graph, likeness, trunk)
    reach = graph.constant("reach", np.float32(trunk.reach))
    near = graph.scaled_exp(graph("Min", likeness, reach), reach, BREADTH)

    graph.constant("member_matrix", matrix)
    k = trunk.n_landmarks
    reward_w, token_w, evidence_w = (graph.columns("member_matrix", i * k, (i + 1) * k) for i in range(3))
    reward_b, token_b, spread, prior = (graph.column("member_matrix", 3 * k + i) for i in range(4))
    reward = graph("Gemm", attention, reward_w, reward_b, transB=1)
    graph(
        "Clip",
        reward,
        graph.constant("zero", np.float32(0)),
        graph.constant("one", np.float32(1)),
        to="reward",
    )
    log_tokens = graph("Gemm", attention, token_w, token_b, transB=1)
    most = graph.constant("most_log_tokens", np.float32(MOST_LOG_TOKENS))
    graph("Exp", graph("Min", log_tokens, most), to="output_tokens")
    graph("Mul", "output_tokens", graph("Exp", spread), to="output_tokens_p95")
    evidence = graph("Gemm", near, evidence_w, transB=1)
    graph("Div", prior, graph("Sqrt", graph("Add", evidence, "one")), to="reward_std")

    def info(name: str, width: int) -> onnx.ValueInfoProto:
        return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n_prompts", width])

    outputs = [
        info(name, len(matrix)) for name in ("reward", "reward_std", "output_tokens", "output_tokens_p95")
    ]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.nodes, "head", [info("features", n_features)], outputs, graph.initializers
        ),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="ensemble-router",
    )
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _attention(graph: _Graph, likeness: str, trunk: Trunk) -> str:
    n_near = graph.constant("n_near", np.array([trunk.n_near], np.int64))
    ranked = graph("TopK", likeness, n_near, axis=1, largest=1, sorted=1, outputs=2)
    best = graph.columns(ranked, 0, 1)
    far = graph.columns(ranked, trunk.n_near - 1, trunk.n_near)
    above = graph("Sub", graph.scaled_exp(likeness, best, SHARPNESS), graph.scaled_exp(far, best, SHARPNESS))
    weight = graph("Mul", graph("Relu", above), graph.constant("sizes", trunk.sizes))
    total = graph("ReduceSum", weight, graph.constant("over_landmarks", np.array([1], np.int64)), keepdims=1)
    return graph("Div", weight, graph("Max", total, graph.constant("tiny", np.float32(1e-12))))


class _Graph:
    """Collects nodes and initializers; calling it adds a node and returns its output's name."""

    def __init__(self) -> None:
        from onnx import helper, numpy_helper

        self._helper, self._numpy_helper = helper, numpy_helper
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []

    def __call__(self, op: str, *inputs: str, to: str = "", outputs: int = 1, **attributes: object) -> str:
        first = to or f"{op.lower()}_{len(self.nodes)}"
        names = [first] + [f"{first}_{i}" for i in range(1, outputs)]
        self.nodes.append(self._helper.make_node(op, list(inputs), names, name=first, **attributes))
        return first

    def constant(self, name: str, value: npt.NDArray[Any] | np.float32) -> str:
        self.initializers.append(self._numpy_helper.from_array(np.asarray(value), name))
        return name

    def columns(self, name: str, start: int, stop: int) -> str:
        """name[:, start:stop]"""
        bounds = [self._bound(start), self._bound(stop), self._bound(1)]
        return self("Slice", name, *bounds)

    def column(self, name: str, at: int) -> str:
        """name[:, at] as one row, (n_members,)."""
        return self("Squeeze", self.columns(name, at, at + 1), self._bound(1))

    def scaled_exp(self, a: str, b: str, scale: float) -> str:
        """exp(scale * (a - b))"""
        factor = self.constant(f"scale_{len(self.nodes)}", np.float32(scale))
        return self("Exp", self("Mul", self("Sub", a, b), factor))

    def _bound(self, value: int) -> str:
        name = f"int_{value}"
        if all(tensor.name != name for tensor in self.initializers):
            self.constant(name, np.array([value], np.int64))
        return name

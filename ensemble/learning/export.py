"""How does a fitted head become one ONNX graph?

The graph, with K landmarks, computes

    features -> likeness (n, K) -> attention (n, K), the formulas of trunk.py
    raw               = clip(attention @ reward_weights.T + reward_bias, EDGE, 1 - EDGE)
    reward            = sigmoid(reward_offset + reward_rise * log(raw) - reward_fall * log(1 - raw))
    output_tokens     = exp(attention @ token_weights.T + token_bias)
    output_tokens_p95 = output_tokens * exp(token_spread)
    reward_std        = prior_std / sqrt(1 + exp(BREADTH * min(likeness - reach, 0)) @ evidence_weights.T)

All that belongs to a member is one row of the initializer ``member_matrix``:

    [reward_weights K | token_weights K | evidence_weights K
     | reward_bias | reward_offset | reward_rise | reward_fall | token_bias | token_spread | prior_std]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ensemble.errors import MissingExtraError
from ensemble.learning.calibrate import EDGE, Curve
from ensemble.learning.trunk import BREADTH, SHARPNESS, TASK_WEIGHT, Trunk
from ensemble.records import FloatArray

OPSET, IR_VERSION = 17, 9
MOST_LOG_TOKENS = 14.0  # about a million: an answer can't be longer, and exp() can't overflow


@dataclass(frozen=True, eq=False)
class HeadWeights:
    """Everything in the head: the trunk and one row per member, float32.

    ``reward``, ``tokens``, ``evidence`` (n_members, n_landmarks); the others, and the curve's, (n_members,).
    """

    trunk: Trunk
    reward: FloatArray
    tokens: FloatArray
    evidence: FloatArray
    reward_bias: FloatArray
    curve: Curve
    token_bias: FloatArray
    token_spread: FloatArray
    prior_std: FloatArray

    @property
    def member_matrix(self) -> FloatArray:
        """(n_members, 3 * n_landmarks + 7) float32, laid out as said above."""
        of_reward = (self.reward_bias, self.curve.offset, self.curve.rise, self.curve.fall)
        scalars = np.stack([*of_reward, self.token_bias, self.token_spread, self.prior_std], axis=1)
        return np.hstack([self.reward, self.tokens, self.evidence, scalars]).astype(np.float32)

    def predict(self, features: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """The graph's formula in numpy and float64: what the export is checked against."""
        trunk = self.trunk
        likeness = trunk.likeness(features.astype(float))
        attention = trunk.attention(likeness)
        reward = self.curve(attention @ self.reward.T + self.reward_bias)
        tokens = np.exp(np.minimum(attention @ self.tokens.T + self.token_bias, MOST_LOG_TOKENS))
        evidence = trunk.nearness(likeness) @ self.evidence.T
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
    reach = graph.constant("reach", np.float32(trunk.reach))
    near = graph.scaled_exp(graph("Min", likeness, reach), reach, BREADTH)
    attention = _attention(graph, likeness, near, trunk)

    graph.constant("member_matrix", matrix)
    k = trunk.n_landmarks
    reward_w, token_w, evidence_w = (graph.columns("member_matrix", i * k, (i + 1) * k) for i in range(3))
    scalars = (graph.column("member_matrix", 3 * k + i) for i in range(7))
    reward_b, offset, rise, fall, token_b, spread, prior = scalars
    one = graph.constant("one", np.float32(1))
    edges = (graph.constant("least", np.float32(EDGE)), graph.constant("most", np.float32(1 - EDGE)))
    raw = graph("Clip", graph("Gemm", attention, reward_w, reward_b, transB=1), *edges)
    # Powers, not logarithms: onnxruntime's Log rounds otherwise at the end of a row than within it.
    for_it, against = graph("Pow", raw, rise), graph("Pow", graph("Sub", one, raw), fall)
    odds = graph("Mul", graph("Div", against, for_it), graph("Exp", graph("Neg", offset)))
    graph("Div", one, graph("Add", one, odds), to="reward")
    log_tokens = graph("Gemm", attention, token_w, token_b, transB=1)
    most = graph.constant("most_log_tokens", np.float32(MOST_LOG_TOKENS))
    graph("Exp", graph("Min", log_tokens, most), to="output_tokens")
    graph("Mul", "output_tokens", graph("Exp", spread), to="output_tokens_p95")
    evidence = graph("Gemm", near, evidence_w, transB=1)
    graph("Div", prior, graph("Sqrt", graph("Add", evidence, one)), to="reward_std")

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


def _attention(graph: _Graph, likeness: str, near: str, trunk: Trunk) -> str:
    n_near = graph.constant("n_near", np.array([trunk.n_near], np.int64))
    ranked = graph("TopK", likeness, n_near, axis=1, largest=1, sorted=1, outputs=2)
    best = graph.columns(ranked, 0, 1)
    far = graph.columns(ranked, trunk.n_near - 1, trunk.n_near)
    above = graph("Sub", graph.scaled_exp(likeness, best, SHARPNESS), graph.scaled_exp(far, best, SHARPNESS))
    sizes = graph.constant("sizes", trunk.sizes)
    over_landmarks = graph.constant("over_landmarks", np.array([1], np.int64))
    weight = graph("Mul", graph("Relu", above), sizes)
    total = graph("ReduceSum", weight, over_landmarks, keepdims=1)
    shares = graph("Div", weight, graph("Max", total, graph.constant("tiny", np.float32(1e-12))))
    company = graph("ReduceSum", graph("Mul", near, sizes), over_landmarks, keepdims=1)
    ballast = graph.constant("ballast", np.float32(trunk.ballast))
    return graph("Mul", shares, graph("Div", company, graph("Add", company, ballast)))


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

"""How does a fitted head become one ONNX graph?

The graph, with K landmarks, computes

    features -> likeness (n, K) -> attention (n, K), the formulas of trunk.py
    raw               = clip(attention @ reward_weights.T + reward_bias, EDGE, 1 - EDGE)
    reward            = sigmoid(reward_offset + reward_rise * log(raw) - reward_fall * log(1 - raw))
    output_tokens     = exp(attention @ token_weights.T + token_bias)
    output_tokens_p95 = output_tokens * exp(token_spread)
    near              = exp(BREADTH * min(likeness - reach, 0))
    strange (n, 1)    = sigmoid(offset - per_company * log(near @ sizes) + per_entropy * entropy(task guess))
    reward_std        = prior_std * sqrt(strange + (1 - strange) / (1 + near @ evidence_weights.T))

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
from ensemble.learning.doubt import LEAST_COMPANY, Strangeness, chance, doubt_share
from ensemble.learning.trunk import BREADTH, LEAST_CHANCE, SHARPNESS, TASK_WEIGHT, Trunk
from ensemble.records import FloatArray

OPSET, IR_VERSION = 17, 9
MOST_LOG_TOKENS = 14.0  # about a million: an answer can't be longer, and exp() can't overflow


@dataclass(frozen=True, eq=False)
class HeadWeights:
    """Everything in the head: the trunk, what is strange to it, and one row per member, float32.

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
    strangeness: Strangeness

    @property
    def member_matrix(self) -> FloatArray:
        """(n_members, 3 * n_landmarks + 7) float32, laid out as said above."""
        of_reward = (self.reward_bias, self.curve.offset, self.curve.rise, self.curve.fall)
        scalars = np.stack([*of_reward, self.token_bias, self.token_spread, self.prior_std], axis=1)
        return np.hstack([self.reward, self.tokens, self.evidence, scalars]).astype(np.float32)

    def predict(self, features: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """The graph's formula in numpy and float64: what the export is checked against."""
        trunk = self.trunk
        features = features.astype(float)
        likeness = trunk.likeness(features)
        attention = trunk.attention(likeness)
        reward = self.curve(attention @ self.reward.T + self.reward_bias)
        tokens = np.exp(np.minimum(attention @ self.tokens.T + self.token_bias, MOST_LOG_TOKENS))
        evidence = trunk.nearness(likeness) @ self.evidence.T  # in units of half
        strange = chance(self.strangeness.log_odds(trunk.company(likeness), trunk.entropy(features)))
        std = self.prior_std * doubt_share(strange[:, None], evidence, 1.0)
        return reward, std, tokens, tokens * np.exp(self.token_spread)


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
    guess = ""
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
    sizes = graph.constant("sizes", trunk.sizes)
    company = graph.row_sum(graph("Mul", near, sizes))
    attention = _attention(graph, likeness, company, sizes, trunk)
    strange = _strange(graph, company, guess, weights.strangeness)

    graph.constant("member_matrix", matrix)
    k = trunk.n_landmarks
    reward_w, token_w, evidence_w = (graph.columns("member_matrix", i * k, (i + 1) * k) for i in range(3))
    scalars = (graph.column("member_matrix", 3 * k + i) for i in range(7))
    reward_b, offset, rise, fall, token_b, spread, prior = scalars
    one = graph.constant("one", np.float32(1))
    edges = (graph.constant("least", np.float32(EDGE)), graph.constant("most", np.float32(1 - EDGE)))
    raw = graph("Clip", graph("Gemm", attention, reward_w, reward_b, transB=1), *edges)
    # Powers, not logarithms: onnxruntime's Log rounds otherwise at the end of a row than within it, and a row
    # of members may grow.
    for_it, against = graph("Pow", raw, rise), graph("Pow", graph("Sub", one, raw), fall)
    odds = graph("Mul", graph("Div", against, for_it), graph("Exp", graph("Neg", offset)))
    graph("Div", one, graph("Add", one, odds), to="reward")
    log_tokens = graph("Gemm", attention, token_w, token_b, transB=1)
    most = graph.constant("most_log_tokens", np.float32(MOST_LOG_TOKENS))
    graph("Exp", graph("Min", log_tokens, most), to="output_tokens")
    graph("Mul", "output_tokens", graph("Exp", spread), to="output_tokens_p95")
    seen = graph("Add", graph("Gemm", near, evidence_w, transB=1), one)
    doubt = graph("Add", strange, graph("Div", graph("Sub", one, strange), seen))
    graph("Mul", prior, graph("Sqrt", doubt), to="reward_std")

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


def _attention(graph: _Graph, likeness: str, company: str, sizes: str, trunk: Trunk) -> str:
    n_near = graph.constant("n_near", np.array([trunk.n_near], np.int64))
    ranked = graph("TopK", likeness, n_near, axis=1, largest=1, sorted=1, outputs=2)
    best = graph.columns(ranked, 0, 1)
    far = graph.columns(ranked, trunk.n_near - 1, trunk.n_near)
    above = graph("Sub", graph.scaled_exp(likeness, best, SHARPNESS), graph.scaled_exp(far, best, SHARPNESS))
    weight = graph("Mul", graph("Relu", above), sizes)
    tiny = graph.constant("tiny", np.float32(1e-12))
    shares = graph("Div", weight, graph("Max", graph.row_sum(weight), tiny))
    ballast = graph.constant("ballast", np.float32(trunk.ballast))
    return graph("Mul", shares, graph("Div", company, graph("Add", company, ballast)))


def _strange(graph: _Graph, company: str, guess: str, strangeness: Strangeness) -> str:
    """(n, 1), in [0, 1]; ``guess`` (n, n_tasks), or "" where no tasks are guessed at."""
    least = graph.constant("least_company", np.float32(LEAST_COMPANY))
    alone = graph("Neg", graph("Log", graph("Max", company, least)))
    log_odds = graph("Mul", alone, graph.constant("per_company", np.float32(strangeness.per_company)))
    log_odds = graph("Add", log_odds, graph.constant("strange_offset", np.float32(strangeness.offset)))
    if guess:
        positive = graph("Max", guess, graph.constant("least_chance", np.float32(LEAST_CHANCE)))
        told = graph.row_sum(graph("Mul", guess, graph("Log", positive)))  # minus the entropy
        per_entropy = graph.constant("per_entropy", np.float32(strangeness.per_entropy))
        log_odds = graph("Sub", log_odds, graph("Mul", told, per_entropy))
    return graph("Sigmoid", log_odds)


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

    def row_sum(self, name: str) -> str:
        """name.sum(axis=1, keepdims=True)"""
        return self("ReduceSum", name, self._bound(1), keepdims=1)

    def scaled_exp(self, a: str, b: str, scale: float) -> str:
        """exp(scale * (a - b))"""
        factor = self.constant(f"scale_{len(self.nodes)}", np.float32(scale))
        return self("Exp", self("Mul", self("Sub", a, b), factor))

    def _bound(self, value: int) -> str:
        name = f"int_{value}"
        if all(tensor.name != name for tensor in self.initializers):
            self.constant(name, np.array([value], np.int64))
        return name

"""How does a graph multiply in 8 bits, and give a text the same features in every batch?

    x -> / evening -> rounded to uint8 on a fixed scale -> product with int8 weights -> * scales -> y

The scale of each product's input is fixed beforehand, from texts that the graph is shown in fp32: what is
rounded depends on the text alone, never on its neighbours in a batch. All else (sums, norms, attention,
pooling) stays in fp32, the products' outputs too.

A few columns of an input are ten times as large as the others, and on one scale these would be left with a
few steps. So the columns are evened first: each is divided by a factor by which its row of the weights is
multiplied (SmoothQuant: Xiao et al. 2023, arXiv 2211.10438).

Weights take 7 of their 8 bits. Older x86 processors add products in pairs in 16 bits, which saturate beyond
that: 2 * 255 * 64 still fits. So the integers come out alike on every processor.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ensemble.errors import InputError
from ensemble.inference import open_session
from ensemble.records import FloatArray

if TYPE_CHECKING:
    import onnx

EVENING = 0.7  # how much of the unevenness the weights take over: 0 none, 1 all
WEIGHT_STEPS = 64  # on either side of 0
LEAST = 1e-5  # a column that is always 0 would be divided by nothing


@dataclass
class Range:
    """The least and the greatest value of each column of one tensor, (n_columns,), 0 among them."""

    low: FloatArray
    high: FloatArray

    def meet(self, values: FloatArray) -> None:
        rows = values.reshape(-1, values.shape[-1])
        self.low, self.high = np.minimum(self.low, rows.min(axis=0)), np.maximum(self.high, rows.max(axis=0))


def multiply_in_8_bits(model: onnx.ModelProto, shown: Iterable[Mapping[str, npt.NDArray[Any]]]) -> None:
    """Rewrite every product of ``model`` with constant fp32 weights, in place.

    ``shown`` are inputs like those to come, some hundreds of texts; what exceeds all that was seen in them
    is cut off later. Raises InputError where nothing is shown.
    """
    from onnx import numpy_helper

    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    products = defaultdict(list)
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in weights:
            products[node.input[0]].append(node)
    seen = _seen(model, list(products), shown)
    for name, nodes in products.items():
        arrays = [numpy_helper.to_array(weights[node.input[1]]) for node in nodes]
        factors = _evening(seen[name], arrays)
        _round_input(model.graph, name, nodes, seen[name], factors)
        for node, array in zip(nodes, arrays, strict=True):
            _round_weights(model.graph, node, array * factors[:, None])
    used = {name for node in model.graph.node for name in node.input}
    for name in weights.keys() - used:
        model.graph.initializer.remove(weights[name])


def _seen(
    model: onnx.ModelProto, names: list[str], shown: Iterable[Mapping[str, npt.NDArray[Any]]]
) -> dict[str, Range]:
    """The range of each named tensor of ``model`` over all that is ``shown``."""
    from onnx import ModelProto, TensorProto, helper

    open_model = ModelProto()
    open_model.CopyFrom(model)
    open_model.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names
    )
    session = open_session(open_model.SerializeToString(), "cpu")
    found: dict[str, Range] = {}
    for feeds in shown:
        for name, values in zip(names, session.run(names, feeds), strict=True):
            nothing = np.zeros(values.shape[-1], np.float32)
            found.setdefault(name, Range(nothing, nothing)).meet(values)
    if not found:
        raise InputError(
            "expected texts to find the scales of 8-bit products with, found none. "
            "Give some: shown=..., or --prompts FILE."
        )
    return found


def _evening(seen: Range, weights: list[FloatArray]) -> FloatArray:
    """What each column of an input is divided by, (n_columns,), and the rows of its weights multiplied."""
    columns = np.maximum(np.maximum(-seen.low, seen.high), LEAST)
    rows = np.maximum(np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0), LEAST)
    factors = columns**EVENING / rows ** (1 - EVENING)
    return np.asarray(factors / np.exp(np.log(factors).mean()), np.float32)


def _round_input(
    graph: Any, name: str, nodes: list[onnx.NodeProto], seen: Range, factors: FloatArray
) -> None:
    """Before the first of ``nodes``: the tensor evened, rounded, and read back, for all of them."""
    from onnx import helper, numpy_helper

    low, high = float((seen.low / factors).min()), float((seen.high / factors).max())
    scale = np.float32(max(high - low, LEAST) / 255)
    constants = {
        "evening": 1 / factors,
        "scale": np.array(scale),
        "zero": np.array(np.clip(np.rint(-low / scale), 0, 255), np.uint8),
    }
    graph.initializer.extend(numpy_helper.from_array(v, f"{name}.{k}") for k, v in constants.items())
    how = [f"{name}.scale", f"{name}.zero"]
    steps = [
        helper.make_node("Mul", [name, f"{name}.evening"], [f"{name}.even"]),
        helper.make_node("QuantizeLinear", [f"{name}.even", *how], [f"{name}.uint8"]),
        helper.make_node("DequantizeLinear", [f"{name}.uint8", *how], [f"{name}.rounded"]),
    ]
    place = min(list(graph.node).index(node) for node in nodes)
    for offset, step in enumerate(steps):
        graph.node.insert(place + offset, step)
    for node in nodes:
        node.input[0] = f"{name}.rounded"


def _round_weights(graph: Any, node: onnx.NodeProto, weight: FloatArray) -> None:
    """In place of the node's fp32 weights: int8 ones with a scale for each column, read back before it."""
    from onnx import helper, numpy_helper

    name = f"{node.output[0]}.weight"  # one weight may serve several products, whose inputs differ
    scales = np.maximum(np.abs(weight).max(axis=0), LEAST) / WEIGHT_STEPS  # (n_columns,)
    constants = {
        "int8": np.rint(weight / scales).astype(np.int8),
        "scale": scales.astype(np.float32),
        "zero": np.zeros(len(scales), np.int8),
    }
    graph.initializer.extend(numpy_helper.from_array(v, f"{name}.{k}") for k, v in constants.items())
    back = helper.make_node(
        "DequantizeLinear", [f"{name}.{part}" for part in constants], [f"{name}.rounded"], axis=1
    )
    graph.node.insert(list(graph.node).index(node), back)
    node.input[1] = f"{name}.rounded"

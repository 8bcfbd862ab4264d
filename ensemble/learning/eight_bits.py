"""How are a graph's weights stored in 8 bits without changing how it computes?

A weight becomes int8 values times a scale, both inside the graph, and the graph multiplies them out:
once, when onnxruntime opens it and folds constants, for the weights of a product; at each look-up,
for the looked-up rows alone, for an embedding table, which so stays small in memory too. All arithmetic
is fp32: the features depend neither on the batch nor on the processor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import onnx

BLOCK = 32  # weights of one column that share a scale
LARGE = 2**16  # elements; smaller tensors stay as they are


def store_in_8_bits(model: onnx.ModelProto) -> None:
    """Rewrite every large 2-D fp32 weight of ``model``, in place."""
    from onnx import TensorProto, numpy_helper

    graph = model.graph
    for tensor in list(graph.initializer):
        if tensor.data_type != TensorProto.FLOAT or len(tensor.dims) != 2 or np.prod(tensor.dims) < LARGE:
            continue
        users = [node for node in graph.node if tensor.name in node.input]
        weight = numpy_helper.to_array(tensor)
        graph.initializer.remove(tensor)
        if all(node.op_type == "Gather" and node.input[0] == tensor.name for node in users):
            values, scales = _rounded(weight, axis=1)
            for node in users:
                _replace(graph, node, _look_up(tensor.name, node))
        else:
            blocks = (-1, BLOCK if weight.shape[0] % BLOCK == 0 else weight.shape[0], weight.shape[1])
            values, scales = _rounded(weight.reshape(blocks), axis=1)
            shape = numpy_helper.from_array(np.array(weight.shape, dtype=np.int64), f"{tensor.name}.shape")
            graph.initializer.append(shape)
            for place, node in enumerate(_unfold(tensor.name)):
                graph.node.insert(place, node)
        for part, array in (("int8", values), ("scale", scales)):
            graph.initializer.append(numpy_helper.from_array(array, f"{tensor.name}.{part}"))


def _rounded(
    weight: npt.NDArray[np.float32], axis: int
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Values in [-127, 127] and scales such that values * scales is nearly ``weight``."""
    scales = np.abs(weight).max(axis=axis, keepdims=True) / 127
    scales[scales == 0] = 1
    return np.rint(weight / scales).astype(np.int8), scales.astype(np.float32)


def _unfold(name: str) -> list[onnx.NodeProto]:
    """int8 and scales (blocks, BLOCK | 1, columns) -> the weight (rows, columns)."""
    from onnx import TensorProto, helper

    return [
        helper.make_node("Cast", [f"{name}.int8"], [f"{name}.float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{name}.float", f"{name}.scale"], [f"{name}.blocks"]),
        helper.make_node("Reshape", [f"{name}.blocks", f"{name}.shape"], [name]),
    ]


def _look_up(name: str, gather: onnx.NodeProto) -> list[onnx.NodeProto]:
    """The looked-up rows: int8 (rows, columns) and scales (rows, 1), gathered, then multiplied."""
    from onnx import TensorProto, helper

    rows, out = gather.input[1], gather.output[0]
    return [
        helper.make_node("Gather", [f"{name}.int8", rows], [f"{out}.int8"]),
        helper.make_node("Gather", [f"{name}.scale", rows], [f"{out}.scale"]),
        helper.make_node("Cast", [f"{out}.int8"], [f"{out}.float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{out}.float", f"{out}.scale"], [out]),
    ]


def _replace(graph: Any, node: onnx.NodeProto, by: list[onnx.NodeProto]) -> None:
    place = list(graph.node).index(node)
    graph.node.remove(node)
    for offset, new in enumerate(by):
        graph.node.insert(place + offset, new)

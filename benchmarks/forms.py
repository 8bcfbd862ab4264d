"""In which forms can the encoder be stored and computed? Each is made from its fp32 graph.

fp32                    as exported: the mark for all others
w8                      weights stored in 8 bits, multiplied out when opened, fp32 arithmetic
fp16 storage            weights stored in 16 bits, cast up when opened; fp32 arithmetic
fp16                    computed in fp16 up to the pooling, as build_encoder's form for CUDA is
8 bits / 4 bits, fp32   onnxruntime's MatMulNBits: weights stay packed, in blocks of 32; fp32 arithmetic
8 bits / 4 bits, int8   the same, and the input of each product is rounded to 8 bits, in blocks of a token
static int8             QDQ as onnxruntime.quantization makes it: scales fixed beforehand by the least and the
                        greatest value met, one for each column of weights; outputs of products in fp32
static int8, evened     as shipped: see ensemble/learning/eight_bit_products.py
w8, 128 / 64 tokens     no more than so many tokens of a text are read, head and tail

The embedding tables of all but fp32, fp16 and fp16 storage are stored in 8 bits, as those of w8 are.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from ensemble.encoder import GRAPH, TOKENIZER
from ensemble.learning.eight_bit_products import multiply_in_8_bits
from ensemble.learning.eight_bits import LARGE, store_in_8_bits
from ensemble.learning.encoders import build_encoder, feeds

if TYPE_CHECKING:
    import onnx

FP32, SHIPPED = "fp32", "w8"
Shown = Callable[[], Iterator[dict[str, npt.NDArray[np.int64]]]]
BLOCK = 32
Level = Literal[1, 4]  # of onnxruntime's accuracy: computed in fp32, in int8


def make_forms(place: Path, texts: Sequence[str]) -> dict[str, Path]:
    """The encoder's folder of every form, by name; ``texts`` find the scales of the static ones."""
    import onnx

    base = build_encoder(place / "fp32", "fp32")
    graph, tokenizer = onnx.load(base / GRAPH), (base / TOKENIZER).read_bytes()
    longest = int(next(fact.value for fact in graph.metadata_props if fact.key == "max_tokens"))

    def shown() -> Iterator[dict[str, npt.NDArray[np.int64]]]:
        return feeds(tokenizer.decode(), longest, texts)

    folders = {FP32: base}
    for name, (rewrite, max_tokens) in _rewritings(shown).items():
        model = onnx.ModelProto()
        model.CopyFrom(graph)
        rewrite(model)
        facts = {"form": name, "max_tokens": str(max_tokens or longest)}
        folders[name] = _write(place / name.replace(", ", "-").replace(" ", "-"), model, tokenizer, facts)
    folders["fp16"] = build_encoder(place / "fp16", "fp16")
    return folders


def _rewritings(shown: Shown) -> dict[str, tuple[Callable[[onnx.ModelProto], None], int | None]]:
    """By name: what is done to a copy of the fp32 graph, and how many tokens are read where not all are."""

    def packed(bits: int, level: Level) -> Callable[[onnx.ModelProto], None]:
        return lambda model: pack_products(model, bits, level)

    def evened(model: onnx.ModelProto) -> None:
        multiply_in_8_bits(model, shown())
        store_in_8_bits(model)

    return {
        SHIPPED: (store_in_8_bits, None),
        "fp16 storage": (store_in_16_bits, None),
        "8 bits, fp32": (packed(8, 1), None),
        "8 bits, int8": (packed(8, 4), None),
        "4 bits, fp32": (packed(4, 1), None),
        "4 bits, int8": (packed(4, 4), None),
        "static int8": (lambda model: multiply_statically(model, shown), None),
        "static int8, evened": (evened, None),
        "w8, 128 tokens": (store_in_8_bits, 128),
        "w8, 64 tokens": (store_in_8_bits, 64),
    }


def _write(folder: Path, model: onnx.ModelProto, tokenizer: bytes, facts: dict[str, str]) -> Path:
    for fact in model.metadata_props:
        fact.value = facts.get(fact.key, fact.value)
    folder.mkdir()
    (folder / GRAPH).write_bytes(model.SerializeToString(deterministic=True))
    (folder / TOKENIZER).write_bytes(tokenizer)
    return folder


def products(model: onnx.ModelProto) -> list[Any]:
    """The nodes that multiply by constant weights."""
    constant = {tensor.name for tensor in model.graph.initializer}
    return [node for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in constant]


def store_in_16_bits(model: onnx.ModelProto) -> None:
    """Every large 2-D weight in fp16, and cast up again: the rows of an embedding table when looked up, all
    others when the graph is opened."""
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    for tensor in list(graph.initializer):
        if tensor.data_type != TensorProto.FLOAT or len(tensor.dims) != 2 or np.prod(tensor.dims) < LARGE:
            continue
        half = numpy_helper.to_array(tensor).astype(np.float16)
        users = [node for node in graph.node if tensor.name in node.input]
        graph.initializer.append(numpy_helper.from_array(half, f"{tensor.name}.fp16"))
        graph.initializer.remove(tensor)
        if all(node.op_type == "Gather" for node in users):
            for node in users:
                place, out = list(graph.node).index(node), node.output[0]
                node.input[0], node.output[0] = f"{tensor.name}.fp16", f"{out}.fp16"
                graph.node.insert(
                    place + 1, helper.make_node("Cast", [f"{out}.fp16"], [out], to=TensorProto.FLOAT)
                )
        else:
            cast = helper.make_node("Cast", [f"{tensor.name}.fp16"], [tensor.name], to=TensorProto.FLOAT)
            graph.node.insert(0, cast)


def pack_products(model: onnx.ModelProto, bits: int, level: Level) -> None:
    """Every product with constant weights becomes a MatMulNBits with symmetric ``bits`` (4 or 8) for each
    weight; the tables are stored in 8 bits."""
    from onnx import helper, numpy_helper

    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    for node in products(model):
        name = node.input[1]
        weight = numpy_helper.to_array(weights[name])  # (n_in, n_out)
        packed, scales = packed_blocks(weight, bits)
        graph.initializer.remove(weights[name])
        graph.initializer.append(numpy_helper.from_array(packed, f"{name}.packed"))
        graph.initializer.append(numpy_helper.from_array(scales, f"{name}.scale"))
        new = helper.make_node(
            "MatMulNBits", [node.input[0], f"{name}.packed", f"{name}.scale"], node.output, name=node.name,
            domain="com.microsoft", K=weight.shape[0], N=weight.shape[1], bits=bits, block_size=BLOCK,
            accuracy_level=level,
        )  # fmt: skip
        place = list(graph.node).index(node)
        graph.node.remove(node)
        graph.node.insert(place, new)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    store_in_8_bits(model)


def packed_blocks(
    weight: npt.NDArray[np.float32], bits: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """``weight`` (n_in, n_out) as MatMulNBits wants it: uint8 (n_out, n_blocks, BLOCK * bits / 8), where two
    of 4 bits share a byte, the first one low; and scales (n_out, n_blocks)."""
    blocks = weight.T.reshape(weight.shape[1], -1, BLOCK)
    zero = 2 ** (bits - 1)
    scales = np.abs(blocks).max(axis=2, keepdims=True) / (zero - 1)
    scales[scales == 0] = 1
    values = (np.rint(blocks / scales) + zero).astype(np.uint8)
    if bits == 4:
        values = values[..., 0::2] | (values[..., 1::2] << 4)
    return values, scales[..., 0].astype(np.float32)


def multiply_statically(model: onnx.ModelProto, shown: Shown) -> None:
    """By onnxruntime.quantization, in place."""
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Shower(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._feeds = shown()

        def get_next(self) -> dict[str, npt.NDArray[np.int64]] | None:
            return next(self._feeds, None)

    names = [node.name for node in products(model)]
    with tempfile.TemporaryDirectory() as folder:
        before, ready, after = (f"{folder}/{step}.onnx" for step in ("before", "ready", "after"))
        onnx.save(model, before)
        quant_pre_process(before, ready, skip_symbolic_shape=True, skip_optimization=True)
        quantization.quantize_static(
            ready, after, Shower(),
            per_channel=True, nodes_to_quantize=names, op_types_to_quantize=["MatMul"],
            activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
            extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul"]},
        )  # fmt: skip
        model.CopyFrom(onnx.load(after))
    store_in_8_bits(model)

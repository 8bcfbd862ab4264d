"""What can a router's folder be made of? A small one that opens, and parts for it that mean harm."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from ensemble import bundle
from ensemble.bundle import Manifest, MemberNote
from ensemble.engine import Ensemble
from ensemble.head import OUTPUTS
from ensemble.pool import Pool
from ensemble.router import Router

MEMBERS = ("a", "b", "c")
N_FEATURES = 4
VALUES = (0.5, 0.1, 100.0, 200.0)  # what a sound head expects of everyone
WORDS = {"type": "WordLevel", "vocab": {"[UNK]": 0, "a": 1}, "unk_token": "[UNK]"}


def model(
    nodes: Sequence[Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    constants: Mapping[str, Any],
    domain: str = "",
    **metadata: str,
) -> Any:
    """An onnx.ModelProto."""
    kept = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(list(nodes), "g", list(inputs), list(outputs), kept)
    known = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
    made = helper.make_model(graph, opset_imports=known, ir_version=8)
    helper.set_model_props(made, metadata)
    return made


def head(
    values: Sequence[float] = VALUES, then: str | None = None, domain: str = "", **attributes: Any
) -> Any:
    """One that expects ``values`` of all MEMBERS; ``then`` an operator on each output."""
    constants: dict[str, Any] = {"zero": np.zeros((N_FEATURES, len(MEMBERS)), np.float32)}
    nodes = []
    for name, value in zip(OUTPUTS, values, strict=True):
        constants[f"{name}_is"] = np.full((1, len(MEMBERS)), value, np.float32)
        told = f"{name}_before" if then else name
        nodes.append(helper.make_node("Gemm", ["features", "zero", f"{name}_is"], [told]))
        if then:
            nodes.append(helper.make_node(then, [told], [name], domain=domain, **attributes))
    return model(nodes, [_floats("features", N_FEATURES)], _outputs(), constants, domain)


def endless_head(times: int = 2**62) -> Any:
    """A sound one that first turns a number over so many times."""
    one = helper.make_tensor_value_info("v", TensorProto.FLOAT, [])
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Sin", ["v"], ["w"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            one,
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("w", TensorProto.FLOAT, []),
        ],
    )
    made = head()
    made.graph.node.insert(0, helper.make_node("Loop", ["times", "yes", "start"], ["turned"], body=body))
    for name, value in (("times", np.int64(times)), ("yes", np.bool_(True)), ("start", np.float32(0))):
        made.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    made.graph.output.append(helper.make_tensor_value_info("turned", TensorProto.FLOAT, []))
    return made


def greedy_head() -> Any:
    """Asks for 40 TB."""
    made = head()
    made.graph.initializer.append(numpy_helper.from_array(np.array([10**13]), "room"))
    made.graph.node.insert(0, helper.make_node("ConstantOfShape", ["room"], ["vast"]))
    made.graph.node.insert(1, helper.make_node("ReduceSum", ["vast"], ["sum"], keepdims=0))
    made.graph.node[2].output[0] = "before"
    made.graph.node.append(helper.make_node("Add", ["before", "sum"], ["reward"]))
    return made


def moody_head() -> Any:
    """Sound on the features that it is tried with, NaN on those of a text."""
    made = head()
    made.graph.node[0].output[0] = "before"
    for node in (
        helper.make_node("ReduceSum", ["features"], ["sum"], keepdims=0),
        helper.make_node("Div", ["sum", "sum"], ["one_or_nan"]),
        helper.make_node("IsNaN", ["one_or_nan"], ["tried"]),
        helper.make_node("Where", ["tried", "fair", "nan"], ["mood"]),
        helper.make_node("Add", ["before", "mood"], ["reward"]),
    ):
        made.graph.node.append(node)
    for name, value in (("fair", 0.0), ("nan", float("nan"))):
        made.graph.initializer.append(numpy_helper.from_array(np.float32(value), name))
    return made


def encoder(output: str = "features", **metadata: str) -> bytes:
    """The features of a text: its token ids' sum, N_FEATURES times."""
    given = {"ensemble_encoder_format": "1", "max_tokens": "16", "pad_id": "0"} | metadata
    nodes = [
        helper.make_node("Mul", ["input_ids", "attention_mask"], ["read"]),
        helper.make_node("Cast", ["read"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["numbers", "along"], ["sum"], keepdims=1),
        helper.make_node("MatMul", ["sum", "ones"], [output]),
    ]
    ids = [
        helper.make_tensor_value_info(n, TensorProto.INT64, ["n", "t"])
        for n in ("input_ids", "attention_mask")
    ]
    constants = {"along": np.array([1]), "ones": np.ones((1, N_FEATURES), np.float32)}
    return bytes(model(nodes, ids, [_floats(output, N_FEATURES)], constants, **given).SerializeToString())


def tokenizer(words: Mapping[str, Any] = WORDS, **parts: Any) -> bytes:
    plain = {"version": "1.0", "pre_tokenizer": {"type": "Whitespace"}, "model": words, **parts}
    return json.dumps(plain).encode()


def victim(
    folder: Path,
    graph: Any = None,
    *,
    encoder_graph: bytes | None = None,
    tokens: bytes | None = None,
    **changes: Any,
) -> Path:
    """A router's folder, whole, with the right hashes whatever it is made of; ``changes`` of its manifest."""
    files = {"encoder.onnx": encoder_graph or encoder(), "tokenizer.json": tokens or tokenizer()}
    source = folder / "source" / "small"
    source.mkdir(parents=True)
    for name, content in files.items():
        (source / name).write_bytes(content)
    manifest = Manifest(
        name="victim",
        created="2026-01-02",
        encoder_id="small",
        encoder_sha256={name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        members=tuple(MemberNote(name, 10, 0.5) for name in MEMBERS),
        recipe={},
        seed=0,
        figures={},
    )
    made = head() if graph is None else graph
    content = made if isinstance(made, bytes) else made.SerializeToString()
    place = bundle.save(folder / "routers" / "mine", manifest, head=content, card="", encoder_folder=source)
    if changes:
        path = place / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return place


def opened(place: Path) -> None:
    """Open the router and decide by it, both as a user would."""
    price = {"usd_per_million_input": 1, "usd_per_million_output": 1}
    pool = [{"name": name, "model": f"openai/{name}", **price} for name in MEMBERS]
    router = Router.load(place, device="cpu")
    Ensemble(router=router, pool=Pool(pool), log=False).route("a a " + "a" * 40 + "!")


def _floats(name: str, width: int) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", width])


def _outputs() -> list[Any]:
    return [_floats(name, len(MEMBERS)) for name in OUTPUTS]

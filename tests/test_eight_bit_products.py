"""Products in 8 bits: near to fp32, the same in every batch, and never beyond what 16 bits hold."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from sentence_transformers.sentence_transformer import modules

from ensemble.encoder import Encoder
from ensemble.errors import InputError
from ensemble.inference import open_session
from ensemble.learning.eight_bit_products import multiply_in_8_bits
from ensemble.learning.encoders import build_encoder
from tiny_models import tiny_model

TEXTS = [" ".join(f"w{(7 * i * i + j) % 700}" for j in range(1 + i % 40)) for i in range(80)]
LARGE_COLUMN = 3


def product_graph(n_products: int = 1, *, shared: bool = False) -> onnx.ModelProto:
    """x (n, 16) -> x @ weight + 1, so often as asked, each with weights of its own or all with one."""
    rng = np.random.default_rng(0)
    nodes, initializers = [], [numpy_helper.from_array(np.ones(16, np.float32), "one")]
    for k in range(n_products):
        name = "weight" if shared else f"weight{k}"
        if not shared or k == 0:
            values = rng.normal(size=(16, 16)).astype(np.float32) / 4
            initializers.append(numpy_helper.from_array(values, name))
        nodes.append(helper.make_node("MatMul", [f"x{k}", name], [f"y{k}"], name=f"product{k}"))
        nodes.append(helper.make_node("Add", [f"y{k}", "one"], [f"x{k + 1}"]))
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 16])
        for name in ("x0", nodes[-1].output[0])
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def inputs(n: int = 50, seed: int = 0) -> np.ndarray:
    """Of which one column is fifty times as large as the others, as a few are in language models."""
    x = np.random.default_rng(seed).normal(size=(n, 16)).astype(np.float32)
    x[:, LARGE_COLUMN] *= 50
    return x


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    return open_session(model.SerializeToString(), "cpu").run(None, {"x0": x})[0]


@pytest.mark.parametrize("shared", [False, True])
def test_products_come_near_to_those_in_fp32_although_one_column_is_large(shared: bool) -> None:
    model, x = product_graph(3, shared=shared), inputs(seed=1)
    wanted = run(model, x)
    multiply_in_8_bits(model, [{"x0": inputs(200)}])
    onnx.checker.check_model(model)
    got = run(model, x)
    assert 0 < np.abs(got - wanted).mean() < 0.03 * np.abs(wanted).mean()


def test_the_small_columns_are_told_apart_beside_a_large_one() -> None:
    model, x = product_graph(), inputs(seed=1)
    x[:, LARGE_COLUMN] = 0  # what is left is a fiftieth of the range
    wanted = run(model, x)
    multiply_in_8_bits(model, [{"x0": inputs(200)}])
    error = np.abs(run(model, x) - wanted).mean() / np.abs(wanted - 1).mean()
    assert error < 0.1  # on one scale a step would be as large as these columns are


def test_no_pair_of_products_is_beyond_16_bits() -> None:
    model = product_graph(2)
    multiply_in_8_bits(model, [{"x0": inputs()}])
    rounded = [t for t in model.graph.initializer if t.data_type == TensorProto.INT8 and len(t.dims) == 2]
    assert len(rounded) == 2
    for tensor in rounded:
        largest = int(np.abs(numpy_helper.to_array(tensor).astype(int)).max())
        assert largest == 64 and 2 * 255 * largest <= np.iinfo(np.int16).max
    assert not [t for t in model.graph.initializer if t.name.startswith("weight")]


def test_what_was_never_shown_is_cut_off() -> None:
    model = product_graph()
    multiply_in_8_bits(model, [{"x0": inputs()}])
    far, farther = (run(model, np.full((1, 16), value, np.float32)) for value in (1e4, 1e6))
    np.testing.assert_array_equal(far, farther)


def test_columns_that_are_always_0_do_no_harm() -> None:
    model = product_graph()
    multiply_in_8_bits(model, [{"x0": np.zeros((5, 16), np.float32)}])
    assert np.isfinite(run(model, inputs())).all()


def test_scales_need_something_shown() -> None:
    with pytest.raises(InputError, match=r"expected texts .* found none"):
        multiply_in_8_bits(product_graph(), [])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("models") / "mean"
    return tiny_model(folder, modules.Pooling(256, pooling_mode="mean"), modules.Normalize())


@pytest.fixture(scope="module")
def folders(
    tiny: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, pathlib.Path]]:
    place = tmp_path_factory.mktemp("forms")
    yield {
        form: build_encoder(place / form, form, tiny, shown=TEXTS[:40])  # type: ignore[arg-type]
        for form in ("fp32", "w8", "int8")
    }


def test_an_encoder_in_int8_is_small_and_near_to_fp32(folders: dict[str, pathlib.Path]) -> None:
    features = {form: Encoder.load(folder, "cpu").encode(TEXTS) for form, folder in folders.items()}
    cosine = (features["int8"] * features["fp32"]).sum(axis=1)
    assert 0.95 < cosine.min() < 0.99999 and cosine.mean() > 0.99  # MiniLM's are .985 and .997
    size = {form: (folder / "encoder.onnx").stat().st_size for form, folder in folders.items()}
    assert size["int8"] < 1.1 * size["w8"]
    assert "rounded to 8 bits" in (folders["int8"] / "NOTICE").read_text("utf-8")


@pytest.mark.parametrize("threads", [1, 2])
def test_an_encoder_in_int8_gives_a_text_the_same_features_in_every_batch(
    folders: dict[str, pathlib.Path], threads: int
) -> None:
    encoder = Encoder.load(folders["int8"], "cpu", threads)
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    order = np.random.default_rng(0).permutation(len(TEXTS))
    for rows in (np.arange(len(TEXTS)), order, order[:7], order[7:20]):
        ids = encoder.tokens([TEXTS[row] for row in rows])
        np.testing.assert_allclose(encoder.encode_tokens(ids), alone[rows], atol=1e-5)


def test_the_same_texts_make_the_same_bytes(tiny: pathlib.Path, folders: dict[str, pathlib.Path]) -> None:
    again = build_encoder(folders["int8"].parent / "again", "int8", tiny, shown=TEXTS[:40])
    assert (again / "encoder.onnx").read_bytes() == (folders["int8"] / "encoder.onnx").read_bytes()


def test_an_encoder_in_int8_needs_something_shown(tiny: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with pytest.raises(InputError, match="found none"):
        build_encoder(tmp_path / "int8", "int8", tiny)
    assert not (tmp_path / "int8").exists()

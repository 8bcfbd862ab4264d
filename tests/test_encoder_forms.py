"""The comparison of the encoder's forms: each computes what it says, and the ruler sees what it should."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from benchmarks import encoder_forms, forms, forms_measured, forms_quality
from benchmarks.protocol import Forecast
from ensemble.bundle import ENCODERS, shipped_folder
from ensemble.cli_learning import DEFAULT_ENCODER
from ensemble.inference import open_session
from ensemble.learning.longform import write_table
from ruler_cases import Watched, problem
from worlds import TOPICS

SHIPPED = shipped_folder() / ENCODERS / DEFAULT_ENCODER
GIVEN = problem()


def small_graph() -> onnx.ModelProto:
    """Rows of a table looked up, (n, 320), times a weight, plus 1: (n, 256)."""
    rng = np.random.default_rng(0)
    table = rng.normal(size=(300, 320)).astype(np.float32)
    weight = rng.normal(size=(320, 256)).astype(np.float32) / 18
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"], name="look-up"),
        helper.make_node("MatMul", ["rows", "weight"], ["y"], name="product"),
    ]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 256])],
        [numpy_helper.from_array(table, "table"), numpy_helper.from_array(weight, "weight")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


IDS = np.arange(0, 300, 7)


def run(model: onnx.ModelProto) -> np.ndarray:
    return open_session(model.SerializeToString(), "cpu").run(["y"], {"ids": IDS})[0]


def shown() -> Any:
    yield from ({"ids": np.arange(k, 300, 10)} for k in range(10))


@pytest.mark.parametrize(
    ("rewrite", "size", "error"),
    [
        (forms.store_in_16_bits, 0.52, 1e-3),
        (lambda model: forms.pack_products(model, 8, 1), 0.30, 0.02),
        (lambda model: forms.pack_products(model, 8, 4), 0.30, 0.03),
        (lambda model: forms.pack_products(model, 4, 1), 0.27, 0.2),
        (lambda model: forms.multiply_statically(model, shown), 0.35, 0.05),
    ],
    ids=["fp16 storage", "8 bits, fp32", "8 bits, int8", "4 bits, fp32", "static int8"],
)
def test_a_form_is_smaller_and_computes_nearly_the_same(rewrite: Any, size: float, error: float) -> None:
    model = small_graph()
    wanted, before = run(model), model.ByteSize()
    rewrite(model)
    assert model.ByteSize() < size * before
    assert 0 < np.abs(run(model) - wanted).mean() < error * np.abs(wanted).mean()


def test_packed_weights_are_what_the_product_reads() -> None:
    weight = np.zeros((64, 2), np.float32)
    weight[0, 0], weight[1, 0], weight[33, 1] = 7, -3, 14
    packed, scales = forms.packed_blocks(weight, 4)
    assert packed.shape == (2, 2, 16) and scales.tolist() == [[1, 1], [1, 2]]
    assert packed[0, 0, 0] == (7 + 8) | ((-3 + 8) << 4) and packed[1, 1, 0] == 8 | ((7 + 8) << 4)


class Crowded:
    """A stand-in whose features hang on the company, by so much."""

    def __init__(self, by: float) -> None:
        self.by = by

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        return [[len(text)] for text in texts]

    def encode_tokens(self, ids: Sequence[Sequence[int]]) -> np.ndarray:
        lengths = np.array(ids, np.float32)
        return lengths + self.by * (len(ids) > 1)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        return np.concatenate([self.encode_tokens(self.tokens([text])) for text in texts])


@pytest.mark.parametrize("by", [0.0, 0.25])
def test_features_that_hang_on_the_batch_are_found(by: float) -> None:
    texts = ["x" * n for n in range(1, 20)]
    encoder: Any = Crowded(by)
    assert forms_measured.alone_vs_batch(encoder, texts, encoder.encode(texts), seed=0) == by


def test_opening_an_encoder_takes_memory() -> None:
    found = forms_measured.sizes(SHIPPED)
    assert found["size_mb"] == pytest.approx((SHIPPED / "encoder.onnx").stat().st_size / 1e6)
    assert found["resident_mb"] is None or 10 < found["resident_mb"] < 1000


def test_quality_is_compared_draw_by_draw() -> None:
    told = forms_quality.forecast(GIVEN, GIVEN.features, learner=Watched())
    nothing = Forecast(np.ones_like(told.reward), told.cost)
    found = forms_quality.figures(GIVEN, {"fp32": told, "same": told, "none": nothing}, "fp32", draws=100)
    assert found["fp32"]["aiq"]["over"] is None
    assert found["same"]["aiq"]["over"] == [0, 0, 0] == found["same"]["utility"]["over"]
    assert found["none"]["aiq"]["over"][2] < 0 and found["none"]["utility"]["over"][2] < 0
    low, high = found["fp32"]["aiq"]["value"][1:]
    assert low < found["fp32"]["aiq"]["value"][0] < high


def test_a_form_is_fitted_to_its_own_features() -> None:
    told = forms_quality.forecast(GIVEN, GIVEN.features, learner=Watched())
    mixed_up = np.random.default_rng(0).permutation(GIVEN.features)
    other = forms_quality.forecast(GIVEN, mixed_up, learner=Watched())
    found = forms_quality.figures(GIVEN, {"fp32": told, "mixed up": other}, "fp32", draws=100)
    assert found["mixed up"]["aiq"]["over"][2] < 0


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of 60 prompts; beside it the command finds two forms that are one, and times and fits in a moment."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(60):
        words = " ".join(rng.choice(TOPICS[list(TOPICS)[i % 4]].split(), 6, replace=False))
        for j, member in enumerate("ab"):
            row = {"prompt_id": f"p{i}", "prompt": f"{words} {i}", "member": member, "output_tokens": 10}
            rows.append(row | {"reward": float(rng.random() < 0.4 + 0.4 * j), "cost_usd": 0.001 * (j + 1)})
    write_table(tmp_path / "mine.parquet", rows)
    monkeypatch.setattr(encoder_forms, "make_forms", lambda place, texts: {"fp32": SHIPPED, "w8": SHIPPED})
    monkeypatch.setattr(forms_measured, "ROUNDS", 1)
    monkeypatch.setattr(forms_measured, "CALLS", 1)
    quick = functools.partial(forms_quality.forecast, learner=Watched(10))
    monkeypatch.setattr(forms_quality, "forecast", quick)
    return tmp_path / "mine.parquet"


def command(table: Path, *more: str) -> Any:
    arguments = ["--data", str(table), "--prompts", "8", "--out", str(table.with_name("out.json")), *more]
    return CliRunner().invoke(encoder_forms.main, arguments)


def test_the_command_prints_and_writes_what_it_found(table: Path) -> None:
    done = command(table, "--fit", "w8")
    assert done.exit_code == 0, done.output
    assert "alone/batch" in done.output and "mine: 60 prompts, 2 members" in done.output
    found = json.loads(table.with_name("out.json").read_text("utf-8"))
    assert found["forms"]["w8"]["keeps_contract"] and found["forms"]["w8"]["share_differing"] == 0
    assert found["quality"]["mine"]["forms"]["w8"]["aiq"]["over"] == [0, 0, 0]
    assert command(table, "--fit", "w8", "--quality-prompts", "0").exit_code == 0
    again = json.loads(table.with_name("out.json").read_text("utf-8"))
    assert again["quality"] == found["quality"]  # kept: nothing was fitted


def test_a_form_that_is_not_there_is_named(table: Path) -> None:
    done = command(table, "--fit", "int4")
    assert done.exit_code == 2 and "found int4" in done.output

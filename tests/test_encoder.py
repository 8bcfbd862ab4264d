"""The shipped encoder, with its real tokenizer and a real session."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble.encoder import Encoder
from ensemble.errors import BundleError, InputError, MissingExtraError
from test_inference import small_graph

ROOT = pathlib.Path(__file__).parent.parent
SHIPPED = ROOT / "router_models" / "encoders" / "all-minilm-l6-v2-depths-int8"

PROMPTS = [
    "Hi",
    "What is the capital of Australia, and why is it not Sydney?",
    "Write a Python function that returns the n-th Fibonacci number without recursion.",
    "Ein Zug fährt um 8:15 Uhr ab und braucht 3 Stunden 50 Minuten. Wann kommt er an?",
    "def f(xs):\n    return [x for x in xs if x % 2]\n\nWhat does f(range(10)) return?",
    "一个农夫有17只羊,除了9只以外都死了。还剩几只?",
    "Prove that the sum of two odd integers is even; then find $\\int_0^1 x e^{x^2}\\,dx$.",
    "Summarize the argument below in two sentences, keeping the author's hedges as they are. ",
]


@functools.cache
def shipped() -> Encoder:
    return Encoder.load(SHIPPED, device="cpu")


@functools.cache
def alone(text: str) -> np.ndarray:
    return shipped().encode([text])[0]


def words(count: int, start: int = 0) -> str:
    """Single letters: one token each."""
    return " ".join(chr(ord("a") + (start + i) ** 2 % 26) for i in range(count))


def run(code: str, **env: str) -> str:
    """The standard output of ``code`` in a fresh interpreter."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    environment.pop("ORT_DISABLE_TELEMETRY", None)  # set here by the sessions of other tests
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment,
        check=False, capture_output=True, text=True, timeout=60, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# What it returns


def test_features_are_float32_rows_of_unit_length():
    features = shipped().encode(PROMPTS)
    assert features.shape == (len(PROMPTS), 1536) and features.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)


def test_prompts_alike_in_meaning_are_closer_than_others():
    one, same, other = shipped().encode(
        ["How do I reverse a list in Python?", "Python: list in reverse order", "Who painted the Mona Lisa?"]
    )
    assert one @ same > one @ other + 0.3


def test_no_texts_no_rows():
    assert shipped().encode([]).shape == (0, 1536)


@pytest.mark.parametrize(
    "text", ["", " \n\t ", "nul\x00byte", "\ufffd", "🙂" * 3000, "x" * 1_000_000, "\n" * 10_000]
)
def test_odd_texts_have_features_too(text):
    features = shipped().encode([text])
    assert features.shape == (1, 1536) and np.isfinite(features).all()


mixed_lengths = st.lists(
    st.builds(lambda prompt, times: prompt * times, st.sampled_from(PROMPTS), st.integers(1, 24)),
    min_size=1, max_size=12,
)  # fmt: skip


@settings(deadline=None, max_examples=15, derandomize=True)
@given(mixed_lengths)
def test_a_text_has_the_same_features_alone_and_in_any_batch_in_any_order(texts):
    together = shipped().encode(texts)
    for text, features in zip(texts, together, strict=True):
        np.testing.assert_allclose(features, alone(text), atol=1e-5)


def test_real_prompts_have_the_same_features_alone_and_in_a_batch():
    data = pathlib.Path(os.environ.get("ENSEMBLE_DATA", ROOT.parent / "shared" / "data"))
    if not data.is_dir():
        pytest.skip(f"no outcome tables at {data}; set ENSEMBLE_DATA")
    import pyarrow.parquet

    for name in ("mmlu_pro", "llmrouter_dc"):
        table = pyarrow.parquet.read_table(data / f"{name}.parquet", columns=["prompt"])
        texts = table["prompt"].unique().to_pylist()[::400]
        together = shipped().encode(texts)
        np.testing.assert_allclose(together, np.stack([alone(text) for text in texts]), atol=1e-5)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_batch_larger_than_one_run_keeps_its_order(threads, monkeypatch):
    monkeypatch.setattr("ensemble.encoder.SIDE_BY_SIDE", 4)
    texts = [f"Question {i}: {words(i % 90)}" for i in range(150)]
    together = Encoder.load(SHIPPED, threads=threads).encode(texts)
    for row in (0, 1, 89, 149):
        np.testing.assert_allclose(together[row], alone(texts[row]), atol=1e-5)


def test_many_threads_get_what_one_gets():
    texts = [PROMPTS[i % len(PROMPTS)] * (1 + i % 5) for i in range(40)]
    with ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(lambda text: shipped().encode([text])[0], texts))
    for text, features in zip(texts, rows, strict=True):
        np.testing.assert_allclose(features, alone(text), atol=1e-5)


# Long texts: head and tail


def test_a_text_at_the_limit_is_read_whole():
    room = shipped().max_tokens - 2
    text = words(room).split()
    for place in (0, room // 2, room - 1):
        changed = [*text[:place], "banana", *text[place + 1 :]]
        assert not np.allclose(alone(" ".join(changed)), alone(" ".join(text)), atol=1e-4)


def test_a_longer_text_is_its_first_and_last_tokens():
    half = (shipped().max_tokens - 2) // 2
    head, tail = words(half), words(half, start=400)
    np.testing.assert_allclose(alone(f"{head} {words(300, 700)} {tail}"), alone(f"{head} {tail}"), atol=1e-5)
    assert not np.allclose(alone(f"{head} {tail}"), alone(f"{head} {words(half, 500)}"), atol=1e-3)


def test_a_text_of_a_megabyte_is_its_first_and_last_tokens_as_well():
    half = (shipped().max_tokens - 2) // 2
    head, tail = words(half), words(half, start=400)
    text = f"{head} {words(600_000)} {tail}"
    assert len(text) > 1_000_000
    np.testing.assert_allclose(alone(text), alone(f"{head} {tail}"), atol=1e-5)


# What it refuses


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("one string", r"found one string"),
        (["fine", None], r"NoneType at position 1"),
        ([b"bytes"], r"bytes at position 0"),
        (["fine", "fine", 3.0], r"float at position 2"),
        (["fine", "half a \ud83d"], r"character 7 of the text at position 1"),
        (["half a \ud83d"], r"surrogates"),
    ],
)
def test_anything_but_texts_is_refused_with_its_position(texts, message):
    with pytest.raises(InputError, match=message):
        shipped().encode(texts)


@pytest.fixture
def copy(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    yield pathlib.Path(shutil.copytree(SHIPPED, tmp_path / "my-encoder"))


def test_the_folder_names_the_encoder_and_its_files_are_hashed(copy):
    encoder = Encoder.load(copy)
    assert encoder.id == "my-encoder"
    assert encoder.sha256 == {
        name: hashlib.sha256((copy / name).read_bytes()).hexdigest()
        for name in ("encoder.onnx", "tokenizer.json")
    }


@pytest.mark.parametrize("name", ["encoder.onnx", "tokenizer.json"])
def test_a_missing_or_broken_file_is_a_bundle_error(copy, name):
    (copy / name).write_bytes((copy / name).read_bytes()[:1000])
    with pytest.raises(BundleError, match="expected"):
        Encoder.load(copy)
    (copy / name).unlink()
    with pytest.raises(BundleError, match=name):
        Encoder.load(copy)


def test_another_graph_is_not_an_encoder(copy):
    (copy / "encoder.onnx").write_bytes(small_graph(ensemble_encoder_format="99").SerializeToString())
    with pytest.raises(BundleError, match=r"format 1, found format 99"):
        Encoder.load(copy)


# In its process


@pytest.mark.parametrize("module", ["onnxruntime", "tokenizers"])
def test_a_missing_module_names_the_extra(module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"ensemble-router\[cpu\]"):
        Encoder.load(SHIPPED)


def test_importing_it_imports_no_heavy_library():
    code = (
        "import sys, ensemble.encoder; print([m for m in ('onnxruntime', 'tokenizers') if m in sys.modules])"
    )
    assert run(code) == "[]"


def test_using_it_leaves_nothing_in_the_users_home(tmp_path):
    # onnxruntime's reporter would keep its events there, until it can send them.
    code = f"from ensemble.encoder import Encoder; print(Encoder.load({str(SHIPPED)!r}).encode(['a']).shape)"
    home = {name: str(tmp_path) for name in ("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "USERPROFILE")}
    assert run(code, **home) == "(1, 1536)"
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("texts", [1, 40], ids=["one text", "many, side by side"])
def test_a_forked_child_encodes_and_ends(texts):
    code = f"""
import os, sys
import ensemble.encoder
ensemble.encoder.SIDE_BY_SIDE = 2
encoder = ensemble.encoder.Encoder.load({str(SHIPPED)!r}, threads=2)
texts = ["hello " * 50] * {texts}
before = encoder.encode(texts)
for encodes in (True, False):
    if (child := os.fork()) == 0:
        if encodes and abs(encoder.encode(texts) - before).max() > 1e-5:
            sys.exit(1)
        sys.exit(0)
    print(os.waitpid(child, 0)[1], end=" ", flush=True)  # unflushed, the next child would print it too
"""
    assert run(code) == "0 0"


# The shipped folder


def test_the_shipped_folder_is_small_complete_and_says_where_it_is_from():
    assert sorted(path.name for path in SHIPPED.iterdir()) == [
        "NOTICE", "encoder.json", "encoder.onnx", "tokenizer.json",
    ]  # fmt: skip
    assert (SHIPPED / "encoder.onnx").stat().st_size < 30e6
    notice = (SHIPPED / "NOTICE").read_text()
    assert "sentence-transformers/all-MiniLM-L6-v2" in notice and "Apache-2.0" in notice
    card = json.loads((SHIPPED / "encoder.json").read_text())
    blocks = ["sentence", "4", "2", "0"]
    assert (card["depths"], card["widths"]) == (", ".join(blocks), "384, 384, 384, 384")
    assert min(card["figures"]["cosine_mean"][block] for block in blocks) >= 0.996
    assert card["figures"]["alone_vs_batch"] <= 1e-5
    tokenizer = json.loads((SHIPPED / "tokenizer.json").read_text())
    assert tokenizer["padding"] is None and tokenizer["truncation"] is None

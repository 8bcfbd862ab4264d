"""Features by torch: those of the exported graph, in any order and any number. On the CPU."""

from __future__ import annotations

import itertools
import pathlib
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from sentence_transformers.sentence_transformer import modules

from ensemble.encoder import Encoder
from ensemble.errors import ConfigError, EnsembleWarning, InputError
from ensemble.learning import encoders_torch
from ensemble.learning.encoders import build_encoder
from ensemble.learning.encoders_torch import TorchEncoder
from ensemble.learning.features import cache_file, featurize
from tiny_models import tiny_model

TEXTS = [" ".join(f"w{(7 * i * i + j) % 700}" for j in range(1 + i % 45)) for i in range(120)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("models") / "mean"
    return tiny_model(folder, modules.Pooling(256, pooling_mode="mean"), modules.Normalize())


@pytest.fixture(scope="module")
def exported(tiny: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return Encoder.load(build_encoder(tmp_path_factory.mktemp("onnx") / "st", "fp32", tiny), "cpu")


@pytest.fixture(scope="module")
def fp32(tiny: pathlib.Path) -> TorchEncoder:
    return TorchEncoder.load(tiny, "cpu")


@pytest.fixture(scope="module")
def bf16(tiny: pathlib.Path) -> TorchEncoder:
    return TorchEncoder.load(tiny, "cpu", "bf16")


def test_fp32_gives_the_features_of_the_exported_graph(fp32: TorchEncoder, exported: Encoder) -> None:
    features = fp32.encode(TEXTS)
    assert features.dtype == np.float32 and features.shape == (len(TEXTS), exported.n_features)
    np.testing.assert_allclose(features, exported.encode(TEXTS), atol=1e-4)
    assert (fp32.n_features, fp32.max_tokens) == (exported.n_features, exported.max_tokens)


def test_the_default_model_has_the_features_of_its_exported_graph(tmp_path: pathlib.Path) -> None:
    exact = Encoder.load(build_encoder(tmp_path / "fp32", "fp32"), "cpu")
    texts = ["Hi", "Prove that the sum of two odd integers is even.", "word " * 300]
    np.testing.assert_allclose(TorchEncoder.load(device="cpu").encode(texts), exact.encode(texts), atol=1e-4)


def test_bf16_rounds_and_says_so(bf16: TorchEncoder, exported: Encoder) -> None:
    features, exact = bf16.encode(TEXTS), exported.encode(TEXTS)
    assert features.dtype == np.float32
    cosine = (features * exact).sum(axis=1) / np.linalg.norm(features, axis=1)
    assert 0.997 < cosine.min() < 0.99999 and cosine.mean() > 0.999


def test_every_text_keeps_its_place_and_its_features_whatever_comes_with_it(fp32: TorchEncoder) -> None:
    features = fp32.encode(TEXTS)
    order = np.random.default_rng(0).permutation(len(TEXTS))
    shuffled = fp32.encode([TEXTS[row] for row in order])
    np.testing.assert_allclose(shuffled, features[order], atol=1e-5)
    for row in (0, 1, 44, 77):
        np.testing.assert_allclose(fp32.encode([TEXTS[row]])[0], features[row], atol=1e-5)


def test_batches_are_of_few_shapes_and_within_their_budget(
    fp32: TorchEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = []
    through = encoders_torch.blocks

    def watched(model: object, ids: torch.Tensor, *rest: object) -> object:
        shapes.append(tuple(ids.shape))
        return through(model, ids, *rest)

    monkeypatch.setattr(encoders_torch, "blocks", watched)
    monkeypatch.setattr(fp32, "tokens_per_batch", 256)
    fp32.encode(TEXTS)
    assert {width for _, width in shapes} == {16, 32}  # the longest that is read is 32
    assert max(rows * width for rows, width in shapes) == 256
    assert len({shape for shape in shapes if shape[0] * shape[1] < 256}) <= 2  # what is left of each bucket


def test_a_stream_takes_no_more_than_two_windows_ahead(
    fp32: TorchEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoders_torch, "WINDOW", 10)
    taken = itertools.count()

    def endless() -> Iterator[str]:
        for i in taken:
            yield TEXTS[i % len(TEXTS)]

    stream = fp32.stream(endless())
    parts = [next(stream) for _ in range(3)]
    assert [part.shape for part in parts] == [(10, fp32.n_features)] * 3
    assert next(taken) <= 3 * 10 + 11
    stream.close()
    np.testing.assert_allclose(np.concatenate(parts), fp32.encode(TEXTS[:30]), atol=1e-5)


def test_no_texts_no_rows(fp32: TorchEncoder) -> None:
    assert fp32.encode([]).shape == (0, fp32.n_features) and list(fp32.stream([])) == []


def test_anything_but_texts_is_refused(fp32: TorchEncoder) -> None:
    with pytest.raises(InputError, match="found one string"):
        fp32.encode("one string")
    with pytest.raises(InputError, match="NoneType at position 1"):
        fp32.encode(["fine", None])  # type: ignore[list-item]


def test_it_says_what_it_is_and_where_it_runs(fp32: TorchEncoder, bf16: TorchEncoder) -> None:
    assert (fp32.id, bf16.id) == ("st-torch-fp32", "st-torch-bf16")
    assert (fp32.device, fp32.provider, fp32.precision) == ("cpu", "torch, CPU", "fp32")
    assert fp32.threads == torch.get_num_threads()


def test_its_features_are_kept_apart_from_all_others(
    fp32: TorchEncoder, bf16: TorchEncoder, exported: Encoder, tmp_path: pathlib.Path
) -> None:
    assert not {*fp32.sha256.items()} & {*exported.sha256.items()} - {
        ("tokenizer.json", exported.sha256["tokenizer.json"])
    }
    assert len({cache_file(encoder, tmp_path) for encoder in (fp32, bf16, exported)}) == 3
    kept = [featurize(encoder, TEXTS[:20], cache_folder=tmp_path) for encoder in (fp32, bf16)]
    np.testing.assert_allclose(kept[0], fp32.encode(TEXTS[:20]), atol=1e-5)
    assert np.abs(kept[0] - kept[1]).max() > 1e-5


def test_other_weights_are_another_encoder(tiny: pathlib.Path, fp32: TorchEncoder) -> None:
    changed = encoders_torch.load_reference(tiny)
    with torch.no_grad():
        next(changed.parameters())[7, 7] += 1e-3
    assert TorchEncoder(changed, "st", "cpu", "fp32").sha256 != fp32.sha256


def test_without_cuda_it_says_what_it_got(tiny: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.warns(EnsembleWarning, match=r"asked torch for CUDA, got the CPU .*CUDA build"):
        assert TorchEncoder.load(tiny, "cuda").device == "cpu"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert encoders_torch.found_device("auto") == encoders_torch.found_device("cpu") == "cpu"


def test_another_device_or_precision_is_refused(tiny: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match='"auto", "cpu" or "cuda", found \'tpu\''):
        TorchEncoder.load(tiny, "tpu")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="found 'int8'"):
        TorchEncoder.load(tiny, "cpu", "int8")  # type: ignore[arg-type]

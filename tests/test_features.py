"""Features on disk: encoded once, safe to share, tied to the encoder's own files."""

from __future__ import annotations

import hashlib
import multiprocessing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from ensemble.errors import EnsembleError
from ensemble.learning import features
from ensemble.learning.features import cache_file, featurize


@dataclass
class Hashed:
    """A stand-in encoder: eight numbers from the text's hash; counts what it is asked."""

    id: str = "hashed"
    sha256: dict[str, str] = field(default_factory=lambda: {"encoder.onnx": "0" * 64})
    asked: list[str] = field(default_factory=list)
    breaks_after: int | None = None

    def encode(self, texts: list[str]) -> np.ndarray:
        if self.breaks_after is not None and len(self.asked) + len(texts) > self.breaks_after:
            raise KeyboardInterrupt
        self.asked += texts
        return np.array([expected(text) for text in texts], np.float32)


def expected(text: str) -> np.ndarray:
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return np.frombuffer(digest[:8], np.uint8).astype(np.float32)


TEXTS = [f"text {i} " + "x" * (i * 37 % 101) for i in range(1000)]


def test_every_text_gets_its_own_features_and_is_encoded_once(tmp_path: Path) -> None:
    encoder = Hashed()
    asked = [*TEXTS[:700], TEXTS[3], "lone \ud800"]
    got = featurize(encoder, asked, cache_folder=tmp_path)
    assert got.dtype == np.float32 and np.array_equal(got, [expected(text) for text in asked])
    assert sorted(encoder.asked) == sorted(set(asked))
    again = featurize(encoder, TEXTS, cache_folder=tmp_path)
    assert np.array_equal(again, [expected(text) for text in TEXTS])
    assert len(encoder.asked) == 1001


def test_texts_of_like_length_are_encoded_together(tmp_path: Path) -> None:
    encoder = Hashed()
    featurize(encoder, TEXTS, cache_folder=tmp_path)
    lengths = [len(text) for text in encoder.asked]
    assert lengths == sorted(lengths, reverse=True)


def test_another_graph_is_another_cache(tmp_path: Path) -> None:
    featurize(Hashed(), TEXTS[:10], cache_folder=tmp_path)
    changed = Hashed(sha256={"encoder.onnx": "1" * 64})
    featurize(changed, TEXTS[:10], cache_folder=tmp_path)
    assert len(changed.asked) == 10
    assert cache_file(Hashed(), tmp_path) != cache_file(changed, tmp_path)
    assert cache_file(Hashed(id="a/b: c"), tmp_path).parent == tmp_path


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        featurize(Hashed(breaks_after=600), TEXTS, cache_folder=tmp_path)
    encoder = Hashed()
    got = featurize(encoder, TEXTS, cache_folder=tmp_path)
    assert len(encoder.asked) == len(TEXTS) - 2 * features.CHUNK
    assert np.array_equal(got, [expected(text) for text in TEXTS])


def _run(folder: Path, start: int) -> float:
    return float(featurize(Hashed(), TEXTS[start:], cache_folder=folder).sum())


def test_runs_at_once_share_the_file(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        sums = pool.starmap(_run, [(tmp_path, 0), (tmp_path, 300), (tmp_path, 0)])
    assert sums == [float(sum(expected(t).sum() for t in TEXTS[start:])) for start in (0, 300, 0)]
    encoder = Hashed()
    featurize(encoder, TEXTS, cache_folder=tmp_path)
    assert encoder.asked == []


def test_no_texts(tmp_path: Path) -> None:
    assert featurize(Hashed(), [], cache_folder=tmp_path).shape == (0, 0)


def test_the_users_cache_folder_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    featurize(Hashed(), TEXTS[:3])
    assert cache_file(Hashed()).is_file() and tmp_path in cache_file(Hashed()).parents


def test_a_damaged_cache_says_what_to_do(tmp_path: Path) -> None:
    cache_file(Hashed(), tmp_path).write_bytes(b"not a database" * 100)
    with pytest.raises(EnsembleError, match="delete it"):
        featurize(Hashed(), TEXTS[:3], cache_folder=tmp_path)


@pytest.mark.parametrize("wrong", [np.zeros((2, 8)), np.zeros(3), np.full((3, 8), np.nan)], ids=str)
def test_a_wrong_encoder_is_refused_and_nothing_kept(tmp_path: Path, wrong: np.ndarray) -> None:
    broken = Hashed()
    broken.encode = lambda texts: wrong  # type: ignore[method-assign]
    with pytest.raises(EnsembleError, match=r"features \(3, n_features\)"):
        featurize(broken, TEXTS[:3], cache_folder=tmp_path)
    encoder = Hashed()
    featurize(encoder, TEXTS[:3], cache_folder=tmp_path)
    assert len(encoder.asked) == 3


def test_a_bar_is_shown_only_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    featurize(Hashed(), TEXTS[:300], cache_folder=tmp_path)
    assert capsys.readouterr() == ("", "")
    featurize(Hashed(), TEXTS, cache_folder=tmp_path, progress=True)
    out, err = capsys.readouterr()
    assert out == "" and "encoding prompts" in err

"""Texts in, predictions out: encoder and head opened together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ensemble import bundle
from ensemble import router as module
from ensemble.bundle import Manifest, MemberNote
from ensemble.encoder import Encoder
from ensemble.errors import BundleError, InputError
from ensemble.head import OUTPUTS
from ensemble.learning.export import build_graph
from ensemble.router import Router
from worlds import random_head

ENCODER_FOLDER = bundle.shipped_folder() / "encoders" / "all-minilm-l6-v2-depths-int8"
TEXTS = [
    "What is the capital of France?",
    "Prove that the square root of 2 is irrational. " * 40,
    "def f(x): return x",
    "Übersetze: Guten Morgen \U0001f600",
    "x",
]


def saved(place: Path, n_features: int = 1536) -> Path:
    made = Manifest(
        name="random",
        created="2026-01-02",
        encoder_id=ENCODER_FOLDER.name,
        encoder_sha256=dict(Encoder.load(ENCODER_FOLDER).sha256),
        members=(
            MemberNote("a", 10, 0.5, 3.0, "tuned", 0.1, 0.2),
            MemberNote("b", 10, 0.5, 4.0),
            MemberNote("c", 10, 0.5, 5.0, "frontier", 1.0, 2.0),
        ),
        recipe={},
        seed=0,
        figures={},
    )
    graph = build_graph(random_head(3, 50, n_features, 4))
    return bundle.save(place, made, head=graph, card="", encoder_folder=ENCODER_FOLDER)


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Router:
    return Router.load(saved(tmp_path_factory.mktemp("routers") / "random"))


def test_a_text_is_predicted_the_same_alone_and_in_a_batch(router: Router) -> None:
    together = router.predict(TEXTS)
    assert together.members == router.members == ("a", "b", "c")
    for i, text in enumerate(TEXTS):
        alone = router.predict([text])
        for name in OUTPUTS:
            got, want = getattr(alone, name), getattr(together, name)
            assert got.shape == (1, 3) and want.shape == (5, 3)
            np.testing.assert_allclose(got[0], want[i], rtol=1e-4 if "tokens" in name else 0, atol=1e-5)


def test_no_texts_give_no_rows(router: Router) -> None:
    none = router.predict([])
    assert none.members == ("a", "b", "c")
    assert all(getattr(none, name).shape == (0, 3) for name in OUTPUTS)


def test_what_is_no_list_of_texts_is_refused(router: Router) -> None:
    with pytest.raises(InputError, match=r"Pass \[text\]"):
        router.predict("one text")
    with pytest.raises(InputError, match="some text"):
        router.predict(["fine", "  "])


def test_it_tells_what_its_bundle_says(router: Router) -> None:
    assert router.characters_per_token == {"a": 3.0, "b": 4.0, "c": 5.0}
    assert router.id == bundle.load(router.folder).id
    references = router.references()
    assert [(m.name, m.kind, m.usd_per_million_output) for m in references] == [
        ("a", "tuned", 0.2),
        ("c", "frontier", 2.0),
    ]  # b's prices are not known, so nobody can be compared with it


def test_a_missing_default_router_is_said_plainly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.bundles, "shipped_folder", lambda: tmp_path)
    with pytest.raises(
        BundleError, match=r"comes with the library .*default, found none there.*ensemble train"
    ):
        Router.load()


def test_a_head_for_another_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="reads 16 features, its encoder makes 1536"):
        Router.load(saved(tmp_path / "narrow", n_features=16))

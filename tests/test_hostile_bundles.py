"""A router's folder made to do harm gets a BundleError, reads nothing outside, and leaves nothing behind."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks import hostile_bundles
from benchmarks.hostile_case import Case
from benchmarks.hostile_victim import head, opened, victim
from ensemble import bundle, router
from ensemble.encoder import Encoder
from ensemble.errors import BundleError
from ensemble.inference import open_session
from ensemble.router import Router

SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("case", hostile_bundles.CASES, ids=lambda case: case.what)
def test_each_gets_what_it_should(case: Case, tmp_path: Path) -> None:
    folder = tmp_path / "around" / "inside"
    folder.mkdir(parents=True)
    got, held = case.got(folder)
    assert held, got
    assert [path.name for path in folder.parent.iterdir()] == ["inside"]
    assert {path.name for path in (folder / "routers").iterdir()} == {"mine", "encoders"}


def test_a_case_is_not_held_by_another_error_or_none(tmp_path: Path) -> None:
    def act(folder: Path) -> None:
        raise BundleError("expected this")

    assert Case("", act, BundleError, "this").got(tmp_path) == ("BundleError: expected this", True)
    assert not Case("", act, BundleError, "that").got(tmp_path)[1]
    assert not Case("", act, None).got(tmp_path)[1]
    assert not Case("", lambda _: None, BundleError).got(tmp_path)[1]
    assert not Case("", lambda _: 1 / 0, BundleError).got(tmp_path)[1]


@given(content=st.binary(max_size=60))
@SHARED
def test_any_bytes_for_a_manifest_are_a_bundle_error(tmp_path: Path, content: bytes) -> None:
    place = tmp_path / "mine"
    if not place.exists():
        shutil.copytree(victim(tmp_path), place)
    (place / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"manifest"):
        bundle.load(place)


@given(at=st.integers(0, 500), by=st.binary(min_size=0, max_size=4), cut=st.integers(0, 4))
@SHARED
def test_a_head_with_any_bytes_changed_and_its_hash_right_opens_or_is_a_bundle_error(
    tmp_path: Path, at: int, by: bytes, cut: int
) -> None:
    place = tmp_path / "routers" / "mine"
    if not place.exists():
        victim(tmp_path)
    graph = head().SerializeToString()
    graph = graph[:at] + by + graph[at + cut :]
    (place / "head.onnx").write_bytes(graph)
    plain = json.loads((place / "manifest.json").read_text())
    plain["files"]["head.onnx"] = hashlib.sha256(graph).hexdigest()
    (place / "manifest.json").write_text(json.dumps(plain))
    try:
        opened(place)
    except BundleError as error:
        assert len(str(error)) > 40


def test_an_encoder_changed_between_check_and_use_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = victim(tmp_path)
    load = Encoder.load

    def changed(folder: Path, **keywords: object) -> Encoder:
        tokenizer = Path(folder) / "tokenizer.json"
        tokenizer.write_bytes(tokenizer.read_bytes() + b" ")
        return load(folder, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(router.Encoder, "load", changed)
    with pytest.raises(BundleError, match="changed while it was opened"):
        Router.load(place)


def test_names_in_a_graph_that_are_no_utf_8_are_a_bundle_error() -> None:
    with pytest.raises(BundleError, match="UTF-8"):
        open_session(head().SerializeToString().replace(b"reward_std", b"reward\xff\xff\xff\xff"))


def test_a_panic_is_told_and_an_interrupt_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened_once = Router.load(victim(tmp_path))

    def interrupted(texts: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(opened_once.encoder, "tokens", interrupted)
    with pytest.raises(KeyboardInterrupt):
        opened_once.look("a")

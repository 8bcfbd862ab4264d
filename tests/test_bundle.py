"""A router's folder: written whole or not at all, read only as it was written, and never a surprise."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ensemble import bundle
from ensemble.bundle import Manifest, MemberNote
from ensemble.errors import BundleError

ENCODER = {"encoder.onnx": b"graph", "tokenizer.json": b"words", "NOTICE": b"whose", "private.txt": b"no"}


def sha256(content: bytes) -> str:
    import hashlib

    return hashlib.sha256(content).hexdigest()


def manifest(**changes: Any) -> Manifest:
    made = Manifest(
        name="mine",
        created="2026-01-02",
        encoder_id="small",
        encoder_sha256={name: sha256(ENCODER[name]) for name in ("encoder.onnx", "tokenizer.json")},
        members=(MemberNote("a", 10, 0.5), MemberNote("b", 10, 0.25, 3.5, "tuned", 1.0, 2.0)),
        recipe={"name": "r"},
        seed=0,
        figures={},
        salt="s",
        learned="aa bb",
    )
    return dataclasses.replace(made, **changes)


@pytest.fixture
def encoder_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "source" / "small"
    folder.mkdir(parents=True)
    for name, content in ENCODER.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def saved(tmp_path: Path, encoder_folder: Path) -> Path:
    place = tmp_path / "routers" / "mine"
    return bundle.save(place, manifest(), head=b"head", card="card", encoder_folder=encoder_folder)


def test_what_is_saved_is_loaded(saved: Path) -> None:
    loaded = bundle.load(saved)
    files = loaded.manifest.files
    assert dataclasses.replace(loaded.manifest, files={}) == manifest()
    assert files == {"head.onnx": sha256(b"head"), "CARD.md": sha256(b"card")}
    assert loaded.head.read_bytes() == b"head" and len(loaded.id) == 16
    assert loaded.encoder_folder == saved.parent / "encoders" / "small"
    assert {p.name for p in loaded.encoder_folder.iterdir()} == {"encoder.onnx", "tokenizer.json", "NOTICE"}
    assert {p.name for p in saved.parent.iterdir()} == {"mine", "encoders"}  # nothing half made is left


def test_another_router_has_another_id(saved: Path, encoder_folder: Path) -> None:
    other = bundle.save(
        saved.parent / "other", manifest(), head=b"heads", card="card", encoder_folder=encoder_folder
    )
    assert bundle.load(other).id != bundle.load(saved).id


@pytest.mark.parametrize(
    "name", ["head.onnx", "CARD.md", "../encoders/small/encoder.onnx", "../encoders/small/tokenizer.json"]
)
def test_one_changed_byte_is_noticed(saved: Path, name: str) -> None:
    path = saved / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match="changed"):
        bundle.load(saved)


@given(data=st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_changed_byte_of_the_manifest_is_noticed_or_is_said_by_the_id(
    saved: Path, data: st.DataObject
) -> None:
    path, whole = saved / "manifest.json", (saved / "manifest.json").read_bytes()
    known = bundle.load(saved).id
    at = data.draw(st.integers(0, len(whole) - 1))
    changed = bytearray(whole)
    changed[at] = data.draw(st.integers(0, 255).filter(lambda byte: byte != whole[at]))
    path.write_bytes(changed)
    try:
        assert bundle.load(saved).id != known
    except BundleError:
        pass
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("name", ["manifest.json", "head.onnx", "CARD.md", "../encoders/small/encoder.onnx"])
@pytest.mark.parametrize("how", [Path.unlink, lambda path: (path.unlink(), path.mkdir())])
def test_a_missing_file_is_said(saved: Path, name: str, how: Callable[[Path], object]) -> None:
    how(saved / name)
    with pytest.raises(BundleError, match="missing"):
        bundle.load(saved)


@pytest.mark.parametrize("name", ["manifest.json", "head.onnx", "CARD.md"])
def test_a_link_out_of_the_folder_is_not_followed(saved: Path, name: str) -> None:
    moved = saved.parent / "elsewhere"
    (saved / name).rename(moved)
    (saved / name).symlink_to(moved)
    with pytest.raises(BundleError, match="not a plain file"):
        bundle.load(saved)


def test_no_folder_at_all(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="ensemble train"):
        bundle.load(tmp_path / "nowhere")


def rewritten(saved: Path, **changes: Any) -> Path:
    plain = json.loads((saved / "manifest.json").read_text())
    (saved / "manifest.json").write_text(json.dumps(plain | changes))
    return saved


@pytest.mark.parametrize("version", [2, 99, 0, -1, "1", 1.0, True, None])
def test_a_format_of_another_version_is_refused(saved: Path, version: Any) -> None:
    with pytest.raises(BundleError, match=r"reads up to 1"):
        bundle.load(rewritten(saved, format=version))


def test_an_older_format_is_upgraded_step_by_step(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ensemble import manifest as module

    monkeypatch.setitem(module.UPGRADES, 0, lambda plain: plain | {"format": 1, "seed": 7})
    assert bundle.load(rewritten(saved, format=0)).manifest.seed == 7


@pytest.mark.parametrize(
    "changes",
    [
        {"encoder_id": "../small"},
        {"encoder_id": "/etc"},
        {"encoder_id": ".."},
        {"encoder_id": "a\\b"},
        {"encoder_id": ""},
        {"encoder_id": "small\n"},
        {"encoder_sha256": {}},
        {"files": {"CARD.md": "x"}},
        {"files": ["head.onnx", "CARD.md"]},
        {"members": []},
        {"members": [{"name": "a", "n_prompts": 1, "mean_reward": 0.5}] * 2},
        {"members": [{"name": "a", "n_prompts": 1, "mean_reward": 0.5, "characters_per_token": 0}]},
        {"members": [{"name": "a", "n_prompts": 1, "mean_reward": 0.5, "kind": "king"}]},
        {"members": [{"name": "a", "n_prompts": 1, "mean_reward": 0.5, "usd_per_million_input": -1}]},
        {"members": [{"name": 5, "n_prompts": 1, "mean_reward": 0.5}]},
        {"members": {"a": 1}},
        {"learned_from": [1]},
        {"learned_from": "aa"},
        {"seed": "0"},
        {"surprise": 1},
    ],
)
def test_nonsense_in_the_manifest_is_said(saved: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match="does not hold a manifest of format 1"):
        bundle.load(rewritten(saved, **changes))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = [field.name for field in dataclasses.fields(Manifest)]


@given(plain=JSON | st.fixed_dictionaries({}, optional={name: JSON for name in FIELDS}))
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_no_json_whatever_raises_anything_but_a_bundle_error(saved: Path, plain: Any) -> None:
    path = saved / "manifest.json"
    whole = path.read_bytes()
    for content in (plain, (json.loads(whole) | plain) if isinstance(plain, dict) else plain):
        path.write_text(json.dumps(content))
        try:
            bundle.load(saved)
        except BundleError:
            pass
        finally:
            path.write_bytes(whole)


@pytest.mark.parametrize("raw", [b"", b"\xff\xfe", b"[" * 100_000, b'{"format": NaN}', b"1" * 5000])
def test_bytes_that_are_no_json_are_refused(saved: Path, raw: bytes) -> None:
    (saved / "manifest.json").write_bytes(raw)
    with pytest.raises(BundleError):
        bundle.load(saved)


def test_a_folder_with_other_things_is_never_replaced(tmp_path: Path, encoder_folder: Path) -> None:
    folder, file = tmp_path / "letters", tmp_path / "file"
    folder.mkdir()
    (folder / "to_mother.txt").write_text("dear")
    file.write_text("mine")
    for place in (folder, file):
        with pytest.raises(BundleError, match="Name another"):
            bundle.save(place, manifest(), head=b"h", card="", encoder_folder=encoder_folder)
    assert (folder / "to_mother.txt").read_text() == "dear" and file.read_text() == "mine"


def test_a_router_is_replaced_and_a_link_to_it_stays_a_link(saved: Path, encoder_folder: Path) -> None:
    link = saved.parent / "current"
    link.symlink_to(saved, target_is_directory=True)
    bundle.save(link, manifest(), head=b"new", card="card", encoder_folder=encoder_folder)
    assert link.is_symlink() and bundle.load(saved).head.read_bytes() == b"new"
    assert {p.name for p in saved.parent.iterdir()} == {"mine", "current", "encoders"}


def test_a_save_that_breaks_half_way_leaves_the_old_router(
    saved: Path, encoder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(path: Path, content: bytes) -> int:
        if path.name == "CARD.md":
            raise OSError("no space left")
        return len(content)

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="no space"):
        bundle.save(saved, manifest(), head=b"new", card="card", encoder_folder=encoder_folder)
    assert bundle.load(saved).head.read_bytes() == b"head"
    assert {p.name for p in saved.parent.iterdir()} == {"mine", "encoders"}


def test_what_could_not_be_loaded_is_not_written(saved: Path, encoder_folder: Path) -> None:
    with pytest.raises(BundleError, match="members with names of their own"):
        bundle.save(saved, manifest(members=()), head=b"new", card="", encoder_folder=encoder_folder)
    with pytest.raises(ValueError, match="JSON"):
        bundle.save(
            saved,
            manifest(figures={"aiq": float("nan")}),
            head=b"new",
            card="",
            encoder_folder=encoder_folder,
        )
    assert bundle.load(saved).head.read_bytes() == b"head"


def test_another_encoder_of_the_same_name_is_neither_used_nor_replaced(saved: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "small"
    shutil.copytree(saved.parent / "encoders" / "small", other)
    (other / "encoder.onnx").write_bytes(b"another graph")
    hashes = manifest().encoder_sha256 | {"encoder.onnx": sha256(b"another graph")}
    with pytest.raises(BundleError, match="found another of that name"):
        bundle.save(
            saved.parent / "new", manifest(encoder_sha256=hashes), head=b"h", card="", encoder_folder=other
        )
    assert bundle.load(saved).head.read_bytes() == b"head" and not (saved.parent / "new").exists()


def test_the_shipped_encoder_is_found_and_not_copied(tmp_path: Path) -> None:
    name = "all-minilm-l6-v2-depths-int8"
    shipped = bundle.shipped_folder() / "encoders" / name
    hashes = {file: sha256((shipped / file).read_bytes()) for file in ("encoder.onnx", "tokenizer.json")}
    made = manifest(encoder_id=name, encoder_sha256=hashes)
    place = bundle.save(tmp_path / "mine", made, head=b"h", card="", encoder_folder=shipped)
    assert bundle.load(place).encoder_folder == shipped
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]

"""How is a router stored? A folder with a manifest, an ONNX head and a card; never a pickle.

    <router_models>/<name>/manifest.json     what is said below, and the SHA-256 of the other files
                          /head.onnx         features -> predictions
                          /CARD.md           for people
    <router_models>/encoders/<id>/           the encoder it was trained with, shared between routers

Loading checks every hash. The manifest names an encoder by id and hash, never by path: it is looked
for beside the bundle, then among those that come with the library, so nothing in a bundle can reach
elsewhere, and nothing in it is executed. Graphs may not loop, but how much memory a graph or a tokenizer
asks for is not bounded: open those of people you trust.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ensemble.errors import BundleError
from ensemble.manifest import CARD, ENCODER_FILES, FILES, HEAD, MANIFEST, Manifest, MemberNote, parse
from ensemble.plain_file import open_plain, read_plain

__all__ = ["Bundle", "Manifest", "MemberNote", "check_place", "load", "save", "shipped_folder"]


LARGEST_FILE = 64 * 2**20  # bytes
LARGEST_ENCODER_FILE = 2**31  # bytes: no ONNX graph that holds its own weights is larger
ENCODERS = "encoders"
ENCODER_NOTES = ("encoder.json", "NOTICE")


@dataclass(frozen=True)
class Bundle:
    """A checked bundle: its folder, manifest, and the folder of its encoder.

    ``id`` is a hash over the manifest and all that it vouches for: one router, one id.
    """

    folder: Path
    manifest: Manifest
    encoder_folder: Path
    id: str

    @property
    def head(self) -> Path:
        """The head's graph."""
        return self.folder / HEAD


def shipped_folder() -> Path:
    """Where the routers and encoders that come with the library lie."""
    package = Path(__file__).resolve().parent
    in_wheel = package / "_routers"
    return in_wheel if in_wheel.is_dir() else package.parent / "router_models"


def load(folder: str | os.PathLike[str]) -> Bundle:
    """Read a bundle and check it whole. Raises BundleError for anything that is not as the manifest says."""
    place = Path(folder)
    raw = _read(place, MANIFEST)
    manifest = parse(raw, place / MANIFEST)
    for name in FILES:
        _check_hash(place / name, _read(place, name), manifest.files[name])
    return Bundle(
        folder=place,
        manifest=manifest,
        encoder_folder=_find_encoder(place, manifest),
        id=hashlib.sha256(raw).hexdigest()[:16],
    )


def check_place(folder: str | os.PathLike[str]) -> Path:
    """Where ``save`` would write, links followed; BundleError unless it is new, empty or a router's."""
    place = Path(folder).resolve()
    taken = place.exists() and not (place / MANIFEST).is_file()
    if taken and (not place.is_dir() or any(place.iterdir())):
        raise BundleError(f"expected an empty or new folder, or a router's, at {place}. Name another.")
    return place


def save(
    folder: str | os.PathLike[str], manifest: Manifest, *, head: bytes, card: str, encoder_folder: Path
) -> Path:
    """Write a bundle; an encoder that doesn't come with the library is copied beside it.

    The folder is written under another name and moved into place, so that a reader never sees half
    of it. An earlier bundle there is replaced; anything else there is a BundleError.
    """
    place = check_place(folder)
    contents = {HEAD: head, CARD: card.encode()}
    files = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    contents[MANIFEST] = dataclasses.replace(manifest, files=files).as_json()
    parse(contents[MANIFEST], place / MANIFEST)  # what could not be loaded is not written
    _provide_encoder(place, manifest, encoder_folder)
    _move_into_place(place, lambda new: [(new / name).write_bytes(c) for name, c in contents.items()])
    return place


def _provide_encoder(place: Path, manifest: Manifest, encoder_folder: Path) -> None:
    beside = place.parent / ENCODERS / manifest.encoder_id
    if any(_is_encoder(known, manifest) for known in _encoder_places(place, manifest)):
        return
    if beside.exists():
        raise BundleError(
            f"expected the encoder {manifest.encoder_id!r} that the router was trained with at {beside}, "
            "found another of that name. Rename the encoder's folder and train again, or save elsewhere."
        )
    names = [name for name in ENCODER_FILES + ENCODER_NOTES if (encoder_folder / name).is_file()]
    _move_into_place(beside, lambda new: [shutil.copyfile(encoder_folder / n, new / n) for n in names])


def _move_into_place(place: Path, fill: Callable[[Path], object]) -> None:
    """Fill a new folder and let it take the place of what is there; on failure all stays as it was."""
    place.parent.mkdir(parents=True, exist_ok=True)
    new, old = (place.with_name(f".{place.name}.{secrets.token_hex(4)}.{what}") for what in ("new", "old"))
    try:
        new.mkdir()
        fill(new)
        if place.exists():
            place.rename(old)
        try:
            new.rename(place)
        except OSError:
            if old.exists():
                old.rename(place)
            raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _read(folder: Path, name: str) -> bytes:
    try:
        content = read_plain(folder / name, LARGEST_FILE + 1, follow_link=False)
    except OSError as error:
        raise BundleError(
            f"expected a router's folder with {MANIFEST}, {', '.join(FILES)} at {folder}; found: {name} is "
            f"missing or not a plain file ({error.strerror}). "
            "Check the path, or train one: ensemble train --data TABLE --out FOLDER"
        ) from error
    if len(content) > LARGEST_FILE:
        raise BundleError(
            f"expected at most {LARGEST_FILE} bytes in {folder / name}, found more. Is it a router's?"
        )
    return content


def _check_hash(path: Path, content: bytes, expected: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise BundleError(
            f"{path} was changed: the manifest says SHA-256 {expected}, the file has {found}. "
            "Fetch or train the router again."
        )


def _encoder_places(folder: Path, manifest: Manifest) -> list[Path]:
    """Where an encoder may lie: beside the bundle, or among those that come with the library."""
    return [parent / ENCODERS / manifest.encoder_id for parent in (folder.resolve().parent, shipped_folder())]


def _is_encoder(place: Path, manifest: Manifest) -> bool:
    """Whether the encoder that the manifest vouches for lies there."""
    return all(_file_sha256(place / name) == manifest.encoder_sha256[name] for name in ENCODER_FILES)


def _file_sha256(path: Path) -> str | None:
    """None where there is no such file, a link in its place, or one too large to be an encoder's."""
    try:
        with open_plain(path, follow_link=False) as file:
            if os.fstat(file.fileno()).st_size > LARGEST_ENCODER_FILE:
                return None
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _find_encoder(folder: Path, manifest: Manifest) -> Path:
    places = _encoder_places(folder, manifest)
    for place in places:
        if _is_encoder(place, manifest):
            return place
    found = [str(place) for place in places if place.exists()]
    raise BundleError(
        f"the router at {folder} needs the encoder {manifest.encoder_id!r}; looked in "
        f"{' and '.join(str(place.parent) for place in places)}. "
        + (f"Its files were changed, are links, or are missing at: {', '.join(found)}. " if found else "")
        + "Put the encoder's folder there as it was when the router was trained."
    )

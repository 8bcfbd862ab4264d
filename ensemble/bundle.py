"""How is a router stored? A folder with a manifest, an ONNX head and a card; never a pickle.

    <router_models>/<name>/manifest.json     what is said below, and the SHA-256 of the other files
                          /head.onnx         features -> predictions
                          /CARD.md           for people
    <router_models>/encoders/<id>/           the encoder it was trained with, shared between routers

Loading checks every hash. The manifest names an encoder by id and hash, never by path: it is looked
for beside the bundle, then among those that come with the library, so nothing in a bundle can reach
elsewhere, and nothing in it is executed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ensemble.errors import BundleError
from ensemble.records import Kind

FORMAT = 1
MANIFEST, HEAD, CARD = "manifest.json", "head.onnx", "CARD.md"
FILES = (HEAD, CARD)
LARGEST_FILE = 64 * 2**20
ENCODERS = "encoders"

# Written steps from an older format's manifest to the next, by the format they start from.
UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}


@dataclass(frozen=True)
class MemberNote:
    """What the training run learned of a member beside its row in the head.

    ``characters_per_token`` turns a prompt's length into input tokens; the prices, USD per million
    tokens, are those its costs were measured at; ``None`` where the table didn't tell.
    """

    name: str
    n_prompts: int
    mean_reward: float
    characters_per_token: float = 4.0
    kind: Kind = "frontier"
    usd_per_million_input: float | None = None
    usd_per_million_output: float | None = None


@dataclass(frozen=True)
class Manifest:
    """``members`` in the head's row order; ``learned_from`` holds the salted hashes of every prompt that
    was learned or chosen from (``salt``), so that an evaluation can leave them out."""

    name: str
    created: str  # ISO date
    encoder_id: str
    encoder_sha256: Mapping[str, str]
    members: tuple[MemberNote, ...]
    recipe: Mapping[str, Any]
    seed: int
    figures: Mapping[str, Any]
    salt: str = ""
    learned_from: frozenset[str] = field(default=frozenset(), repr=False)
    files: Mapping[str, str] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def member_names(self) -> tuple[str, ...]:
        return tuple(member.name for member in self.members)


@dataclass(frozen=True)
class Bundle:
    """A checked bundle: its folder, manifest, the head's bytes, and the folder of its encoder.

    ``id`` is a hash over the manifest and all that it vouches for: one router, one id.
    """

    folder: Path
    manifest: Manifest
    head: bytes = field(repr=False)
    encoder_folder: Path
    id: str


def shipped_folder() -> Path:
    """Where the routers and encoders that come with the library lie."""
    package = Path(__file__).resolve().parent
    in_wheel = package / "_routers"
    return in_wheel if in_wheel.is_dir() else package.parent / "router_models"


def load(folder: str | os.PathLike[str]) -> Bundle:
    """Read a bundle and check it whole. Raises BundleError for anything that is not as the manifest says."""
    place = Path(folder)
    raw = _read(place, MANIFEST)
    manifest = _parse(raw, place)
    contents = {}
    for name in FILES:
        contents[name] = _read(place, name)
        _check_hash(place / name, contents[name], manifest.files[name])
    return Bundle(
        folder=place,
        manifest=manifest,
        head=contents[HEAD],
        encoder_folder=_find_encoder(place, manifest),
        id=hashlib.sha256(raw).hexdigest()[:16],
    )


def save(
    folder: str | os.PathLike[str], manifest: Manifest, *, head: bytes, card: str, encoder_folder: Path
) -> Path:
    """Write a bundle; an encoder that doesn't come with the library is copied beside it.

    The folder is written under another name and moved into place, so that a reader never sees half
    of it. An earlier bundle there is replaced; anything else there is a BundleError.
    """
    place = Path(folder)
    if (
        place.exists()
        and not (place / MANIFEST).is_file()
        and any(place.iterdir() if place.is_dir() else [place])
    ):
        raise BundleError(
            f"expected an empty or new folder, or a router to replace, at {place}. Name another."
        )
    new = place.with_name(place.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    contents = {HEAD: head, CARD: card.encode()}
    for name, content in contents.items():
        (new / name).write_bytes(content)
    files = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    plain = dataclasses.asdict(dataclasses.replace(manifest, files=files))
    plain["learned_from"] = sorted(manifest.learned_from)
    (new / MANIFEST).write_text(json.dumps(plain, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    if not (shipped_folder() / ENCODERS / manifest.encoder_id).is_dir():
        beside = place.parent / ENCODERS / manifest.encoder_id
        if not beside.is_dir():
            shutil.copytree(encoder_folder, beside)
    shutil.rmtree(place, ignore_errors=True)
    new.rename(place)
    return place


def _read(folder: Path, name: str) -> bytes:
    path = folder / name
    try:
        if path.is_symlink() or not path.is_file():
            raise FileNotFoundError(f"{name} is missing or not a plain file")
        if path.stat().st_size > LARGEST_FILE:
            raise BundleError(
                f"expected at most {LARGEST_FILE} bytes in {path}, found {path.stat().st_size}."
            )
        return path.read_bytes()
    except OSError as error:
        raise BundleError(
            f"expected a router's folder with {MANIFEST}, {', '.join(FILES)} at {folder}; found: {error}. "
            "Check the path, or train one: ensemble train --data TABLE --out FOLDER"
        ) from error


def _check_hash(path: Path, content: bytes, expected: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise BundleError(
            f"{path} was changed: the manifest says SHA-256 {expected}, the file has {found}. "
            "Fetch or train the router again."
        )


def _parse(raw: bytes, folder: Path) -> Manifest:
    where = folder / MANIFEST
    try:
        plain = json.loads(raw)
        version = plain["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(
            f"{where} is not a router's manifest ({error!r}). Fetch or train it again."
        ) from error
    if not isinstance(version, int) or version > FORMAT or (version < FORMAT and version not in UPGRADES):
        raise BundleError(
            f"{where} has format {version!r}; this version of ensemble-router reads up to {FORMAT}. "
            "Upgrade with: pip install -U ensemble-router"
        )
    while plain["format"] < FORMAT:
        plain = UPGRADES[plain["format"]](plain)
    try:
        plain["members"] = tuple(MemberNote(**note) for note in plain["members"])
        plain["learned_from"] = frozenset(plain["learned_from"])
        manifest = Manifest(**plain)
        missing = [name for name in FILES if name not in manifest.files]
        if missing or not manifest.members:
            raise ValueError(f"no {', '.join(missing) or 'members'}")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", manifest.encoder_id):
            raise ValueError(f"encoder_id {manifest.encoder_id!r} is not a plain name")
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{where} does not hold a manifest of format {FORMAT}: {error}") from error
    return manifest


def _find_encoder(folder: Path, manifest: Manifest) -> Path:
    places = [
        parent / ENCODERS / manifest.encoder_id for parent in (folder.resolve().parent, shipped_folder())
    ]
    for place in places:
        if place.is_dir():
            for name, expected in manifest.encoder_sha256.items():
                if name in ("encoder.onnx", "tokenizer.json"):
                    _check_hash(place / name, _read(place, name), expected)
            return place
    raise BundleError(
        f"the router at {folder} needs the encoder {manifest.encoder_id!r}; looked in "
        f"{' and '.join(str(place.parent) for place in places)}. Put the encoder's folder there."
    )

"""What does a router say of itself? The contents of its manifest.json, written and read with care."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from ensemble.errors import BundleError
from ensemble.records import Kind

FORMAT = 1
MANIFEST, HEAD, CARD = "manifest.json", "head.onnx", "CARD.md"
FILES = (HEAD, CARD)
ENCODER_FILES = ("encoder.onnx", "tokenizer.json")  # what fixes the features
LARGEST = 1e12  # of what is counted or paid

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
    """``members`` in the head's row order; ``learned`` holds the salted hashes (``salt``) of every prompt
    that was learned or chosen from, sorted, with a space between them: as texts of their own they would take
    four times the memory, which whoever serves pays for."""

    name: str
    created: str  # ISO date
    encoder_id: str
    encoder_sha256: Mapping[str, str]
    members: tuple[MemberNote, ...]
    recipe: Mapping[str, Any]
    seed: int
    figures: Mapping[str, Any]
    salt: str = ""
    learned: str = field(default="", repr=False)
    files: Mapping[str, str] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def member_names(self) -> tuple[str, ...]:
        return tuple(member.name for member in self.members)

    @property
    def learned_from(self) -> frozenset[str]:
        """The hashes in ``learned``, so that an evaluation can leave those prompts out."""
        return frozenset(self.learned.split())

    def as_json(self) -> bytes:
        """What ``parse`` reads. Raises ValueError for a figure that is not finite."""
        plain = dataclasses.asdict(self)
        plain["learned_from"] = plain.pop("learned").split()
        return (json.dumps(plain, indent=1, allow_nan=False) + "\n").encode()


def parse(raw: bytes, where: Path) -> Manifest:
    """Read what stands in the file ``where``. Raises BundleError for anything that is not a manifest."""
    try:
        plain = json.loads(raw, parse_constant=_number, parse_float=_number, object_pairs_hook=_table)
        version = plain["format"]
        found = repr(version)[:80]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(
            f"{where} is no router's manifest ({str(error)[:300]}). Fetch or train it again."
        ) from error
    if type(version) is not int or version > FORMAT or (version < FORMAT and version not in UPGRADES):
        raise BundleError(
            f"{where} has format {found}; this version of ensemble-router reads up to {FORMAT}. "
            "Upgrade with: pip install -U ensemble-router"
        )
    try:
        while plain["format"] < FORMAT:
            plain = UPGRADES[plain["format"]](plain)
        return _manifest(plain)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise BundleError(
            f"{where} does not hold a manifest of format {FORMAT}: {str(error)[:300]}. "
            "Fetch or train the router again."
        ) from error


def _number(text: str) -> float:
    if math.isfinite(number := float(text)):
        return number
    raise ValueError(f"{text[:80]} is no number that JSON can hold")


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("a name stands twice in one table: readers would differ on what it says")
    return table


_TYPES: dict[str, type] = {
    "name": str,
    "created": str,
    "encoder_id": str,
    "encoder_sha256": dict,
    "members": list,
    "recipe": dict,
    "seed": int,
    "figures": dict,
    "salt": str,
    "learned_from": list,
    "files": dict,
}


def _manifest(plain: dict[str, Any]) -> Manifest:
    """Raises KeyError, TypeError or ValueError for what is no manifest of this format."""
    for name, expected in _TYPES.items():
        if not isinstance(plain[name], expected):
            raise TypeError(f"{name} should be of type {expected.__name__}, found {str(plain[name])[:80]!r}")
    texts = [*plain["learned_from"], *plain["files"].values(), *plain["encoder_sha256"].values()]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("learned_from, files and encoder_sha256 should hold texts only")
    members = tuple(_note(note) for note in plain["members"])
    learned = " ".join(sorted(plain.pop("learned_from")))
    manifest = Manifest(**plain | {"members": members, "learned": learned})
    missing = [name for name in FILES if name not in manifest.files]
    missing += [name for name in ENCODER_FILES if name not in manifest.encoder_sha256]
    if missing:
        raise ValueError(f"no SHA-256 of {', '.join(missing)}")
    if not members or len(set(manifest.member_names)) < len(members):
        raise ValueError("expected members with names of their own")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", manifest.encoder_id):
        raise ValueError(f"encoder_id {manifest.encoder_id[:80]!r} is not a plain name")
    return manifest


def _note(plain: dict[str, Any]) -> MemberNote:
    note = MemberNote(**plain)
    prices = [p for p in (note.usd_per_million_input, note.usd_per_million_output) if p is not None]
    amounts = [note.n_prompts, note.mean_reward, note.characters_per_token, *prices]
    sound = all(type(amount) in (int, float) and 0 <= amount <= LARGEST for amount in amounts)
    named = isinstance(note.name, str) and note.name != "" and note.name.isprintable()
    if not (named and note.kind in get_args(Kind) and sound):
        raise ValueError(f"not what is known of a member: {str(plain)[:300]}")
    if not 1e-6 <= note.characters_per_token <= 1e6:
        raise ValueError(f"characters_per_token of {note.name[:80]!r} should be above 0, by a usual amount")
    return note

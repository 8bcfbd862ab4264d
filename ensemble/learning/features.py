"""Prompts to features, kept on disk: an encoder sees a text once, however many runs ask for it.

One SQLite file per encoder (by its id and the SHA-256 of its files) holds a vector per prompt hash.
Each chunk is one transaction, so an interrupted run goes on where it stopped and several runs may
share the file. The file holds no text, but features of prompts are personal data as prompts are.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sqlite3
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ensemble.errors import EnsembleError

FloatArray = npt.NDArray[np.float32]
CHUNK = 256  # texts encoded and stored at once: what an interruption can cost
_LOOKUP = 500  # keys per query, under SQLite's oldest limit on variables


class Encodes(Protocol):
    """What is needed of an encoder; ``sha256`` maps its files' names to their hashes."""

    @property
    def id(self) -> str: ...

    @property
    def sha256(self) -> Mapping[str, str]: ...

    def encode(self, texts: list[str], /) -> Any: ...


def featurize(
    encoder: Encodes,
    texts: Sequence[str],
    *,
    cache_folder: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> FloatArray:
    """The features of ``texts``, float32 ``(n_texts, n_features)``; encodes only what is not stored yet.

    ``cache_folder`` ``None`` means the user's cache folder. ``progress`` shows a bar on stderr while
    encoding. No texts give shape ``(0, 0)``.

    :raises EnsembleError: the cache file is damaged, or the encoder returned something else than one
        finite vector of one length per text.
    """
    if not len(texts):
        return np.zeros((0, 0), np.float32)
    keys = [hashlib.blake2b(t.encode("utf-8", "surrogatepass"), digest_size=16).digest() for t in texts]
    path = cache_file(encoder, cache_folder)
    try:
        with contextlib.closing(_open(path)) as cache:
            vectors = _stored(cache, set(keys))
            missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in vectors}
            for chunk in _chunks(missing, progress):
                encoded = _encoded(encoder, list(chunk.values()))
                with cache:
                    rows = [(k, v.tobytes()) for k, v in zip(chunk, encoded, strict=True)]
                    cache.executemany("INSERT OR IGNORE INTO features VALUES (?, ?)", rows)
                vectors.update(zip(chunk, encoded, strict=True))
    except sqlite3.DatabaseError as error:
        raise EnsembleError(
            f"the feature cache {path} cannot be used ({error}): delete it, or name another cache folder"
        ) from error
    widths = {len(vector) for vector in vectors.values()}
    if len(widths) > 1:
        raise EnsembleError(
            f"the feature cache {path} mixes vectors of {sorted(widths)} numbers for one encoder: delete it"
        )
    return np.stack([vectors[key] for key in keys])


def cache_file(encoder: Encodes, cache_folder: str | os.PathLike[str] | None = None) -> Path:
    """Where the features of this encoder are kept; the name changes with any of its files."""
    identity = hashlib.sha256(json.dumps([encoder.id, sorted(encoder.sha256.items())]).encode()).hexdigest()
    name = re.sub(r"[^\w.-]+", "_", encoder.id)[:80]
    folder = Path(cache_folder) if cache_folder is not None else _user_cache_folder()
    return folder / f"features-{name}-{identity[:16]}.sqlite"


def _user_cache_folder() -> Path:
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "ensemble-router"


def _open(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    cache = sqlite3.connect(path, timeout=60)
    cache.execute("PRAGMA journal_mode = WAL")
    cache.execute("CREATE TABLE IF NOT EXISTS features (prompt BLOB PRIMARY KEY, vector BLOB) WITHOUT ROWID")
    return cache


def _stored(cache: sqlite3.Connection, keys: set[bytes]) -> dict[bytes, FloatArray]:
    found: dict[bytes, FloatArray] = {}
    wanted = sorted(keys)
    for start in range(0, len(wanted), _LOOKUP):
        some = wanted[start : start + _LOOKUP]
        marks = ", ".join("?" * len(some))
        rows = cache.execute(f"SELECT prompt, vector FROM features WHERE prompt IN ({marks})", some)
        found.update((key, np.frombuffer(vector, np.float32)) for key, vector in rows)
    return found


def _chunks(missing: Mapping[bytes, str], progress: bool) -> Iterator[dict[bytes, str]]:
    """The missing texts, longest first: like lengths together waste no padding, and the bar never stalls."""
    order = sorted(missing, key=lambda key: len(missing[key]), reverse=True)
    starts: Iterable[int] = range(0, len(order), CHUNK)
    if progress and order:
        from rich.console import Console
        from rich.progress import track

        starts = track(starts, "encoding prompts", console=Console(stderr=True))
    for start in starts:
        yield {key: missing[key] for key in order[start : start + CHUNK]}


def _encoded(encoder: Encodes, texts: list[str]) -> FloatArray:
    vectors = np.ascontiguousarray(encoder.encode(texts), np.float32)
    if vectors.ndim != 2 or len(vectors) != len(texts) or not np.isfinite(vectors).all():
        raise EnsembleError(
            f"expected the encoder {encoder.id!r} to return finite features ({len(texts)}, n_features), "
            f"found shape {vectors.shape}, {int((~np.isfinite(vectors)).sum())} values not finite"
        )
    return vectors

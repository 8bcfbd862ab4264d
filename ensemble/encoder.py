"""How does text become features?

An encoder is a folder: encoder.onnx (token ids and mask -> features), tokenizer.json, and, to be
read by people, encoder.json and NOTICE. What the code needs to know stands in the graph's metadata,
so that the graph's SHA-256 and the tokenizer's fix the features.

A text of more than ``max_tokens`` tokens is read head and tail: its first and its last tokens, half
and half. One of more than ``16 * max_tokens`` characters is first cut to its first and its last
``8 * max_tokens`` characters, which is as if it were read whole unless a token spans 16 of them.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pathlib
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from ensemble.errors import BundleError, InputError, MissingExtraError
from ensemble.inference import PROVIDERS, Device, Session, open_session

GRAPH, TOKENIZER = "encoder.onnx", "tokenizer.json"
FORMAT = "1"
CHARACTERS_PER_TOKEN = 8  # kept at each end of a very long text, times max_tokens
TOKENS_PER_BATCH = 512  # padded; more is no faster on a CPU, and holds more memory
TOKENS_PER_BATCH_CUDA = 32_768
SIDE_BY_SIDE = (
    32  # batches from which on a CPU's cores take one each; to prepare that costs as much as twelve
)
LEAST_GAIN = 0.05  # of the time of a batch: where a call's fixed cost is less of it, a larger one doesn't pay


class Encoder:
    """Text to features: the same for a text alone and in any batch, to 1e-5. Thread-safe.

    ``id`` is the folder's name, ``n_features`` the width, ``max_tokens`` how many tokens of a text
    are read, ``trained`` says what of it was trained on outcomes (``None``: nothing), ``provider`` is the
    onnxruntime execution provider it runs on with ``threads`` threads, ``tokens_per_batch`` how much
    ``encode`` gives it at once, ``sha256`` the hex digests of its two files, by name. Once many texts were
    encoded on a CPU, the graph stays open a second time, for runs side by side.
    """

    def __init__(self, id: str, tokenizer: bytes, session: Session) -> None:
        self.id = id
        self._session = session
        self.provider, self.threads = session.provider, session.threads
        self.sha256 = {GRAPH: session.sha256, TOKENIZER: hashlib.sha256(tokenizer).hexdigest()}
        self.n_features = int(session.outputs["features"][1])
        self.max_tokens = int(session.metadata["max_tokens"])
        self.trained = session.metadata.get("trained")
        on_cpu = self.provider == PROVIDERS["cpu"]
        self.tokens_per_batch = TOKENS_PER_BATCH if on_cpu else TOKENS_PER_BATCH_CUDA
        self._pad_id = int(session.metadata["pad_id"])
        self._reader = Reader(tokenizer, self.max_tokens)

    @classmethod
    def load(
        cls, folder: str | os.PathLike[str], device: Device = "auto", threads: int | None = None
    ) -> Encoder:
        """Open an encoder's folder; ``device`` and ``threads`` as in ``inference.open_session``.

        Raises ``BundleError`` where a file is missing or of another format.
        """
        place = pathlib.Path(folder)
        try:
            tokenizer = (place / TOKENIZER).read_bytes()
        except OSError as error:
            raise BundleError(
                f"expected an encoder's folder with {GRAPH} and {TOKENIZER} at {place}, found: {error}. "
                "Make one with: ensemble encoder build"
            ) from error
        session = open_session(place / GRAPH, device, threads)
        found = session.metadata.get("ensemble_encoder_format")
        if found != FORMAT:
            raise BundleError(
                f"expected {place / GRAPH} to be an encoder of format {FORMAT}, found format {found}. "
                "Export it again with training/export_encoder.py, or install a version that reads it."
            )
        return cls(place.resolve().name, tokenizer, session)

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """The features of each text, float32 (n_prompts, n_features), in the order of ``texts``.

        Raises ``InputError`` for anything but a sequence of strings that are valid Unicode.
        """
        ids = self.tokens(texts)
        features = np.empty((len(ids), self.n_features), dtype=np.float32)
        batches = list(_batches([len(line) for line in ids], self.tokens_per_batch))

        def encode(rows: list[int], threads: int | None = None) -> None:
            features[rows] = self.encode_tokens([ids[row] for row in rows], threads)

        if self.provider != PROVIDERS["cpu"] or self.threads == 1 or len(batches) < SIDE_BY_SIDE:
            for rows in batches:
                encode(rows)
            return features
        # Cores that each work on a batch of their own don't wait for each other within a product.
        with ThreadPoolExecutor(self.threads, thread_name_prefix="ensemble-encode") as cores:
            for _ in cores.map(functools.partial(encode, threads=1), reversed(batches)):
                pass
        return features

    def cut(self, text: str) -> str:
        """The same text as far as features depend on it: of a very long one, its two ends."""
        return self._reader.cut(text)

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text, at most ``max_tokens`` of them. Raises as ``encode`` does."""
        return self._reader.read(texts)

    def encode_tokens(
        self, ids: Sequence[Sequence[int]], threads: int | None = None
    ) -> npt.NDArray[np.float32]:
        """The features of texts given by their ``tokens``, (len(ids), n_features), in one run on ``threads``
        threads (``None``: on its own number)."""
        if len(ids) == 1:
            batch = np.array(ids, dtype=np.int64)
            mask = np.ones_like(batch)
        else:
            lengths = np.array([[len(line)] for line in ids])
            longest = lengths.max()
            batch = np.full((len(ids), longest), self._pad_id, dtype=np.int64)
            for row, line in zip(batch, ids, strict=True):
                row[: len(line)] = line
            mask = (np.arange(longest) < lengths).astype(np.int64)
        feeds = {"input_ids": batch, "attention_mask": mask}
        return self._session.run(["features"], feeds, threads)[0]

    def measure_room(self) -> int:
        """How many tokens, padded, are worth encoding in one run here: measured, in some 0.1 s.

        A run takes a fixed time and one for each token; in the room's size the fixed one is LEAST_GAIN of
        all. At least ``max_tokens``, so that any text fits, and at most what ``encode`` takes at once.
        """
        token = self.tokens(["a"])[0][-1]
        short, long = min(8, self.max_tokens), self.max_tokens
        seconds = {n: min(self._seconds([[token] * n]) for _ in range(3)) for n in (short, long)}
        per_token = (seconds[long] - seconds[short]) / max(1, long - short)
        fixed = seconds[short] - short * per_token
        room = fixed / LEAST_GAIN / per_token if per_token > 0 else self.tokens_per_batch
        return int(min(max(room, self.max_tokens), max(self.tokens_per_batch, self.max_tokens)))

    def _seconds(self, ids: Sequence[Sequence[int]]) -> float:
        began = time.perf_counter()
        self.encode_tokens(ids)
        return time.perf_counter() - began


class Reader:
    """A tokenizer as encoders use it: each text with its special tokens, the long ones head and tail.

    ``tokenizer`` is the content of a tokenizer.json, ``max_tokens`` how many tokens of a text are read.
    """

    def __init__(self, tokenizer: bytes, max_tokens: int) -> None:
        self._tokenizer = _open_tokenizer(tokenizer)
        self._most = max_tokens
        # How a text is framed: [CLS] before it, [SEP] after it, for instance.
        frame = self._tokenizer.encode("a").special_tokens_mask
        before = frame.index(0)
        after = len(frame) - 1 - before
        room = max_tokens - before - after
        self._head, self._tail = before + room - room // 2, room // 2 + after
        self._edge = CHARACTERS_PER_TOKEN * max_tokens

    def read(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text; raises ``InputError`` for anything but a sequence of valid strings."""
        if isinstance(texts, str):
            raise InputError("expected a sequence of texts, found one string. Pass [text] instead.")
        try:
            cut = [self.cut(text) for text in texts]
            if len(cut) == 1:  # a batch of one would wake the tokenizer's threads for nothing
                ids = [self._tokenizer.encode(cut[0]).ids]
            else:
                ids = [line.ids for line in self._tokenizer.encode_batch_fast(cut)]
        except (TypeError, UnicodeEncodeError) as error:
            raise InputError(_what_is_wrong_with(texts)) from error
        most = self._most
        return [line if len(line) <= most else line[: self._head] + line[-self._tail :] for line in ids]

    def cut(self, text: str) -> str:
        """What of a very long text is looked at."""
        edge = self._edge
        return text if len(text) <= 2 * edge else f"{text[:edge]}\n{text[-edge:]}"


def _batches(lengths: Sequence[int], most_tokens: int) -> Iterator[list[int]]:
    """Row numbers, shortest first, in groups of at most so many tokens with their padding."""
    group: list[int] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if group and (len(group) + 1) * lengths[row] > most_tokens:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def _open_tokenizer(contents: bytes) -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise MissingExtraError("tokenizers", "cpu", "Encoding text") from error
    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(contents)
    except Exception as error:  # all that tokenizers raises
        raise BundleError(f"expected {TOKENIZER} to be readable by tokenizers, found: {error}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _what_is_wrong_with(texts: Sequence[str]) -> str:
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            return f"expected texts, found {type(text).__name__} at position {number}. Pass strings only."
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return (
                f"expected valid Unicode, found {error.reason} at character {error.start} of the text at "
                f'position {number}. Replace it, for instance by text.encode(errors="replace").decode().'
            )
    return "expected a sequence of texts, found something that the tokenizer refuses."

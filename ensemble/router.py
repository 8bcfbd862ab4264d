"""Prompts to predictions: the encoder and the head of one bundle, opened together."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ensemble import bundle as bundles
from ensemble.encoder import Encoder
from ensemble.errors import BundleError, EnsembleError, InputError
from ensemble.head import Head
from ensemble.inference import Device
from ensemble.manifest import HEAD
from ensemble.members import described
from ensemble.records import Deployment, FloatArray, Member, Prediction
from ensemble.text import prompt_text
from ensemble.together import Together

REMEMBERED = 512  # prompts
LEAST_TOKENS, MOST_TOKENS = 8, 2**15  # of a text; memory is taken for as many when a router is opened
PLACES = 2  # runs of the encoder at a time: one fills the gaps in which the other waits for its threads


class Seen(NamedTuple):
    """Prompts' features, (n_prompts, n_features), and the prediction from them, (n_prompts, n_members)."""

    features: FloatArray
    prediction: Prediction


class Router:
    """A trained router, ready to predict. Knows nothing of prices or of who is on offer; thread-safe.

    ``members`` are the names it predicts for, ``id`` the bundle's hash, ``manifest`` what the bundle
    says of itself; ``room`` is how many tokens are encoded together at most.
    """

    def __init__(self, bundle: bundles.Bundle, encoder: Encoder, head: Head) -> None:
        self.manifest, self.id, self.folder = bundle.manifest, bundle.id, bundle.folder
        self.encoder, self.head = encoder, head
        self.members = head.members
        self.characters_per_token = {m.name: m.characters_per_token for m in bundle.manifest.members}
        self.share(encoder.measure_room())

    @classmethod
    def load(cls, folder: str | os.PathLike[str] | None = None, device: Device = "auto") -> Router:
        """Open a bundle; ``None`` is the default router that comes with the library.

        Raises BundleError for a folder that is not a bundle or was changed, MissingExtraError without
        onnxruntime.
        """
        if folder is None and not default_folder().is_dir():
            raise BundleError(
                f"expected the router that comes with the library at {default_folder()}, found none there. "
                "Install the library again, or name a router's folder of your own (ensemble train makes one)."
            )
        bundle = bundles.load(default_folder() if folder is None else folder)
        head = Head(bundle.head, bundle.manifest.member_names)
        with _faults_of(bundle.encoder_folder):
            encoder = Encoder.load(bundle.encoder_folder, device=device)
        if encoder.sha256 != {name: bundle.manifest.encoder_sha256[name] for name in encoder.sha256}:
            raise BundleError(f"{bundle.encoder_folder} was changed while it was opened. Load it again.")
        if head.sha256 != bundle.manifest.files[HEAD]:
            raise BundleError(f"{bundle.head} was changed while it was opened. Load the bundle again.")
        if not LEAST_TOKENS <= encoder.max_tokens <= MOST_TOKENS:
            raise BundleError(
                f"expected an encoder that reads {LEAST_TOKENS} to {MOST_TOKENS} tokens of a text, found "
                f"{described(encoder.max_tokens)} at {bundle.encoder_folder}. Make or fetch it again."
            )
        if encoder.n_features != head.n_features:
            raise BundleError(
                f"the head at {bundle.folder} reads {head.n_features} features, its encoder makes "
                f"{encoder.n_features}. Train or fetch the bundle again."
            )
        with _faults_of(bundle.encoder_folder):
            return cls(bundle, encoder, head)

    def features(self, texts: Sequence[str]) -> FloatArray:
        """(n_prompts, n_features) float32 of what ``prompt_text`` makes of each text. Raises InputError."""
        if isinstance(texts, str):
            raise InputError("expected a sequence of texts, found one string. Pass [text] instead.")
        with _faults_of(self.encoder.id):
            return self.encoder.encode([prompt_text(text) for text in texts])

    def predict(self, texts: Sequence[str]) -> Prediction:
        """Reward, its uncertainty and output tokens of every member, (n_prompts, n_members) each."""
        if not len(texts):
            empty = np.zeros((0, len(self.members)), np.float32)
            return Prediction(self.members, empty, empty, empty, empty)
        return self.head.predict(self.features(texts))

    def share(self, room: int, places: int = PLACES) -> None:
        """Encode together up to so many tokens, padded, of what threads bring at the same time, in so many
        runs at a time; what was remembered is forgotten."""
        self.room = room
        self._encode: Together[list[int], Seen] = Together(self._encode_together, room, places)
        self._remembered = functools.lru_cache(REMEMBERED)(self._look)

    def look(self, text: str) -> Seen:
        """The features of one canonical text and what is predicted from them, as of one prompt.

        Texts that several threads bring at the same time are encoded together where that pays, and what was
        looked at lately is remembered: an agent's loop asks for the same prompt at every step.
        Raises InputError.
        """
        return self._remembered(self.encoder.cut(text))

    def look_at_all(self, texts: Sequence[str]) -> Seen:
        """``look`` for many canonical texts, those of like length encoded together. Raises InputError."""
        with _faults_of(self.encoder.id):
            features = self.encoder.encode(texts)
        return Seen(features, self.head.predict(features))

    def _look(self, text: str) -> Seen:
        with _faults_of(self.encoder.id):
            [ids] = self.encoder.tokens([text])
        return self._encode(ids, size=len(ids))

    def _encode_together(self, ids: list[list[int]]) -> list[Seen]:
        with _faults_of(self.encoder.id):
            features = self.encoder.encode_tokens(ids)
        prediction = self.head.predict(features)
        if len(ids) == 1:
            return [Seen(features, prediction)]
        return [Seen(features[row : row + 1], prediction[row : row + 1]) for row in range(len(ids))]

    def references(self) -> tuple[Member, ...]:
        """Its members with the kind and prices they were measured at, for comparing strangers with."""
        return tuple(
            Member(
                name=note.name,
                kind=note.kind,
                deployments=(Deployment(note.name),),
                usd_per_million_input=note.usd_per_million_input,
                usd_per_million_output=note.usd_per_million_output,
            )
            for note in self.manifest.members
            if note.usd_per_million_input is not None and note.usd_per_million_output is not None
        )


@contextlib.contextmanager
def _faults_of(encoder: str | Path) -> Iterator[None]:
    """Whatever goes wrong inside an encoder's files is a BundleError that says so."""
    try:
        yield
    except EnsembleError:
        raise
    except BaseException as error:
        # A panic of the tokenizers' Rust is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise BundleError(
            f"expected an encoder at {encoder}, found one whose graph or tokenizer can't be used: "
            f"{type(error).__name__}: {str(error)[:300]}. Make or fetch it again."
        ) from error


def default_folder() -> Path:
    """The bundle of the router that comes with the library."""
    return bundles.shipped_folder() / "default"

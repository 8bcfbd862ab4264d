"""Members hidden on a whole table of real outcomes: are they ranked there by what they can, not by raw means?"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest

from ensemble import bundle
from ensemble.encoder import Encoder
from ensemble.learning.export import HeadWeights
from ensemble.learning.features import featurize
from ensemble.learning.split import near_duplicates
from ensemble.learning.tables import OutcomeTable, read_tables
from ensemble.learning.train import fit_head

PROMPTS_PER_TABLE, LONGEST = 350, 350  # characters: short prompts are encoded fast


def real(*names: str, aliases: dict[str, str] | None = None) -> OutcomeTable:
    folder = Path(os.environ.get("ENSEMBLE_DATA", Path(__file__).parents[1].parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no outcome tables at {folder}; set ENSEMBLE_DATA to their folder")
    table = read_tables([folder / f"{name}.parquet" for name in names], aliases=aliases)
    short = np.array([len(prompt) <= LONGEST for prompt in table.prompts])
    source = np.array(table.source)
    rng = np.random.default_rng(0)
    rows = [rng.permutation(np.flatnonzero(short & (source == name)))[:PROMPTS_PER_TABLE] for name in names]
    return table.subset(np.concatenate(rows))


def fitted(table: OutcomeTable, features: np.ndarray) -> HeadWeights:
    return fit_head(features, table, near_duplicates(table.prompts))[0]


def features_of(table: OutcomeTable, cache: Path) -> np.ndarray:
    encoder = Encoder.load(bundle.shipped_folder() / "encoders" / "all-minilm-l6-v2-w8")
    return featurize(encoder, list(table.prompts), cache_folder=cache)


def misplaced(guess: np.ndarray, truth: np.ndarray, hidden: int) -> int:
    """Over how many of the others the hidden member was wrongly put above or below."""
    wrong = np.sign(guess[hidden] - guess) != np.sign(truth[hidden] - truth)
    return int(wrong.sum())


def test_a_member_hidden_on_a_table_is_ranked_there_better_than_by_its_raw_mean(tmp_path: Path) -> None:
    """mmlu_pro is harder than zeroeval, so that whoever is seen on mmlu_pro alone looks weak by raw mean."""
    table = real("mmlu_pro", "zeroeval")
    features = features_of(table, tmp_path)
    here = np.array(table.source) == "zeroeval"
    there = table.observed[here].all(axis=0)
    shared = np.flatnonzero(there & table.observed[~here].any(axis=0))
    assert {table.members[m] for m in shared} >= {"Meta-Llama-3.1-70B-Instruct", "Meta-Llama-3.1-8B-Instruct"}
    ours_wrong = raw_wrong = 0
    for hidden in shared:
        reward = table.reward.copy()
        reward[here, hidden] = np.nan
        head = fitted(dataclasses.replace(table, reward=reward), features)
        reward_hat, std, _, _ = head.predict(features[here])
        truth = table.reward[here].mean(axis=0)
        raw = np.nanmean(np.where(there | ~here[:, None], reward, np.nan), axis=0)
        guess = reward_hat.mean(axis=0)
        candidates, at = np.flatnonzero(there), int(np.flatnonzero(there).tolist().index(hidden))
        ours_wrong += misplaced(guess[candidates], truth[candidates], at)
        raw_wrong += misplaced(raw[candidates], truth[candidates], at)
        assert abs(guess[hidden] - truth[hidden]) < abs(raw[hidden] - truth[hidden])
        others = np.setdiff1d(candidates, hidden)
        assert std[:, hidden].mean() > 1.2 * std[:, others].mean()
    assert ours_wrong < raw_wrong

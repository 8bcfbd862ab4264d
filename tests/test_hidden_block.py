"""Members hidden on a whole table of real outcomes: are they ranked there by what they can do?"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest

from ensemble import bundle
from ensemble.encoder import Encoder
from ensemble.learning.features import featurize
from ensemble.learning.recipe import fit_head
from ensemble.learning.split import near_duplicates
from ensemble.learning.tables import OutcomeTable, read_tables

PROMPTS_PER_TABLE, LONGEST = 300, 300  # characters: short prompts are encoded fast


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


def features_of(table: OutcomeTable, cache: Path) -> np.ndarray:
    encoder = Encoder.load(bundle.shipped_folder() / "encoders" / "all-minilm-l6-v2-depths-int8")
    return featurize(encoder, list(table.prompts), cache_folder=cache)


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.argsort().argsort(), b.argsort().argsort())[0, 1])


def misplaced(guess: np.ndarray, truth: np.ndarray, hidden: int) -> int:
    """Over how many of the others the hidden member was wrongly put above or below."""
    wrong = np.sign(guess[hidden] - guess) != np.sign(truth[hidden] - truth)
    return int(wrong.sum())


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[OutcomeTable, np.ndarray]:
    table = real("mmlu_pro", "zeroeval")
    return table, features_of(table, tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize(
    ("place", "name"),
    [("zeroeval", "Meta-Llama-3.1-70B-Instruct"), ("mmlu_pro", "Meta-Llama-3.1-8B-Instruct")],
)
def test_a_member_hidden_on_a_table_is_ranked_there_better_than_by_its_raw_mean(
    world: tuple[OutcomeTable, np.ndarray], place: str, name: str
) -> None:
    """mmlu_pro is the harder one: who is seen there alone looks weak by raw mean, who is not looks strong."""
    table, features = world
    here, hidden = np.array(table.source) == place, table.members.index(name)
    reward = table.reward.copy()
    reward[here, hidden] = np.nan
    weights, _ = fit_head(features, dataclasses.replace(table, reward=reward), near_duplicates(table.prompts))
    reward_hat, std, _, _ = weights.predict(features[here])
    there = np.flatnonzero(table.observed[here].mean(axis=0) > 0.9)
    ours, raw = reward_hat.mean(axis=0)[there], np.nanmean(reward[:, there], axis=0)
    truth = np.nanmean(table.reward[here][:, there], axis=0)
    at = list(there).index(hidden)
    assert abs(ours[at] - truth[at]) < abs(raw[at] - truth[at])
    assert misplaced(ours, truth, at) <= misplaced(raw, truth, at)
    assert rank_correlation(ours, truth) >= rank_correlation(raw, truth)
    assert std[:, hidden].mean() > 1.05 * std[:, np.setdiff1d(there, hidden)].mean(axis=0).max()

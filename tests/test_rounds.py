"""What is chosen on validation, fitted once and stored: nothing from the test part, nothing stale."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import ours, quality, rounds
from benchmarks.protocol import (
    Asked,
    Candidate,
    Forecast,
    Learned,
    Problem,
    Rival,
    Split,
    make_folds,
    random_features,
    shuffled_outcomes,
)
from benchmarks.rounds import ARRAYS
from ensemble.errors import InputError
from ensemble.learning.baselines import Clusters, Neighbours
from ruler_cases import Peeking, Watched, problem, with_cells

SOFT = Candidate("soft neighbours", "tuned", (Rival(Neighbours(100, 0.1)),))
CHOOSY = Candidate("k-means", "tuned", tuple(Rival(Clusters(k)) for k in (1, 4, 16)))


def same(a: Forecast, b: Forecast) -> bool:
    return all(
        (x is None and y is None) or np.array_equal(x, y)
        for x, y in ((getattr(a, name), getattr(b, name)) for name in ARRAYS)
    )


# --- what a method may know


@pytest.mark.parametrize("split", quality.SPLITS)
@pytest.mark.parametrize("candidate", [CHOOSY, ours.CANDIDATE], ids=lambda c: c.name)
def test_no_outcome_of_the_test_part_reaches_a_choice_or_a_forecast(
    split: Split, candidate: Candidate
) -> None:
    honest = problem(split=split)
    for fold in honest.folds[:2]:
        cells = {
            name: np.array(getattr(honest.table, name)) for name in ("reward", "cost_usd", "output_tokens")
        }
        for values in cells.values():
            values[fold.test] = 1 - values[fold.test] if values.max() <= 1 else 7777.0
        before = rounds.play(candidate, honest, fold)
        after = rounds.play(candidate, with_cells(honest, **cells), fold)
        assert same(before.test, after.test) and same(before.validation, after.validation)
        assert before.setting == after.setting


def test_the_setting_is_the_best_on_validation_and_is_refitted_on_all() -> None:
    given_, watched = problem(), Watched()
    grid = (Rival(Clusters(1)), Peeking(given_), Rival(Clusters(4)))
    assert rounds.play(Candidate("any", "tuned", grid), given_, given_.folds[0]).setting == "Peeking()"
    rounds.play(Candidate("watched", "published", (watched,)), given_, given_.folds[0])
    assert watched.fits == [len(given_.folds[0].train), len(given_.folds[0].learned)]


def test_ours_learns_from_task_labels_and_is_asked_without() -> None:
    given_ = problem(300)
    fold = given_.folds[0]
    known, asked = given_.learned(fold.learned), given_.asked(fold.test)
    assert {field.name for field in dataclasses.fields(asked)} == {"features", "characters"}
    said = ours.Ours().forecast(known, asked, seed=0)
    assert "n_tasks_guessed 4" in said.note
    assert said.output_tokens is not None and said.reward_std is not None
    # The world's costs are its output tokens at 1, 1, 1 and 10 USD per million.
    assert said.cost == pytest.approx(said.output_tokens * [1, 1, 1, 10] / 1e6, rel=1e-4)


@pytest.mark.parametrize("said", [np.full((48, 4), np.nan), np.zeros((48, 3)), np.zeros((47, 4))])
def test_a_forecast_that_cannot_be_served_is_refused(said: np.ndarray) -> None:
    class Broken:
        def forecast(self, learned: Learned, asked: Asked, *, seed: int) -> Forecast:
            return Forecast(said, np.zeros((48, 4)))

    given_ = problem()
    with pytest.raises(InputError, match=r"finite reward of shape \(48, 4\)"):
        rounds.play(Candidate("broken", "tuned", (Broken(),)), given_, given_.folds[0])


# --- the store


@pytest.mark.parametrize("candidate", [CHOOSY, ours.CANDIDATE], ids=lambda c: c.name)
def test_a_stored_run_is_the_run(candidate: Candidate, tmp_path: Path) -> None:
    given_ = problem()
    fresh, stored = (rounds.run(candidate, given_, tmp_path) for _ in range(2))
    elsewhere = rounds.run(candidate, given_, tmp_path / "other")
    for a, b, c in zip(fresh.rounds, stored.rounds, elsewhere.rounds, strict=True):
        assert (a.setting, a.seconds) == (b.setting, b.seconds) and a.setting == c.setting
        assert same(a.test, b.test) and same(a.test, c.test) and same(a.validation, c.validation)


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    given_, watched = problem(), Watched(breaks=6)
    begun: list[str] = []
    with pytest.raises(KeyboardInterrupt):  # in the third fold's refit: two folds are done
        rounds.run(Candidate("watched", "tuned", (watched,)), given_, tmp_path, begun.append)
    assert begun == ["watched"] * 3
    rounds.run(Candidate("watched", "tuned", (watched,)), given_, tmp_path)
    assert len(watched.fits) == 6 + 2 * 3
    rounds.run(Candidate("watched", "tuned", (watched,)), given_, tmp_path)
    assert len(watched.fits) == 6 + 2 * 3
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".npz"]


def edited(given_: Problem) -> Problem:
    reward = given_.table.reward.copy()
    reward[17, 2] = 1 - reward[17, 2]
    return with_cells(given_, reward=reward)


def reworded(given_: Problem) -> Problem:
    prompts = (*given_.table.prompts[:-1], "another last prompt")
    return dataclasses.replace(given_, table=dataclasses.replace(given_.table, prompts=prompts))


@pytest.mark.parametrize(
    "change",
    [
        edited,
        reworded,
        shuffled_outcomes,
        random_features,
        lambda p: dataclasses.replace(p, features=p.features * np.float32(1.001)),
        lambda p: dataclasses.replace(p, folds=make_folds(p.table, p.groups, "iid", 1)),
        lambda p: dataclasses.replace(p, seed=1),
    ],
)
def test_another_table_is_not_served_from_the_store(change: Any, tmp_path: Path) -> None:
    watched = Watched()
    candidate = Candidate("watched", "tuned", (watched,))
    rounds.run(candidate, problem(), tmp_path)
    rounds.run(candidate, change(problem()), tmp_path)
    assert len(watched.fits) == 2 * 2 * 5


def test_other_settings_or_other_code_are_fitted_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_, fits = problem(), []
    rounds.run(Candidate("watched", "tuned", (Watched(40, fits=fits),)), given_, tmp_path)
    rounds.run(Candidate("watched", "tuned", (Watched(41, fits=fits),)), given_, tmp_path)
    assert len(fits) == 20
    whole = rounds.code

    def changed(modules: Any) -> dict[str, str]:
        return whole(modules) | {"ensemble.learning.baselines": "changed = True"}

    monkeypatch.setattr(rounds, "code", changed)
    rounds.run(Candidate("watched", "tuned", (Watched(41, fits=fits),)), given_, tmp_path)
    assert len(fits) == 30


def test_code_that_cannot_be_read_is_fitted_anew(tmp_path: Path) -> None:
    class Typed(Watched):
        __module__ = "__typed_into_a_notebook__"

    typed = Typed()
    for _ in range(2):
        rounds.run(Candidate("typed", "tuned", (typed,)), problem(), tmp_path)
    assert len(typed.fits) == 20


def test_the_code_of_a_method_is_all_that_it_imports_of_ours() -> None:
    of_rival, of_ours = ({*rounds.code(rounds._modules(c))} for c in (SOFT, ours.CANDIDATE))
    assert {"benchmarks.rounds", "benchmarks.protocol", "ensemble.learning.baselines"} <= of_rival
    assert {"benchmarks.ours", "ensemble.learning.fit", "ensemble.learning.trunk"} <= of_ours
    assert "ensemble.learning.fit" not in of_rival  # or a change of ours would refit all rivals
    assert "ruler_cases" in rounds.code(rounds._modules(Candidate("w", "tuned", (Watched(),))))

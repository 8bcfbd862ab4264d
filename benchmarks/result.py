"""What is stored of one table under one split? Every method's figures, new or of an earlier run.

A method's ``key`` is a hash of all that decides its figures: rows, settings, the code that fits and the code
that measures, libraries. While it is the same, so are the figures. They also hang on the best baseline,
with which each is compared draw by draw, but on no other method.
"""

from __future__ import annotations

import datetime
import hashlib
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measures, rounds
from benchmarks.marks import BEST_SINGLE, MARKS, QUERY_ORACLE, RANDOM_MIX, marks
from benchmarks.protocol import (
    Candidate,
    Floats,
    Index,
    Problem,
    Split,
    make_folds,
    random_features,
    read_rows,
    shuffled_outcomes,
)
from benchmarks.rounds import Run
from benchmarks.trust import trust
from ensemble.encoder import Encoder
from ensemble.learning import metrics
from ensemble.learning.clusters import k_means
from ensemble.learning.features import featurize
from ensemble.learning.recipe import RECIPE
from ensemble.learning.split import near_duplicates
from ensemble.learning.tables import OutcomeTable
from ensemble.text import prompt_text

FORMAT = 2
PROMPTS_PER_CLUSTER = 50  # of those over which reward_std is held to its word
Entry = dict[str, Any]
ENCODED_BY = ("ensemble.encoder", "ensemble.text")
MEASURED_BY = ("benchmarks.marks", "benchmarks.measures", "benchmarks.trust", "ensemble.learning.clusters")


@dataclass(frozen=True, eq=False)
class Rows:
    """A table ready to be split: complete rows, their ``features`` and near-duplicate ``groups``.

    ``maker`` is a hash of what made the features: the encoder's files, and the code around it.
    """

    name: str
    table: OutcomeTable
    features: Floats
    groups: Index
    encoder_id: str
    maker: str

    @classmethod
    def of(cls, path: Path, encoder: Encoder) -> Rows:
        table = read_rows(path)
        texts = [prompt_text(prompt) for prompt in table.prompts]
        features = featurize(encoder, texts, progress=True)
        made_by = f"{sorted(encoder.sha256.items())} {sorted(rounds.code(ENCODED_BY).items())}"
        maker = hashlib.sha256(made_by.encode()).hexdigest()
        return cls(path.stem, table, features, near_duplicates(table.prompts), encoder.id, maker)

    def problem(self, split: Split, seed: int) -> Problem:
        folds = make_folds(self.table, self.groups, split, seed)
        return Problem(
            self.name, split, self.table, self.features, self.groups, folds, seed, maker=self.maker
        )


def measure(
    rows: Rows,
    split: Split,
    methods: Sequence[Candidate],
    store: Path,
    *,
    before: Mapping[str, Any] | None = None,
    only: Collection[str] | None = None,
    seed: int = 0,
    with_controls: bool = True,
    draws: int = measures.DRAWS,
    on_fold: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """The figures of one table under one split, as they are stored: plain JSON types.

    ``store`` is where fits are kept; ``on_fold`` is told a method's name as each of its folds begins,
    controls included. What still holds of the stored result ``before`` is taken from it, controls too. Of the
    others those named in ``only`` are measured, ``None`` for all; controls only ``with_controls``.
    """
    problem = rows.problem(split, seed)
    workshop = _Workshop(methods, store, only, draws, on_fold)
    kept = workshop.holding(problem, before["methods"] if before else [])
    best = before["best_baseline"] if before else {}
    comparable = bool(kept) and set(best.values()) <= kept.keys() | {*MARKS}
    if comparable:
        runs, sampled = workshop.play(problem, workshop.lacking(kept) | set(best.values()))
        comparable = best == _best(runs, sampled)
    if not comparable:  # with the best baseline all that was kept is compared
        kept = {}
        runs, sampled = workshop.play(problem, workshop.lacking(kept))
        best = _best(runs, sampled)
    figures = workshop.signed(problem, measures.figures(problem, runs, sampled, best))
    trusted = _trust(problem, runs) | {
        name: of for name, of in (before["trust"] if before else {}).items() if name in kept
    }
    result = {
        **_about(problem, rows.encoder_id, runs, sampled),
        "best_baseline": best,
        "methods": workshop.in_order(figures | kept),
        "trust": {method.name: trusted[method.name] for method in methods if method.name in trusted},
        "controls": workshop.controls(problem, before, anew=with_controls) if split == "iid" else None,
    }
    plain: dict[str, Any] = _plain(result)
    return plain


@dataclass(frozen=True)
class _Workshop:
    """What measuring one table after the other, as it is and destroyed, has in common."""

    methods: Sequence[Candidate]
    store: Path
    only: Collection[str] | None
    draws: int
    on_fold: Callable[[str], None]

    def lacking(self, kept: Collection[str]) -> set[str]:
        """The methods that are to be measured, their figures not being at hand."""
        wanted = {method.name for method in self.methods if self.only is None or method.name in self.only}
        return wanted - set(kept)

    def play(self, problem: Problem, names: Collection[str]) -> tuple[list[Run], dict[str, measures.Sampled]]:
        """The marks and the methods of these ``names``."""
        runs = marks(problem)
        for method in self.methods:
            if method.name in names:
                runs.append(rounds.run(method, problem, self.store, self.on_fold))
        return runs, measures.sample(problem, runs, draws=self.draws, seed=problem.seed)

    def controls(
        self, problem: Problem, before: Mapping[str, Any] | None, *, anew: bool
    ) -> dict[str, list[Entry]] | None:
        """What every method seems to gain where there is nothing to learn, or ``None``; if not ``anew``, only
        what was stored and holds."""
        found = {}
        for each in (shuffled_outcomes(problem), random_features(problem)):
            control = str(each.control)
            kept = self.holding(each, ((before or {}).get("controls") or {}).get(control, []))
            if anew:
                runs, sampled = self.play(each, self.lacking(kept))
                figures = measures.control_figures(each, runs, sampled, draws=self.draws, seed=each.seed)
                kept = self.signed(each, figures) | kept
            found[control] = self.in_order(kept)
        return found if any(found.values()) else None

    def holding(self, problem: Problem, entries: Iterable[Entry]) -> dict[str, Entry]:
        """Of stored ``entries`` those that would come out the same, by name."""
        keys = self._keys(problem)
        return {e["name"]: e for e in entries if e["name"] in keys and e.get("key") == keys[e["name"]]}

    def signed(self, problem: Problem, entries: Iterable[Entry]) -> dict[str, Entry]:
        """New ``entries`` with their key, ``None`` for a mark's, and date, by name."""
        keys, today = self._keys(problem), datetime.datetime.now(datetime.UTC).date().isoformat()
        return {e["name"]: e | {"key": keys.get(e["name"]), "made": today} for e in entries}

    def in_order(self, entries: Mapping[str, Entry]) -> list[Entry]:
        """Marks first, then the methods as they are listed."""
        order = [*MARKS, *(method.name for method in self.methods)]
        return sorted(entries.values(), key=lambda entry: order.index(entry["name"]))

    def _keys(self, problem: Problem) -> dict[str, str]:
        code = sorted(rounds.code(MEASURED_BY).items())
        measuring = f"{FORMAT} {PROMPTS_PER_CLUSTER} {self.draws} {code}"

        def key(method: Candidate) -> str:
            decides = f"{measuring} {method.kind} {rounds.key(method, problem)}"
            return hashlib.sha256(decides.encode()).hexdigest()[:20]

        return {method.name: key(method) for method in self.methods}


def _best(runs: Sequence[Run], sampled: Mapping[str, measures.Sampled]) -> dict[str, str]:
    return {figure: measures.best_baseline(runs, sampled, figure) for figure in measures.COMPARED}


def _about(
    problem: Problem, encoder_id: str, runs: Sequence[Run], sampled: dict[str, measures.Sampled]
) -> dict[str, Any]:
    single = next(run for run in runs if run.name == BEST_SINGLE)
    member, _ = Counter(round_.setting for round_ in single.rounds).most_common(1)[0]
    usd, reward = sampled[BEST_SINGLE].curve[0]
    points = metrics.single_points(problem.reward, problem.cost)
    in_hindsight = metrics.best_single(problem.reward, problem.cost)  # which no fold could know
    return {
        "format": FORMAT,
        "table": problem.name,
        "split": problem.split,
        "encoder": encoder_id,
        "recipe": RECIPE,
        "seed": problem.seed,
        "n_folds": len(problem.folds),
        "n_prompts": problem.table.n_prompts,
        "n_groups": len(np.unique(problem.groups)),
        "members": problem.table.members,
        "tasks": dict(Counter(task for task in problem.table.tasks if task is not None).most_common()),
        "best_single": {"member": member, "reward": reward, "usd_per_1000": usd * 1000},
        "best_single_in_hindsight": {
            "member": problem.table.members[in_hindsight],
            "reward": points[in_hindsight, 1],
            "usd_per_1000": points[in_hindsight, 0] * 1000,
        },
        "oracle_reward": sampled[QUERY_ORACLE].reward_first[0],
        "member_points": points * [1000, 1],
        "spend_range_usd_per_1000": [points[:, 0].min() * 1000, points[:, 0].max() * 1000],
        "dials_usd": measures.dials(problem),
    }


def _trust(problem: Problem, runs: Sequence[Run]) -> dict[str, Any]:
    """Whether forecasts mean what they say: ours, and those of the tuned baselines."""
    n_clusters = max(problem.table.n_prompts // PROMPTS_PER_CLUSTER, 1)
    clusters = k_means(problem.features, n_clusters, problem.seed)
    base_rates = next(run for run in runs if run.name == RANDOM_MIX).pooled(problem).reward
    forecasts = {run.name: run.pooled(problem) for run in runs if run.kind in ("ours", "tuned")}
    dials = measures.dials(problem).tolist()
    return {
        name: trust(forecast, problem.table, problem.groups, clusters, dials, base_rates, problem.seed)
        for name, forecast in forecasts.items()
        if forecast.is_probability
    }


def _plain(value: Any) -> Any:
    """What JSON has: lists, numbers of six significant digits, ``None`` for what is not a number."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(inner) for inner in value]
    if isinstance(value, float | np.floating):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value

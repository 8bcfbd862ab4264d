"""How good is each method of routing on the same table? The ruler that everything here is measured by.

    python -m benchmarks.quality --data TABLE.parquet [--split iid|leave-task-out]
    python -m benchmarks.quality --data FOLDER

Trains every method on the same rows in five rotating folds, prints one table, and writes the figures as JSON
and a plot. With a FOLDER: every known table in it, both splits, and then benchmarks/README.md. What is
measured and how stands there. Each method's fold is kept once it is done: after an interruption the same
command goes on where it stopped.

An own table works as well: long form, in Parquet, with prompt_id, prompt, member, reward and cost_usd, the
column task where whole tasks are to be left out.
"""

from __future__ import annotations

import datetime
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import measures, ours, rounds
from benchmarks.marks import BEST_SINGLE, QUERY_ORACLE, RANDOM_MIX, marks
from benchmarks.plots import plot_frontier
from benchmarks.protocol import (
    Candidate,
    Floats,
    Index,
    Problem,
    Rival,
    Split,
    make_folds,
    random_features,
    read_rows,
    shuffled_outcomes,
)
from benchmarks.rivals import PUBLISHED, TUNED
from benchmarks.rounds import Run
from benchmarks.tables import print_result, write_readme
from benchmarks.trust import trust
from ensemble.bundle import ENCODERS, shipped_folder
from ensemble.cli_learning import DEFAULT_ENCODER
from ensemble.encoder import Encoder
from ensemble.errors import EnsembleError
from ensemble.learning import metrics
from ensemble.learning.clusters import k_means
from ensemble.learning.features import cache_file, featurize
from ensemble.learning.recipe import RECIPE
from ensemble.learning.split import near_duplicates
from ensemble.learning.tables import OutcomeTable
from ensemble.text import prompt_text

FORMAT = 1
KNOWN = ("mmlu_pro", "zeroeval", "llmrouter_dc", "routellm_2model")
SPLITS: tuple[Split, ...] = ("iid", "leave-task-out")
README = Path(__file__).with_name("README.md")
RESULTS = Path(__file__).with_name("results") / "quality"
PROMPTS_PER_CLUSTER = 50  # of those over which reward_std is held to its word


@dataclass(frozen=True, eq=False)
class Rows:
    """A table ready to be split: complete rows, their ``features`` and near-duplicate ``groups``."""

    name: str
    table: OutcomeTable
    features: Floats
    groups: Index
    encoder_id: str

    @classmethod
    def of(cls, path: Path, encoder: Encoder) -> Rows:
        table = read_rows(path)
        texts = [prompt_text(prompt) for prompt in table.prompts]
        features = featurize(encoder, texts, progress=True)
        return cls(path.stem, table, features, near_duplicates(table.prompts), encoder.id)


def candidates() -> list[Candidate]:
    """Every method that is compared, ours last."""
    tuned = [Candidate(name, "tuned", tuple(map(Rival, grid))) for name, grid in TUNED.items()]
    published = [Candidate(name, "published", (Rival(method),)) for name, method in PUBLISHED.items()]
    return [*tuned, *published, ours.CANDIDATE]


def measure(
    rows: Rows,
    split: Split,
    methods: Sequence[Candidate],
    store: Path,
    *,
    seed: int = 0,
    with_controls: bool = True,
    draws: int = measures.DRAWS,
    on_fold: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """The figures of one table under one split, as they are stored: plain JSON types.

    ``store`` is where fits are kept; ``on_fold`` is told a method's name as each of its folds begins,
    controls included.
    """
    folds = make_folds(rows.table, rows.groups, split, seed)
    problem = Problem(rows.name, split, rows.table, rows.features, rows.groups, folds, seed)

    def play(each: Problem) -> tuple[list[Run], dict[str, measures.Sampled]]:
        runs = marks(each) + [rounds.run(method, each, store, on_fold) for method in methods]
        return runs, measures.sample(each, runs, draws=draws, seed=seed)

    runs, sampled = play(problem)
    controls = None
    if with_controls and split == "iid":
        destroyed = [shuffled_outcomes(problem), random_features(problem)]
        controls = {
            str(each.control): measures.control_figures(each, *play(each), draws=draws, seed=seed)
            for each in destroyed
        }
    best = {figure: measures.best_baseline(runs, sampled, figure) for figure in measures.COMPARED}
    result = {
        **_about(problem, rows.encoder_id, runs, sampled),
        "best_baseline": best,
        "methods": measures.figures(problem, runs, sampled, best),
        "trust": _trust(problem, runs),
        "controls": controls,
    }
    plain: dict[str, Any] = _plain(result)
    return plain


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
        "made": datetime.datetime.now(datetime.UTC).date().isoformat(),
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


@click.command(help=__doc__)
@click.option(
    "--data", required=True, type=click.Path(exists=True, path_type=Path), help="A table, or a folder."
)
@click.option(
    "--split", type=click.Choice(SPLITS), default="iid", show_default=True, help="A folder gets both."
)
@click.option("--seed", default=0, show_default=True, help="Draws the folds, and all that methods draw.")
@click.option(
    "--encoder",
    "encoder_folder",
    type=click.Path(exists=True),
    help="An encoder's folder. [default: the shipped]",
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Where results go. [default: benchmarks/results/quality]"
)
@click.option(
    "--work", type=click.Path(path_type=Path), help="Where fits are kept. [default: the user's cache]"
)
@click.option("--controls/--no-controls", default=True, help="Measure also where there is nothing to learn.")
@click.option("--method", "methods", multiple=True, help="Only this one, by name; may be given again.")
def main(
    data: Path,
    split: Split,
    seed: int,
    encoder_folder: str | None,
    out: Path | None,
    work: Path | None,
    controls: bool,
    methods: tuple[str, ...],
) -> None:
    chosen = _chosen(methods)
    paths = [data / f"{name}.parquet" for name in KNOWN if (data / f"{name}.parquet").is_file()]
    if data.is_dir() and not paths:
        raise click.UsageError(f"expected one of {', '.join(KNOWN)} (.parquet) in {data}, found none")
    try:
        encoder = Encoder.load(Path(encoder_folder or shipped_folder() / ENCODERS / DEFAULT_ENCODER))
        store = work or cache_file(encoder).parent / "quality"
        results = []
        for path in paths or [data]:
            rows = Rows.of(path, encoder)
            for each in SPLITS if paths else (split,):
                result = _shown(rows, each, chosen, store, seed, controls)
                # A look at some methods must not take the place of the whole.
                if out or (controls and not methods):
                    _write(result, out or RESULTS)
                print_result(result)
                results.append(result)
        if paths and controls and not methods:
            write_readme(results, out / README.name if out else README)
    except EnsembleError as error:
        raise click.ClickException(str(error)) from error


def _chosen(names: Sequence[str]) -> list[Candidate]:
    every = {candidate.name: candidate for candidate in candidates()}
    wanted = names or list(every)
    unknown = [name for name in wanted if name not in every]
    if unknown:
        raise click.UsageError(f"--method: expected some of {', '.join(every)}; found {', '.join(unknown)}")
    return [every[name] for name in wanted]


def _shown(
    rows: Rows, split: Split, methods: Sequence[Candidate], store: Path, seed: int, with_controls: bool
) -> dict[str, Any]:
    """``measure`` with its progress on standard error."""
    columns = (
        TextColumn("{task.description}"),
        MofNCompleteColumn(),
        TextColumn("fits"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        n_folds = len(make_folds(rows.table, rows.groups, split, seed))
        n_problems = 3 if with_controls and split == "iid" else 1
        n_fits = n_problems * len(methods) * n_folds
        task = progress.add_task("", total=n_fits, what=f"{rows.name}, {split}")
        return measure(
            rows,
            split,
            methods,
            store,
            seed=seed,
            with_controls=with_controls,
            on_fold=lambda name: progress.update(task, advance=1, description=name),
        )


def _write(result: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{result['table']}.{result['split']}"
    text = json.dumps(result, indent=1, allow_nan=False, ensure_ascii=False)
    (folder / f"{stem}.json").write_text(text + "\n", encoding="utf-8")
    plot_frontier(result, folder / f"{stem}.svg")


if __name__ == "__main__":
    main()

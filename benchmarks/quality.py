"""How good is each method of routing on the same table? The ruler that everything here is measured by.

    python -m benchmarks.quality --data TABLE.parquet [--split iid|leave-task-out]
    python -m benchmarks.quality --data FOLDER [--changed]

Trains every method on the same rows in five rotating folds, prints one table, and writes the figures as JSON
and a plot. With a FOLDER: every known table in it, both splits, and then benchmarks/README.md. What is
measured and how stands there. Each method's fold is kept once it is done: after an interruption the same
command goes on where it stopped. --changed takes from the stored results what would come out the same, going
by a hash of rows, settings, code and libraries, and measures the rest.

An own table works as well: long form, in Parquet, with prompt_id, prompt, member, reward and cost_usd, the
column task where whole tasks are to be left out.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from benchmarks import ours
from benchmarks.plots import plot_frontier
from benchmarks.protocol import Candidate, Rival, Split
from benchmarks.result import Rows, measure
from benchmarks.rivals import PUBLISHED, TUNED
from benchmarks.tables import print_result, write_readme
from ensemble.bundle import ENCODERS, shipped_folder
from ensemble.cli_learning import DEFAULT_ENCODER
from ensemble.encoder import Encoder
from ensemble.errors import EnsembleError
from ensemble.learning.features import cache_file

KNOWN = ("mmlu_pro", "zeroeval", "llmrouter_dc", "routellm_2model")
SPLITS: tuple[Split, ...] = ("iid", "leave-task-out")
README = Path(__file__).with_name("README.md")
RESULTS = Path(__file__).with_name("results") / "quality"


def candidates() -> list[Candidate]:
    """Every method that is compared, ours last."""
    tuned = [Candidate(name, "tuned", tuple(map(Rival, grid))) for name, grid in TUNED.items()]
    published = [Candidate(name, "published", (Rival(method),)) for name, method in PUBLISHED.items()]
    return [*tuned, *published, ours.CANDIDATE]


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
@click.option("--changed", is_flag=True, help="Keep of the stored results what would come out the same.")
def main(
    data: Path,
    split: Split,
    seed: int,
    encoder_folder: str | None,
    out: Path | None,
    work: Path | None,
    controls: bool,
    methods: tuple[str, ...],
    changed: bool,
) -> None:
    every = candidates()
    only = _checked(methods, every)
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
                before = _stored(out or RESULTS, path.stem, each) if changed else None
                result = _shown(rows, each, every, store, before, only, seed, controls)
                if (out and not changed) or ((controls or changed) and _is_whole(result, every)):
                    _write(result, out or RESULTS)
                print_result(result)
                results.append(result)
        if paths and (controls or changed) and all(_is_whole(result, every) for result in results):
            write_readme(results, out / README.name if out else README)
    except EnsembleError as error:
        raise click.ClickException(str(error)) from error


def _checked(names: Collection[str], every: Sequence[Candidate]) -> Collection[str] | None:
    known = [candidate.name for candidate in every]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise click.UsageError(f"--method: expected some of {', '.join(known)}; found {', '.join(unknown)}")
    return names or None


def _shown(
    rows: Rows,
    split: Split,
    every: Sequence[Candidate],
    store: Path,
    before: dict[str, Any] | None,
    only: Collection[str] | None,
    seed: int,
    with_controls: bool,
) -> dict[str, Any]:
    """``measure`` with its progress on standard error."""
    columns = (TextColumn("{task.description}"), TextColumn("{task.completed} folds"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=None)
        return measure(
            rows,
            split,
            every,
            store,
            before=before,
            only=only,
            seed=seed,
            with_controls=with_controls,
            on_fold=lambda what: progress.update(task, advance=1, description=what),
        )


def _is_whole(result: dict[str, Any], every: Sequence[Candidate]) -> bool:
    """A look at some methods must not take the place of all."""
    return {candidate.name for candidate in every} <= {entry["name"] for entry in result["methods"]}


def _stored(folder: Path, table: str, split: Split) -> dict[str, Any] | None:
    path = folder / f"{table}.{split}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _write(result: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{result['table']}.{result['split']}"
    text = json.dumps(result, indent=1, allow_nan=False, ensure_ascii=False)
    (folder / f"{stem}.json").write_text(text + "\n", encoding="utf-8")
    plot_frontier(result, folder / f"{stem}.svg")


if __name__ == "__main__":
    main()

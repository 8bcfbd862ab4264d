"""How fast do prompts become features by torch and by onnxruntime, on what device, and do they agree?

    python -m benchmarks.featurize --data TABLE [--device auto|cpu|cuda] [--prompts N]

Featurizes so many prompts: those of the tables, over and over with a number behind them where they are too
few, so that no two are the same. Torch takes them as a stream, whose memory doesn't grow: a million are fine;
onnxruntime by the window. Beside each stands how near its features are to those of the fp32 graph on the CPU.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from benchmarks.machine import cpu_name
from benchmarks.wording import number
from ensemble import show
from ensemble.bundle import ENCODERS, shipped_folder
from ensemble.cli_learning import DEFAULT_ENCODER
from ensemble.encoder import Encoder
from ensemble.errors import EnsembleError
from ensemble.inference import Device
from ensemble.learning.encoders import build_encoder
from ensemble.learning.encoders_torch import WINDOW, Precision, TorchEncoder
from ensemble.learning.tables import read_tables
from ensemble.records import FloatArray
from ensemble.text import prompt_text

COMPARED = 256  # prompts whose features are held against the fp32 graph's
WARM_UP = 512  # prompts, not timed: the first batch of each shape takes longer

Streams = Callable[[Iterator[str]], Iterator[FloatArray]]


@click.command(help=__doc__)
@click.option("--data", multiple=True, required=True, type=click.Path(exists=True, dir_okay=False))
@click.option("--prompts", default=2000, show_default=True, help="How many, a million too.")
@click.option("--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda"]))
@click.option("--precision", "precisions", multiple=True, type=click.Choice(["fp32", "bf16"]))
def main(data: tuple[str, ...], prompts: int, device: Device, precisions: tuple[Precision, ...]) -> None:
    try:
        texts = [prompt_text(prompt) for prompt in dict.fromkeys(read_tables(data).prompts)]
        with tempfile.TemporaryDirectory() as place:
            exact = Encoder.load(build_encoder(Path(place) / "fp32", "fp32"), "cpu")
            wanted = exact.encode(texts[:COMPARED])
        rows = [_row(encoder, texts, prompts, wanted) for encoder in _encoders(device, precisions)]
    except EnsembleError as error:
        raise click.ClickException(str(error)) from error
    _print(rows, prompts)


def _encoders(device: Device, precisions: Sequence[Precision]) -> Iterator[Encoder | TorchEncoder]:
    """One at a time: they share the device's memory with nobody."""
    for precision in dict.fromkeys(precisions) or [None]:
        yield TorchEncoder.load(None, device, precision)
    yield Encoder.load(shipped_folder() / ENCODERS / DEFAULT_ENCODER, device)


def _row(encoder: Encoder | TorchEncoder, texts: Sequence[str], n: int, wanted: FloatArray) -> dict[str, Any]:
    stream = encoder.stream if isinstance(encoder, TorchEncoder) else _windows(encoder)
    for _ in stream(iter(texts[:WARM_UP])):
        pass
    start, done = time.perf_counter(), 0
    for features in stream(itertools.islice(_endless(texts), n)):
        done += len(features)
    seconds = time.perf_counter() - start
    got = encoder.encode(texts[:COMPARED])
    cosine = (got * wanted).sum(axis=1) / np.linalg.norm(got, axis=1) / np.linalg.norm(wanted, axis=1)
    return {
        "id": encoder.id,
        "provider": encoder.provider,
        "per_second": done / seconds,
        "cosine_least": float(cosine.min()),
        "cosine_mean": float(cosine.mean()),
        "largest_difference": float(np.abs(got - wanted).max()),
    }


def _windows(encoder: Encoder) -> Streams:
    def stream(texts: Iterator[str]) -> Iterator[FloatArray]:
        while window := list(itertools.islice(texts, WINDOW)):
            yield encoder.encode(window)

    return stream


def _endless(texts: Sequence[str]) -> Iterator[str]:
    """The texts as they are, then again and again with a number behind each."""
    yield from texts
    for again in itertools.count(1):
        yield from (f"{text} {again}" for text in texts)


def _print(rows: Sequence[dict[str, Any]], n: int) -> None:
    title = f"{n:,} prompts, {cpu_name()}; agreement with the fp32 graph on the CPU"
    table = Table("encoder", "on", title=title, title_justify="left", box=SIMPLE_HEAD)
    for head in ("prompts/s", "a million takes", "cos least", "mean", "difference"):
        table.add_column(head, justify="right")
    for row in rows:
        table.add_row(
            row["id"],
            row["provider"],
            f"{row['per_second']:,.0f}",
            f"{1e6 / row['per_second'] / 60:,.0f} min",
            number(row["cosine_least"], 5),
            number(row["cosine_mean"], 5),
            f"{row['largest_difference']:.0e}",
        )
    show.console().print(table)


if __name__ == "__main__":
    main()

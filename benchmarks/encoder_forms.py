"""How often does the shipped form of the encoder change a decision?

    python -m benchmarks.encoder_forms --data TABLE [--data TABLE ...]

Builds the fp32 form of the shipped encoder, gives the same head the features of both, and counts the
prompts whose best member differs, at three dials, over the default pool. The head was trained on the
shipped form's features. The cosine of the features is told for each of their blocks.
"""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt

from ensemble import policy
from ensemble.bundle import shipped_folder
from ensemble.encoder import Encoder
from ensemble.learning.encoders import CARD, build_encoder
from ensemble.learning.tables import read_tables
from ensemble.parts import Parts
from ensemble.records import FloatArray, Wishes
from ensemble.text import prompt_text

DIALS = (0.001, 0.01, 0.1)


@click.command(help=__doc__)
@click.option("--data", multiple=True, required=True, type=click.Path(exists=True, dir_okay=False))
@click.option("--prompts", default=1000, show_default=True, help="How many, drawn at random.")
@click.option("--seed", default=0, show_default=True)
def main(data: tuple[str, ...], prompts: int, seed: int) -> None:
    table = read_tables(data)
    drawn = random.Random(seed).sample(sorted(set(table.prompts)), prompts)
    texts = [prompt_text(prompt) for prompt in drawn]
    parts = Parts(None, shipped_folder() / "pool.toml", False, {}, "cpu", lambda: 0.0)
    with tempfile.TemporaryDirectory() as folder:
        built = build_encoder(Path(folder) / "fp32", "fp32")
        fp32, card = Encoder.load(built, "cpu").encode(texts), json.loads((built / CARD).read_text())
    served = parts.router.encoder.encode(texts)
    click.echo(f"{prompts} prompts; cosine of features by block:")
    ends = np.cumsum([int(width) for width in card["widths"].split(", ")])[:-1]
    both = zip(np.split(fp32, ends, axis=1), np.split(served, ends, axis=1), strict=True)
    for name, (exact, rounded) in zip(card["depths"].split(", "), both, strict=True):
        click.echo(f"  {name:8} {_cosine(exact, rounded)}")
    characters = np.array([len(text) for text in texts], float)
    for dial in DIALS:
        changed = _best(parts, fp32, characters, dial) != _best(parts, served, characters, dial)
        click.echo(f"willingness to pay {dial:g} USD: {changed.mean():.2%} of the decisions differ")


def _best(parts: Parts, features: FloatArray, characters: FloatArray, dial: float) -> npt.NDArray[np.intp]:
    """The index of the best member in the pool, (n_prompts,)."""
    terms = parts.terms
    prediction = terms.prior.fill(parts.router.head.predict(features))
    expected = policy.expect(prediction, terms.pool, characters, terms.characters_per_token)
    value = policy.utility(prediction.reward, expected, Wishes(willingness_to_pay_usd=dial))
    best: npt.NDArray[np.intp] = value.argmax(axis=1)
    return best


def _cosine(a: FloatArray, b: FloatArray) -> str:
    cosine = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return f"least {cosine.min():.5f}, mean {cosine.mean():.5f}"


if __name__ == "__main__":
    main()

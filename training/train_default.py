"""Train the router that comes with the library, from a folder of outcome tables.

    python training/train_default.py --data FOLDER

FOLDER holds mmlu_pro, zeroeval, llmrouter_dc and routellm_2model as Parquet, each with a JSON file that
names its main members. Members of several tables are put together by ALIASES; the others keep their
names. Writes router_models/default and prints its figures.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
from pathlib import Path

import click
import numpy as np

from ensemble import bundle
from ensemble.catalog import look_up
from ensemble.encoder import Encoder
from ensemble.learning.tables import OutcomeTable, read_tables
from ensemble.learning.train import train
from ensemble.pool import Pool
from ensemble.records import Kind

TABLES = ("mmlu_pro", "zeroeval", "llmrouter_dc", "routellm_2model")
ENCODER = "all-minilm-l6-v2-depths-int8"
ALIASES = {
    "llama-3.1-8b-instruct": "Meta-Llama-3.1-8B-Instruct",
    "mistralai/Mixtral-8x7B-Instruct-v0.1": "Mixtral-8x7B-Instruct-v0.1",
}
# Frontier: rented and closed. Specialist: open and narrow. Tuned: open weights, which stand here for a
# model of one's own: anybody can post-train and keep them.
SPECIALISTS = (
    "mathstral-7B",
    "DeepSeek-Coder-V2",
    "codegemma-7b",
    "llama3-chatqa-1.5-8b",
    "llama3-chatqa-1.5-70b",
)
NOTES = (
    "The recipe's constants were set on random splits of mmlu_pro and zeroeval that overlap with the "
    "prompts held out here: the figures on those two flatter it slightly.",
    "Answers of one letter (most of routellm_2model) count for their reward, not for their length: expected "
    "tokens are those of answers that reason.",
    "zeroeval counts the tokens of its templates with the prompt's, so input costs of members seen only "
    "there come out up to twice too high.",
    "`tuned` stands for open weights here, which anybody can post-train and keep; none was tuned for this.",
)
CLOSED = ("gpt-", "claude-", "gemini-", "Mistral-Large")


def kind_of(member: str) -> Kind:
    if member in SPECIALISTS:
        return "specialist"
    return "frontier" if member.startswith(CLOSED) else "tuned"


def main_members(data: Path) -> list[str]:
    names = [
        ALIASES.get(name, name)
        for table in TABLES
        for name in json.loads((data / f"{table}.json").read_text())["main_members"]
    ]
    return list(dict.fromkeys(names))


def without_letters(table: OutcomeTable) -> OutcomeTable:
    """The same table where answers of a single letter count as of unknown length: what was measured there
    was asked for as one letter, and a caller's answer will not be."""
    letter = table.output_tokens <= 1
    return dataclasses.replace(table, output_tokens=np.where(letter, np.float32(np.nan), table.output_tokens))


def retired(pool: Pool) -> dict[str, datetime.date]:
    """The last day of every member of the default pool for which litellm's map has one."""
    days = {member.name: (look_up(member.deployments[0].model) or member).retires for member in pool}
    return {name: day for name, day in days.items() if day is not None}


@click.command(help=__doc__)
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--out", type=click.Path(path_type=Path), default=bundle.shipped_folder() / "default")
@click.option("--seed", default=0, show_default=True)
def main(data: Path, out: Path, seed: int) -> None:
    members = main_members(data)
    table = read_tables([data / f"{name}.parquet" for name in TABLES], aliases=ALIASES)
    table = without_letters(table.with_members(members))
    encoder_folder = bundle.shipped_folder() / bundle.ENCODERS / ENCODER
    trained = train(
        table,
        Encoder.load(encoder_folder),
        encoder_folder,
        out,
        kinds={name: kind_of(name) for name in members},
        retired=retired(Pool.load(bundle.shipped_folder() / "pool.toml")),
        notes=NOTES,
        seed=seed,
        progress=True,
        on_step=click.echo,
    )
    click.echo(json.dumps(trained.figures, indent=1))


if __name__ == "__main__":
    main()

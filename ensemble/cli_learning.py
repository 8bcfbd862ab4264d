"""The commands that learn: ``train`` and ``evaluate``; and ``encoder``, which makes encoders."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ensemble.bundle import ENCODERS, shipped_folder
from ensemble.cli import json_option, open_log, print_json
from ensemble.errors import ConfigError

if TYPE_CHECKING:
    from ensemble.learning.encoders import Form

DEFAULT_ENCODER = "all-minilm-l6-v2-depths-int8"
_TABLE = click.Path(exists=True, dir_okay=False)


MOST_SHOWN = 500  # prompts, to find scales with: more find no others


def _pairs(option: str, values: tuple[str, ...]) -> dict[str, str]:
    """``NAME=VALUE`` options as a dict."""
    pairs = {}
    for value in values:
        name, equals, meaning = value.partition("=")
        if not (name and equals and meaning):
            raise ConfigError(f"{option}: expected NAME=VALUE, found {value!r}")
        pairs[name] = meaning
    return pairs


def _say(line: str) -> None:
    """Progress goes to standard error, so that --json leaves standard output to the document."""
    click.echo(line, err=True)


@click.command()
@click.option("--data", multiple=True, type=_TABLE, help="An outcome table (Parquet); may be repeated.")
@click.option("--log", "log_place", help="Learn from the rewarded answers of this log instead (path or URL).")
@click.option("--out", required=True, type=click.Path(), help="The new router's folder.")
@click.option("--pool", type=click.Path(exists=True), help="A pool file that tells the members' kinds.")
@click.option("--member", "members", multiple=True, help="Only this member of the table; may be repeated.")
@click.option(
    "--alias", "aliases", multiple=True, metavar="NAME=MEMBER", help="A name in the table, and who it is."
)
@click.option(
    "--encoder",
    "encoder_folder",
    type=click.Path(exists=True),
    help="An encoder's folder. [default: the shipped one]",
)
@click.option("--tune-encoder", is_flag=True, help="Train the encoder as well; says how long it will take.")
@click.option("--seed", default=0, show_default=True)
@json_option
def train(
    data: tuple[str, ...],
    log_place: str | None,
    out: str,
    pool: str | None,
    members: tuple[str, ...],
    aliases: tuple[str, ...],
    encoder_folder: str | None,
    tune_encoder: bool,
    seed: int,
    as_json: bool,
) -> None:
    """Train a router from outcome tables, or from a log, and write it to a folder.

    A table is Parquet, a row per prompt and member: prompt_id, prompt, member (by the pool's name), reward in
    [0, 1]; cost_usd, input_tokens, output_tokens, task and propensity where known.
    """
    from ensemble import catalog
    from ensemble.encoder import Encoder
    from ensemble.learning.from_log import read_log
    from ensemble.learning.tables import read_tables
    from ensemble.learning.train import train as run
    from ensemble.pool import Pool

    if bool(data) == bool(log_place):
        raise ConfigError("expected either --data or --log, found " + ("both" if data else "neither"))
    if tune_encoder and (encoder_folder or log_place):
        found = (
            "--encoder, which is used as it is" if encoder_folder else "--log, which has features, not texts"
        )
        raise ConfigError(f"expected --tune-encoder with --data alone, found {found}. Leave one of them out.")
    folder = Path(encoder_folder or shipped_folder() / ENCODERS / DEFAULT_ENCODER)
    encoder, features, n_hashed = Encoder.load(folder), None, 0
    if log_place:
        with open_log(log_place) as log:
            logged = read_log(log, encoder)
        table, features, n_hashed = logged.table, logged.features, logged.n_hashed
        if logged.n_left_out:
            _say(
                f"{logged.n_left_out} rewarded answers left out: another encoder's features, and no text kept"
            )
    else:
        table = read_tables(data, aliases=_pairs("--alias", aliases))
    if members:
        table = table.with_members(members)
    kinds, retired = {}, {}
    if pool:
        given = Pool.load(pool, catalog.look_up)
        offered = [member for member in given if member.name in table.members]
        if lacking := [member.name for member in given if member not in offered]:
            _say(
                f"no outcomes of {', '.join(lacking)} among those of {', '.join(table.members)}: unmeasured"
                + (". Where only the names differ, give --alias NAME=MEMBER" if data else "")
            )
        kinds = {member.name: member.kind for member in offered}
        retired = {member.name: member.retires for member in offered if member.retires}
    trained = run(
        table, encoder, folder, out,
        features=features, n_hashed=n_hashed, kinds=kinds, retired=retired, tune_encoder=tune_encoder,
        seed=seed, progress=not as_json, on_step=_say,
    )  # fmt: skip
    if as_json:
        print_json({"folder": str(trained.folder), "figures": trained.figures})
        return
    click.echo(f"{trained.folder}: written, with its figures on held-out prompts in CARD.md")
    click.echo(f"next: ensemble evaluate {out} --data TABLE, or ensemble route --router {out} PROMPT")


@click.command()
@click.argument("router", type=click.Path(exists=True))
@click.option(
    "--data", multiple=True, required=True, type=_TABLE, help="An outcome table (Parquet); may be repeated."
)
@click.option(
    "--alias", "aliases", multiple=True, metavar="NAME=MEMBER", help="A name in the table, and who it is."
)
@json_option
def evaluate(router: str, data: tuple[str, ...], aliases: tuple[str, ...], as_json: bool) -> None:
    """Compare ROUTER with single members and simple methods on the prompts it never learned from."""
    import numpy as np

    from ensemble.errors import TableError
    from ensemble.learning.evaluate import print_report
    from ensemble.learning.features import featurize
    from ensemble.learning.figures import compare
    from ensemble.learning.split import near_duplicates, seen
    from ensemble.learning.tables import read_tables
    from ensemble.router import Router
    from ensemble.text import prompt_text

    opened = Router.load(router)
    table = read_tables(data, aliases=_pairs("--alias", aliases))
    groups = near_duplicates(table.prompts)
    manifest = opened.manifest
    learned = seen(table.prompts, manifest.learned_from, manifest.salt)
    known = seen(table.prompts, manifest.learned_from, manifest.salt, groups=groups)
    n_known = int(known.sum())
    if known.all():
        raise TableError(
            f"all {table.n_prompts} prompts are ones the router learned from, or near-duplicates of them; "
            "there is nothing left to evaluate on. Give a table with other prompts."
        )
    texts = [prompt_text(prompt) for prompt in table.prompts]
    features = featurize(opened.encoder, texts, progress=not as_json)
    report = compare(
        opened.head, features, table, groups, learned=np.flatnonzero(learned), held_out=np.flatnonzero(~known)
    )
    if as_json:
        print_json({"n_prompts_learned_from": n_known, **report.as_dict()})
        return
    click.echo(
        f"{n_known:,} of {table.n_prompts:,} prompts dropped: the router learned from them or their twins"
    )
    print_report(report)
    if n_hashed := manifest.recipe.get("prompts_without_text"):
        click.echo(
            f"the router's log kept no text of {n_hashed:,} prompts: those of them that are in this table "
            "were not told apart, and flatter it"
        )
    if manifest.recipe.get("encoder_tuned_on"):
        click.echo(
            "the others chose their settings on prompts that the encoder was tuned on, which flatter them"
        )


@click.group()
def encoder() -> None:
    """Make encoders: what turns prompts into features."""


@encoder.command()
@click.argument("out", type=click.Path(file_okay=False))
@click.option("--form", type=click.Choice(["fp32", "fp16", "w8", "int8"]), default="fp32", show_default=True)
@click.option("--model", help="A sentence-transformers folder or hub id. [default: the pinned wheel's]")
@click.option(
    "--max-tokens", type=click.IntRange(min=8), help="Read no more of a text. [default: the model's]"
)
@click.option(
    "--prompts",
    type=click.Path(exists=True, dir_okay=False),
    help="Some hundreds of prompts like those to come, as for collect; int8 finds its scales with them.",
)
@json_option
def build(
    out: str, form: Form, model: str | None, max_tokens: int | None, prompts: str | None, as_json: bool
) -> None:
    """Export an encoder to OUT, offline from the pinned wheel unless --model is given."""
    from ensemble.learning.encoders import build_encoder
    from ensemble.learning.prompts import read_prompts

    shown = [prompt.text for prompt in read_prompts(prompts)[:MOST_SHOWN]] if prompts else []
    folder = build_encoder(out, form=form, model=model, max_tokens=max_tokens, shown=shown)
    print_json({"folder": str(folder)}) if as_json else click.echo(f"{folder}: written")

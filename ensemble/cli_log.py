"""``ensemble log export | forget``: the log as a file for other programs, and what goes from it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import click

from ensemble.cli import json_option, labels, open_log, print_json

_WHEN = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"])


@click.group()
def log() -> None:
    """Export the log, or forget parts of it. LOG is a path or a database URL."""


@log.command()
@click.argument("place", metavar="LOG")
@click.argument("out", metavar="OUT.parquet", type=click.Path(dir_okay=False))
@click.option("--since", type=_WHEN, help="Decisions made then or later, UTC.")
@click.option("--until", type=_WHEN, help="Decisions made before, UTC.")
@json_option
def export(place: str, out: str, since: Any, until: Any, as_json: bool) -> None:
    """Write one row per decision, with its attempts and rewards, to a Parquet file."""
    from ensemble.learning.log_export import export_log

    with open_log(place) as opened:
        count = export_log(opened, out, since=_seconds(since), until=_seconds(until))
    if as_json:
        print_json({"decisions": count, "file": out})
    else:
        click.echo(f"{count:,} decisions in {out}")


@log.command()
@click.argument("place", metavar="LOG")
@click.option("--id", "decision_id", help="One decision.")
@click.option("--older-than-days", type=float, help="Every decision of at least this age.")
@click.option("--metadata", multiple=True, metavar="NAME=VALUE", help="Those that carry it; may be repeated.")
@json_option
def forget(
    place: str,
    decision_id: str | None,
    older_than_days: float | None,
    metadata: tuple[str, ...],
    as_json: bool,
) -> None:
    """Delete decisions and all that followed from them. VALUE is looked for as JSON and as text."""
    with open_log(place) as opened:
        count = sum(
            opened.forget(decision_id, meant, older_than_days=older_than_days)
            for meant in _meanings(metadata)
        )
    if as_json:
        print_json({"forgotten": count})
    else:
        click.echo(f"{count:,} decisions forgotten")


def _meanings(pairs: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The metadata that NAME=VALUE may stand for: 4711 is a number, or a text."""
    each = [(labels([pair]), dict([pair.split("=", 1)])) for pair in pairs]
    for chosen in itertools.product(*[[read] if read == text else [read, text] for read, text in each]):
        yield dict(item for one in chosen for item in one.items())


def _seconds(when: Any) -> float | None:
    from datetime import UTC

    return None if when is None else when.replace(tzinfo=UTC).timestamp()

"""``ensemble log export | forget``: the log as a file for other programs, and what goes from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ensemble.cli import json_option, labels, print_json
from ensemble.outcomes import OutcomeLog

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

    with _opened(place) as opened:
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
    """Delete decisions and all that followed from them. A VALUE that is JSON is read as JSON."""
    with _opened(place) as opened:
        count = opened.forget(decision_id, labels(metadata) or None, older_than_days=older_than_days)
    if as_json:
        print_json({"forgotten": count})
    else:
        click.echo(f"{count:,} decisions forgotten")


def _opened(place: str) -> OutcomeLog:
    if "://" not in place and not Path(place).expanduser().is_file():
        raise click.UsageError(f"LOG: expected a log's path or URL, found no file {place}.")
    return OutcomeLog.open(place)


def _seconds(when: Any) -> float | None:
    from datetime import UTC

    return None if when is None else when.replace(tzinfo=UTC).timestamp()

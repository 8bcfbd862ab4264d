"""How do people get to see the results? Printed after a run, and as the figures of benchmarks/README.md.

    python -m benchmarks.tables

writes the README's figures anew from what is stored in benchmarks/results/quality. Its prose is kept: only
what stands between the two markers is replaced.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks import sheets
from benchmarks.sheets import Sheet
from benchmarks.verdicts import Result, Verdict, has_ours, verdicts
from benchmarks.wording import number
from ensemble import show
from ensemble.errors import InputError

README = Path(__file__).with_name("README.md")
RESULTS = Path(__file__).with_name("results") / "quality"
BEGIN = "<!-- figures: written by benchmarks/tables.py -->"
END = "<!-- end of figures -->"
SPLITS = {"iid": "prompts held out at random", "leave-task-out": "whole tasks held out"}


def read_results(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """Every stored result, by table and split; none where nothing has been stored."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


def print_result(result: Result, console: Console | None = None) -> None:
    """One result for the terminal: how the methods did, whether to trust them, which aims are reached."""
    console = console or show.console()
    console.print(f"\n{result['table']}, {SPLITS[result['split']]}: {summary(result)}")
    shown = [sheets.quality(result), sheets.savings(result), sheets.trust(result), sheets.controls(result)]
    for sheet in shown:
        if sheet is not None and sheet.columns[0].cells:
            console.print(_table(sheet))
    for verdict in verdicts(result):
        console.print(f"{'reached' if verdict.holds else 'MISSED '}  {verdict.claim}: {verdict.evidence}")


def write_readme(results: Sequence[Result], path: Path = README) -> None:
    """Put the figures of ``results`` between the markers of the README at ``path``; where there is none yet,
    into a copy of benchmarks/README.md.

    :raises InputError: the two markers are not there.
    """
    text = (path if path.is_file() else README).read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise InputError(
            f"expected the line {BEGIN!r} and below it {END!r} in {path}, found "
            f"{'no second one' if begin else 'no such line'}: the figures go between them, put them back"
        )
    path.write_text(f"{before}{BEGIN}\n\n{markdown(results)}\n{END}{after}", encoding="utf-8")


def markdown(results: Sequence[Result]) -> str:
    """All figures of the README, by table and split."""
    if not results:
        return "No results are stored yet.\n"
    results = sorted(results, key=lambda result: (result["table"], result["split"]))
    iid = {result["table"]: result for result in results if result["split"] == "iid"}
    judged = [(result, verdicts(result, iid.get(result["table"]))) for result in results]
    return "\n\n".join([_overview(judged), *(_section(result, found) for result, found in judged)]) + "\n"


def _overview(judged: Sequence[tuple[Result, Sequence[Verdict]]]) -> str:
    """Where ours stands, a row per result, and every aim that is missed."""
    lines = [sheets.overview([result for result, _ in judged if has_ours(result)]).markdown()]
    missed = [
        f"- {result['table']}, {result['split']}: {verdict.claim} ({verdict.evidence})"
        for result, found in judged
        for verdict in found
        if not verdict.holds
    ]
    n = sum(len(found) for _, found in judged)
    lines.append(f"Of {n} aims checked {n - len(missed)} are reached" + (", and missed:" if missed else "."))
    return "\n\n".join(["## Where ours stands", *lines, *(["\n".join(missed)] if missed else [])])


def _section(result: Result, found: Sequence[Verdict]) -> str:
    stem = f"{result['table']}.{result['split']}"
    marks = [f"- {'reached' if v.holds else '**missed**'}: {v.claim}: {v.evidence}" for v in found]
    more = [sheets.utilities(result), sheets.controls(result)]
    if has_ours(result):
        more += [sheets.members(result), sheets.chosen(result)]
    details = [f"{sheet.title}:\n\n{sheet.markdown()}" for sheet in more if sheet is not None]
    return "\n\n".join(
        [
            f"## {result['table']}, {SPLITS[result['split']]}",
            f"{summary(result)} Made {_days(result)} with {result['encoder']}, seed {result['seed']}.",
            f"![cost-quality frontiers](results/quality/{stem}.svg)",
            *([sheets.standing(result)] if has_ours(result) else []),
            *(each(result).markdown() for each in (sheets.quality, sheets.savings, sheets.trust)),
            *(["\n".join(marks)] if marks else []),
            "<details><summary>By dial, by member, controls</summary>",
            *details,
            "</details>",
        ]
    )


def _days(result: Result) -> str:
    """When the methods were measured: some may have been kept from an earlier day."""
    days = sorted({method["made"] for method in result["methods"] if method["kind"] != "mark"})
    return " to ".join(dict.fromkeys((days[0], days[-1])))


def summary(result: Result) -> str:
    """What was measured on, in a sentence or two."""
    single, (low, high) = result["best_single"], map(show.usd, result["spend_range_usd_per_1000"])
    return (
        f"{result['n_prompts']:,} prompts, {len(result['members'])} members, {result['n_folds']} folds. Best "
        f"single member: {single['member']}, reward {number(single['reward'])} at "
        f"{show.usd(single['usd_per_1000'])} USD per 1,000 prompts; query oracle: "
        f"{number(result['oracle_reward'])}. AIQ is over {low} to {high} USD per 1,000."
    )


def _table(sheet: Sheet) -> Table:
    """For the terminal: names may be folded, figures stay whole."""
    table = Table(title=sheet.title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for j, column in enumerate(sheet.columns):
        table.add_column(column.head, justify="right" if j else "left", no_wrap=j > 0, overflow="fold")
    styled = [
        [Text(cell, "bold" if i in column.bold else "") for i, cell in enumerate(column.cells)]
        for column in sheet.columns
    ]
    for row in zip(*styled, strict=True):
        table.add_row(*row)
    return table


@click.command(help=__doc__)
def main() -> None:
    write_readme(read_results())


if __name__ == "__main__":
    main()

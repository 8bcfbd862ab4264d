"""How do people get to see what faults did? In the terminal and as a page: the same figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.faults_aims import aims
from benchmarks.sheets import Column, Sheet
from benchmarks.wording import UNKNOWN, percent
from ensemble import show

Result = Mapping[str, Any]
INTRODUCTION = """\
# Faults

Written by `python -m benchmarks.faults`, which tries all of it anew, in some twenty minutes on two cores.
Providers are processes on the loopback that keep a bill of their own.

- *load*: many threads over three members, two of them flaky; every call has a deadline and a tag, and is held
  against the log and the bill.
- *outage*: the provider of the preferred member is killed for the middle third of a run.
- *kill*: a process that answers without end is killed at random moments, over one log.
- *hostile*: inputs that are meant to do harm.
"""


def print_result(result: Result, console: Console | None = None) -> None:
    """Everything of one run for the terminal, the aims last."""
    console = console or show.console()
    console.print(machine_line(result))
    for sheet in sheets(result):
        table = Table(title=sheet.title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for j, column in enumerate(sheet.columns):
            table.add_column(column.head, justify="right" if j and len(sheet.columns) == 2 else "left")
        for row in zip(*(column.cells for column in sheet.columns), strict=True):
            table.add_row(*row)
        console.print(table)
    for aim in aims(result):
        console.print(f"{'reached' if aim.holds else 'MISSED '}  {aim.claim}: {aim.evidence}", soft_wrap=True)


def markdown(results: Sequence[Result]) -> str:
    sections = []
    for result in results:
        found = aims(result)
        marks = [
            f"- {'reached' if aim.holds else '**missed**'}: {aim.claim}: {aim.evidence}" for aim in found
        ]
        reached = sum(aim.holds for aim in found)
        sections += [
            f"## {result['name']}",
            machine_line(result),
            f"Of {len(found)} aims {reached} are reached.",
            "\n".join(marks),
            *(f"{sheet.title}:\n\n{sheet.markdown()}" for sheet in sheets(result)),
        ]
    return "\n\n".join([INTRODUCTION.rstrip(), *sections]) + "\n"


def write_page(results: Sequence[Result], path: Path) -> None:
    path.write_text(markdown(results), encoding="utf-8")


def machine_line(result: Result) -> str:
    m = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in m["versions"].items())
    return (
        f"{m['cpu']}, {m['cores']} cores, {m['system']}. "
        f"{m['date']}, commit {m['commit']}, seed {result['seed']}; {versions}."
    )


def sheets(result: Result) -> list[Sheet]:
    """A table for each part that was run."""
    found = []
    if load := result.get("load"):
        found += _load(load)
    if outages := result.get("outage"):
        found.append(_outage(outages))
    if kill := result.get("kill"):
        found.append(_kill(kill))
    if rows := result.get("hostile"):
        heads = {"what": "what", "got": "what it got", "held": "held off"}
        cells = {head: [_cell(row[name]) for row in rows] for name, head in heads.items()}
        found.append(Sheet("hostile input", [Column(head, some) for head, some in cells.items()]))
    return found


def _load(load: Mapping[str, Any]) -> list[Sheet]:
    facts = {
        "calls, callers at once": f"{load['calls']:,}, {load['callers']}",
        "seconds, calls a second": f"{load['seconds']:.0f}, {load['calls'] / load['seconds']:.0f}",
        "flaky members' requests with a fault": percent(load["share_of_requests"]),
        "calls that met one": percent(load["share_of_calls"]),
        "answered": f"{load['answered']:,}",
        "p50, p99 of a call, s": f"{load['p50_s']:.2f}, {load['p99_s']:.2f}",
        "attempts": f"{load['attempts']:,}",
    }
    facts |= {f"ended with {name}": f"{n:,}" for name, n in load["errors"].items()}
    facts |= {f"served by {name}": f"{n:,}" for name, n in load["served_by"].items() if name != "None"}
    faults = {name: f"{n:,}" for name, n in load["faults"].items()}
    return [_plain("load", facts, "figure"), _plain("faults that were met", faults, "requests")]


def _outage(outages: Sequence[Mapping[str, Any]]) -> Sheet:
    rows = {
        "calls": "calls",
        "failed": "failed",
        "calls of the middle third": "middle_calls",
        "of them tried the dead member first": "tried_the_dead",
        "of them after the cool-down's start": "cooled_calls",
        "p50 in the first third, ms": "healthy_ms",
        "p50 in the middle third, ms": "middle_ms",
        "p50 once its cool-down has started, ms": "cooled_ms",
        "p50 of the control meanwhile, ms": "control_ms",
        "back with the member, share of the last third": "back",
    }
    columns = [Column("", list(rows))]
    for each in outages:
        head = "one deployment" if each["places"] == 1 else f"{each['places']} deployments"
        columns.append(Column(head, [_cell(each[name]) for name in rows.values()]))
    return Sheet("the preferred member's provider gone for the middle third", columns)


def _kill(kill: Mapping[str, Any]) -> Sheet:
    names = {
        "sqlite_before": 'SQLite, "before"',
        "postgres_before": 'PostgreSQL, "before"',
        "sqlite_after": 'SQLite, "after"',
    }
    shown = {head: kill[name] for name, head in names.items() if kill[name]}
    rows = list(dict.fromkeys(row for one in shown.values() for row in one))
    columns = [Column("", [row.replace("_", " ") for row in rows])]
    columns += [Column(head, [_cell(one.get(row)) for row in rows]) for head, one in shown.items()]
    return Sheet("kill -9", columns)


def _plain(title: str, facts: Mapping[str, str], head: str) -> Sheet:
    return Sheet(title, [Column("", list(facts)), Column(head, list(facts.values()))])


def _cell(value: Any) -> str:
    if value is None:
        return UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    return (
        f"{value:,.2f}"
        if isinstance(value, float)
        else f"{value:,}"
        if isinstance(value, int)
        else str(value)
    )

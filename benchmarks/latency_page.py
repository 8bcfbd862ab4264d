"""How do people get to see how fast it is? In the terminal, as a page, as a picture: the same figures."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.latency_aims import SHARE_OF_BARE, aims, better_bare, figure
from benchmarks.latency_contenders import AWAITED, BARE, LEARNED, OURS, RULES
from benchmarks.latency_rounds import BATCHED, ONE_CALLER
from benchmarks.latency_serving import LITELLM, WAYS
from benchmarks.plots import COLOURS, GREY
from benchmarks.sheets import Column, Sheet
from benchmarks.wording import UNKNOWN
from ensemble import show

Result = Mapping[str, Any]
INTRODUCTION = """\
# Speed

Written by `python -m benchmarks.latency`, which measures all of it anew in some six minutes, on a machine
that should have nothing else to do. Lengths are in tokens; of the prompts of 2,000 tokens the first and the
last 128 are read. No prompt is timed twice. Contenders are timed in short turns, in an order shuffled anew
in each round, and are compared within one run only.

- *bare encoder*: the shipped tokenizer and graph with the library's settings, and nothing else; batched,
  with texts of like length side by side, or for one caller after the other.
- *route()*: with the log in both modes, over the default router and its pool; *aroute()* is for asyncio.
- *sentence-transformers + scikit-learn*: the same MiniLM in torch on as many threads, then the chances of a
  logistic regression over the pool's members: what one would write instead. It reads the first 256 tokens.
- *litellm's complexity router*: the rules that come with litellm, their decision alone; a coroutine in a loop
  of the caller's own.
"""


def print_result(result: Result, console: Console | None = None) -> None:
    """Everything of one run for the terminal, the aims last."""
    console = console or show.console()
    console.print(machine_line(result))
    for sheet in sheets(result):
        table = Table(title=sheet.title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for j, column in enumerate(sheet.columns):
            table.add_column(column.head, justify="right" if j else "left", no_wrap=j > 0, overflow="fold")
        for row in zip(*(column.cells for column in sheet.columns), strict=True):
            table.add_row(*row)
        console.print(table)
    for aim in aims(result):
        console.print(f"{'reached' if aim.holds else 'MISSED '}  {aim.claim}: {aim.evidence}", soft_wrap=True)


def markdown(results: Sequence[tuple[Result, str]]) -> str:
    """The page of all ``results``, each with the place of its picture as seen from the page."""
    sections = []
    for result, picture in results:
        found = aims(result)
        marks = [
            f"- {'reached' if aim.holds else '**missed**'}: {aim.claim}: {aim.evidence}" for aim in found
        ]
        missed = sum(not aim.holds for aim in found)
        sections += [
            f"## {result['name']}",
            machine_line(result),
            f"Of {len(found)} aims {len(found) - missed} are reached.",
            "\n".join(marks),
            f"![p50, callers and members]({picture})",
            *(f"{sheet.title}:\n\n{sheet.markdown()}" for sheet in sheets(result)),
        ]
    return "\n\n".join([INTRODUCTION.rstrip(), *sections]) + "\n"


def write_page(results: Sequence[tuple[Result, Path]], path: Path) -> None:
    """``results``, each with its picture's path, as a page at ``path``."""
    relative = [
        (result, Path(os.path.relpath(picture, path.parent)).as_posix()) for result, picture in results
    ]
    path.write_text(markdown(relative), encoding="utf-8")


def machine_line(result: Result) -> str:
    """On what and when, in two sentences."""
    m = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in m["versions"].items())
    return (
        f"{m['cpu']}, {m['cores']} cores, {m['system']}; {m['provider']} on {m['threads']} threads. "
        f"{m['date']}, commit {m['commit']}, seed {result['seed']}; {versions}."
    )


def sheets(result: Result) -> list[Sheet]:
    """Every table, in the order of the questions."""
    many = [callers for callers in result["callers"] if callers > 1]
    found = [_latencies(result, callers) for callers in result["callers"]]
    return [*found, *(_rates(result, callers) for callers in many), *_work(result), *_growth(result)]


def _latencies(result: Result, callers: int) -> Sheet:
    def cell(name: str, tokens: int) -> str:
        both = (figure(result, tokens, callers, name, each) for each in ("p50_ms", "p99_ms"))
        return " / ".join(map(_ms, both))

    who = "one caller" if callers == 1 else f"{callers} callers at once"
    return _by_length(result, f"p50 / p99 of one decision in ms, {who}", _names(result, callers), cell)


def _rates(result: Result, callers: int) -> Sheet:
    bare = {row["tokens"]: row for row in result["bare"] if row["callers"] == callers}

    def cell(name: str, tokens: int) -> str:
        if name in (BATCHED, ONE_CALLER):
            return f"{bare[tokens]['batched' if name == BATCHED else 'alone']:,.0f}"
        rate = figure(result, tokens, callers, name, "per_second")
        if rate is None:
            return UNKNOWN
        share = bare and name not in (LEARNED, RULES)
        return f"{rate:,.0f}" + (f" ({rate / better_bare(bare[tokens]):.0%})" if share else "")

    title = f"decisions a second, {callers} callers at once"
    if not bare:
        return _by_length(result, title, _names(result, callers), cell)
    names = [BATCHED, ONE_CALLER, *_names(result, callers)]
    return _by_length(result, f"{title} (of the better of the first two)", names, cell)


def _by_length(result: Result, title: str, names: Sequence[str], cell: Any) -> Sheet:
    columns = [Column(f"{n:,} tokens", [cell(name, n) for name in names]) for n in result["lengths"]]
    return Sheet(title, [Column("", names), *columns])


def _names(result: Result, callers: int) -> list[str]:
    return list(dict.fromkeys(row["contender"] for row in result["decisions"] if row["callers"] == callers))


def _work(result: Result) -> list[Sheet]:
    """Batches, whole calls, a process."""
    calls, batch, process = result["calls"], result["batch"], result["processes"]
    timed = {LITELLM: calls["litellm"]}
    for mode in calls["modes"]:
        timed |= {f'{words}, log "{mode["log_mode"]}"': mode[way] for way, words in WAYS.items()}
    shortest, longest = batch["tokens"]
    rates = {
        "route_batch()": f"{batch['route_batch']:,.0f}",
        f"bare encoder, {batch['batch_tokens']:,} tokens at a time": f"{batch['bare']:,.0f}",
    }
    facts = {
        "import ensemble, ms": f"{process['import_ms']:.0f}",
        "from there to the first decision, ms": f"{process['cold_ms']:.0f}",
        f"resident after {process['served']['calls']} calls, MB": _mb(process["served"]["rss_mb"]),
        "most until then, MB": _mb(process["served"]["peak_mb"]),
    }
    p50, p99 = ([_ms(figures[each]) for figures in timed.values()] for each in ("p50_ms", "p99_ms"))
    return [
        _table(
            f"batches of {batch['n_prompts']:,} prompts of {shortest} to {longest} tokens",
            {"": list(rates), "a second": list(rates.values())},
        ),
        _table(
            f"whole calls over the loopback, {calls['tokens']} tokens, {calls['members']} members, ms",
            {"": list(timed), "p50": p50, "p99": p99},
        ),
        _table("a process", {"": list(facts), "figure": list(facts.values())}),
    ]


def _growth(result: Result) -> list[Sheet]:
    members, streams = result["members"]["costs"], result["streams"]["streams"]
    return [
        _table(
            f"policy and log by members ({result['members']['tokens']} tokens, less the bare encoder)",
            {
                "members": [f"{row['members']:,}" for row in members],
                "p50, ms": [_ms(row["ms"]) for row in members],
            },
        ),
        _table(
            "streams through route_batch()",
            {
                "prompts": [f"{row['prompts']:,}" for row in streams],
                "seconds": [f"{row['seconds']:.2f}" for row in streams],
                "peak, MB": [_mb(row["peak_mb"]) for row in streams],
            },
        ),
    ]


def _table(title: str, columns: Mapping[str, Sequence[str]]) -> Sheet:
    return Sheet(title, [Column(head, cells) for head, cells in columns.items()])


def plot(result: Result, path: Path) -> None:
    """One caller, many callers, many members, side by side, as SVG; the same result gives the same bytes."""
    with matplotlib.rc_context({"svg.hashsalt": "latency", "font.size": 9, "axes.spines.top": False}):
        drawn = Figure(figsize=(11, 3.8), layout="constrained")
        left, middle, right = drawn.subplots(1, 3)
        _draw_latency(left, result)
        _draw_shares(middle, result)
        _draw_members(right, result)
        for axes in (left, right):
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(lambda ms, _: f"{ms:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        for axes in (left, middle, right):
            axes.spines["right"].set_visible(False)
            axes.grid(color="#E6E6E6", linewidth=0.6)
            axes.set_axisbelow(True)
        drawn.savefig(path, format="svg", metadata={"Date": None})


def _draw_latency(axes: Axes, result: Result) -> None:
    styles = {BARE: (GREY, "-"), OURS: ("black", "-"), LEARNED: (COLOURS[0], "--"), RULES: (COLOURS[1], "--")}
    for name, (colour, line) in styles.items():
        found = [(n, figure(result, n, 1, name, "p50_ms")) for n in result["lengths"]]
        known = [(n, ms) for n, ms in found if ms is not None]
        if known:
            axes.plot(*zip(*known, strict=True), line, color=colour, marker="o", markersize=4, label=name)
    axes.set(xscale="log", yscale="log", xlabel="tokens of the prompt", ylabel="p50, ms", title="one caller")
    axes.set_xticks(result["lengths"], [f"{n:,}" for n in result["lengths"]])
    axes.set_ylim(bottom=0.15 * axes.dataLim.y0)  # room for the legend
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.legend(frameon=False, fontsize=7, loc="lower right")


def _draw_shares(axes: Axes, result: Result) -> None:
    callers = max(result["callers"])
    rows = [row for row in result["bare"] if row["callers"] == callers]
    for side, (name, colour) in enumerate({OURS: "black", AWAITED: COLOURS[2]}.items()):
        rates = [figure(result, row["tokens"], callers, name, "per_second") or 0.0 for row in rows]
        shares = [100 * rate / better_bare(row) for rate, row in zip(rates, rows, strict=True)]
        axes.bar([i + 0.4 * side - 0.2 for i in range(len(rows))], shares, 0.38, color=colour, label=name)
    axes.axhline(100 * SHARE_OF_BARE, color=COLOURS[5], linewidth=1.2)
    axes.set_xticks(range(len(rows)), [f"{row['tokens']:,}" for row in rows])
    axes.set(xlabel="tokens of the prompt", ylabel="% of the encoder alone", title=f"{callers} callers")
    axes.set_ylim(0, 1.25 * axes.dataLim.y1)  # room for the legend
    axes.legend(frameon=False, fontsize=7, loc="upper left", ncols=2)


def _draw_members(axes: Axes, result: Result) -> None:
    known = [(row["members"], row["ms"]) for row in result["members"]["costs"] if row["ms"] > 0]
    if known:
        sizes, ms = zip(*known, strict=True)
        linear = [ms[-1] * n / sizes[-1] for n in sizes]
        axes.plot(sizes, ms, color="black", marker="o", markersize=4, label="measured")
        axes.plot(sizes, linear, color=GREY, linestyle="--", label="linear")
        axes.set(xscale="log", yscale="log", ylim=(min(ms) / 2, None))
        axes.legend(frameon=False, fontsize=7)
    axes.set(xlabel="members", ylabel="policy and log, ms", title="many members")


def _ms(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _mb(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.0f}"

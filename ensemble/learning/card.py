"""What should a person know before trusting a router? The text of CARD.md, from manifest and table."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ensemble.bundle import Manifest
from ensemble.learning.calibrate import CAUTION
from ensemble.learning.caveats import caveats
from ensemble.learning.tables import OutcomeTable
from ensemble.learning.trunk import LEAST_CROWD, NEIGHBOURHOOD

Index = npt.NDArray[np.int64]
MOST_TASKS = 12  # named per source; the rest are counted

LEGEND = (
    "AIQ is the mean reward over the spend between the cheapest and the dearest single member; gain is "
    "reward over the best single member's, with reward first; saving is the share of its spend that is "
    "saved at its reward; Brier is the mean squared error of the expected rewards. *Best single* is the "
    "best on these very prompts, which flatters it; *dataset oracle* knows every prompt's task, which no "
    "router is told; *query oracle* knows every answer and is out of reach. The last column is the 95 % "
    "interval of ours less that method, in AIQ."
)


def write_card(
    manifest: Manifest,
    table: OutcomeTable,
    *,
    learned: Index,
    held_out: Index,
    retired: Mapping[str, datetime.date] | None = None,
    notes: Sequence[str] = (),
) -> str:
    """The card's Markdown.

    ``learned`` and ``held_out`` are the rows of ``table`` that the router was fitted and measured on;
    ``retired`` maps members to the day their provider withdraws them, past or to come; ``notes`` are
    what only whoever brought the table can know of it.
    """
    part, retired = table.subset(learned), retired or {}
    blocks = [
        [f"# Router `{manifest.name}`", "", *_summary(manifest, part)],
        ["## What it was trained on", "", *_sources(table, learned, held_out)],
        ["## Members", "", *_members(manifest, part, retired)],
        ["## How it predicts", "", *_recipe(manifest)],
        ["## Figures on prompts held out", "", *_figures(manifest)],
        [
            "## Where not to trust it",
            "",
            *(f"- {line}" for line in (*notes, *caveats(manifest, part, retired))),
        ],
    ]
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def _summary(manifest: Manifest, part: OutcomeTable) -> list[str]:
    return [
        f"For a prompt it predicts, for each of {len(manifest.members)} members, the expected reward in "
        "[0, 1] with its uncertainty, and the output tokens. It knows nothing of prices in force or of who "
        f"is on offer. Made {manifest.created} with seed {manifest.seed}, from {part.n_pairs:,} outcomes on "
        f"{part.n_prompts:,} prompts; features by the encoder `{manifest.encoder_id}`.",
    ]


def _sources(table: OutcomeTable, learned: Index, held_out: Index) -> list[str]:
    rows = []
    source = np.array(table.source)
    for name in dict.fromkeys(table.source):
        here = table.subset(learned[source[learned] == name])
        n_members = int(here.observed.any(axis=0).sum())
        full = here.n_prompts * n_members
        rows.append(
            (
                name,
                f"{here.n_prompts:,}",
                f"{int((source[held_out] == name).sum()):,}",
                n_members,
                f"{here.n_pairs:,}" + (f" ({here.n_pairs / full:.0%})" if full else ""),
                _tasks(here.tasks),
            )
        )
    heads = ("source", "prompts", "held out", "members", "outcomes (of all pairs)", "tasks")
    return _grid(heads, rows, left=(0, 5))


def _tasks(tasks: Sequence[str | None]) -> str:
    counts = Counter(task for task in tasks if task is not None).most_common()
    named = [f"{task} {n:,}" for task, n in counts[:MOST_TASKS]]
    if len(counts) > MOST_TASKS:
        named.append(f"and {len(counts) - MOST_TASKS} more")
    return ", ".join(named) or "not named"


def _members(manifest: Manifest, part: OutcomeTable, retired: Mapping[str, datetime.date]) -> list[str]:
    names, rows = list(dict.fromkeys(part.source)), []
    source = np.array(part.source)
    for note in manifest.members:
        seen = part.observed[:, part.members.index(note.name)]
        rows.append(
            (
                note.name,
                note.kind,
                f"{note.n_prompts:,}",
                ", ".join(name for name in names if seen[source == name].any()) or "none",
                f"{note.mean_reward:.3f}" if note.n_prompts else "-",
                f"{_usd(note.usd_per_million_input)} / {_usd(note.usd_per_million_output)}",
                f"{note.characters_per_token:.2f}",
                retired[note.name].isoformat() if note.name in retired else "-",
            )
        )
    heads = (
        "member",
        "kind",
        "prompts seen",
        "in",
        "mean reward there",
        "USD per million tokens, in / out",
        "characters per token",
        "withdrawn on",
    )
    return [
        *_grid(heads, rows, left=(0, 1, 3)),
        "",
        "Mean rewards are of the prompts that each member saw: compare only members that saw the same. "
        "Prices are those the outcomes were measured at, read off their costs and tokens.",
    ]


def _usd(price: float | None) -> str:
    return "?" if price is None else f"{price:.4g}"


def _recipe(manifest: Manifest) -> list[str]:
    recipe = manifest.recipe
    n_tasks = recipe.get("n_tasks_guessed", 0)
    guess = f", joined by a guess at which of {n_tasks} tasks it belongs to," if n_tasks else ""
    lines = [
        f"A prompt's features{guess} are compared with {recipe.get('n_landmarks', '?')} landmarks, each the "
        f"mean of at least {LEAST_CROWD} different training prompts, and it attends to the nearest "
        f"{NEIGHBOURHOOD:.0%} of them, the nearer the more; where few training prompts are near, attention "
        "fades, and what is left is each member's overall level. Every figure of a member is linear in that "
        "attention. The outcomes are first taken apart into one difficulty per prompt and one ability per "
        "member, so that a member seen on easy prompts only is not taken for a strong one. Then the shared "
        "difficulty and each member's own difference from it are fitted on the attention by two ridge "
        "regressions. Their penalties are those of least squared error on folds not learned from, but the "
        f"second is taken {CAUTION:g} times as large: a choice hangs on the differences alone, and picking "
        "the greatest of several noisy figures rewards the noise. A curve per member, fitted on the same "
        "folds, makes expected rewards agree with realized ones. The uncertainty is that of the expected "
        "reward, not of one answer: it falls with the number of a member's outcomes near the prompt, and "
        "rises with the chance that the prompt is of no kind learned from (few training prompts near, an "
        "undecided guess at its task), both at rates fitted on folds that leave out single prompts and on "
        "folds that leave out whole tasks. Output tokens are fitted likewise, in logarithms.",
        "",
    ]
    settings = [(name.replace("_", " "), str(value)) for name, value in recipe.items()]
    return lines + _grid(("setting", "value"), settings, left=(0,))


def _figures(manifest: Manifest) -> list[str]:
    if not manifest.figures:
        return [
            "None: no source had enough prompts held out that the same two or more members had answered. "
            "Collect a table in which members answer the same prompts (`ensemble collect`), then run "
            "`ensemble evaluate`."
        ]
    lines = []
    for source, figures in manifest.figures.items():
        lines += [
            f"**{source}**: {figures['n_prompts']:,} prompts, {len(figures['members'])} members. Best single "
            f"member: {figures['best_single']}, reward {figures['best_single_reward']:.4f} at "
            f"{figures['best_single_usd_per_1000']:.4g} USD per 1,000 prompts.",
            "",
            *_grid(
                ("method", "AIQ", "gain", "saving", "Brier", "calibration error", "ours ahead by"),
                [_method(name, values) for name, values in figures["methods"].items()],
                left=(0,),
            ),
            "",
        ]
    return [*lines, LEGEND]


def _method(name: str, values: Mapping[str, Any]) -> tuple[object, ...]:
    def number(key: str, form: str) -> str:
        return "-" if values.get(key) is None else format(values[key], form)

    ahead = values.get("aiq_behind")
    return (
        name,
        number("aiq", ".4f"),
        number("gain", "+.4f"),
        number("saving", ".1%"),
        number("brier", ".4f"),
        number("calibration_error", ".4f"),
        "-" if ahead is None else f"{ahead[0]:+.4f} to {ahead[1]:+.4f}",
    )


def _grid(heads: Sequence[str], rows: Sequence[Sequence[object]], left: Sequence[int]) -> list[str]:
    """A Markdown table; the columns of ``left`` are text, the others numbers."""

    def line(cells: Sequence[object]) -> str:
        return "| " + " | ".join(" ".join(str(cell).split()).replace("|", "\\|") for cell in cells) + " |"

    rule = [":--" if i in left else "--:" for i in range(len(heads))]
    return [line(heads), line(rule), *(line(row) for row in rows)]

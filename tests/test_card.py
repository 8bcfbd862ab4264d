"""The card says what is in the data, whatever the table."""

from __future__ import annotations

import dataclasses
import datetime

import numpy as np
import pytest

from ensemble.bundle import Manifest, MemberNote
from ensemble.learning.card import write_card
from ensemble.learning.tables import OutcomeTable
from worlds import table_of

TODAY = datetime.date(2026, 1, 2)


def manifest(table: OutcomeTable, **changes: object) -> Manifest:
    counts = table.observed.sum(axis=0)
    made = Manifest(
        name="mine",
        created=TODAY.isoformat(),
        encoder_id="small",
        encoder_sha256={},
        members=tuple(
            MemberNote(name, int(n), 0.5, 4.0, "frontier", 1.0, 2.0)
            for name, n in zip(table.members, counts, strict=True)
        ),
        recipe={"name": "r", "n_landmarks": 9, "n_tasks_guessed": 0, "shrinkage_own": 10.0},
        seed=0,
        figures={},
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def card_of(table: OutcomeTable, retired: dict[str, datetime.date] | None = None, **changes: object) -> str:
    n = table.n_prompts
    return write_card(
        manifest(table, **changes),
        table,
        learned=np.arange(n * 4 // 5),
        held_out=np.arange(n * 4 // 5, n),
        retired=retired,
    )


def doubts(card: str) -> str:
    return card.split("## Where not to trust it")[1]


def rewards(n: int = 1000, m: int = 3) -> np.ndarray:
    return np.random.default_rng(0).random((n, m))


def test_every_section_stands_and_tables_have_as_many_cells_as_heads() -> None:
    card = card_of(table_of(rewards()))
    heads = [line for line in card.splitlines() if line.startswith("#")]
    assert heads == [
        "# Router `mine`",
        "## What it was trained on",
        "## Members",
        "## How it predicts",
        "## Figures on prompts held out",
        "## Where not to trust it",
    ]
    lines = card.splitlines()
    for rule in (i for i, line in enumerate(lines) if line.startswith(("| :--", "| --:"))):
        rows = [lines[rule - 1], *_table_below(lines[rule:])]
        assert len({row.count("|") - row.count("\\|") for row in rows}) == 1


def _table_below(lines: list[str]) -> list[str]:
    end = next((i for i, line in enumerate(lines) if not line.startswith("|")), len(lines))
    return lines[:end]


def test_sources_are_counted_by_what_was_learned_and_held_out() -> None:
    reward = rewards()
    reward[:500, 2] = np.nan
    table = table_of(
        reward, source=["one"] * 500 + ["two"] * 500, tasks=["sums"] * 300 + ["proofs"] * 200 + [None] * 500
    )
    card = card_of(table)
    assert "| one | 500 | 0 | 2 | 1,000 (100%) | sums 300, proofs 200 |" in card
    assert "| two | 300 | 200 | 3 | 900 (100%) | not named |" in card
    assert "| m2 | frontier | 500 | two | 0.500 | 1 / 2 | 4.00 | - |" in card
    assert "never seen on: 1 of 6 combinations" in doubts(card)
    assert "the 2 tasks above" in doubts(card)


def test_names_with_bars_do_not_break_the_tables() -> None:
    table = table_of(rewards(100), tasks=["a | b\nc"] * 100)
    assert "a \\| b c 80" in card_of(table)


def test_what_is_complete_and_well_measured_is_not_doubted() -> None:
    table = table_of(rewards(), output_tokens=np.full((1000, 3), 9.0))
    text = doubts(card_of(table))
    for doubt in (
        "fewer than",
        "never seen",
        "share no prompt",
        "Output tokens",
        "Prices measured",
        "withdrawn",
    ):
        assert doubt not in text
    assert text.count("\n- ") == 3  # language and length, other work, prices since


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ([f"What is the sum of {i} and {i}?" for i in range(100)], "Latin 100.0%; 100% of the prompts hold"),
        ([f"Сколько будет {i} и {i}?" for i in range(100)], "Cyrillic 100.0%; 0% of the prompts hold"),
        ([f"{i} + {i}" for i in range(100)], "prompts: none; 0% of"),
    ],
)
def test_script_language_and_length_are_read_off_the_prompts(prompts: list[str], expected: str) -> None:
    text = doubts(card_of(table_of(rewards(100), prompts=prompts)))
    lengths = np.quantile([len(prompt) for prompt in prompts[:80]], [0.05, 0.95])
    assert expected in text and f"{lengths[0]:,.0f} to {lengths[1]:,.0f} characters" in text


def test_members_that_share_no_prompt_are_named_in_groups() -> None:
    reward = rewards(m=4)
    reward[::2, :2] = np.nan
    reward[1::2, 2:] = np.nan
    assert "share no prompt, not even through others: m0, m1; m2, m3." in doubts(card_of(table_of(reward)))
    reward[0, 0] = 0.5  # one prompt ties them
    assert "share no prompt" not in doubts(card_of(table_of(reward)))


def test_a_log_with_one_answer_per_prompt_is_said() -> None:
    alone = np.arange(3) == np.random.default_rng(1).integers(0, 3, (1000, 1))
    assert "answered by one member only" in doubts(card_of(table_of(np.where(alone, rewards(), np.nan))))


def test_few_prompts_unknown_tokens_and_unknown_prices_are_said() -> None:
    reward, tokens = rewards(), np.full((1000, 3), 9.0)
    reward[100:, 1], tokens[:, 2] = np.nan, np.nan
    table = table_of(reward, output_tokens=tokens)
    notes = manifest(table).members
    bare = dataclasses.replace(notes[0], usd_per_million_input=None, usd_per_million_output=None)
    free_output = dataclasses.replace(notes[2], usd_per_million_output=0.0)
    text = doubts(card_of(table, members=(bare, notes[1], free_output)))
    assert "fewer than 300 prompts: m1 (100)." in text
    assert "Output tokens of m2: never recorded" in text
    assert "Prices measured: none of m0;" in text and "Prices measured of m2: their whole cost" in text
    assert "256 are assumed of every answer" in doubts(card_of(table_of(rewards())))


def test_withdrawn_members_are_told_by_the_day() -> None:
    days = {"m0": datetime.date(2025, 5, 1), "m1": datetime.date(2026, 7, 1), "stranger": TODAY}
    card = card_of(table_of(rewards()), retired=days)
    assert (
        "already withdrawn by their provider, going by litellm's map when this was made: m0 (2025-05-01)"
        in card
    )
    assert (
        "to be withdrawn by their provider, going by litellm's map when this was made: m1 (2026-07-01)"
        in card
    )
    assert "stranger" not in card and "| 2025-05-01 |" in card


def test_figures_are_shown_with_their_intervals() -> None:
    score = {"aiq": 0.75, "gain": -0.01, "saving": None, "brier": 0.2, "calibration_error": 0.01}
    figures = {
        "one": {
            "n_prompts": 1234,
            "members": ["m0", "m1"],
            "best_single": "m0",
            "best_single_reward": 0.7,
            "best_single_usd_per_1000": 6.5,
            "methods": {"ours": score, "k-means": score | {"saving": 0.5, "aiq_behind": [-0.001, 0.002]}},
        }
    }
    card = card_of(table_of(rewards()), figures=figures)
    assert "**one**: 1,234 prompts, 2 members. Best single member: m0, reward 0.7000 at 6.5 USD" in card
    assert "| ours | 0.7500 | -0.0100 | - | 0.2000 | 0.0100 | - |" in card
    assert "| k-means | 0.7500 | -0.0100 | 50.0% | 0.2000 | 0.0100 | -0.0010 to +0.0020 |" in card
    assert "None: no source" in card_of(table_of(rewards()))

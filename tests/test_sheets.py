"""People see what was measured: every figure comes from the stored results, those in the README too."""

from __future__ import annotations

import io
import itertools
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks import sheets, tables
from benchmarks.sheets import Sheet
from benchmarks.wording import interval, number, percent
from ensemble.errors import InputError
from result_cases import about, entry, result

ROOT = Path(__file__).resolve().parents[1]


def printed(made: dict[str, Any]) -> str:
    console = Console(width=120, file=io.StringIO(), markup=False)
    tables.print_result(made, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def bold(sheet: Sheet) -> dict[str, list[str]]:
    """By head of the column the names of the rows that are bold."""
    names = sheet.columns[0].cells
    return {column.head: [names[i] for i in column.bold] for column in sheet.columns if column.bold}


@pytest.mark.parametrize(
    ("value", "text"), [(0.75123, ".7512"), (-0.00041, "-.0004"), (1.5, "1.5000"), (0.99999, "1.0000")]
)
def test_numbers_have_four_decimals_and_no_leading_nought(value: float, text: str) -> None:
    assert number(value) == text


def test_what_is_unknown_is_a_dash() -> None:
    assert [number(None), percent(None), interval(None)] == ["-", "-", "-"]
    assert interval([0.0021, -0.0003, 0.0045], signed=True) == "+.0021 [-.0003 +.0045]"
    assert percent(0.0213, 2, signed=True) == "+2.13 %"


def test_the_highest_figure_of_all_but_the_oracles_is_bold() -> None:
    made = result()
    assert bold(sheets.quality(made)) == {"AIQ": ["ours"], "log AIQ": ["ours"], "utility": ["ours"]}
    entry(made, "CARROT")["aiq"] = entry(made, "CARROT")["perf_gain"] = about(0.8)
    entry(made, "CARROT")["brier"] = 0.1
    assert bold(sheets.quality(made))["AIQ"] == ["CARROT"]
    assert bold(sheets.savings(made)) == {
        "PerfGain": ["CARROT"],
        "gap closed": ["ours"],
        "Brier": ["CARROT"],
    }


def test_methods_stand_by_aiq_and_marks_below_them() -> None:
    first = sheets.quality(result()).columns[0].cells
    assert first == [
        *("ours", "soft neighbours", "CARROT", "random mix"),
        *("best single", "query oracle", "dataset oracle"),
    ]


def test_a_miscalibrated_member_catches_the_eye() -> None:
    made = result()
    assert bold(sheets.members(made)) == {}
    made["trust"]["ours"]["members"][1]["ece"] = 0.5
    assert bold(sheets.members(made)) == {"ECE": ["middle"]}
    assert sheets.trust(made).columns[1].cells == ["3/3", "2/3"]


def test_a_result_is_printed_whole_and_no_figure_is_cut() -> None:
    made = result()
    text = printed(made)
    for name in [method["name"] for method in made["methods"]]:
        assert name in text
    assert ".6700" in text and "+.0100 [+.0080 +.0120]" in text and "…" not in text
    assert "shuffled outcomes" in text and text.count("reached") == 9 and "MISSED" not in text
    entry(made, "ours")["aiq"] = about(0.6)
    assert "MISSED   highest AIQ of all but the oracles: .6000" in printed(made)


def test_a_result_without_ours_trust_or_controls_is_printed_too() -> None:
    made = result(trust={}, controls=None)
    made["methods"] = [method for method in made["methods"] if method["kind"] != "ours"]
    text = printed(made)
    assert "soft neighbours" in text and "reached" not in text
    assert "CARROT" in tables.markdown([made])


def test_every_section_tells_where_ours_stands_and_what_is_missed() -> None:
    made, far = result(), result(split="leave-task-out")
    made["trust"]["ours"]["members"][0]["ece"] = 0.5
    text = tables.markdown([far, made])
    assert text == tables.markdown([made, far])  # the order of the run leaves no trace
    assert "Ours is first of 4 by AIQ (+.0100 [+.0080 +.0120] over soft neighbours)" in text
    assert "| made_up, iid | **.6700** | +.0100 [+.0080 +.0120] | first of 4 |" in text
    assert "Of 12 aims checked 10 are reached, and missed:" in text
    assert "- made_up, iid: each member's calibration error" in text
    assert "- made_up, leave-task-out: reward_std wider" in text
    assert "results/quality/made_up.leave-task-out.svg" in text


def test_every_row_of_the_readme_has_as_many_cells_as_its_head() -> None:
    lines = tables.markdown([result()]).splitlines()
    widths = [line.count("|") if line.startswith("|") else 0 for line in lines]
    pairs = [(a, b) for a, b in itertools.pairwise(widths) if a and b]
    assert len(pairs) > 20 and all(a == b for a, b in pairs)


def test_only_what_stands_between_the_markers_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(f"before\n{tables.BEGIN}\nformerly\n{tables.END}\nafter\n", encoding="utf-8")
    tables.write_readme([result()], path)
    once = path.read_text(encoding="utf-8")
    tables.write_readme([result()], path)
    assert path.read_text(encoding="utf-8") == once
    assert once.startswith(f"before\n{tables.BEGIN}\n") and once.endswith(f"{tables.END}\nafter\n")
    assert "formerly" not in once and "made_up" in once


def test_a_new_readme_is_a_copy_of_ours(tmp_path: Path) -> None:
    tables.write_readme([], tmp_path / "README.md")
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "# Measurements" in text and "No results are stored yet" in text


@pytest.mark.parametrize("text", ["", tables.BEGIN, tables.END, f"{tables.END}\n{tables.BEGIN}"])
def test_a_readme_without_markers_is_left_alone(text: str, tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="put them back"):
        tables.write_readme([result()], path)
    assert path.read_text(encoding="utf-8") == text


def test_the_readme_shows_what_is_stored() -> None:
    shown, stored = tables.README.read_text(encoding="utf-8"), tables.read_results()
    assert f"{tables.BEGIN}\n\n{tables.markdown(stored)}\n{tables.END}" in shown
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", shown):
        assert (tables.README.parent / link).exists() or (link.startswith("results/") and not stored), link


def test_the_readme_names_every_measurement() -> None:
    shown = tables.README.read_text(encoding="utf-8")
    named = set(re.findall(r"`python -m benchmarks\.([a-z_]+)`", shown))
    assert named and all((ROOT / "benchmarks" / f"{name}.py").is_file() for name in named)
    files = (ROOT / "benchmarks").glob("*.py")
    commands = {path.stem for path in files if "@click.command" in path.read_text(encoding="utf-8")}
    assert commands - {"tables", "faults_provider"} <= named

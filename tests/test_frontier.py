"""The frontiers: a picture that hides nothing, and a notebook that runs wherever it is opened."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from pathlib import Path

import nbformat
import numpy as np
import pytest
from matplotlib.figure import Figure
from nbclient import NotebookClient
from nbformat import NotebookNode

from benchmarks.plots import plot_frontier
from benchmarks.tables import read_results
from ensemble.learning.longform import write_table
from result_cases import MEMBERS, entry, result
from worlds import planted

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "benchmarks" / "frontier.ipynb"


def run(folder: Path, **replaced: str) -> list[NotebookNode]:
    """All outputs of the notebook, run in ``folder``; ``replaced`` gives what is None in it a value."""
    opened = nbformat.read(NOTEBOOK, as_version=4)
    for name, value in replaced.items():
        (cell,) = [cell for cell in opened.cells if f"{name} = " in cell.source]
        cell.source = re.sub(rf"{name} = [^#\n]*", f"{name} = {value!r}  ", cell.source)
    NotebookClient(opened, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    return [output for cell in opened.cells if cell.cell_type == "code" for output in cell.outputs]


def text_of(outputs: list[NotebookNode]) -> str:
    return "\n".join(
        o.text if o.output_type == "stream" else o.data.get("text/markdown", "") for o in outputs
    )


def pictures(outputs: list[NotebookNode]) -> int:
    return sum("image/png" in o.get("data", {}) for o in outputs)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with the code of benchmarks/ and no results."""
    skip = shutil.ignore_patterns("results", "__pycache__")
    shutil.copytree(ROOT / "benchmarks", tmp_path / "benchmarks", ignore=skip)
    return tmp_path


def test_the_notebook_shows_every_stored_result() -> None:
    outputs = run(NOTEBOOK.parent)
    stored = read_results()
    assert pictures(outputs) == len(stored)
    assert ("No results are stored yet" in text_of(outputs)) == (not stored)
    assert "MY_TABLE is None" in text_of(outputs)


def test_the_notebook_shows_a_result_from_the_root_too(checkout: Path) -> None:
    folder = checkout / "benchmarks" / "results" / "quality"
    folder.mkdir(parents=True)
    (folder / "made_up.iid.json").write_text(json.dumps(result()), encoding="utf-8")
    outputs = run(checkout)
    assert pictures(outputs) == 1
    assert "## made_up, iid" in text_of(outputs) and "| ours | **.6700** |" in text_of(outputs)
    assert "No results" not in text_of(outputs)


def test_the_notebook_takes_an_own_table(checkout: Path) -> None:
    table = planted(120, 0).table
    write_table(
        checkout / "mine.parquet",
        [
            {
                "prompt_id": table.prompt_ids[i],
                "prompt": table.prompts[i],
                "member": member,
                "reward": float(table.reward[i, j]),
                "cost_usd": float(table.cost_usd[i, j]),
            }
            for i in range(table.n_prompts)
            for j, member in enumerate(table.members)
        ],
    )
    outputs = run(checkout / "benchmarks", MY_TABLE="../mine.parquet", MY_METHODS=["soft neighbours", "ours"])
    assert "No results are stored yet" in text_of(outputs)
    assert pictures(outputs) == 1
    assert "## mine, iid" in text_of(outputs) and "| ours |" in text_of(outputs)


def test_the_notebook_is_kept_without_outputs_and_tells_nothing_of_a_machine() -> None:
    opened = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(opened)
    code = [cell for cell in opened.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert set(opened.metadata) <= {"kernelspec", "language_info"}
    assert opened.metadata.kernelspec.name == "python3"
    assert not re.search(r"/(home|tmp|root|work|Users)/", NOTEBOOK.read_text(encoding="utf-8"))


def test_the_same_result_gives_the_same_file(tmp_path: Path) -> None:
    for name in ("one.svg", "two.svg"):
        plot_frontier(result(), tmp_path / name)
    one = (tmp_path / "one.svg").read_bytes()
    assert one == (tmp_path / "two.svg").read_bytes()
    assert b"<dc:date>" not in one


def names(figure: Figure) -> list[str]:
    return [text.get_text().split("  ")[1] for text in figure.legends[0].get_texts()]


def test_every_method_is_a_line_and_every_member_a_named_point() -> None:
    made = result()
    figure = plot_frontier(made)
    above = figure.axes[0]
    assert names(figure)[:2] == ["query oracle", "ours"]
    assert set(names(figure)) == {method["name"] for method in made["methods"]} - {"best single"}
    assert [text.get_text() for text in above.texts] == MEMBERS
    *curves, points = above.lines
    assert len(curves) == len(names(figure))
    assert points.get_xydata().tolist() == made["member_points"]
    thickest = max(curves, key=lambda line: line.get_linewidth())
    assert thickest.get_xydata()[[0, -1]].tolist() == [[0.1, 0.5], [4.0, 0.72]]


def test_a_line_is_straight_in_usd_though_the_axis_is_not() -> None:
    figure = plot_frontier(result())
    spend, reward = max(figure.axes[0].lines, key=lambda line: line.get_linewidth()).get_data()
    assert np.allclose(reward, np.interp(spend, [0.1, 0.7, 4.0], [0.5, 0.66, 0.72]))
    assert len(spend) > 50 and figure.axes[0].get_xscale() == "log"


def test_no_method_leaves_the_picture_for_being_worse_than_the_mix() -> None:
    made = result()
    for name in ("ours", "soft neighbours"):
        entry(made, name)["curve"] = [[0.1, 0.45], [4.0, 0.55]]
    below = plot_frontier(made).axes[1]
    low, high = below.get_ylim()
    lines = [line for line in below.lines if len(line.get_xdata()) > 2]
    drawn = [
        line.get_ydata()
        for line in lines
        if line.get_color() in ("black", "#0072B2") and line.get_linestyle() == "-"
    ]
    assert len(drawn) == 2
    assert all(low < gain.min() < -0.05 and gain.max() < high for gain in drawn)


def test_names_of_members_do_not_cover_each_other() -> None:
    made = result()
    made["members"] = [f"large-language-model-2024-08-0{i}" for i in range(9)]
    made["member_points"] = [[0.1 * 1.7**i, 0.5 + 0.02 * (i % 3)] for i in range(9)]
    figure = plot_frontier(made)
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]

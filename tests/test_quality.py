"""The command: an own table goes through, a look writes nothing, what cannot be done is said in words."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import quality
from benchmarks.protocol import Candidate, Rival, read_rows
from benchmarks.result import Rows, measure
from ensemble.bundle import ENCODERS, shipped_folder
from ensemble.cli_learning import DEFAULT_ENCODER
from ensemble.encoder import Encoder
from ensemble.errors import TableError
from ensemble.learning.baselines import Neighbours, Ridge
from ensemble.learning.longform import write_table
from worlds import TOPICS


def own_table(path: Path, n: int = 90, *, tasks: bool, lacking: int = 0) -> Path:
    """Of real words; member c is missing on the first ``lacking`` prompts."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(n):
        topic = list(TOPICS)[i % 4]
        words = " ".join(rng.choice(TOPICS[topic].split(), 6, replace=False))
        for j, member in enumerate("abc"):
            if member == "c" and i < lacking:
                continue
            right = rng.random() < (0.9 if i % 4 == j else 0.3)
            row = {"prompt_id": f"p{i}", "prompt": f"{words} {i}", "member": member, "reward": float(right)}
            row |= {"cost_usd": 0.001 * (j + 1), "output_tokens": 10 * (j + 1)}
            rows.append(row | ({"task": topic} if tasks else {}))
    write_table(path, rows)
    return path


def call(*arguments: object) -> Any:
    return CliRunner().invoke(quality.main, [str(a) for a in arguments])


def test_an_own_table_without_notes_goes_through(tmp_path: Path) -> None:
    table = own_table(tmp_path / "mine.parquet", tasks=False)
    options = ("--data", table, "--work", tmp_path / "work", "--out", tmp_path / "out")
    done = call(*options, "--method", "soft neighbours", "--method", "CARROT")
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "out" / "mine.iid.json").read_text(encoding="utf-8"))
    assert result["members"] == ["a", "b", "c"] and result["tasks"] == {} and result["n_prompts"] == 90
    names = [method["name"] for method in result["methods"]]
    assert names == ["best single", "random mix", "query oracle", "soft neighbours", "CARROT"]
    assert {*result["trust"]} == {"soft neighbours"}
    assert {*result["controls"]} == {"shuffled outcomes", "random features"}
    assert (tmp_path / "out" / "mine.iid.svg").is_file()


def test_the_same_command_gives_the_same_result(tmp_path: Path) -> None:
    table = own_table(tmp_path / "mine.parquet", tasks=True)
    texts = []
    for _ in range(2):
        options = ("--data", table, "--work", tmp_path / "work", "--out", tmp_path / "out")
        done = call(*options, "--split", "leave-task-out", "--method", "soft neighbours", "--method", "ours")
        assert done.exit_code == 0, done.output
        texts.append((tmp_path / "out" / "mine.leave-task-out.json").read_text(encoding="utf-8"))
    assert texts[0] == texts[1]  # the seconds of the first fit as well
    result = json.loads(texts[0])
    assert {*result["trust"]} == {"soft neighbours", "ours"}
    assert result["controls"] is None and result["n_folds"] == 4 and result["tasks"]["cooking"] == 23


def test_a_look_at_some_methods_writes_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "RESULTS", tmp_path / "results")
    table = own_table(tmp_path / "mine.parquet", tasks=True)
    done = call("--data", table, "--work", tmp_path, "--method", "soft neighbours", "--no-controls")
    assert done.exit_code == 0, done.output
    assert "soft neighbours" in done.output and not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--method", "magic"], "expected some of .*soft neighbours.*; found magic"),
        (["--split", "leave-task-out"], "needs the task of every prompt"),
    ],
)
def test_what_cannot_be_done_is_said_in_words(arguments: list[str], said: str, tmp_path: Path) -> None:
    table = own_table(tmp_path / "mine.parquet", tasks=False)
    done = call("--data", table, "--work", tmp_path, *arguments)
    assert done.exit_code != 0 and "Traceback" not in done.output
    assert re.search(said, " ".join(done.output.split()))


def test_a_folder_gets_its_known_tables_both_splits_and_a_readme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = [each for each in quality.candidates() if each.name == "nearest neighbours"]
    monkeypatch.setattr(quality, "candidates", lambda: few)
    own_table(tmp_path / "zeroeval.parquet", tasks=True)
    own_table(tmp_path / "letters_from_home.parquet", tasks=True)
    done = call("--data", tmp_path, "--work", tmp_path / "work", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    written = {path.name for path in (tmp_path / "out").iterdir()}
    both = {f"zeroeval.{split}.{kind}" for split in quality.SPLITS for kind in ("json", "svg")}
    assert written == both | {"README.md"}
    readme = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "zeroeval" in readme and "nearest neighbours" in readme


def test_a_folder_without_known_tables_is_refused(tmp_path: Path) -> None:
    done = call("--data", tmp_path)
    assert done.exit_code != 0 and "mmlu_pro" in done.output


def test_rows_are_those_that_every_compared_member_answered(tmp_path: Path) -> None:
    table = own_table(tmp_path / "mine.parquet", tasks=True, lacking=30)
    assert read_rows(table).n_prompts == 60
    (tmp_path / "mine.json").write_text(json.dumps({"main_members": ["b", "a"]}), encoding="utf-8")
    assert read_rows(table).n_prompts == 90 and read_rows(table).members == ("b", "a")
    lacking = own_table(tmp_path / "thin.parquet", tasks=True, lacking=60)
    with pytest.raises(TableError, match=r"found 30 of 90; most are lacking from c 60.*thin\.json"):
        read_rows(lacking)


# --- keeping what would come out the same


def ruler(
    table: Path, before: dict[str, Any] | None, *methods: Candidate, only: set[str] | None = None
) -> tuple[dict[str, Any], list[str]]:
    """The result, and the methods whose folds were asked for."""
    asked: list[str] = []
    rows = Rows.of(table, Encoder.load(shipped_folder() / ENCODERS / DEFAULT_ENCODER))
    store = table.parent / "work"
    made = measure(rows, "iid", methods, store, before=before, only=only, draws=50, on_fold=asked.append)
    return json.loads(json.dumps(made)), list(dict.fromkeys(asked))


def dated(result: dict[str, Any], day: str) -> dict[str, Any]:
    """The same result, as if made on that day."""
    return json.loads(re.sub(r'"made": "[^"]*"', f'"made": "{day}"', json.dumps(result)))


SOFT, NEAREST, LINE, OTHER_LINE = (
    Candidate("soft", "tuned", (Rival(Neighbours(40, 0.1)),)),
    Candidate("nearest", "tuned", (Rival(Neighbours(20, None)),)),
    Candidate("line", "published", (Rival(Ridge(100.0)),)),
    Candidate("line", "published", (Rival(Ridge(1.0)),)),
)


def test_only_what_changed_is_measured_and_all_comes_out_as_if_everything_had_been(tmp_path: Path) -> None:
    table = own_table(tmp_path / "mine.parquet", tasks=True)
    before, asked = ruler(table, None, SOFT, NEAREST, LINE)
    assert asked == ["soft", "nearest", "line"]
    best = set(before["best_baseline"].values()) & {"soft", "nearest", "line"}
    assert "line" not in best
    after, asked = ruler(table, dated(before, "2001-01-01"), SOFT, NEAREST, OTHER_LINE)
    assert {"line"} <= {*asked} <= {"line", *best}
    whole, _ = ruler(table, None, SOFT, NEAREST, OTHER_LINE)
    assert dated(after, "") == dated(whole, "")
    made = {method["name"]: method["made"] for method in after["methods"]}
    assert made["soft"] == made["nearest"] == "2001-01-01" and made["line"] == made["best single"] > "2026"


def test_what_all_are_compared_with_cannot_change_alone(tmp_path: Path) -> None:
    table = own_table(tmp_path / "mine.parquet", tasks=True)
    poor = Candidate("strong", "tuned", (Rival(Neighbours(1, None)),))
    before, _ = ruler(table, None, poor, LINE)
    strong = Candidate("strong", "tuned", SOFT.grid)
    after, asked = ruler(table, before, strong, LINE)
    assert "strong" in after["best_baseline"].values() and {*asked} == {"strong", "line"}
    whole, _ = ruler(table, None, strong, LINE)
    assert dated(after, "") == dated(whole, "")


def test_other_rows_keep_nothing(tmp_path: Path) -> None:
    before, _ = ruler(own_table(tmp_path / "mine.parquet", tasks=True), None, SOFT, LINE)
    _, asked = ruler(own_table(tmp_path / "mine.parquet", n=95, tasks=True), before, SOFT, LINE)
    assert {*asked} == {"soft", "line"}


def test_of_what_changed_some_may_be_left_out(tmp_path: Path) -> None:
    table = own_table(tmp_path / "mine.parquet", tasks=True)
    before, _ = ruler(table, None, SOFT, NEAREST, LINE)
    after, _ = ruler(table, before, SOFT, NEAREST, OTHER_LINE, only={"soft"})
    assert [method["name"] for method in after["methods"]][4:] == ["soft", "nearest"]
    for entries in (after["methods"][4:], *after["controls"].values()):
        assert [entry["name"] for entry in entries] == ["soft", "nearest"]

"""The command: an own table goes through, a look writes nothing, what cannot be done is said in words."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import quality, result, rounds
from benchmarks.protocol import Candidate, Rival, read_rows
from benchmarks.result import Rows, measure
from ensemble.bundle import ENCODERS, shipped_folder
from ensemble.cli_learning import DEFAULT_ENCODER
from ensemble.encoder import Encoder
from ensemble.errors import TableError
from ensemble.learning.baselines import Method, Neighbours, Ridge
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

CANDIDATES = {
    name: Candidate(name, kind, (Rival(method),))
    for name, kind, method in (
        ("strong", "tuned", Neighbours(40, 0.1)),
        ("middling", "tuned", Neighbours(5, None)),
        ("weak", "tuned", Neighbours(1, None)),
        ("line", "published", Ridge(1.0)),
    )
}
BEST, OTHERS = "strong", ["middling", "weak", "line"]


def changed(**methods: Method) -> list[Candidate]:
    """The four of them, with other settings for some."""
    return [
        dataclasses.replace(each, grid=(Rival(methods[name]),)) if name in methods else each
        for name, each in CANDIDATES.items()
    ]


@dataclass
class Ruler:
    table: Path
    asked: list[str] = field(default_factory=list)  # whose folds were asked for by the last call

    def __call__(
        self, methods: Sequence[Candidate], before: dict[str, Any] | None = None, only: set[str] | None = None
    ) -> dict[str, Any]:
        self.asked.clear()
        rows = Rows.of(self.table, Encoder.load(shipped_folder() / ENCODERS / DEFAULT_ENCODER))
        store = self.table.parent / "work"
        made = measure(
            rows, "iid", methods, store, before=before, only=only, draws=50, on_fold=self.asked.append
        )
        self.asked[:] = dict.fromkeys(self.asked)
        return json.loads(json.dumps(made))  # type: ignore[no-any-return]


@pytest.fixture
def ruler(tmp_path: Path) -> Ruler:
    return Ruler(own_table(tmp_path / "mine.parquet", tasks=True))


@pytest.fixture
def before(ruler: Ruler) -> dict[str, Any]:
    """What was measured in another year."""
    result = on("2001-01-01", ruler(changed()))
    assert {*result["best_baseline"].values()} == {BEST}
    return result


def on(day: str, result: dict[str, Any]) -> dict[str, Any]:
    """The same result, as if made on that day."""
    redated: dict[str, Any] = json.loads(re.sub(r'"made": "[^"]*"', f'"made": "{day}"', json.dumps(result)))
    return redated


def days(result: dict[str, Any]) -> dict[str, str]:
    return {method["name"]: method["made"] for method in result["methods"]}


def test_only_what_changed_is_measured_and_all_comes_out_as_if_everything_had_been(
    ruler: Ruler, before: dict[str, Any]
) -> None:
    methods = changed(line=Ridge(100.0))
    after = ruler(methods, before)
    assert ruler.asked == [BEST, "line"]  # whom all are compared with, and who changed
    assert list(after["trust"]) == [BEST, "middling", "weak"] and after["trust"]["weak"]["members"]
    assert {name for name, day in days(after).items() if day == "2001-01-01"} == {BEST, "middling", "weak"}
    assert on("", after) == on("", ruler(methods))
    assert json.dumps(on("", after)) == json.dumps(on("", ruler(methods)))  # in the same order, too


@pytest.mark.parametrize("k", [41, 4])
def test_what_all_are_compared_with_cannot_change_alone(k: int, ruler: Ruler, before: dict[str, Any]) -> None:
    """Whether it stays the best or another takes its place."""
    methods = changed(strong=Neighbours(k, 0.1))
    after = ruler(methods, before)
    assert ruler.asked == [BEST, *OTHERS]
    assert on("", after) == on("", ruler(methods)) and "2001-01-01" not in days(after).values()


def test_a_new_best_baseline_is_what_all_are_compared_with(ruler: Ruler) -> None:
    before = ruler(changed(strong=Neighbours(2, None)))
    methods = changed(strong=Neighbours(2, None), weak=Neighbours(40, 0.1))
    after = ruler(methods, before)
    assert {*after["best_baseline"].values()} == {"weak"} != {*before["best_baseline"].values()}
    assert {*ruler.asked} == {BEST, *OTHERS} and on("", after) == on("", ruler(methods))


def test_other_rows_another_encoder_or_other_code_keep_nothing(
    ruler: Ruler, before: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(result, "FORMAT", result.FORMAT + 1)
    ruler(changed(), before)
    assert ruler.asked == [BEST, *OTHERS]
    monkeypatch.undo()
    whole = rounds.code
    for module in ("benchmarks.trust", "ensemble.text"):  # that measures; that makes what is encoded
        edited = {module: "edited = True"}
        monkeypatch.setattr(rounds, "code", lambda m, e=edited: whole(m) | (e if {*e} <= {*whole(m)} else {}))
        ruler(changed(), before)
        assert ruler.asked == [BEST, *OTHERS], module
        monkeypatch.undo()
    own_table(ruler.table, n=95, tasks=True)
    ruler(changed(), before)
    assert ruler.asked == [BEST, *OTHERS]


def test_of_what_changed_some_may_be_left_out(ruler: Ruler, before: dict[str, Any]) -> None:
    after = ruler(changed(line=Ridge(100.0), weak=Neighbours(2, None)), before, only={"weak"})
    assert ruler.asked == [BEST, "weak"]
    for entries in (after["methods"][4:], *after["controls"].values()):
        assert [entry["name"] for entry in entries] == [BEST, "middling", "weak"]


def test_the_command_keeps_what_holds_and_never_writes_less(
    ruler: Ruler, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = ruler.table.parent / "out"
    options = ("--data", ruler.table, "--work", ruler.table.parent / "work", "--out", out)
    monkeypatch.setattr(quality, "candidates", changed)
    assert call(*options).exit_code == 0
    stored = out / "mine.iid.json"
    stored.write_text(json.dumps(on("2001-01-01", json.loads(stored.read_text()))), encoding="utf-8")
    monkeypatch.setattr(quality, "candidates", lambda: changed(line=Ridge(100.0)))
    assert call(*options, "--changed", "--method", "weak").exit_code == 0
    assert {*days(json.loads(stored.read_text())).values()} == {
        "2001-01-01"
    }  # line was left out: not written
    assert call(*options, "--changed").exit_code == 0
    assert (
        days(json.loads(stored.read_text()))["weak"]
        == "2001-01-01"
        != days(json.loads(stored.read_text()))["line"]
    )

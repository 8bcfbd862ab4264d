"""The log as a Parquet file, and the commands that export and forget."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from ensemble.cli import main
from ensemble.errors import LogError
from ensemble.learning import log_export
from ensemble.log_rows import to_json
from ensemble.outcomes import OutcomeLog
from log_cases import attempt, decision, ids, outcome, record


def test_the_file_says_what_the_log_says(
    log: OutcomeLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_export, "ROW_GROUP", 2)
    made = [record(log, decision(created_at=float(n)), metadata={"n": n}) for n in range(5)]
    log.record_outcome(outcome(made[0]), last_attempt=attempt(made[0]))
    log.record_reward(made[0], 0.25, "judge")
    assert log_export.export_log(log, tmp_path / "out.parquet", since=0.0, until=4.0) == 4
    file = pq.ParquetFile(tmp_path / "out.parquet")
    assert file.num_row_groups == 2
    assert file.schema_arrow.metadata[b"ensemble_log_format"] == b"1"
    for found, row in zip(file.read().to_pylist(), log.rows(until=4.0), strict=True):
        assert set(found) == set(row)
        for name in ("metadata", "wishes", "standing"):
            assert found.pop(name) == (None if row[name] is None else to_json(row[name]))
            del row[name]
        np.testing.assert_array_equal(found.pop("features"), row.pop("features"))
        assert {each["source"]: each["reward"] for each in found.pop("rewards")} == row.pop("rewards")
        assert found == row


def test_a_file_that_cannot_be_written_leaves_the_old_one(log: OutcomeLog, tmp_path: Path) -> None:
    with pytest.raises(LogError, match="a folder that exists"):
        log_export.export_log(log, tmp_path / "nowhere" / "out.parquet")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old.parquet").write_text("old")
    record(log)
    log.close()
    with pytest.raises(LogError, match="closed"):
        log_export.export_log(log, tmp_path / "out" / "old.parquet")
    assert [file.read_text() for file in (tmp_path / "out").iterdir()] == ["old"]


def test_commands_export_and_forget(tmp_path: Path) -> None:
    place, out = str(tmp_path / "log.db"), str(tmp_path / "out.parquet")
    with OutcomeLog.open(place) as log:
        one, two, three = (record(log, decision(created_at=n * 1e9), metadata={"n": n}) for n in (1, 1.5, 4))

    def run(*words: str) -> object:
        done = CliRunner().invoke(main, ["log", *words, "--json"])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    assert run("export", place, out, "--until", "2010-01-01") == {"decisions": 1, "file": out}
    assert run("forget", place, "--metadata", "n=1.5") == {"forgotten": 1}
    assert run("forget", place, "--older-than-days", "1") == {"forgotten": 1}
    with OutcomeLog.open(place) as log:
        assert ids(log) == [three]
    assert run("forget", place, "--id", three) == {"forgotten": 1}
    assert {one, two} & set(pq.read_table(out)["decision_id"].to_pylist()) == {one}


def test_a_number_is_forgotten_as_a_text_too(tmp_path: Path) -> None:
    place = tmp_path / "log.db"
    with OutcomeLog.open(place) as log:
        for user in (4711, "4711", 4712):
            record(log, decision(), metadata={"user": user, "team": "a"})
        record(log, decision(), metadata={"user": 4711, "team": "b"})
    words = ["log", "forget", str(place), "--metadata", "user=4711", "--metadata", "team=a"]
    assert CliRunner().invoke(main, words).stdout == "2 decisions forgotten\n"
    with OutcomeLog.open(place) as log:
        left = [(row["metadata"]["user"], row["metadata"]["team"]) for row in log.rows()]
        assert sorted(left) == [(4711, "b"), (4712, "a")]


@pytest.mark.parametrize("words", [["--metadata", "n"], [], ["--id", "a", "--older-than-days", "1"]])
def test_forgetting_without_saying_what_is_refused(tmp_path: Path, words: list[str]) -> None:
    with OutcomeLog.open(tmp_path / "log.db") as log:
        of = record(log)
        assert CliRunner().invoke(main, ["log", "forget", str(tmp_path / "log.db"), *words]).exit_code != 0
        assert ids(log) == [of]


@pytest.mark.parametrize(
    "words", [["log", "export", "{}/log.db", "{}/o"], ["train", "--log", "{}/log.db", "--out", "{}/o"]]
)
def test_a_log_that_is_not_there_is_not_created(tmp_path: Path, words: list[str]) -> None:
    done = CliRunner().invoke(main, [word.format(tmp_path) for word in words])
    assert done.exit_code != 0 and "no file" in done.output
    assert list(tmp_path.iterdir()) == []

"""The files of an SQLite log while it is open: deleted, moved, replaced, closed by others, made read-only."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ensemble.errors import EnsembleWarning, LogError
from ensemble.outcomes import OutcomeLog
from local_provider import Say
from log_cases import ENVIRONMENT, ROOT, decision, ids, raw, record
from serving_cases import CHEAP, QUIET, Line, open_line

pytestmark = QUIET


def beside(path: Path, end: str) -> Path:
    return path.with_name(path.name + end)


def delete_all(path: Path) -> None:
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()


def replace_by_rubbish(path: Path) -> None:
    beside(path, ".new").write_bytes(b"rubbish" * 9_000)
    os.replace(beside(path, ".new"), path)


def replace_by_another_log(path: Path) -> None:
    with OutcomeLog.open(beside(path, ".new")) as another:
        record(another, decision(id="another's"))
    for end in ("", "-wal", "-shm"):
        beside(path, end).unlink()
    os.replace(beside(path, ".new"), path)


FAULTS: dict[str, Callable[[Path], object]] = {
    "deleted": delete_all,
    "deleted alone": Path.unlink,
    "its folder deleted": lambda path: shutil.rmtree(path.parent),
    "moved away": lambda path: os.replace(path, beside(path, ".old")),
    "replaced by another log": replace_by_another_log,
    "replaced by rubbish": replace_by_rubbish,
    "its write-ahead file deleted": lambda path: beside(path, "-wal").unlink(),
    "its index deleted": lambda path: beside(path, "-shm").unlink(),
}


@pytest.mark.parametrize("log_mode", ["before", "after"])
@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_is_written_where_nobody_will_find_it(tmp_path: Path, fault: str, log_mode: Any) -> None:
    path = tmp_path / "folder" / "log.db"
    with OutcomeLog.open(path, log_mode=log_mode) as log:
        record(log)
        log.flush()
        FAULTS[fault](path)
        for _ in range(2):
            with pytest.raises(LogError, match=r"log\.db.* was (deleted or moved|replaced)") as told:
                record(log, decision(created_at=2_000.0))
                log.flush()
            assert ("1 records" in str(told.value)) == (log_mode == "after")
        with pytest.raises(LogError, match="while it was open"):
            ids(log)


def test_a_connection_that_was_given_up_is_no_deletion(tmp_path: Path) -> None:
    with OutcomeLog.open(tmp_path / "log.db") as log:
        record(log)
        log._database._engine.dispose()  # the last one to close deletes the files beside the log
        assert not beside(tmp_path / "log.db", "-wal").exists()
        record(log, decision(created_at=2_000.0))
        assert len(ids(log)) == 2


@pytest.mark.parametrize("fault", ["deleted", "its folder deleted", "replaced by another log"])
def test_closed_and_opened_again_the_log_that_is_there_now_is_used(tmp_path: Path, fault: str) -> None:
    path = tmp_path / "folder" / "log.db"
    with OutcomeLog.open(path) as log:
        record(log)
        FAULTS[fault](path)
    with OutcomeLog.open(path) as log:
        there = ["another's"] if "another" in fault else []
        assert ids(log) == there
        later = record(log, decision(created_at=2_000.0))
        assert ids(log) == [*there, later]


@pytest.mark.parametrize(("ours", "theirs"), [(40, 1), (40, 40), (300, 40)])
def test_a_log_that_was_put_in_its_place_is_whole_once_the_old_rest_is_moved_away(
    tmp_path: Path, ours: int, theirs: int
) -> None:
    path = tmp_path / "log.db"
    for place, who, n in ((path, "ours", ours), (beside(path, ".new"), "theirs", theirs)):
        with OutcomeLog.open(place, keep="text") as log:
            for i in range(n):
                record(log, decision(id=f"{who}{i:03}"), text="x" * 3_000)
    with OutcomeLog.open(path) as log:
        record(log)
        os.replace(beside(path, ".new"), path)
        with pytest.raises(LogError, match=r"move \S+log\.db-wal and \S+log\.db-shm away"):
            record(log)
    for end in ("-wal", "-shm"):  # SQLite leaves them, and would write the old pages into the new file
        os.replace(beside(path, end), tmp_path / f"old{end}")
    with OutcomeLog.open(path) as log:
        assert ids(log) == [f"theirs{i:03}" for i in range(theirs)]
    assert raw(path, "PRAGMA integrity_check") == [("ok",)]


@pytest.mark.parametrize("end", ["-wal", "-shm"])
def test_a_file_beside_the_log_that_was_deleted_takes_no_record_with_it(tmp_path: Path, end: str) -> None:
    path = tmp_path / "log.db"
    with OutcomeLog.open(path) as log:
        made = [record(log)]
        beside(path, end).unlink()
        with pytest.raises(LogError, match="or close the log and open it again"):
            record(log)
    with OutcomeLog.open(path) as log:
        made.append(record(log, decision(created_at=2_000.0)))
        assert ids(log) == made
    assert raw(path, "PRAGMA integrity_check") == [("ok",)]


def test_a_file_that_is_put_back_is_written_to_again(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    with OutcomeLog.open(path) as log:
        kept = record(log)
        os.replace(path, tmp_path / "old")
        with pytest.raises(LogError, match="Put it back"):
            record(log)
        os.replace(tmp_path / "old", path)
        later = record(log, decision(created_at=2_000.0))
        assert ids(log) == [kept, later]


def test_behind_a_link_and_from_another_folder_it_is_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "log.db").symlink_to(tmp_path / "elsewhere" / "real.db")
    monkeypatch.chdir(tmp_path)
    with OutcomeLog.open("log.db") as log:
        assert (tmp_path / "elsewhere" / "real.db").stat().st_mode & 0o777 == 0o600
        monkeypatch.chdir(tmp_path / "elsewhere")
        kept = record(log)
        log._database._before_fork()  # closes the file, which is opened again on next use
        log._database._after_fork(child=False)
        assert ids(log) == [kept]
        (tmp_path / "elsewhere" / "real.db-wal").unlink()
        with pytest.raises(LogError, match="wal was deleted"):
            record(log)


OPENS_AND_CLOSES = (
    "import sys; from ensemble.outcomes import OutcomeLog; OutcomeLog.open(sys.argv[1]).close()"
)


def test_opened_twice_here_it_outlives_the_closing_of_another_process(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    with OutcomeLog.open(path) as log, OutcomeLog.open(path):
        record(log)
        subprocess.run(
            [sys.executable, "-c", OPENS_AND_CLOSES, path], env=ENVIRONMENT, check=True, timeout=60
        )
        record(log, decision(created_at=2_000.0))
        copy = shutil.copytree(tmp_path, tmp_path / "copy")  # as a kill would leave it
        assert raw(copy / "log.db", "SELECT count(*) FROM decisions") == [(2,)]


# ---- what a caller sees


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    with open_line(tmp_path) as opened:
        yield opened


def test_no_money_is_spent_on_a_decision_that_cannot_be_written(line: Line, tmp_path: Path) -> None:
    line.ask()
    asked = list(line.asked)
    delete_all(tmp_path / "log.db")
    for stream in (False, True):
        with pytest.raises(LogError, match="was deleted or moved"):
            line.ask(stream=stream)
    assert line.asked == asked and len(asked) == 1


def test_an_answer_whose_outcome_cannot_be_written_is_handed_over_with_a_warning(
    line: Line, tmp_path: Path
) -> None:
    line.provider.behave(CHEAP, Say("one two three"))
    chunks = line.ask(stream=True)
    first = next(chunks).choices[0].delta.content
    delete_all(tmp_path / "log.db")
    with pytest.warns(EnsembleWarning, match=r"is not in the log: .* was deleted or moved"):
        rest = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert (first or "") + "".join(rest) == "one two three"


# ---- not to be written

READ_ONLY = """
import os, sys, tempfile
from pathlib import Path
from ensemble.errors import LogError
from ensemble.outcomes import OutcomeLog
from log_cases import decision, ids, record
OutcomeLog.open(":memory:").close()  # all is imported: afterwards the libraries may be out of reach
with tempfile.TemporaryDirectory() as outer:
    folder = Path(outer, "folder")
    folder.mkdir()
    if os.getuid() == 0:  # who may write everything
        os.chown(outer, 65534, 65534)
        os.chown(folder, 65534, 65534)
        os.setuid(65534)
    path = folder / "log.db"
    with OutcomeLog.open(path, log_mode=sys.argv[1]) as log:
        made = [record(log)]
        log.flush()
        folder.chmod(0o500)
        made.append(record(log, decision(created_at=2_000.0)))
        path.chmod(0o400)
        made.append(record(log, decision(created_at=3_000.0)))
        assert ids(log) == made
    refused = []
    for place in (path, folder / "new.db", folder / "new" / "log.db"):
        try:
            OutcomeLog.open(place, log_mode=sys.argv[1])
        except LogError as error:
            refused.append(str(error))
    folder.chmod(0o700)
    path.chmod(0o600)
    with OutcomeLog.open(path) as log:
        assert ids(log) == made
    assert len(refused) == 3 and all("may write" in one for one in refused), refused
"""


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX")
@pytest.mark.parametrize("log_mode", ["before", "after"])
def test_a_folder_that_becomes_read_only_loses_nothing_and_opens_no_log(log_mode: str) -> None:
    environment = {**ENVIRONMENT, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    done = subprocess.run(
        [sys.executable, "-c", READ_ONLY, log_mode],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr

"""Outcome tables: read, put together, refused with all their faults, written whole."""

from __future__ import annotations

import datetime
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ensemble.errors import TableError
from ensemble.learning.tables import OutcomeTable, from_rows, read_tables, write_table
from worlds import table_of

MEMBERS = ("ada", "bob", "eve")


def rows(n: int = 60, members: tuple[str, ...] = MEMBERS, seed: int = 0) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return [
        {
            "prompt_id": f"p{i}",
            "prompt": f"prompt number {i}",
            "task": ["math", "law"][i % 2],
            "member": member,
            "reward": float(rng.random()),
            "cost_usd": float(rng.random()),
            "input_tokens": 10 + i,
            "output_tokens": None,
        }
        for i in range(n)
        for member in members
    ]


def written(path: Path, some: list[dict[str, Any]]) -> Path:
    """Straight through pyarrow: our own writer would refuse some of what is tested here."""
    names = dict.fromkeys(key for row in some for key in row)
    pq.write_table(pa.table({name: [row.get(name) for row in some] for name in names}), path)
    return path


def data_folder() -> Path:
    folder = Path(os.environ.get("ENSEMBLE_DATA", Path(__file__).parents[1].parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no outcome tables at {folder}; set ENSEMBLE_DATA to their folder")
    return folder


def test_every_cell_lands_at_its_prompt_and_member(tmp_path: Path) -> None:
    kept = [row for row in rows() if (row["prompt_id"], row["member"]) != ("p3", "bob")]
    shuffled = [kept[i] for i in np.random.default_rng(1).permutation(len(kept))]
    table = read_tables(written(tmp_path / "t.parquet", shuffled))
    assert (table.n_prompts, table.n_members, table.n_pairs) == (60, 3, 179)
    for row in shuffled:
        i, j = table.prompt_ids.index(row["prompt_id"]), table.members.index(row["member"])
        assert table.prompts[i] == row["prompt"] and table.tasks[i] == row["task"]
        assert table.reward[i, j] == np.float32(row["reward"])
        assert table.cost_usd[i, j] == np.float32(row["cost_usd"])
        assert table.input_tokens[i, j] == row["input_tokens"]
    hole = table.prompt_ids.index("p3"), table.members.index("bob")
    assert np.isnan(table.reward[hole]) and np.isnan(table.cost_usd[hole]) and not table.observed[hole]
    assert np.isnan(table.output_tokens).all()
    assert (table.propensity == 1).all()
    assert table.reward.dtype == np.float32


def test_task_and_propensity_are_optional(tmp_path: Path) -> None:
    bare = [{k: r[k] for k in ("prompt_id", "prompt", "member", "reward")} for r in rows()]
    bare[0]["propensity"] = 0.25
    table = read_tables(written(tmp_path / "t.parquet", bare))
    assert set(table.tasks) == {None}
    assert table.propensity[0, 0] == 0.25 and table.propensity.sum() == table.propensity.size - 0.75


def test_numbers_in_other_clothes_are_read(tmp_path: Path) -> None:
    """Integer ids, true / false as the reward, and dictionary-encoded names are all common."""
    some = rows()
    table = pa.table(
        {
            "prompt_id": [int(r["prompt_id"][1:]) for r in some],
            "prompt": [r["prompt"] for r in some],
            "member": pa.array([r["member"] for r in some]).dictionary_encode(),
            "reward": [r["reward"] > 0.5 for r in some],
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    read = read_tables(tmp_path / "t.parquet")
    assert read.prompt_ids[:2] == ("0", "1")
    assert read.reward[0, 0] == float(some[0]["reward"] > 0.5)


def test_files_are_put_together_and_ids_kept_apart(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    one = written(tmp_path / "t.parquet", rows(50, ("ada", "bob"), seed=0))
    two = written(tmp_path / "other" / "t.parquet", rows(40, ("bobby", "eve"), seed=1))
    table = read_tables([one, two], aliases={"bobby": "bob"})
    assert table.members == ("ada", "bob", "eve")
    assert (table.n_prompts, table.n_pairs) == (90, 180)
    assert len(set(table.prompt_ids)) == 90
    assert table.source[:50] == ("t",) * 50 and table.source[50:] == ("t#2",) * 40
    assert np.isnan(table.reward[50:, 0]).all() and np.isnan(table.reward[:50, 2]).all()
    assert table.observed[:, 1].all()


def test_all_faults_of_all_files_come_in_one_message(tmp_path: Path) -> None:
    bad = rows()
    bad.append(dict(bad[5]))
    bad[7]["prompt"] = "something else"
    bad[10]["reward"], bad[11]["reward"] = 1.5, -0.1
    bad[12]["reward"], bad[13]["reward"] = None, float("nan")
    bad[14]["cost_usd"] = -1.0
    bad[15]["input_tokens"] = -3
    bad[16]["propensity"] = 0.0
    bad[17]["member"] = "mallory"
    bad[18]["prompt_id"] = None
    lacking = [{k: v for k, v in row.items() if k not in ("member", "reward")} for row in rows()]
    files = [written(tmp_path / "bad.parquet", bad), written(tmp_path / "lacking.parquet", lacking)]
    (tmp_path / "text.parquet").write_text("not parquet")
    with pytest.raises(TableError) as caught:
        read_tables([*files, tmp_path / "text.parquet", tmp_path / "gone.parquet"], members=MEMBERS)
    message = str(caught.value)
    for part in (
        "bad: 1 of 181 rows repeat a (prompt_id, member) pair",
        "bad: 1 of 181 rows have another prompt than the first under their prompt_id",
        "bad: 2 of 181 rows have a reward outside [0, 1]",
        "bad: 2 of 181 rows have no reward",
        "bad: 1 of 181 rows have a negative or infinite cost_usd",
        "bad: 1 of 181 rows have a negative or infinite input_tokens",
        "bad: 1 of 181 rows have a propensity outside (0, 1]",
        "1 unknown member(s) (mallory); expected ada, bob, eve",
        "bad: 1 of 181 rows have no prompt_id",
        "lacking: missing column(s) member, reward",
        "text: ",
        "gone: expected a Parquet file",
    ):
        assert part in message
    assert message.startswith("12 problem(s)")
    assert "the first: prompt 'p3', member 'bob'" in message  # the row with the reward of 1.5


def test_words_where_numbers_should_be(tmp_path: Path) -> None:
    bad: list[dict[str, Any]] = [{**row, "reward": "good"} for row in rows()]
    with pytest.raises(TableError, match="the column reward is not numeric"):
        read_tables(written(tmp_path / "t.parquet", bad))


def test_columns_of_lists_or_dates_are_named(tmp_path: Path) -> None:
    good = pq.read_table(written(tmp_path / "t.parquet", rows()))
    day = datetime.datetime(2026, 1, 1)
    odd = {"prompt": [[{"role": "user", "content": "hi"}]], "cost_usd": [day]}
    for name, values in odd.items():
        at = good.column_names.index(name)
        bad = good.set_column(at, name, pa.array(values * good.num_rows))
        pq.write_table(bad, tmp_path / "bad.parquet")
        with pytest.raises(TableError, match=f"expected text or numbers in the column {name}, found"):
            read_tables(tmp_path / "bad.parquet")


def test_two_names_of_one_member_on_one_prompt_are_a_repeated_pair(tmp_path: Path) -> None:
    path = written(tmp_path / "t.parquet", rows())
    with pytest.raises(TableError, match="60 of 180 rows repeat"):
        read_tables(path, aliases={"bob": "ada"})


@pytest.mark.parametrize(
    ("some", "expected"),
    [(rows(49), "at least 50 prompts, found 49"), (rows(members=("ada",)), "at least 2 members, found 1")],
)
def test_too_little_to_learn_from(tmp_path: Path, some: list[dict[str, Any]], expected: str) -> None:
    path = written(tmp_path / "t.parquet", some)
    with pytest.raises(TableError, match=expected):
        read_tables(path)
    assert read_tables(path, min_prompts=1, min_members=1).n_pairs == len(some)


def test_no_file_at_all() -> None:
    with pytest.raises(TableError, match="at least one"):
        read_tables([])


def test_subset_and_with_members_keep_rows_and_columns_together() -> None:
    table = from_rows(rows(), source="memory")
    part = table.subset([5, 2]).with_members(["eve", "ada"])
    assert part.prompt_ids == ("p5", "p2") and part.members == ("eve", "ada")
    assert part.reward[1, 0] == table.reward[2, 2] and part.cost_usd[0, 1] == table.cost_usd[5, 0]
    assert table.subset(np.arange(60) < 3).prompt_ids == ("p0", "p1", "p2")
    assert table.subset([]).n_prompts == 0 == table.subset(np.zeros(60, bool)).n_prompts
    with pytest.raises(TableError, match="unknown: zoe"):
        table.with_members(["ada", "zoe"])
    with pytest.raises(TableError, match="twice"):
        table.with_members(["ada", "ada"])


def same(a: OutcomeTable, b: OutcomeTable) -> bool:
    texts = ("prompt_ids", "prompts", "tasks", "members")
    cells = ("reward", "cost_usd", "input_tokens", "output_tokens", "propensity")
    return all(getattr(a, n) == getattr(b, n) for n in texts) and all(
        np.array_equal(getattr(a, n), getattr(b, n), equal_nan=True) for n in cells
    )


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "t.parquet"
    write_table(path, rows())
    assert same(read_tables(path), from_rows(rows(), source="memory"))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"reward": None}, "row 3 .* missing: reward"),
        ({"stars": 5}, "row 3 .* unknown: stars"),
        ({"reward": "good"}, "wrong type"),
    ],
)
def test_a_refused_write_leaves_the_old_file_alone(
    tmp_path: Path, change: dict[str, Any], expected: str
) -> None:
    path = tmp_path / "t.parquet"
    write_table(path, rows())
    before = path.read_bytes()
    bad = rows()
    bad[3] |= change
    with pytest.raises(TableError, match=expected):
        write_table(path, bad)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["t.parquet"]


def test_a_write_that_breaks_half_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(_: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_table(tmp_path / "t.parquet", rows())
    assert list(tmp_path.iterdir()) == []


def test_the_real_table_is_read_whole_and_fast() -> None:
    path = data_folder() / "mmlu_pro.parquet"
    read_tables(path)  # pyarrow's own first call
    start = time.process_time()
    table = read_tables(path)
    seconds = time.process_time() - start
    assert (table.n_prompts, table.n_members, table.n_pairs) == (12_032, 16, 190_642)
    assert np.nanmean(table.reward[:, table.members.index("Meta-Llama-3.1-70B-Instruct")]) == pytest.approx(
        0.6282, abs=1e-4
    )
    assert seconds < 2


def test_a_label_is_the_task_within_its_source() -> None:
    labels = table_of(
        np.ones((4, 2)), tasks=["sums", "sums", None, "law"], source=["a", "b", "b", "b"]
    ).labels
    assert labels == ("a/sums", "b/sums", None, "b/law")


def test_labels_go_with_their_prompts() -> None:
    table = table_of(np.ones((3, 2)), tasks=["x", None, "y"])
    assert table.subset([2, 0]).labels == ("world/y", "world/x")

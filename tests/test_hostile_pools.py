"""A pool's file or settings made to do harm get one clear error; a pool in use stays as it was."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from benchmarks import hostile_pools
from benchmarks.hostile_case import Case
from benchmarks.hostile_pools import GOOD
from ensemble.config import read_settings
from ensemble.errors import ConfigError, PoolError
from ensemble.plain_file import open_plain, read_plain
from ensemble.pool import Pool
from ensemble.toml_file import DEEPEST_KEY, read_toml

FEW = settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("case", hostile_pools.CASES, ids=lambda case: case.what)
def test_each_gets_what_it_should(case: Case, tmp_path: Path) -> None:
    folder = tmp_path / "around" / "inside"
    folder.mkdir(parents=True)
    got, held = case.got(folder)
    assert held, got
    assert [path.name for path in folder.parent.iterdir()] == ["inside"]
    assert {path.name for path in folder.iterdir()} <= {"pool.toml", "ensemble.toml"}


WORDS = (
    "[[members]]", "[[members.deployments]]", "name", "model", "usd_per_million_input", "exploration",
    "budgets", "usd_per_day", "router", "pool", "log", "= ", "'a'", '"\\u0000"', "1", "-1", "1e400", "nan",
    "inf", "true", "2026-01-01", "[", "]", "{", "}", "\n", ", ", ".", '"""', "'''", "#", "\\", "\r",
    "9" * 400,
)  # fmt: skip
files = st.one_of(
    st.binary(max_size=60),
    st.lists(st.sampled_from(WORDS), max_size=25).map(lambda words: "".join(words).encode()),
    st.lists(st.sampled_from(WORDS), max_size=4).map(lambda words: (GOOD + "".join(words)).encode()),
)


@given(files)
@example(GOOD.encode())
@FEW
def test_any_file_is_a_pool_or_one_clear_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "pool.toml"
    path.write_bytes(content)
    try:
        assert len(Pool.load(path)) > 0
    except PoolError as error:
        assert str(path) in str(error) and len(str(error)) < 1_000


@given(files)
@example(b"fsync = true")
@FEW
def test_any_file_is_settings_or_one_clear_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "ensemble.toml"
    path.write_bytes(content)
    try:
        assert isinstance(read_settings(path), dict)
    except ConfigError as error:
        assert len(str(error)) < 1_000


def toml(folder: Path, text: str) -> dict[str, object]:
    (folder / "some.toml").write_text(text)
    return read_toml(folder / "some.toml", "some", ConfigError)


@pytest.mark.parametrize("form", ["{} = 1", "[{}]", "x = {{{} = 1}}", 'x = {{y = """z"""", {} = 1}}'])
def test_a_key_may_have_so_many_parts_and_no_more(tmp_path: Path, form: str) -> None:
    for part in ("a", '"a b"', "'a.b'", " a "):
        assert toml(tmp_path, form.format(".".join([part] * DEEPEST_KEY)))
        with pytest.raises(ConfigError, match="nested too deeply"):
            toml(tmp_path, form.format(".".join([part] * (DEEPEST_KEY + 1))))


@pytest.mark.parametrize(
    "text",
    [
        "a = '" + "b." * 99 + "'",
        'a = "\\"' + "b." * 99 + '"',
        'a = """\n' + "b." * 99 + '\n\\""" """',
        "a = '''" + "b." * 99 + "'''",
        "# " + "b." * 99,
        "".join(f"k{i} = 1.5\n" for i in range(99)),
        "a = ['" + "', '".join(["http://10.0.0.5:8000/v1.0"] * 99) + "']",
    ],
)
def test_dots_in_what_is_no_key_count_for_nothing(tmp_path: Path, text: str) -> None:
    assert toml(tmp_path, text) == tomllib.loads(text)


def test_only_so_much_of_a_file_is_read_and_a_link_only_if_wanted(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert read_plain(tmp_path / "link", 3) == b"123"
    with pytest.raises(OSError):
        open_plain(tmp_path / "link", follow_link=False)

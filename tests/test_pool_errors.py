"""Whatever is wrong with a pool is one clear error, with the file, the member, and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble.errors import PoolError
from ensemble.pool import Pool
from ensemble.records import CatalogEntry, Member
from ensemble.toml_file import LARGEST_FILE

PRICED = {"usd_per_million_input": 1.0, "usd_per_million_output": 2.0, "context_window": 8192}


def member(name: str = "m", **facts: Any) -> dict[str, Any]:
    return {"name": name, "model": f"openai/{name}", **PRICED, **facts}


def write(folder: Path, text: str) -> Path:
    path = folder / "pool.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "at least one member, found none"),
        ("members = []", "at least one member, found none"),
        ("members = 3", "members: expected a list of tables, found 3"),
        ("[members]\nname='a'", r"two pairs of brackets"),
        ("members = ['a']", "member 1: expected a table with a name and a model, found 'a'"),
        ("a = 1\nb = = 2", "line 2"),
        ("willingness_to_pay = 1", "found 'willingness_to_pay'. Did you mean 'willingness_to_pay_usd'"),
        ("willingness_to_pay_usd = nan", "willingness_to_pay_usd: expected a number of at least 0, or inf"),
        ("willingness_to_pay_usd = -1", "found -1"),
        ("willingness_to_pay_usd = 'much'", "found 'much'"),
        ("usd_per_second = inf", "usd_per_second: expected a number of at least 0, found inf"),
        ("exploration = 1", r"probability in \[0, 1\), found 1"),
        ("exploration = true", "exploration: expected a number of at least 0, found True"),
        ("a = " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        ("a = " + "9" * 5000, "4300"),
        ("usd_per_second = " + "9" * 400, "found a very large whole number"),
    ],
)
def test_a_wrong_file_is_one_clear_error(tmp_path: Path, text: str, says: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(PoolError, match=says) as caught:
        Pool.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("usd_per_million_inptu = 1", "Did you mean 'usd_per_million_input'"),
        ("exploration = 0.1", r"found 'exploration'.*pool's own keys go above all \[\[members\]\]"),
        ("kind = 'teacher'", "kind: expected frontier or tuned or specialist, found 'teacher'"),
        ("usd_per_million_cached_input = -0.1", "usd_per_million_cached_input: .* found -0.1"),
        ("usd_per_million_cached_input = nan", "found nan"),
        ("usd_per_million_cached_input = inf", "found inf"),
        ("usd_per_million_cached_input = '1'", "found '1'"),
        ("usd_per_million_cached_input = true", "found True"),
        ("max_output_tokens = 0", "max_output_tokens: expected a whole number of tokens, found 0"),
        ("max_output_tokens = 1e3", "found 1000.0"),
        ("tokens_per_second = 0", "tokens_per_second: expected more than 0"),
        ("first_token_s = -1", "first_token_s: expected a number of at least 0"),
        ("abilities = 'tools'", "abilities: expected a list"),
        ("abilities = ['tool']", "abilities: expected a known ability, found 'tool'. Did you mean 'tools'"),
        ("owned = 1", "owned: expected true or false, found 1"),
        ("retires = '2026-10-23'", "retires: expected a date such as 2026-10-23, unquoted"),
        ("retires = 2026-10-23T00:00:00", "retires: expected a date"),
        ("params = 3", "params: expected a table"),
        ("deployments = []", "expected either model .* found model and deployments"),
    ],
)
def test_a_wrong_line_of_a_member_is_one_clear_error(tmp_path: Path, line: str, says: str) -> None:
    path = write(
        tmp_path,
        "[[members]]\nname = 'm'\nmodel = 'x/m'\nusd_per_million_input = 1\nusd_per_million_output = 1\n"
        + line,
    )
    with pytest.raises(PoolError, match=says) as caught:
        Pool.load(path)
    assert f"{path}: member 1 (m): " in str(caught.value)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"model": "x/m"}, "member 1: expected a name .* found nothing"),
        ({"name": 3, "model": "x/m"}, "expected a name .* found 3"),
        ({"name": " m", "model": "x/m"}, "expected a name .* found ' m'"),
        ({"name": "m\n", "model": "x/m"}, "expected a name"),
        ({"name": "m"}, "expected either model .* found none of them"),
        ({"name": "m", "params": {}}, "found params"),
        ({"name": "m", "model": 3}, "expected litellm's model = .* found 3"),
        ({"name": "m", "model": ""}, "expected litellm's model"),
        ({"name": "m", "deployments": []}, "deployments: expected tables .* found a list with nothing in it"),
        ({"name": "m", "deployments": ["x/m"]}, "deployment 1: expected a table with a model, found 'x/m'"),
        ({"name": "m", "deployments": [{}]}, r"deployment 1: expected litellm's model .* found ''"),
        (
            {"name": "m", "deployments": [{"model": "x/m", "usd_per_million_input": 1}]},
            r"usd_per_million_input is the member's. Write it above \[\[members.deployments\]\]",
        ),
        ({"name": "m", "deployments": [{"model": "x/m", "params": {}}]}, "parameters beside model"),
    ],
)
def test_a_wrong_table_is_one_clear_error(table: dict[str, Any], says: str) -> None:
    with pytest.raises(PoolError, match=says):
        Pool([table], look_up=lambda _: CatalogEntry(1.0, 1.0))


def test_a_name_given_twice_is_an_error() -> None:
    with pytest.raises(PoolError, match="found 'm' again as member 2"):
        Pool([member(), member()])


@pytest.mark.parametrize("price", ["usd_per_million_input", "usd_per_million_output"])
def test_a_price_that_nobody_knows_says_what_to_add(price: str) -> None:
    table = {key: value for key, value in member().items() if key != price}
    with pytest.raises(
        PoolError, match=f"no {price}, and no price list was asked. Add to this member: {price} = "
    ):
        Pool([table])
    with pytest.raises(PoolError, match=f"no {price}, and litellm's map has none for 'openai/m'"):
        Pool([table], look_up=lambda _: CatalogEntry(context_window=10))


def test_an_error_never_shows_a_deployments_parameters() -> None:
    with pytest.raises(PoolError) as caught:
        Pool([{"name": "m", "model": {"api_key": "sk-secret"}}])
    assert "sk-secret" not in str(caught.value)
    assert "sk-secret" not in repr(Pool([member(params={"api_key": "sk-secret"})])["m"])


@pytest.mark.parametrize("name", ["missing.toml", "."])
def test_a_file_that_cannot_be_read_is_one_clear_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(PoolError, match=r"expected a readable pool file, found: .* Check the path"):
        Pool.load(tmp_path / name)


def test_a_huge_file_and_one_not_in_utf8_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "# " + "x" * LARGEST_FILE)
    with pytest.raises(PoolError, match="at most 1 MB"):
        Pool.load(path)
    path.write_bytes(b"# \xff\xfe")
    with pytest.raises(PoolError, match="in TOML, found: 'utf-8'"):
        Pool.load(path)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = [*Member.__dataclass_fields__, "model", "params", "typo"]


@given(st.dictionaries(st.sampled_from(FIELDS), values, max_size=4))
def test_no_table_crashes_the_reader(facts: dict[str, Any]) -> None:
    try:
        pool = Pool([member(**facts)])
    except PoolError:
        return
    assert np.isfinite(pool.usd_per_million_input).all()
    assert (pool.usd_per_million_input >= 0).all()

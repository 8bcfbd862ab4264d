"""A pool says who is on offer, at what price, and what its owner should know."""

from __future__ import annotations

import datetime
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ensemble.errors import PoolError
from ensemble.pool import Pool
from ensemble.records import CatalogEntry, Deployment, Member

TODAY = datetime.date(2026, 11, 20)
ENTRY = CatalogEntry(2.5, 10.0, 1.25, 128_000, 16_384, frozenset({"tools", "vision"}), None)
PRICED = {"usd_per_million_input": 1.0, "usd_per_million_output": 2.0, "context_window": 8192}
MEMBERS = """
willingness_to_pay_usd = inf
exploration = 0.02

[[members]]
name = "strong"
model = "openai/strong"
params = { timeout = 30 }
abilities = ["tools"]

[[members]]
name = "ours"
kind = "tuned"
usd_per_million_input = 0.2
usd_per_million_output = 0.4
context_window = 8192
tokens_per_second = 80
retires = 2027-06-30
[[members.deployments]]
model = "hosted_vllm/ours"
api_base = "http://localhost:8000/v1"
[[members.deployments]]
model = "together_ai/ours"
api_key = "os.environ/KEY"
"""


def member(name: str = "m", **facts: Any) -> dict[str, Any]:
    return {"name": name, "model": f"openai/{name}", **PRICED, **facts}


def write(folder: Path, text: str) -> Path:
    path = folder / "pool.toml"
    path.write_text(text, encoding="utf-8")
    return path


def know_everything(model: str) -> CatalogEntry:
    return ENTRY


def ask_nobody(model: str) -> CatalogEntry:
    raise AssertionError(f"{model} was looked up")


def test_a_pool_file_becomes_members_in_its_order(tmp_path: Path) -> None:
    asked: list[str] = []

    def know(model: str) -> CatalogEntry:
        asked.append(model)
        return ENTRY

    pool = Pool.load(write(tmp_path, MEMBERS), know)
    assert pool.names == ("strong", "ours")
    assert list(pool) == [
        Member(
            "strong", "frontier", (Deployment("openai/strong", {"timeout": 30}),),
            2.5, 10.0, 1.25, 128_000, 16_384, frozenset({"tools"}),
        ),
        Member(
            "ours", "tuned",
            (
                Deployment("hosted_vllm/ours", {"api_base": "http://localhost:8000/v1"}),
                Deployment("together_ai/ours", {"api_key": "os.environ/KEY"}),
            ),
            0.2, 0.4, None, 8192, tokens_per_second=80.0, owned=True, retires=datetime.date(2027, 6, 30),
        ),
    ]  # fmt: skip
    assert asked == ["openai/strong"], "a member that gives prices and window needs no look-up"
    assert math.isinf(pool.defaults.willingness_to_pay_usd)
    assert (pool.defaults.exploration, pool.defaults.usd_per_second) == (0.02, 0.0)
    assert pool.warnings == ()


def test_what_the_file_says_wins_over_what_is_looked_up() -> None:
    said = {"usd_per_million_output": 3.0, "max_output_tokens": 99, "abilities": [], "retires": TODAY}
    found = Pool([{"name": "m", "model": "x/m", **said}], look_up=know_everything)["m"]
    assert (found.usd_per_million_input, found.usd_per_million_output) == (2.5, 3.0)
    assert (found.max_output_tokens, found.abilities, found.retires) == (99, frozenset(), TODAY)


def test_the_first_deployment_that_is_known_says_what_is_missing() -> None:
    known = {"b/m": ENTRY, "c/m": CatalogEntry(9.0, 9.0)}
    places = [{"model": "a/m"}, {"model": "b/m"}, {"model": "c/m"}]
    pool = Pool([{"name": "m", "deployments": places}], look_up=known.get)
    assert pool["m"].usd_per_million_input == 2.5


def test_members_made_in_code_and_tables_are_the_same() -> None:
    from_table = Pool([member(kind="specialist")], look_up=ask_nobody)
    assert list(Pool(from_table, look_up=ask_nobody)) == list(from_table)


@pytest.mark.parametrize(
    ("facts", "owned"), [({}, False), ({"kind": "tuned"}, True), ({"kind": "tuned", "owned": False}, False)]
)
def test_a_tuned_member_is_owned_unless_it_says_otherwise(facts: dict[str, Any], owned: bool) -> None:
    assert Pool([member(**facts)])["m"].owned is owned


def test_arrays_follow_the_members_and_cannot_be_written() -> None:
    pool = Pool([member("a", usd_per_million_input=3), member("b", first_token_s=0.5)])
    np.testing.assert_array_equal(pool.usd_per_million_input, [3.0, 1.0])
    np.testing.assert_array_equal(pool.usd_per_million_output, [2.0, 2.0])
    np.testing.assert_array_equal(pool.first_token_s, [np.nan, 0.5])
    np.testing.assert_array_equal(pool.usd_per_million_cached_input, [np.nan, np.nan])
    np.testing.assert_array_equal(pool.context_window, [8192, 8192])
    with pytest.raises(ValueError, match="read-only"):
        pool.usd_per_million_input[0] = 0


def test_a_pool_without_some_members_is_another_pool() -> None:
    pool = Pool([member("a", retires=TODAY), member("b"), member("c")], exploration=0.1, today=TODAY)
    smaller = pool.without("a", "c")
    assert (pool.names, smaller.names) == (("a", "b", "c"), ("b",))
    assert (len(pool.warnings), smaller.warnings) == (1, ())
    assert smaller.defaults == pool.defaults
    assert smaller.usd_per_million_input.shape == (1,)
    assert "b" in smaller and "a" not in smaller and len(smaller) == 1
    with pytest.raises(PoolError, match=r"expected a known member, found 'A'. Did you mean 'a'"):
        pool.without("A")
    with pytest.raises(PoolError, match="all 3 left out"):
        pool.without("a", "b", "c")


@pytest.mark.parametrize(
    ("retires", "says"),
    [
        ("2026-11-19", "was to be retired by its provider on 2026-11-19, 1 days ago"),
        ("2026-11-20", "will be retired by its provider on 2026-11-20, in 0 days"),
        ("2026-12-20", "in 30 days"),
        ("2026-12-21", None),
    ],
)
@pytest.mark.parametrize("given_by", ["file", "map"])
def test_a_member_that_goes_away_is_warned_about(retires: str, says: str | None, given_by: str) -> None:
    date = datetime.date.fromisoformat(retires)
    if given_by == "file":
        pool = Pool([member(retires=date), member("other")], today=TODAY)
    else:
        entry = CatalogEntry(1.0, 1.0, retires=date)
        pool = Pool([{"name": "m", "model": "x/m"}, member("other")], look_up=lambda _: entry, today=TODAY)
    assert len(pool.warnings) == (says is not None)
    assert all(line.startswith("m: ") and str(says) in line for line in pool.warnings)


def test_a_price_of_nothing_is_doubted_when_only_the_map_says_so() -> None:
    free = CatalogEntry(0.0, 0.0)
    doubted = Pool([{"name": "m", "model": "x/m"}], look_up=lambda _: free)
    stated = Pool([member(usd_per_million_input=0, usd_per_million_output=0)])
    halfway = Pool([{"name": "m", "model": "x/m", "usd_per_million_output": 0}], look_up=lambda _: free)
    assert "cost nothing" in doubted.warnings[0]
    assert stated.warnings == halfway.warnings == ()

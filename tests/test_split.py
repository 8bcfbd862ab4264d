"""Near-duplicates stay together; parts and folds are partitions; keys find a router's own prompts."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble.errors import TableError
from ensemble.learning.split import k_folds, near_duplicates, prompt_key, seen, split

WORDS = [f"word{i}" for i in range(3000)]


def prompt(seed: int, length: int = 40) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=length))


def pairs(groups: Sequence[int]) -> list[tuple[int, int]]:
    """The rows that share a group."""
    return [(i, j) for i in range(len(groups)) for j in range(i + 1, len(groups)) if groups[i] == groups[j]]


def test_unrelated_prompts_are_groups_of_their_own() -> None:
    assert near_duplicates([prompt(i) for i in range(100)]).tolist() == list(range(100))


def test_near_duplicates_are_found_in_every_coat() -> None:
    base = prompt(0)
    words = base.split()
    coats = {
        "same": base,
        "case and white space": base.upper().replace(" ", " \n\t"),
        "punctuation": ", ".join(words) + "?!",
        "one word changed": " ".join([*words[:20], "other", *words[21:]]),
        "more options": base + " " + prompt(1, 30),
        "cut short": " ".join(words[:25]),
    }
    others = [prompt(i) for i in range(10, 60)]
    for name, coat in coats.items():
        assert pairs(near_duplicates([*others, base, coat]).tolist()) == [(50, 51)], name


def test_near_duplicates_are_found_where_no_spaces_part_the_words() -> None:
    """Prove that the root of 2 is irrational; of 3, thank you; what is the capital of France."""
    one = "\u8bf7\u8bc1\u660e\u4e8c\u7684\u5e73\u65b9\u6839\u662f\u65e0\u7406\u6570"
    other = one.replace("\u4e8c", "\u4e09") + "\u8c22\u8c22"
    apart = "\u6cd5\u56fd\u7684\u9996\u90fd\u662f\u54ea\u91cc\u8bf7\u8be6\u7ec6\u8bf4\u660e"
    assert near_duplicates([one, other, apart]).tolist() == [0, 0, 1]


def test_short_prompts_need_the_same_text() -> None:
    texts = [
        "What is 2 + 3?",
        "what is  2 + 3?",
        "What is 2 + 4?",
        "Hi",
        "hi",
        "Ho",
        "",
        "?!",
        "日本語",
        "日本",
    ]
    assert pairs(near_duplicates(texts).tolist()) == [(0, 1), (3, 4)]
    books = ["who wrote the book of job", "who wrote the book of ruth"]  # three of four triples in common
    assert pairs(near_duplicates(books).tolist()) == []


def test_a_shared_instruction_does_not_make_one_group() -> None:
    instruction = prompt(999, 60)
    texts = [f"{instruction} {prompt(i, 15)}" for i in range(100)]
    twin = f"{instruction} {prompt(7, 15)} indeed"
    assert pairs(near_duplicates([*texts, twin]).tolist()) == [(7, 100)]


def test_groups_are_closed_and_numbered_by_appearance() -> None:
    chain = [" ".join(prompt(0, 60).split()[i : i + 40]) for i in (0, 10, 20)]  # each next to the one before
    groups = near_duplicates([prompt(5), chain[0], chain[1], prompt(6), chain[2]])
    assert groups.tolist() == [0, 1, 1, 2, 1]


def test_no_prompts() -> None:
    assert near_duplicates([]).tolist() == []


def scattered(sizes: list[int]) -> np.ndarray:
    """Groups of these sizes, their rows in some fixed disorder."""
    return np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))


groups_of = st.lists(st.integers(1, 4), min_size=40, max_size=120).map(scattered)


@given(groups_of, st.integers(0, 5))
def test_a_split_is_a_partition_that_no_group_straddles(groups: np.ndarray, seed: int) -> None:
    parts = split(groups, seed=seed)
    rows = [parts.train, parts.validation, parts.test]
    assert sorted(np.concatenate(rows).tolist()) == list(range(len(groups)))
    held = [set(groups[r].tolist()) for r in rows]
    assert not (held[0] & held[1] or held[0] & held[2] or held[1] & held[2])
    for part, fraction in zip(rows, (0.7, 0.1, 0.2), strict=True):
        assert abs(len(part) - fraction * len(groups)) <= 5  # one group more or less


@given(groups_of, st.integers(2, 6), st.integers(0, 5))
def test_folds_hold_every_row_out_once(groups: np.ndarray, k: int, seed: int) -> None:
    folds = k_folds(groups, k=k, seed=seed)
    assert len(folds) == k
    assert sorted(np.concatenate([held for _, held in folds]).tolist()) == list(range(len(groups)))
    for learn, held in folds:
        assert sorted([*learn.tolist(), *held.tolist()]) == list(range(len(groups)))
        assert not set(groups[learn].tolist()) & set(groups[held].tolist())


def test_the_seed_decides() -> None:
    groups = np.arange(200)
    assert split(groups, seed=1).test.tolist() == split(groups, seed=1).test.tolist()
    assert split(groups, seed=1).test.tolist() != split(groups, seed=2).test.tolist()


def test_a_part_may_be_left_out_on_purpose_but_not_by_accident() -> None:
    parts = split(np.arange(10), fractions=(0.5, 0.0, 0.5))
    assert [len(parts.train), len(parts.validation), len(parts.test)] == [5, 0, 5]
    with pytest.raises(TableError, match=r"1 group\(s\).*leave no validation, test part"):
        split(np.zeros(50, int))
    with pytest.raises(TableError, match="sum to 1"):
        split(np.arange(10), fractions=(0.7, 0.2, 0.2))
    with pytest.raises(TableError, match="don't fill 4 folds"):
        k_folds(np.repeat([0, 1, 2], 10), k=4)
    with pytest.raises(TableError, match="at least 2"):
        k_folds(np.arange(10), k=1)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("seed", range(5))
def test_one_prompt_asked_again_and_again_leaves_every_fold_something(share: float, seed: int) -> None:
    groups = np.maximum(np.arange(200) - int(200 * share), 0)  # 0 is that prompt, the others are unlike
    held_out = [held for _, held in k_folds(groups, k=5, seed=seed)]
    assert sorted(np.concatenate(held_out).tolist()) == list(range(200))
    assert all(len(held) for held in held_out)
    assert sum(0 in groups[held] for held in held_out) == 1


def test_keys_find_seen_prompts_and_tell_nothing_without_the_salt() -> None:
    trained = [prompt(i) for i in range(5)]
    keys = [prompt_key(text, "salt") for text in trained]
    asked = [prompt(9), trained[3].upper() + " \n", trained[0] + "!", "lone \ud800 surrogate"]
    assert seen(asked, keys, "salt").tolist() == [False, True, False, False]
    assert not seen(trained, keys, "other salt").any()
    assert all(len(key) == 32 and int(key, 16) >= 0 for key in keys)


def test_the_whole_group_of_a_seen_prompt_counts_as_seen() -> None:
    texts = [prompt(1), prompt(2), prompt(1) + " indeed"]
    keys = [prompt_key(texts[0], "s")]
    assert seen(texts, keys, "s", groups=near_duplicates(texts)).tolist() == [True, False, True]

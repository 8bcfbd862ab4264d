"""Difficulty and ability are told apart, though pairs are missing for a reason."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble.learning.effects import member_part, two_way_effects


def biased_world(seed: int, n_members: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """y, weight, difficulty, ability: the abler a member, the harder the prompts it was shown."""
    rng = np.random.default_rng(seed)
    ability = rng.permutation(np.linspace(0, 0.3, n_members))
    difficulty = np.sort(rng.normal(0, 0.5, 400))[::-1]  # the easiest first
    y = difficulty[:, None] + ability + rng.normal(0, 0.05, (400, n_members))
    rank = ability.argsort().argsort()
    place = np.arange(400)[:, None] / 400
    centre = (rank + 0.5) / n_members
    weight = (rng.random(y.shape) < np.exp(-(((place - centre) / 0.25) ** 2))).astype(float)
    return y, weight, difficulty, ability


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), n_members=st.integers(3, 8))
def test_abilities_are_found_where_raw_means_rank_wrongly(seed: int, n_members: int) -> None:
    y, weight, difficulty, ability = biased_world(seed, n_members)
    raw = (y * weight).sum(axis=0) / weight.sum(axis=0)
    assert np.corrcoef(raw, ability)[0, 1] < 0  # the trap: the abler look the worse
    found_difficulty, found = two_way_effects(np.where(weight > 0, y, np.nan), weight)
    error = (found - found.mean()) - (ability - ability.mean())
    assert np.abs(error).max() < 0.05
    assert list(found.argsort()) == list(ability.argsort()) or np.abs(error).max() < 0.03
    seen = weight.sum(axis=1) > 1
    assert np.corrcoef(found_difficulty[seen], difficulty[seen])[0, 1] > 0.98


@given(st.integers(0, 1000))
def test_no_weight_and_nan_both_mean_unobserved(seed: int) -> None:
    rng = np.random.default_rng(seed)
    y, observed = rng.random((30, 4)), rng.random((30, 4)) < 0.6
    expected = two_way_effects(y, observed.astype(float))
    hidden = np.where(observed, y, np.nan)
    for weight in (observed.astype(float), np.ones((30, 4)), np.where(observed, 1.0, np.nan)):
        for got, want in zip(two_way_effects(hidden, weight), expected, strict=True):
            np.testing.assert_allclose(got, want, atol=1e-12)


def test_where_each_prompt_has_one_outcome_as_in_a_log_its_weight_counts() -> None:
    """The strong member gets the hard prompts, and the rest by chance."""
    rng = np.random.default_rng(0)
    hard, by_chance = rng.random(20_000) < 0.5, rng.random(20_000) < 0.1
    member = np.where(by_chance, ~hard, hard).astype(int)  # 1 is the strong one
    y, weight = np.full((20_000, 2), np.nan), np.zeros((20_000, 2))
    rows = np.arange(20_000)
    y[rows, member] = 0.7 - 0.5 * hard + 0.2 * member + rng.normal(0, 0.1, 20_000)
    weight[rows, member] = np.where(by_chance, 1 / 0.1, 1 / 0.9)
    _, alike = two_way_effects(y, (weight > 0).astype(float))
    _, ability = two_way_effects(y, weight)
    assert alike[1] < alike[0]  # the trap
    assert abs(ability[1] - ability[0] - 0.2) < 0.03


def test_members_that_share_no_prompt_are_compared_by_their_means() -> None:
    y = np.full((200, 2), np.nan)
    y[:100, 0], y[100:, 1] = 0.8, 0.3
    difficulty, ability = two_way_effects(y, np.ones(y.shape))
    np.testing.assert_allclose(ability, [0.8, 0.3], atol=1e-9)
    assert np.abs(difficulty).max() < 1e-9


def test_a_member_never_seen_gets_the_mean_ability_and_nothing_seen_gives_zero() -> None:
    y = np.column_stack([np.full(20, 0.9), np.full(20, 0.5), np.full(20, np.nan)])
    _, ability = two_way_effects(y, np.ones(y.shape))
    np.testing.assert_allclose(ability, [0.9, 0.5, 0.7], atol=1e-9)
    difficulty, ability = two_way_effects(np.full((5, 2), np.nan), np.ones((5, 2)))
    assert not difficulty.any() and not ability.any()


def test_what_an_outcome_says_of_its_member_is_the_difference_from_the_others() -> None:
    rng = np.random.default_rng(0)
    own = rng.normal(0, 0.1, (500, 6))
    prompt = rng.normal(0, 1.0, (500, 1))
    every = member_part(prompt + own, np.ones(own.shape), np.zeros(6), np.zeros(500))
    assert np.corrcoef(every.ravel(), own.ravel())[0, 1] > 0.9  # what the prompt adds to all is gone
    alone = np.zeros(own.shape)
    alone[:, 0] = 1
    single = member_part(prompt + own, alone, np.zeros(6), np.zeros(500))
    np.testing.assert_allclose(single[:, :1], prompt + own[:, :1])  # nobody to compare with: all its own
    assert not single[:, 1:].any()

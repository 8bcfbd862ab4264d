"""A member nobody measured is expected to be like those nearest to it, and nobody is sure of it."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble.errors import ConfigError
from ensemble.prior import FLAT_REWARD, FLAT_STD, FLAT_TOKENS, FLAT_TOKENS_P95, LEAST_STD, Prior
from ensemble.records import Deployment, Kind, Member, Prediction

ARRAYS = ("reward", "reward_std", "output_tokens", "output_tokens_p95")


def member(name: str, price: float = 1.0, kind: Kind = "frontier") -> Member:
    return Member(name, kind, (Deployment(f"x/{name}"),), price, price)


def predict(*members: str, n_prompts: int = 50, seed: int = 0, dtype: Any = np.float32) -> Prediction:
    rng = np.random.default_rng(seed)
    shape = (n_prompts, len(members))
    tokens = rng.uniform(50, 500, shape).astype(dtype)
    std = rng.uniform(0.01, 0.1, shape).astype(dtype)
    return Prediction(members, rng.uniform(0, 1, shape).astype(dtype), std, tokens, 3 * tokens)


def fixed(rewards: dict[str, list[float]], std: float = 0.05) -> Prediction:
    """One row of rewards per member, one column per prompt."""
    reward = np.array(list(rewards.values()), dtype=np.float64).T
    tokens = np.full(reward.shape, 100.0)
    return Prediction(tuple(rewards), reward, np.full(reward.shape, std), tokens, 3 * tokens)


def column(prediction: Prediction, name: str, array: str = "reward") -> Any:
    return getattr(prediction, array)[:, prediction.members.index(name)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_measured_members_are_copied_bit_for_bit_in_the_pools_order(dtype: Any) -> None:
    prediction = predict("a", "b", "c", dtype=dtype)
    pool = [member("c"), member("new"), member("a")]
    prior = Prior(prediction.members, pool)
    filled = prior.fill(prediction)
    assert filled.members == ("c", "new", "a")
    assert prior.measured.tolist() == [True, False, True]
    for array in ARRAYS:
        assert getattr(filled, array).dtype == dtype
        for name in ("a", "c"):
            np.testing.assert_array_equal(column(filled, name, array), column(prediction, name, array))


def test_a_pool_of_measured_members_is_only_put_in_order() -> None:
    prediction = predict("a", "b")
    same = Prior(("a", "b"), [member("a"), member("b")])
    turned = Prior(("a", "b"), [member("b"), member("a")]).fill(prediction)
    assert same.measured.all()
    assert same.fill(prediction) is prediction
    np.testing.assert_array_equal(turned.reward, prediction.reward[:, ::-1])


def test_a_hard_prompt_stays_hard_for_the_unmeasured() -> None:
    prediction = fixed({"a": [0.1, 0.5, 0.9], "b": [0.2, 0.6, 1.0]})
    guess = column(Prior(("a", "b"), [member("a"), member("b"), member("new")]).fill(prediction), "new")
    np.testing.assert_allclose(guess, [0.15, 0.55, 0.95])


def test_more_is_expected_of_the_dear_where_the_measured_show_it() -> None:
    known = [member("cheap", 0.1), member("dear", 10)]
    prior = Prior(("cheap", "dear"), [*known, member("new cheap", 0.12), member("new dear", 8)])
    shown = prior.fill(fixed({"cheap": [0.3, 0.9], "dear": [0.9, 0.3]}))
    cheap, dear = column(shown, "new cheap"), column(shown, "new dear")
    assert 0.3 < cheap[0] < 0.5 and 0.7 < dear[0] < 0.9
    np.testing.assert_allclose(cheap + dear, 1.2, atol=0.02)
    assert cheap[1] > dear[1], "where the cheap one is better, the new cheap one is expected to be"


def test_price_is_three_of_input_to_one_of_output() -> None:
    mixed = Member("new", "frontier", (), usd_per_million_input=0, usd_per_million_output=4)
    prior = Prior(("a", "b"), [member("a", 1), member("b", 3), mixed, member("same", 1)])
    filled = prior.fill(fixed({"a": [0.2], "b": [0.8]}))
    np.testing.assert_array_equal(column(filled, "new"), column(filled, "same"))


def test_kind_counts_at_the_same_price() -> None:
    known = [member("a", kind="frontier"), member("b", kind="specialist")]
    prior = Prior(("a", "b"), [*known, member("new", kind="specialist"), member("other", kind="frontier")])
    filled = prior.fill(fixed({"a": [0.2], "b": [0.8]}))
    assert column(filled, "new")[0] > 0.6
    assert column(filled, "other")[0] < 0.4


def test_what_left_the_pool_still_speaks_if_its_facts_are_given() -> None:
    prediction = fixed({"gone": [0.9], "a": [0.1]})
    pool = [member("a", 0.1), member("new", 10)]
    alone = Prior(("gone", "a"), pool).fill(prediction)
    helped = Prior(("gone", "a"), pool, references=[member("gone", 10)]).fill(prediction)
    assert alone.members == helped.members == ("a", "new")
    assert column(alone, "new")[0] == pytest.approx(0.1)
    assert column(helped, "new")[0] > 0.7


def test_the_pools_own_facts_count_before_those_of_the_references() -> None:
    prediction = fixed({"a": [0.9], "b": [0.1]})
    pool = [member("a", 10), member("b", 0.1), member("new", 10)]
    misled = Prior(("a", "b"), pool, references=[member("a", 0.001), member("b", 10)])
    np.testing.assert_array_equal(
        misled.fill(prediction).reward, Prior(("a", "b"), pool).fill(prediction).reward
    )


def test_the_uncertainty_is_wide_and_wider_where_members_disagree() -> None:
    known = [member("a"), member("b")]
    prior = Prior(("a", "b"), [*known, member("new")])
    std = column(prior.fill(fixed({"a": [0.5, 0.0, 0.5], "b": [0.5, 1.0, 0.5]})), "new", "reward_std")
    np.testing.assert_allclose(std, [LEAST_STD, np.hypot(0.5, 0.05), LEAST_STD])
    apart = Prior(("a", "b"), [member("a", 0.1), member("b", 10), member("new", 0.1)])
    filled = apart.fill(fixed({"a": [0.0], "b": [1.0]}, std=0.0))
    mean = column(filled, "new")[0]
    assert mean < 0.2
    np.testing.assert_allclose(column(filled, "new", "reward_std"), np.sqrt(mean * (1 - mean)))
    unsure = column(prior.fill(fixed({"a": [0.5], "b": [0.5]}, std=0.4)), "new", "reward_std")
    np.testing.assert_allclose(unsure, 0.4)


def test_tokens_are_the_mean_and_their_upper_end_is_generous() -> None:
    tokens = np.array([[100.0, 300.0]])
    prediction = Prediction(("a", "b"), tokens * 0, tokens * 0, tokens, np.array([[200.0, 2000.0]]))
    filled = Prior(("a", "b"), [member("a"), member("b"), member("new")]).fill(prediction)
    assert column(filled, "new", "output_tokens")[0] == pytest.approx(200)
    assert column(filled, "new", "output_tokens_p95")[0] == pytest.approx(2 * 1100)
    tokens = np.array([[100.0, 100.0, 100.0]])
    prediction = Prediction(
        ("a", "b", "c"), tokens * 0, tokens * 0, tokens, np.array([[100.0, 100.0, 3000.0]])
    )
    filled = Prior(("a", "b", "c"), [*map(member, "abc"), member("new")]).fill(prediction)
    assert column(filled, "new", "output_tokens_p95")[0] == pytest.approx(3000)


@pytest.mark.parametrize("known", [("x", "y"), ()])
def test_with_nobody_to_compare_with_the_prior_is_flat(known: tuple[str, ...]) -> None:
    prediction = predict(*known)
    prior = Prior(known, [member("a", 0.1), member("b", 10)])
    filled = prior.fill(prediction)
    assert not prior.measured.any()
    assert filled.reward.shape == (50, 2)
    np.testing.assert_array_equal(filled.reward, np.float32(FLAT_REWARD))
    np.testing.assert_array_equal(filled.reward_std, np.float32(FLAT_STD))
    if known:
        np.testing.assert_allclose(
            filled.output_tokens[:, 0], prediction.output_tokens.mean(axis=1), rtol=1e-6
        )
        assert (filled.output_tokens_p95 >= prediction.output_tokens_p95.max(axis=1, keepdims=True)).all()
    else:
        assert (filled.output_tokens == FLAT_TOKENS).all() and (
            filled.output_tokens_p95 == FLAT_TOKENS_P95
        ).all()


@given(
    n_known=st.integers(0, 5),
    prices=st.lists(st.floats(0, 1e6), min_size=1, max_size=6),
    kinds=st.lists(st.sampled_from(["frontier", "tuned", "specialist"]), min_size=6, max_size=6),
    n_prompts=st.integers(0, 4),
    seed=st.integers(0, 1000),
)
def test_whatever_the_pool_the_figures_are_sound(
    n_known: int, prices: list[float], kinds: list[Kind], n_prompts: int, seed: int
) -> None:
    known = tuple(f"m{i}" for i in range(n_known))
    pool = [member(f"m{i}", price, kind) for i, (price, kind) in enumerate(zip(prices, kinds, strict=False))]
    prediction = predict(*known, n_prompts=n_prompts, seed=seed)
    prior = Prior(known, pool)
    filled = prior.fill(prediction)
    new = ~prior.measured
    assert filled.reward.shape == filled.output_tokens_p95.shape == (n_prompts, len(pool))
    assert all(np.isfinite(getattr(filled, array)).all() for array in ARRAYS)
    assert ((filled.reward >= 0) & (filled.reward <= 1)).all()
    assert (filled.reward_std[:, new] >= np.float32(LEAST_STD)).all()
    assert (filled.reward_std[:, new] <= 0.6).all()
    assert (filled.output_tokens_p95[:, new] >= filled.output_tokens[:, new]).all()
    if prior.measured.any():
        seen = prediction.reward[:, : min(n_known, len(pool))]
        tiny = 1e-6
        assert (filled.reward[:, new] >= seen.min(axis=1, keepdims=True, initial=1) - tiny).all()
        assert (filled.reward[:, new] <= seen.max(axis=1, keepdims=True, initial=0) + tiny).all()


def test_a_prompt_is_expected_the_same_alone_and_in_a_batch() -> None:
    prediction = predict("a", "b", "c", n_prompts=64)
    prior = Prior(prediction.members, [member("a"), member("new", 3), member("b", 10)])
    whole = prior.fill(prediction)
    for row in (0, 17, 63):
        one = Prediction(prediction.members, *(getattr(prediction, array)[row : row + 1] for array in ARRAYS))
        for array in ARRAYS:
            np.testing.assert_allclose(
                getattr(prior.fill(one), array)[0], getattr(whole, array)[row], rtol=1e-6, atol=1e-7
            )


def test_a_prediction_of_another_router_is_refused() -> None:
    with pytest.raises(ConfigError, match="Make a new Prior"):
        Prior(("a", "b"), [member("a")]).fill(predict("b", "a"))


def test_a_large_pool_is_filled_in_microseconds() -> None:
    known = tuple(f"m{i}" for i in range(100))
    prior = Prior(known, [member(f"m{i}", 0.01 * (i + 1)) for i in range(200)])
    prediction = predict(*known, n_prompts=1)
    began = time.process_time()
    for _ in range(200):
        prior.fill(prediction)
    assert time.process_time() - began < 0.4  # about .02 s: .1 ms each

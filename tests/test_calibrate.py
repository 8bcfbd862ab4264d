"""Figures mean what they say: token counts, on data where the truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble.learning.calibrate import token_scale
from worlds import table_of


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), spread=st.floats(0.2, 1.2))
def test_expected_tokens_meet_the_mean_and_the_95_percent_point_its_share(seed: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    middle = rng.normal(5, 0.5, (5000, 2))
    tokens = np.round(np.exp(middle + rng.normal(0, [[spread, spread / 2]], middle.shape)))
    table = table_of(np.ones(tokens.shape), output_tokens=tokens)
    log_mean, log_p95 = token_scale(middle, table)
    expected = np.exp(middle + log_mean)
    np.testing.assert_allclose(expected.mean(axis=0), tokens.mean(axis=0), rtol=0.01)
    np.testing.assert_allclose((tokens <= np.exp(middle + log_p95)).mean(axis=0), 0.95, atol=0.01)
    assert (log_p95 >= log_mean).all()


def test_members_with_few_known_answers_borrow_and_without_any_the_guess_is_stated() -> None:
    rng = np.random.default_rng(0)
    tokens = np.exp(5 + rng.normal(0, 0.5, (1000, 2)))
    tokens[20:, 1] = np.nan
    tokens[:20, 1] = 1e6  # twenty freaks don't set a scale
    log_mean, _ = token_scale(
        np.full(tokens.shape, 5.0), table_of(np.ones(tokens.shape), output_tokens=tokens)
    )
    assert log_mean[0] == pytest.approx(0.125, abs=0.05)  # the mean of a log-normal: its variance over 2
    none = token_scale(np.full((10, 2), 5.0), table_of(np.ones((10, 2))))
    assert not none[0].any() and np.exp(none[1]) == pytest.approx([4, 4])

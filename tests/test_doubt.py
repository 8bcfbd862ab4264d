"""reward_std means what it says, on errors whose size is known; strangers are told where there are some."""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from ensemble.learning.calibrate import STRANGE
from ensemble.learning.crossfit import OutOfFold
from ensemble.learning.doubt import (
    SHARPER,
    Cells,
    Doubt,
    Strangeness,
    cells,
    chance,
    doubt_share,
    reward_doubt,
    tell_strangers,
)
from ensemble.learning.recipe import fit_head
from worlds import table_of

NONE = np.zeros(0)
NO_CELLS = Cells(NONE, NONE, NONE, NONE, np.zeros(0, np.int64))
LINE = Strangeness(0.0, 1.0, 0.0)
ALONE = np.array(math.inf)
doubt_of = functools.partial(reward_doubt, outcomes=ALONE, seen=np.zeros(()))  # what the errors alone say


def doubtful(
    seed: int, truth: Doubt, evidence: tuple[float, float], log_odds: tuple[float, float] = (-40.0, -40.0)
) -> tuple[Cells, Cells]:
    """Errors drawn from the formula itself, near and far: 30 regions x 5 members of 100 prompts each."""
    rng = np.random.default_rng(seed)
    region = np.repeat(np.arange(30), 100)
    parts = []
    for usual, middle in zip(evidence, log_odds, strict=True):
        seen = np.repeat(usual * rng.lognormal(0, 0.5, (30, 5)), 100, axis=0)
        odds = np.repeat(rng.normal(middle, 0.5, 30), 100)
        share = doubt_share(chance(odds + truth.strangeness.offset)[:, None], seen, truth.half)
        error = np.repeat(rng.normal(size=(30, 5)), 100, axis=0) * truth.prior_std * share
        reward = np.clip(0.5 + error + rng.normal(0, 0.2, seen.shape), 0, 1)
        parts.append(cells(np.full(seen.shape, 0.5), odds, seen, region, table_of(reward)))
    return parts[0], parts[1]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 99), prior_std=st.floats(0.08, 0.15), half=st.floats(0.05, 1.5))
def test_doubt_is_found_where_errors_follow_the_evidence(seed: int, prior_std: float, half: float) -> None:
    truth = Doubt(LINE, np.array(prior_std), half)
    found = doubt_of(LINE, *doubtful(seed, truth, (20 * half, half / 20)))
    assert found.prior_std == pytest.approx(prior_std, rel=0.35)
    assert half / 3 < found.half < 3 * half


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 99), prior_std=st.floats(0.1, 0.2), line=st.sampled_from([-4.0, -7.0]))
def test_doubt_is_found_where_errors_follow_strangeness(seed: int, prior_std: float, line: float) -> None:
    """The evidence is alike near and far: strangeness alone tells them apart, on either side of a line."""
    truth = Doubt(Strangeness(line, 1.0, 0.0), np.array(prior_std), 0.05)
    found = doubt_of(LINE, *doubtful(seed, truth, (20.0, 20.0), (-2.0, 5 - line)))
    usual, strange = (
        found.prior_std * doubt_share(chance(odds + found.strangeness.offset), np.array(20.0), found.half)
        for odds in (np.array(-2.0), np.array(5 - line))
    )
    assert strange == pytest.approx(prior_std, rel=0.35)
    assert usual < strange / 4


def test_what_lies_near_counts_for_more_than_what_lies_far_off() -> None:
    """Errors that tell two stories: near data alone say a large doubt, far data alone a small one."""
    much = 20.0, 20.0
    near = doubtful(0, Doubt(LINE, np.array(0.3), 1.0), much)[0]
    far = doubtful(0, Doubt(LINE, np.array(0.05), 1.0), much)[1]
    loud, quiet, both = (
        found.prior_std / np.sqrt(1 + 20 / found.half)
        for found in (doubt_of(LINE, *parts) for parts in ((near, NO_CELLS), (far, NO_CELLS), (near, far)))
    )
    assert quiet < 0.5 * loud and both > 0.8 * loud


def test_doubt_never_exceeds_what_a_reward_can_scatter() -> None:
    wild = np.tile([0.0, 1.0], (40, 1)).repeat(50, axis=0)
    region = np.repeat(np.arange(40), 50)
    hat = np.where(wild, 0.05, 0.95)
    part = cells(hat, np.zeros(2000), np.full(wild.shape, 0.01), region, table_of(wild))
    assert doubt_of(LINE, part, part).prior_std == pytest.approx(0.5)


def test_one_outcome_tells_at_least_what_its_own_noise_leaves() -> None:
    """Errors alike near and far would make evidence worth nothing; it never is."""
    rng = np.random.default_rng(0)
    region = np.repeat(np.arange(20), 100)
    hat, odds = np.full((2000, 5), 0.5), np.zeros(2000)
    error = np.repeat(rng.normal(0, 0.1, (20, 5)), 100, axis=0)
    table = table_of(np.clip(0.5 + error + rng.normal(0, 0.2, hat.shape), 0, 1))
    near = cells(hat, odds, np.full(hat.shape, 100.0), region, table)
    for far in (NO_CELLS, cells(hat, odds, np.full(hat.shape, 0.01), region, table)):
        found = doubt_of(LINE, near, far)
        assert found.half <= 0.2**2 / found.prior_std**2 * 1.1


@pytest.mark.parametrize("outcomes", [50.0, 2_000.0])
def test_nobody_is_surer_of_a_member_than_its_mean_is(outcomes: float) -> None:
    """Out-of-fold errors of a level cancel over the folds: none are seen here, though there must be some."""
    reward = np.tile([[0.0], [1.0]], (1000, 1))
    flat, odds = np.full(reward.shape, 0.5), np.full(2000, -40.0)
    part = cells(flat, odds, np.full(reward.shape, 30.0), np.repeat(np.arange(40), 50), table_of(reward))
    surest = doubt_of(LINE, part, NO_CELLS)
    found = reward_doubt(LINE, part, NO_CELLS, outcomes=np.array(outcomes), seen=np.array(30.0))
    level_std = 0.5 / np.sqrt(outcomes)
    assert surest.prior_std * doubt_share(np.zeros(1), np.array(30.0), surest.half) < 0.1 * level_std
    assert found.prior_std * doubt_share(np.zeros(1), np.array(30.0), found.half) >= level_std


def test_of_a_member_that_answered_seldom_less_is_sure() -> None:
    """Its own level is a mean of few; the others', who are sure of theirs, pay nothing for it."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(400, 8))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    reward = (rng.random((400, 3)) < 0.5).astype(float)
    alone = fit_head(features, table_of(reward[:, :2]), np.arange(400))[0].prior_std
    for n_answers, least in ((4, 0.45), (16, 0.2)):
        reward[n_answers:, 2] = np.nan
        prior_std = fit_head(features, table_of(reward), np.arange(400))[0].prior_std
        assert prior_std[2] > least
        assert prior_std[:2] == pytest.approx(alone, rel=0.35)


def test_where_no_region_has_enough_prompts_the_doubt_is_stated() -> None:
    stated = Doubt(LINE, np.array(0.25), 1.0)
    assert doubt_of(LINE, NO_CELLS, NO_CELLS) == stated
    assert doubt_of(LINE, NO_CELLS, doubtful(0, stated, (9.0, 9.0))[1]) != stated  # one part is enough


def test_cells_average_over_a_region_and_leave_small_ones_out() -> None:
    reward = np.array([[0.0, 1.0]] * 4 + [[1.0, np.nan]] * 6)
    region = np.array([0] * 4 + [1] * 6)
    found = cells(np.full((10, 2), 0.25), np.arange(10.0), np.ones((10, 2)), region, table_of(reward))
    assert found.residual == pytest.approx([0.75])  # region 1, member 0; the others have fewer than five
    assert found.sampling == pytest.approx([0.25 * 0.75 / 6])  # of a coin's scatter, what six leave of it
    assert found.strange_odds == pytest.approx(np.arange(4.0, 10.0))


def test_the_scatter_of_graded_rewards_is_the_one_seen() -> None:
    reward = np.array([[0.2], [0.4], [0.2], [0.4], [0.3], [0.3]])
    found = cells(np.full((6, 1), 0.5), np.zeros(6), np.ones((6, 1)), np.zeros(6, np.int64), table_of(reward))
    assert found.residual == pytest.approx([-0.2])
    assert found.sampling == pytest.approx([reward.var(ddof=1) / 6], rel=1e-5)


def predicted(company: np.ndarray, entropy: np.ndarray) -> OutOfFold:
    nothing = np.zeros((len(company), 1))
    return OutOfFold(nothing[None], nothing, nothing, nothing, nothing, company, entropy)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), by_company=st.booleans(), by_entropy=st.booleans())
def test_strangers_are_told_by_what_tells_them_and_by_nothing_else(
    seed: int, by_company: bool, by_entropy: bool
) -> None:
    rng = np.random.default_rng(seed)
    company = rng.lognormal(3, 1, (2, 2000))
    entropy = rng.gamma(2, 0.3, (2, 2000))
    company[1] /= 20 if by_company else 1
    entropy[1] += 1.5 if by_entropy else 0
    found = tell_strangers(*(predicted(c, e) for c, e in zip(company, entropy, strict=True)))
    known, strange = (found.log_odds(c, e) for c, e in zip(company, entropy, strict=True))
    assert np.median(known) == pytest.approx(0, abs=1e-6)
    assert found.per_company >= 0 and found.per_entropy >= 0
    higher = ((strange[:, None] > known).mean() + (strange[:, None] >= known).mean()) / 2
    if by_company or by_entropy:
        assert higher > 0.9
    else:
        assert abs(higher - 0.5) < 0.05


def test_strangers_are_told_as_a_logistic_regression_tells_them_but_sharper() -> None:
    rng = np.random.default_rng(0)
    company, entropy = rng.lognormal(3, 1, (2, 3000)), rng.gamma(2, 0.3, (2, 3000))
    company[1] /= 5
    entropy[1] += 0.5
    found = tell_strangers(*(predicted(c, e) for c, e in zip(company, entropy, strict=True)))
    signs = np.stack([-np.log(company.ravel()), entropy.ravel()], axis=1)
    weight = np.repeat([1 - STRANGE, STRANGE], 3000)
    plain = LogisticRegression(C=1e6).fit(signs, np.repeat([0, 1], 3000), weight).coef_[0]
    assert [found.per_company, found.per_entropy] == pytest.approx(SHARPER * plain, rel=0.05)


@pytest.mark.parametrize("told", [(0.0, 0.0), (0.0, 0.7), (0.7, 0.0)])
def test_entropy_tells_nothing_where_no_tasks_were_guessed_at(told: tuple[float, float]) -> None:
    """As where all tasks but one were left out: the served guess then knows what no fold did."""
    rng = np.random.default_rng(0)
    near, far = (predicted(rng.lognormal(3, 1, 500), np.full(500, level)) for level in told)
    assert tell_strangers(near, far).per_entropy == 0


def test_prompts_that_all_look_alike_are_no_strangers() -> None:
    alike = predicted(np.full(200, 7.0), np.zeros(200))
    found = tell_strangers(alike, alike)
    assert found.per_company == found.per_entropy == 0 and abs(found.offset) == 0


@pytest.mark.parametrize("of_each", [10, 11, 12, 13])
def test_tasks_at_the_edge_of_being_guessed_at_make_no_strangers_of_all(of_each: int) -> None:
    """Folds guess at the same tasks as the whole, or entropy would tell folds apart instead of prompts."""
    rng, kind = np.random.default_rng(0), np.arange(20 * of_each) % 20
    features = np.eye(20, 30)[kind] + 0.12 * rng.normal(size=(len(kind), 30))
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    truth = np.linspace(0.2, 0.8, 20)[kind, None] + [-0.15, 0.0, 0.15]
    table = table_of((rng.random(truth.shape) < truth).astype(float), tasks=[f"kind {k}" for k in kind])
    head, _ = fit_head(features, table, np.arange(len(kind)))
    company = head.trunk.company(head.trunk.likeness(features))
    strange = chance(head.strangeness.log_odds(company, head.trunk.entropy(features)))
    assert np.median(strange) < 0.5


def test_without_a_task_guess_company_alone_tells() -> None:
    rng = np.random.default_rng(0)
    company, no_tasks = rng.lognormal(3, 1, (2, 500)) / [[1.0], [30.0]], np.zeros(500)
    found = tell_strangers(predicted(company[0], no_tasks), predicted(company[1], no_tasks))
    assert found.per_company > 0 and np.isfinite(dataclasses.astuple(found)).all()
    assert np.isfinite(found.log_odds(np.zeros(3), np.zeros(3))).all()  # nobody there at all

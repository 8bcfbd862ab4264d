"""Far from all that was learned a router falls back to the members' overall levels, and says it is unsure."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest

from ensemble.head import Head
from ensemble.learning.export import HeadWeights, build_graph
from ensemble.learning.recipe import fit_head
from ensemble.learning.tables import OutcomeTable
from worlds import table_of

Floats = npt.NDArray[np.floating]
SPECIALIST, GENERALIST = 0, 1
KNOWN, UNKNOWN = 24, 16  # directions of the feature space: prompts learned from lie in the first


@dataclass(frozen=True)
class Learned:
    head: HeadWeights
    table: OutcomeTable
    features: Floats
    kind: npt.NDArray[np.int64]


@pytest.fixture(scope="module", params=[True, False], ids=["tasks named", "no tasks"])
def learned(request: pytest.FixtureRequest) -> Learned:
    """Five kinds of prompts; the specialist is far the best at the first and poor at all others."""
    rng = np.random.default_rng(0)
    n = 500
    kind = rng.integers(0, 5, n)
    features = np.zeros((n, KNOWN + UNKNOWN))
    features[np.arange(n), kind] = 1
    features[:, :KNOWN] += 0.12 * rng.normal(size=(n, KNOWN))
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    truth = np.stack([np.where(kind == 0, 0.95, 0.2), np.full(n, 0.6), np.full(n, 0.45)], axis=1)
    table = table_of(
        (rng.random(truth.shape) < truth).astype(float),
        tasks=[f"kind {k}" for k in kind] if request.param else None,
        output_tokens=np.exp(rng.normal(4 + kind[:, None] / 2, 0.2, truth.shape)),
    )
    return Learned(fit_head(features, table, np.arange(n))[0], table, features, kind)


def far_off(leaning: float = 0.0) -> Floats:
    """Prompts at right angles to all that was learned, but for ``leaning`` towards the specialist's kind."""
    features = np.zeros((40, KNOWN + UNKNOWN))
    features[:, KNOWN:] = np.random.default_rng(1).normal(size=(40, UNKNOWN))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    features[:, 0] = leaning
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)


def without_ballast(head: HeadWeights) -> HeadWeights:
    return dataclasses.replace(head, trunk=dataclasses.replace(head.trunk, ballast=0.0))


def test_near_its_kind_the_specialist_is_known(learned: Learned) -> None:
    reward = learned.head.predict(learned.features)[0]
    assert (reward.argmax(axis=1) == np.where(learned.kind == 0, SPECIALIST, GENERALIST)).mean() > 0.95


@pytest.mark.parametrize("leaning", [0.0, 0.2, 0.4])
def test_far_off_rewards_are_the_members_levels_and_preferences_those_of_their_means(
    learned: Learned, leaning: float
) -> None:
    reward, _, _, _ = learned.head.predict(far_off(leaning))
    level = learned.table.reward.mean(axis=0)
    assert np.abs(reward - level).max() < 0.06  # the curve of a mean is not quite the mean of a curve
    assert (reward.argsort(axis=1) == level.argsort()).all()


def test_it_is_the_ballast_that_keeps_a_slight_likeness_from_being_believed(learned: Learned) -> None:
    """Without it whoever is nearest is attended to, however far that is."""
    leaning = far_off(0.4)
    assert (without_ballast(learned.head).predict(leaning)[0].argmax(axis=1) == SPECIALIST).all()
    assert (learned.head.predict(leaning)[0].argmax(axis=1) == GENERALIST).all()


def test_near_the_data_the_ballast_hardly_counts(learned: Learned) -> None:
    full = without_ballast(learned.head).predict(learned.features)
    for with_it, without in zip(learned.head.predict(learned.features), full, strict=True):
        np.testing.assert_allclose(with_it, without, rtol=0.02, atol=0.005)


@pytest.mark.parametrize(("leaning", "within"), [(0.0, 0.02), (0.4, 0.25)])
def test_far_off_the_doubt_is_that_of_knowing_nothing(
    learned: Learned, leaning: float, within: float
) -> None:
    near, far = (learned.head.predict(x)[1] for x in (learned.features, far_off(leaning)))
    np.testing.assert_allclose(far, np.tile(learned.head.prior_std, (40, 1)), rtol=within)
    assert far.min() > 1.5 * near.mean(axis=0).max()


def test_doubt_grows_and_preference_fades_all_the_way_out(learned: Learned) -> None:
    away = far_off()[:1]
    start = learned.features[learned.kind == 0].mean(axis=0)
    start /= np.linalg.norm(start)
    angle = np.linspace(0, np.pi / 2, 60)[:, None]
    way = (np.cos(angle) * start + np.sin(angle) * away).astype(np.float32)
    reward, std, _, _ = learned.head.predict(way)
    assert (np.diff(std[:, SPECIALIST]) > -1e-6).all()
    lead = reward[:, SPECIALIST] - reward[:, GENERALIST]
    assert lead[0] > 0.15 and lead[-1] < -0.15  # first its kind, then a prompt like any other
    assert (np.diff(lead) < 0.01).all()


def test_far_off_answers_are_expected_to_be_as_long_as_usual(learned: Learned) -> None:
    tokens = learned.head.predict(far_off())[2]
    assert (tokens.min(axis=1) > 0.5 * learned.table.output_tokens.mean()).all()
    assert (tokens.max(axis=1) < 2 * learned.table.output_tokens.mean()).all()
    np.testing.assert_allclose(tokens, tokens[:1].repeat(40, axis=0), rtol=1e-3)


def test_what_is_served_falls_back_too(learned: Learned) -> None:
    served = Head(build_graph(learned.head), learned.table.members).predict(far_off(0.4))
    reward, std, _, _ = learned.head.predict(far_off(0.4))
    np.testing.assert_allclose(served.reward, reward, atol=1e-5)
    np.testing.assert_allclose(served.reward_std, std, atol=1e-5)
    assert (served.reward.argmax(axis=1) == GENERALIST).all()

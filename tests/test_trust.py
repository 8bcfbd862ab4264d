"""Trust is measured rightly: honest forecasts pass as often as chance has it, others are caught."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

import worlds
from benchmarks import measures, trust
from benchmarks.protocol import Forecast
from ensemble.errors import InputError
from ensemble.learning import metrics

N, DIALS = 3000, (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)


@pytest.fixture(autouse=True)
def fewer_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "DRAWS", 200)


@dataclasses.dataclass(frozen=True)
class Case:
    """3,000 prompts in 60 clusters; ``forecast`` is the truth but for an error per cluster and member of the
    size that ``reward_std`` says."""

    table: Any
    forecast: Forecast
    groups: Any
    clusters: Any

    def trust(self, **changes: Any) -> dict[str, Any]:
        forecast = dataclasses.replace(self.forecast, **changes)
        means = np.broadcast_to(self.table.reward.mean(axis=0), forecast.reward.shape)
        return trust.trust(forecast, self.table, self.groups, self.clusters, DIALS, means, 0)


def case(seed: int = 0, *, std: float = 0.05, fractional: bool = False) -> Case:
    rng = np.random.default_rng(seed)
    clusters = np.arange(N) // 50
    hat = rng.uniform(0.2, 0.8, (N, 3))
    truth = hat + std * rng.normal(size=(60, 3))[clusters]
    reward = (rng.random((N, 3)) < truth).astype(float)
    if fractional:
        reward = np.clip(truth + 0.1 * rng.normal(size=truth.shape), 0, 1)
    tokens = np.exp(rng.normal(5, 0.4, (N, 3)))
    price = np.array([1.0, 3.0, 10.0]) / 1e6
    expected = np.full((N, 3), tokens.mean())
    forecast = Forecast(hat, expected * price, np.full((N, 3), std), expected)
    table = worlds.table_of(reward, cost_usd=tokens * price, output_tokens=tokens)
    return Case(table, forecast, np.arange(N), clusters)


@pytest.mark.parametrize("fractional", [False, True])
def test_an_honest_forecast_stays_below_the_limit_nineteen_times_in_twenty(fractional: bool) -> None:
    rng = np.random.default_rng(0)
    below = []
    for _ in range(200):
        hat = rng.uniform(0, 1, 400)
        realized = rng.beta(4 * hat, 4 * (1 - hat)) if fractional else (rng.random(400) < hat).astype(float)
        error = metrics.calibration_error(hat, realized, bins=trust.BINS)
        below.append(error < trust.calibration_limit(hat, realized, rng))
    assert 0.90 <= np.mean(below) <= 0.99


@pytest.mark.parametrize("fractional", [False, True])
def test_boasting_exceeds_the_limit(fractional: bool) -> None:
    made = case(std=0.0, fractional=fractional)
    boast = np.clip(0.5 + 1.4 * (made.forecast.reward - 0.5), 0, 1)
    for honest, boasting in zip(made.trust()["members"], made.trust(reward=boast)["members"], strict=True):
        assert honest["ece"] < honest["ece_95"] * 1.5
        assert boasting["ece"] > boasting["ece_95"] * 1.5


def test_brier_stands_beside_the_base_rates() -> None:
    made = case()
    for member, hat, realized in zip(
        made.trust()["members"], made.forecast.reward.T, made.table.reward.T, strict=True
    ):
        assert member["brier"] == pytest.approx(np.mean((hat - realized) ** 2))
        assert member["brier"] < member["brier_base"] == pytest.approx(np.var(realized), rel=1e-5)


def test_a_ratio_has_the_interval_of_metrics_and_clusters_widen_it() -> None:
    rng = np.random.default_rng(2)
    top, bottom = rng.lognormal(size=(600, 2)), rng.lognormal(size=(600, 2))
    groups = np.arange(600) // 3
    for (value, low, high), t, b in zip(
        trust.ratio_intervals(top, bottom, groups, 7), top.T, bottom.T, strict=True
    ):
        assert value == pytest.approx(t.sum() / b.sum())
        expected = metrics.bootstrap_interval(
            lambda w, t=t, b=b: float((w @ t) / (w @ b)), groups, draws=200, seed=7
        )
        assert (low, high) == pytest.approx(expected)


def test_a_ratio_to_nothing_is_unknown() -> None:
    top, bottom = np.ones((10, 2)), np.array([[0.0, 2.0]] * 10)
    assert trust.ratio_intervals(top, bottom, np.arange(10), 0) == [None, [0.5, 0.5, 0.5]]


def test_spend_and_tokens_that_come_to_pass_have_ratios_about_one() -> None:
    made = case()
    half = made.trust(cost=made.forecast.cost / 2)
    for member, halved in zip(made.trust()["members"], half["members"], strict=True):
        for value, low, high in (member["usd_ratio"], member["tokens_ratio"]):
            assert low < 1 < high and value == pytest.approx(1, abs=0.02)
        assert halved["usd_ratio"] == pytest.approx([v / 2 for v in member["usd_ratio"]])
    assert all(row["usd_ratio"][0] == pytest.approx(0.5, abs=0.02) for row in half["chosen"])


def test_believing_ones_own_noise_shows_in_the_chosen_and_not_in_the_mean() -> None:
    made = case(std=0.0)
    noise = 0.15 * np.random.default_rng(3).normal(size=(N, 3))
    honest, noisy = made.trust()["chosen"], made.trust(reward=made.forecast.reward + noise)["chosen"]
    assert [row["dial_usd"] for row in honest] == list(DIALS)
    assert all(row["reward_bias"][1] <= 0 <= row["reward_bias"][2] for row in honest)
    assert abs(noise.mean()) < 0.01 < noisy[-1]["reward_bias"][1]


@pytest.mark.parametrize("fractional", [False, True])
def test_two_standard_deviations_cover_what_they_should(fractional: bool) -> None:
    made = case(fractional=fractional)

    def covered(std: float) -> float:
        value, low, high = made.trust(reward_std=np.full((N, 3), std))["std"]["coverage"]
        assert low <= value <= high
        return float(value)

    assert made.trust()["std"]["by_sampling"] == pytest.approx(covered(0.0))
    assert covered(0.0) < covered(0.01)
    assert 0.92 <= covered(0.05) <= 0.98
    assert covered(0.01) < 0.9
    assert covered(0.2) == 1.0


def test_small_clusters_are_no_cells() -> None:
    made = case()
    few = dataclasses.replace(made, clusters=np.where(np.arange(N) < 2950, made.clusters, 100 + np.arange(N)))
    assert made.trust()["std"]["cells"] == 60 * 3
    assert few.trust()["std"]["cells"] == 59 * 3
    none = dataclasses.replace(made, clusters=np.arange(N))
    assert none.trust()["std"] is None


def test_what_nobody_knows_is_none_and_the_entry_is_json() -> None:
    made = case()
    silent = made.trust(reward_std=None, output_tokens=None)
    assert silent["std"] is None
    assert all(member["tokens_ratio"] is None for member in silent["members"])
    unknown = dataclasses.replace(made.table, output_tokens=np.full((N, 3), np.nan, np.float32))
    entry = dataclasses.replace(made, table=unknown).trust()
    assert all(member["tokens_ratio"] is None for member in entry["members"])
    assert json.loads(json.dumps(entry, allow_nan=False)) == entry


def test_scores_that_are_no_rewards_are_refused() -> None:
    with pytest.raises(InputError, match="expected a forecast of rewards, found one of scores"):
        case().trust(is_probability=False)

"""Baselines and evaluation on a small world where the right answers are known."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable

import numpy as np
import pytest
from rich.console import Console

from ensemble.errors import InputError, TableError
from ensemble.learning import baselines, metrics
from ensemble.learning.baselines import Clusters, CostOnly, Method, Neighbours, Part, Ridge
from ensemble.learning.evaluate import evaluate, print_report
from ensemble.learning.tables import OutcomeTable, from_rows

# Three kinds of prompts; each member is good at one of them, the last is decent and dear everywhere.
ABILITY = np.array([[0.95, 0.1, 0.1, 0.7], [0.1, 0.95, 0.1, 0.7], [0.1, 0.1, 0.95, 0.7]])
PRICE = np.array([[0.5, 1.0, 2.0, 20.0], [1.0, 2.0, 4.0, 40.0], [1.5, 3.0, 6.0, 60.0]])
METHODS = (Neighbours(20, None), Neighbours(100, 0.1), Clusters(6), Ridge(1.0))


def world(n: int, seed: int) -> tuple[Part, np.ndarray]:
    """A part with features around three axes, and each prompt's kind."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 3, n)
    features = np.eye(8)[kind] + 0.15 * rng.normal(size=(n, 8))
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    reward = (rng.random((n, 4)) < ABILITY[kind]).astype(np.float32)
    cost = (PRICE[kind] * rng.lognormal(sigma=0.1, size=(n, 4))).astype(np.float32)
    return Part(features, reward, cost), kind


TRAIN, TRAIN_KIND = world(1500, 0)
TEST, TEST_KIND = world(400, 1)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_every_method_learns_who_is_good_at_what_and_what_it_costs(method: Method) -> None:
    reward, cost = method.fit(TRAIN.features, TRAIN.reward, TRAIN.cost).predict(TEST.features)
    assert reward.shape == cost.shape == TEST.reward.shape
    assert (metrics.choose(reward, cost, math.inf) == TEST_KIND).mean() > 0.97
    assert np.abs(reward - ABILITY[TEST_KIND]).mean() < 0.1
    assert np.abs(cost / PRICE[TEST_KIND] - 1).mean() < 0.15
    assert reward.min() >= 0 and reward.max() <= 1 and cost.min() > 0


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_missing_pairs_are_left_out_of_every_mean(method: Method) -> None:
    rng = np.random.default_rng(2)
    reward, cost = TRAIN.reward.copy(), TRAIN.cost.copy()
    hidden = rng.random(reward.shape) < 0.5
    reward[hidden] = np.nan
    cost[hidden | (rng.random(reward.shape) < 0.2)] = np.nan
    hat, cost_hat = method.fit(TRAIN.features, reward, cost).predict(TEST.features)
    assert np.abs(hat - ABILITY[TEST_KIND]).mean() < 0.12
    assert np.abs(cost_hat / PRICE[TEST_KIND] - 1).mean() < 0.15


@pytest.mark.parametrize("method", [*METHODS, CostOnly()], ids=repr)
def test_a_member_never_observed_gets_the_others_mean(method: Method) -> None:
    reward, cost = TRAIN.reward.copy(), TRAIN.cost.copy()
    reward[:, 1] = cost[:, 1] = np.nan
    hat, cost_hat = method.fit(TRAIN.features, reward, cost).predict(TEST.features)
    rest = [0, 2, 3]
    assert hat[:, 1] == pytest.approx(TRAIN.reward[:, rest].mean(), abs=1e-6)
    assert cost_hat[:, 1] == pytest.approx(TRAIN.cost[:, rest].mean(), rel=1e-5)
    with pytest.raises(TableError, match="found none"):
        method.fit(TRAIN.features, TRAIN.reward, np.full_like(cost, np.nan))


def test_cost_only_knows_no_prompt_from_another_but_by_its_cost() -> None:
    reward, cost = CostOnly().fit(TRAIN.features, TRAIN.reward, TRAIN.cost).predict(TEST.features)
    assert reward == pytest.approx(np.tile(TRAIN.reward.mean(axis=0), (400, 1)), abs=1e-6)
    assert np.corrcoef(cost[:, 3], TEST.cost[:, 3])[0, 1] > 0.9


def test_neighbours_by_hand() -> None:
    axes = np.array([[1.0, 0.0], [0.0, 2.0], [0.6, 0.8]])
    reward, cost = np.array([[1.0], [0.0], [0.5]]), np.array([[1.0], [2.0], [3.0]])
    plain = Neighbours(2, None).fit(axes, reward, cost).predict(np.array([[3.0, 0.0]]))
    assert (plain[0].item(), plain[1].item()) == (0.75, 2.0)
    soft = Neighbours(500, 0.5).fit(axes, reward, cost).predict(np.array([[3.0, 0.0]]))
    weights = np.exp(np.array([1.0, 0.0, 0.6]) / 0.5)
    assert soft[0].item() == pytest.approx((weights @ reward).item() / weights.sum())


def test_ridge_is_scikit_learns() -> None:
    from sklearn.linear_model import Ridge as Reference

    mine = Ridge(3.0).fit(TRAIN.features, TRAIN.reward, TRAIN.cost).predict(TEST.features)[0]
    theirs = Reference(alpha=3.0).fit(TRAIN.features, TRAIN.reward).predict(TEST.features)
    assert mine == pytest.approx(np.clip(theirs, 0, 1), abs=1e-5)


def test_no_prompts_to_predict() -> None:
    for method in (Neighbours(), Ridge()):
        reward, cost = method.fit(TRAIN.features, TRAIN.reward, TRAIN.cost).predict(np.zeros((0, 8)))
        assert reward.shape == cost.shape == (0, 4)


def test_same_seed_same_predictions() -> None:
    def predict(seed: int) -> np.ndarray:
        return Clusters(20).fit(TRAIN.features, TRAIN.reward, TRAIN.cost, seed=seed).predict(TEST.features)[0]

    assert np.array_equal(predict(1), predict(1)) and not np.array_equal(predict(1), predict(2))


def test_validation_chooses_the_hyper_parameters() -> None:
    validation, _ = world(300, 3)
    grid = {"neighbours": (Neighbours(1500, None), Neighbours(30, None))}
    method, fitted = baselines.fit_all(TRAIN, validation, grids=grid)["neighbours"]
    assert method == Neighbours(30, None)
    assert fitted.predict(TEST.features)[0].shape == (400, 4)
    assert set(baselines.fit_all(TRAIN, validation)) == set(baselines.GRIDS)


def test_dataset_oracle_is_the_mean_of_the_task() -> None:
    tasks = ["a", "a", "b", None]
    reward = np.array([[1.0, 0.0], [0.0, np.nan], [0.5, np.nan], [0.2, 0.4]])
    cost = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]])
    hat, cost_hat = baselines.dataset_oracle(tasks, reward, cost, ["b", "a", "new", None])
    overall = [0.425, 0.2]
    assert hat == pytest.approx(np.array([[0.5, 0.2], [0.5, 0.0], overall, [0.2, 0.4]]))
    assert cost_hat == pytest.approx(np.array([[5.0, 6.0], [2.0, 3.0], [4.0, 5.0], [7.0, 8.0]]))


def table(part: Part, leave_out: Callable[[int, int], bool] = lambda i, j: False) -> OutcomeTable:
    return from_rows(
        (
            {
                "prompt_id": str(i),
                "prompt": f"prompt {i}",
                "member": "abcd"[j],
                "reward": float(part.reward[i, j]),
            }
            | {"cost_usd": float(part.cost[i, j])}
            for i in range(len(part.reward))
            for j in range(4)
            if not leave_out(i, j)
        ),
        source="memory",
    )


def predictions() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {
        "ours": Neighbours(100, 0.1).fit(TRAIN.features, TRAIN.reward, TRAIN.cost).predict(TEST.features),
        "cost only": CostOnly().fit(TRAIN.features, TRAIN.reward, TRAIN.cost).predict(TEST.features),
    }


def test_the_report_ranks_methods_between_random_mix_and_query_oracle() -> None:
    report = evaluate(predictions(), table(TEST), groups=np.arange(400), draws=50)
    assert [s.method for s in report.scores] == [
        "ours",
        "cost only",
        "best single",
        "random mix",
        "query oracle",
    ]
    ours, cost_only, single, mix, oracle = report.scores
    assert oracle.aiq > ours.aiq > cost_only.aiq and ours.aiq > mix.aiq
    assert report.best_single == "d" and (report.n_prompts, report.n_left_out) == (400, 0)
    cheapest = TEST.reward[:, TEST.cost.mean(axis=0).argmin()].mean()
    assert single.aiq == pytest.approx((cheapest + report.best_single_reward) / 2)  # mixed with the cheapest
    assert single.gain == mix.gain == 0 and single.saving == 0 and single.brier is None
    assert ours.gain == pytest.approx(0.95 - 0.7, abs=0.07)
    assert ours.saving is not None and ours.saving > 0.9
    assert ours.aiq_behind is None and mix.aiq_behind is not None and mix.aiq_behind[0] > 0
    assert oracle.aiq_behind is not None and oracle.aiq_behind[1] < 0
    low, high = report.spend_range_usd_per_1000
    assert low == pytest.approx(TEST.cost[:, :3].mean(axis=0).min() * 1000, rel=1e-5)
    assert high == pytest.approx(TEST.cost[:, 3].mean() * 1000, rel=1e-5)


def test_the_dial_table_spends_more_for_more() -> None:
    report = evaluate(predictions(), table(TEST), dials=(0.0, 100.0, math.inf))
    cheapest, _, first = report.dials
    assert cheapest.shares["a"] > 0.95 and sum(cheapest.shares.values()) == pytest.approx(1)
    assert cheapest.usd_per_1000 < first.usd_per_1000 and cheapest.reward < first.reward
    assert first.cost_ratio == pytest.approx(first.usd_per_1000 / report.best_single_usd_per_1000)


def test_prompts_that_lack_a_member_are_left_out_and_counted() -> None:
    report = evaluate(predictions(), table(TEST, lambda i, j: i % 10 == 0 and j == 2))
    assert (report.n_prompts, report.n_left_out) == (360, 40)
    rows = np.arange(400) % 10 != 0
    assert report.best_single_reward == pytest.approx(TEST.reward[rows, 3].mean())
    with pytest.raises(TableError, match=r"none of 400 prompts .* lack most \(c"):
        evaluate(predictions(), table(TEST, lambda i, j: j == (2 if i else 1)))


def test_predictions_that_do_not_fit_the_table_are_refused() -> None:
    good = predictions()["ours"]
    with pytest.raises(InputError, match=r"'ours': expected .* \(400, 4\)"):
        evaluate({"ours": (good[0][:10], good[1][:10])}, table(TEST))
    with pytest.raises(InputError, match="not all finite"):
        evaluate({"ours": (good[0] * np.nan, good[1])}, table(TEST))
    with pytest.raises(InputError, match="at least one method"):
        evaluate({}, table(TEST))


def test_the_report_is_json_and_prints() -> None:
    report = evaluate(
        predictions(), table(TEST, lambda i, j: i == 7 and j == 0), groups=np.arange(400), draws=20
    )
    plain = report.as_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["dials"][-1]["willingness_to_pay_usd"] == "inf"
    assert plain["scores"][0]["curve"][0][0] == pytest.approx(report.scores[0].curve[0][0])
    shown = io.StringIO()
    print_report(report, Console(file=shown, width=200))
    for text in (
        "399 prompts, 4 members; 1 prompts left out",
        "query oracle",
        "reward first",
        f"{report.scores[0].aiq:.4f}",
    ):
        assert text in shown.getvalue()

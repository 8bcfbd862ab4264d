"""From forecasts to figures: against the metrics they are made of, against worked examples, in pairs.

The metrics themselves, AIQ among them, are checked by hand in test_metrics.py.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from benchmarks import measures
from benchmarks.marks import BEST_SINGLE, DATASET_ORACLE, QUERY_ORACLE, RANDOM_MIX, marks
from benchmarks.protocol import Candidate, Fold, Forecast, Learner, Problem
from benchmarks.rounds import Round, Run, play
from ensemble.learning import metrics
from ruler_cases import Peeking, Watched, problem, with_cells
from worlds import table_of

GIVEN = problem()


def played(learner: Learner, given: Problem, name: str = "it", kind: str = "tuned") -> Run:
    candidate = Candidate(name, "tuned", (learner,))
    return Run(name, kind, tuple(play(candidate, given, fold) for fold in given.folds))


NEIGHBOURS = played(Watched(), GIVEN, "neighbours")
RUNS = [*marks(GIVEN), NEIGHBOURS]
SAMPLED = measures.sample(GIVEN, RUNS, draws=150, seed=3)


def test_values_and_intervals_are_those_of_the_metrics_on_the_pooled_forecasts() -> None:
    forecast = NEIGHBOURS.pooled(GIVEN)
    served = metrics.serve(forecast.reward, forecast.cost, GIVEN.reward, GIVEN.cost)
    spend = metrics.spend_range(GIVEN.reward, GIVEN.cost)
    found = SAMPLED["neighbours"]
    for values, scale in ((found.aiq, "linear"), (found.aiq_log, "log")):

        def statistic(weights: metrics.Array | None, scale: str = scale) -> float:
            return metrics.aiq(served.points(weights), spend, scale=scale)

        expected = metrics.bootstrap_interval(statistic, GIVEN.groups, draws=150, seed=3)
        assert measures.interval(values) == pytest.approx([statistic(None), *expected], abs=1e-12)


def test_utility_is_reward_less_usd_over_the_dial() -> None:
    forecast, rows = NEIGHBOURS.pooled(GIVEN), np.arange(240)
    dials = measures.dials(GIVEN)
    worth = np.ptp(GIVEN.cost.mean(axis=0)) / np.ptp(GIVEN.reward.mean(axis=0))
    assert dials == pytest.approx(np.array([0.1, 0.3, 1, 3, 10]) * worth)
    for j, dial in enumerate(dials):
        chosen = (dial * forecast.reward - forecast.cost).argmax(axis=1)
        utility = (GIVEN.reward - GIVEN.cost / dial)[rows, chosen].mean()
        assert SAMPLED["neighbours"].utility[0, j] == pytest.approx(utility)


def test_dials_span_the_prices_paid_per_reward() -> None:
    given, _, _ = world_of_two()  # 9 USD more, for 5/8 more reward
    assert measures.dials(given) == pytest.approx(np.array([0.1, 0.3, 1, 3, 10]) * 9 / 0.625)


@pytest.mark.parametrize("alike", ["reward", "cost_usd"])
def test_where_members_cost_or_earn_alike_reward_comes_first(alike: str) -> None:
    assert measures.dials(with_cells(GIVEN, **{alike: np.full(GIVEN.reward.shape, 0.5)})).tolist() == [np.inf]


def test_a_method_differs_from_itself_by_exactly_nothing() -> None:
    twin = dataclasses.replace(NEIGHBOURS, name="twin")
    sampled = measures.sample(GIVEN, [*RUNS, twin], draws=50)
    best = dict.fromkeys(measures.COMPARED, "neighbours")
    found = {row["name"]: row for row in measures.figures(GIVEN, [*RUNS, twin], sampled, best)}
    for figure in measures.COMPARED:
        assert found["twin"][f"{figure}_over_best"] == [0.0, 0.0, 0.0]
        assert found["neighbours"][f"{figure}_over_best"] is None
    assert found[BEST_SINGLE]["utility_over_single"] == [[0.0, 0.0, 0.0]] * 5
    for d in range(5):
        lead = found["twin"]["utility"][d][0] - found[BEST_SINGLE]["utility"][d][0]
        assert found["twin"]["utility_over_single"][d][0] == pytest.approx(lead)


def test_pooling_puts_every_forecast_back_in_its_row() -> None:
    pooled = played(Peeking(GIVEN), GIVEN).pooled(GIVEN)
    assert np.array_equal(pooled.reward, GIVEN.reward) and np.array_equal(pooled.cost, GIVEN.cost)
    assert pooled.reward_std is None


def test_draws_are_whole_groups_and_the_same_for_all() -> None:
    groups = np.array([0, 0, 1, 2, 2, 2])
    first, *rest = measures.weights(groups, 230, 0)
    assert first.tolist() == [[1 / 6] * 6] and [len(block) for block in rest] == [100, 100, 30]
    drawn = np.concatenate(rest)
    assert drawn.sum(axis=1) == pytest.approx(np.ones(230))
    assert np.array_equal(drawn[:, 0], drawn[:, 1]) and np.array_equal(drawn[:, 3], drawn[:, 5])


# --- the marks


def test_the_marks_stand_where_they_should() -> None:
    found = {
        row["name"]: row
        for row in measures.figures(GIVEN, RUNS, SAMPLED, dict.fromkeys(measures.COMPARED, RANDOM_MIX))
    }
    assert found[BEST_SINGLE]["gap_closed"] == [0, 0, 0] and found[QUERY_ORACLE]["gap_closed"] == [1, 1, 1]
    assert found[BEST_SINGLE]["cost_save"]["100"]["cost_saved"] == [0, 0, 0]
    mix, task, query = (found[name]["aiq"][0] for name in (RANDOM_MIX, DATASET_ORACLE, QUERY_ORACLE))
    assert mix < task < query  # kinds of prompts are tasks here
    assert found[BEST_SINGLE]["aiq"] is None and len(found[BEST_SINGLE]["curve"]) == 1


def test_the_random_mix_is_the_hull_of_the_single_members() -> None:
    # Members so far apart that no fold takes one for another.
    apart = with_cells(GIVEN, reward=GIVEN.reward * [0.2, 1, 0.5, 1], cost_usd=GIVEN.cost * [1, 2, 4, 8])
    points = metrics.single_points(apart.reward, apart.cost)
    exact = metrics.aiq(points, metrics.spend_range(apart.reward, apart.cost))
    assert measures.sample(apart, marks(apart), draws=1)[RANDOM_MIX].aiq[0] == pytest.approx(exact, abs=1e-9)


def test_the_best_single_member_is_read_from_what_was_learned() -> None:
    fold = GIVEN.folds[0]
    reward = np.zeros(GIVEN.reward.shape)
    reward[fold.test, 1] = reward[fold.learned, 2] = 1
    given = with_cells(GIVEN, reward=reward)
    single = next(run for run in marks(given) if run.name == BEST_SINGLE)
    assert single.rounds[0].setting == "m2"
    served = single.rounds[0].test
    for dial in (0.0, 1.0, np.inf):
        assert set(metrics.choose(served.reward, served.cost, dial)) == {2}


def test_the_baseline_to_beat_is_one_that_anybody_can_have() -> None:
    crooked = played(Peeking(GIVEN), GIVEN, "crooked", kind="ours")
    runs = [*RUNS, crooked]
    sampled = measures.sample(GIVEN, runs, draws=5)
    assert measures.best_baseline(runs, sampled, "aiq") == "neighbours"
    assert measures.best_baseline(marks(GIVEN), sampled, "aiq") == RANDOM_MIX


def test_where_a_member_is_free_there_is_no_log_of_spend() -> None:
    given = with_cells(GIVEN, cost_usd=GIVEN.cost * [0, 1, 1, 1])
    runs = [*marks(given), played(Watched(), given)]
    sampled = measures.sample(given, runs, draws=5)
    best = {figure: measures.best_baseline(runs, sampled, figure) for figure in measures.COMPARED}
    assert {row["aiq_log"] for row in measures.figures(given, runs, sampled, best)} == {None}


def test_where_nothing_is_to_be_learned_the_marks_are_taken_in_hindsight() -> None:
    coins = np.random.default_rng(0).integers(0, 2, GIVEN.reward.shape).astype(float)
    given = with_cells(GIVEN, reward=coins)
    best = metrics.best_single(given.reward, given.cost)
    score = np.zeros(coins.shape)
    score[:, best] = 1
    constant = tuple(
        Round(
            Forecast(score[f.validation], 1 - score[f.validation]),
            Forecast(score[f.test], 1 - score[f.test]),
            "",
            0,
        )
        for f in given.folds
    )
    runs = [*marks(given), Run("constant", "tuned", constant), played(Watched(), given)]
    sampled = measures.sample(given, runs, draws=60, seed=5)
    assert (
        sampled["constant"].reward_first[0] > sampled[BEST_SINGLE].reward_first[0] + 0.01
    )  # by chance alone
    found = {row["name"]: row for row in measures.control_figures(given, runs, sampled, draws=60, seed=5)}
    assert {*found} == {"constant", "it"}
    assert found["constant"]["gain"] == pytest.approx([0, 0, 0], abs=1e-12)
    spend = metrics.spend_range(given.reward, given.cost)
    mix = metrics.aiq(metrics.single_points(given.reward, given.cost), spend)
    assert found["it"]["aiq_over_mix"][0] == pytest.approx(sampled["it"].aiq[0] - mix)


# --- CostSave

# Four prompts to choose on and four to test on. Member 1 is dear and always right; member 0 is cheap, and
# right on validation where its forecast reward is .6 or more, on test only where it is .8.
SURE = np.array([0.8, 0.6, 0.4, 0.2] * 2)
CHEAP = np.array([1, 1, 0, 0, 1, 0, 0, 0])
VALIDATION, TEST = np.arange(4), np.arange(4, 8)
COST = np.tile([1.0, 10.0], (8, 1))


def world_of_two() -> tuple[Problem, Run, Run]:
    table = table_of(np.stack([CHEAP, np.ones(8)], axis=1).astype(float), cost_usd=COST)
    empty = np.zeros(0, np.int64)
    folds = (Fold(empty, VALIDATION, VALIDATION, TEST), Fold(empty, VALIDATION, TEST, VALIDATION))
    given = Problem("two", "iid", table, np.zeros((8, 2), np.float32), np.arange(8), folds)
    reward_hat = np.stack([SURE, np.ones(8)], axis=1)
    score = np.tile([0.0, 1.0], (8, 1))

    def run(name: str, reward: np.ndarray, cost: np.ndarray) -> Run:
        said = [
            Round(Forecast(reward[:4], cost[:4]), Forecast(reward[f.test], cost[f.test]), "", 0.0)
            for f in folds
        ]
        return Run(name, "mark" if name == BEST_SINGLE else "tuned", tuple(said))

    return given, run("it", reward_hat, COST), run(BEST_SINGLE, score, 1 - score)


def curve_of(forecast: Forecast, rows: np.ndarray, given: Problem) -> metrics.Array:
    return metrics.cost_quality_curve(forecast.reward, forecast.cost, given.reward[rows], given.cost[rows])


def test_the_dial_of_cost_save_is_chosen_on_validation() -> None:
    given, it, single = world_of_two()
    first = it.rounds[0]
    dial = measures.frugal_dial(curve_of(first.validation, VALIDATION, given), 1.0)
    # The dear member costs 9 USD more: where the cheap one's reward is .4, that is worth it from a dial of
    # 15 on (9 / .6), where it is .6 from 22.5 on, where it is .8 from 45 on.
    assert 15 < dial < 22.5
    assert 22.5 < measures.frugal_dial(curve_of(first.test, TEST, given), 1.0) < 45  # which nobody may know
    reward, usd = measures.Earned.of(it, given, single).columns[:, -4:-2].T
    assert reward[TEST].mean() == 0.75 and usd[TEST].mean() == (2 * 1 + 2 * 10) / 4


def test_a_method_that_never_gets_there_is_taken_where_it_earns_most() -> None:
    given, _, _ = world_of_two()
    blunt = Forecast(np.array([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.1, 0.9]]), COST[:4])
    dial = measures.frugal_dial(curve_of(blunt, VALIDATION, given), 1.0)
    assert dial > 9 / 0.8  # where the last prompt goes to the dear member


def test_a_little_less_reward_may_save_more() -> None:
    given, it, _ = world_of_two()
    points = curve_of(it.rounds[0].validation, VALIDATION, given)
    assert measures.frugal_dial(points, 0.75) < 15 < measures.frugal_dial(points, 1.0)

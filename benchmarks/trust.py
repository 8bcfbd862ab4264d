"""Do predictions mean what they say? Rewards, their uncertainty, tokens and spend, against what happened.

Three questions, each with what chance alone would give beside it:

members   is a predicted reward of .7 right seven times in ten, and does the expected spend come to pass?
chosen    the same of the members a dial chooses, where a method that believes its own noise is caught
std       do realized means of whole clusters lie within two ``reward_std`` of the expected ones?
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import measures
from benchmarks.measures import Interval
from benchmarks.protocol import Forecast, Index
from ensemble.errors import InputError
from ensemble.learning import metrics
from ensemble.learning.metrics import Array, Floats
from ensemble.learning.tables import OutcomeTable

BINS = 10
SIMULATIONS = 1000
LEAST_CELL = 20  # prompts of a cluster, below which its mean says little


def trust(
    forecast: Forecast,
    part: OutcomeTable,
    groups: Index,
    clusters: Index,
    dials: Sequence[float],
    learned_means: Array,
    seed: int,
) -> dict[str, Any]:
    """How far to trust one method's ``forecast`` for the test prompts ``part`` (complete).

    ``groups`` (n_prompts,) are near-duplicates, drawn whole by the bootstrap; ``clusters`` (n_prompts,) hold
    about 50 like prompts each; ``dials`` are willingness to pay in USD per unit of reward; ``learned_means``
    (n_prompts, n_members) are the base rates of the rows each prompt's fold learned from. Intervals are lists
    [value, low, high]; ``None`` stands where the table or the method doesn't know.

    :raises InputError: the method's scores don't claim to be expected rewards.
    """
    if not forecast.is_probability:
        raise InputError(
            "expected a forecast of rewards, found one of scores (is_probability is false): "
            "whether they mean what they say is no question there, so leave this method out"
        )
    return {
        "members": _members(forecast, part, groups, learned_means, seed),
        "chosen": _chosen(forecast, part, groups, dials, seed),
        "std": _std(forecast, part, clusters, seed),
    }


def calibration_limit(predicted: Array, realized: Array, generator: np.random.Generator) -> float:
    """The 95 % point of the calibration error if ``predicted`` (n,) were true, in [0, 1].

    A finite sample never agrees exactly, so outcomes are simulated whose expectation *is* the prediction.
    Rewards of 0 and 1 are Bernoulli draws: their mean says all. A fractional reward's mean doesn't tell its
    spread, so that is taken from the residuals about each bin's mean, drawn with replacement within the bin
    since the spread depends on the level. (Permuted within the bin, they would sum to nought every time.)
    Prompts count as independent, which is strict: near-duplicates err together.
    """
    gaps = _bernoulli_gaps if _is_binary(realized) else _resampled_gaps
    total = np.zeros(SIMULATIONS)
    for rows in np.array_split(np.argsort(predicted, kind="stable"), BINS):
        total += np.abs(gaps(predicted[rows], realized[rows], generator))
    return float(np.quantile(total / len(predicted), 0.95))


def ratio_intervals(top: Floats, bottom: Floats, units: Index, seed: int) -> list[Interval]:
    """``sum(top) / sum(bottom)`` of each column with its interval when whole ``units`` (n,) are drawn anew.

    Both (n, n_columns); every column, and every call with the same seed, sees the same draws. ``None`` where
    the bottom sums to nought.
    """
    columns = np.hstack([top, bottom]).astype(np.float64)
    means = np.concatenate([block @ columns for block in measures.weights(units, measures.DRAWS, seed)])
    over, under = np.hsplit(means, 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        return [measures.interval(ratio) for ratio in (over / under).T]


def _members(
    forecast: Forecast, part: OutcomeTable, groups: Index, learned_means: Array, seed: int
) -> list[dict[str, Any]]:
    reward = part.reward.astype(np.float64)
    generator = np.random.default_rng(seed)
    usd = ratio_intervals(forecast.cost, part.cost_usd, groups, seed)
    tokens: Sequence[Interval] = [None] * part.n_members
    if forecast.output_tokens is not None:
        known = np.isfinite(part.output_tokens)
        expected, used = (np.where(known, v, 0.0) for v in (forecast.output_tokens, part.output_tokens))
        tokens = ratio_intervals(expected, used, groups, seed)
    return [
        {
            "name": name,
            "ece": metrics.calibration_error(hat, realized, bins=BINS),
            "ece_95": calibration_limit(hat, realized, generator),
            "brier": metrics.brier(hat, realized),
            "brier_base": metrics.brier(base, realized),
            "usd_ratio": usd[j],
            "tokens_ratio": tokens[j],
        }
        for j, (name, hat, realized, base) in enumerate(
            zip(part.members, forecast.reward.T, reward.T, learned_means.T, strict=True)
        )
    ]


def _chosen(
    forecast: Forecast, part: OutcomeTable, groups: Index, dials: Sequence[float], seed: int
) -> list[dict[str, Any]]:
    chosen = np.stack([metrics.choose(forecast.reward, forecast.cost, dial) for dial in dials], axis=1)

    def of(values: Floats) -> Array:
        return np.take_along_axis(values, chosen, axis=1).astype(np.float64)

    surplus = of(forecast.reward) - of(part.reward)
    bias = ratio_intervals(surplus, np.ones_like(surplus), groups, seed)
    usd = ratio_intervals(of(forecast.cost), of(part.cost_usd), groups, seed)
    return [
        {"dial_usd": float(dial), "reward_bias": bias[d], "usd_ratio": usd[d]} for d, dial in enumerate(dials)
    ]


def _std(forecast: Forecast, part: OutcomeTable, clusters: Index, seed: int) -> dict[str, Any] | None:
    """Coverage of two standard deviations, over cluster x member cells; clusters are drawn whole. Beside it
    ``by_sampling``, what a ``reward_std`` of 0 would cover: how little the question asks where that is high.

    Outcomes scatter about their expectation: rewards of 0 and 1 as the prediction says (the cell's own
    scatter is nought where all 20 happen to be right), fractional ones as they are seen to within the cell.
    """
    _, cluster, size = np.unique(clusters, return_inverse=True, return_counts=True)
    enough = np.flatnonzero(size >= LEAST_CELL)
    if forecast.reward_std is None or not len(enough):
        return None

    def means(values: Floats) -> Array:
        sums = [np.bincount(cluster, column, len(size)) for column in values.T]
        return np.stack(sums, axis=1) / size[:, None]  # (n_clusters, n_members)

    residual, claimed = part.reward - forecast.reward, np.clip(forecast.reward, 0, 1)
    gap = means(residual)
    binary = [_is_binary(column) for column in part.reward.T]
    scatter = np.where(binary, means(claimed * (1 - claimed)), means(residual**2) - gap**2)
    sampling = scatter / size[:, None]
    covered, by_sampling = (
        (np.abs(gap) <= 2 * np.sqrt(std**2 + sampling))[enough].sum(axis=1, keepdims=True)
        for std in (means(forecast.reward_std), 0.0)
    )
    cells = np.full((len(enough), 1), part.n_members)
    return {
        "coverage": ratio_intervals(covered, cells, enough, seed)[0],
        "by_sampling": float(by_sampling.sum() / cells.sum()),
        "cells": len(enough) * part.n_members,
        "mean_std": float(forecast.reward_std.mean()),
    }


def _is_binary(realized: Floats) -> bool:
    return bool(np.isin(realized, (0, 1)).all())


def _bernoulli_gaps(predicted: Array, realized: Array, generator: np.random.Generator) -> Array:
    """Sum of simulated less sum of predicted rewards of one bin, (SIMULATIONS,)."""
    right = generator.random((SIMULATIONS, len(predicted)), np.float32) < predicted
    return np.asarray(right.sum(axis=1) - np.clip(predicted, 0, 1).sum())


def _resampled_gaps(predicted: Array, realized: Array, generator: np.random.Generator) -> Array:
    """The same from the bin's centred residuals, widened to make up for the centring, (SIMULATIONS,)."""
    residual = realized - predicted
    n = len(residual)
    centred = (residual - residual.mean()) * np.sqrt(n / max(n - 1, 1))
    return np.asarray(centred[generator.integers(n, size=(SIMULATIONS, n))].sum(axis=1))

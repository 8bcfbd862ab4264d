"""A made-up result of benchmarks.quality: three members, seven methods, every aim reached."""

from __future__ import annotations

import json
from typing import Any

MEMBERS = ["small", "middle", "large"]
POINTS = [[0.1, 0.5], [1.0, 0.62], [10.0, 0.7]]
DIALS = [0.005, 0.015, 0.05, 0.15, 0.5]

# A point and no curve, and far too dear at low dials.
POINT = dict.fromkeys(("aiq", "aiq_log", "aiq_over_best", "aiq_log_over_best"))
DEAR = {
    "perf_gain": [0, 0, 0],
    "gap_closed": [0, 0, 0],
    "mean_utility": [0.2, 0.19, 0.21],
    "utility": [[u, u - 0.01, u + 0.01] for u in (-1, 0, 0.4, 0.6, 0.64)],
    "utility_over_single": [[0.0, 0.0, 0.0]] * 5,
}


def about(value: float, width: float = 0.004) -> list[float]:
    """A value with an interval around it."""
    return [value, round(value - width, 6), round(value + width, 6)]


def method(name: str, kind: str, aiq: float, brier: float | None, curve: list[list[float]]) -> dict[str, Any]:
    """The best baseline is soft neighbours, of AIQ .66."""
    best = name == "soft neighbours"
    over = None if best else about(round(aiq - 0.66, 6), 0.002)
    return {
        "name": name,
        "kind": kind,
        "settings": ["as it is"] * 5,
        "key": None if kind == "mark" else "0" * 20,
        "made": "2026-11-22",
        "aiq": about(aiq),
        "aiq_log": about(aiq - 0.05),
        "utility": [about(aiq - 0.1 + d / 50) for d in range(5)],
        "utility_over_single": [about(0.01) for _ in range(5)],
        "mean_utility": about(aiq - 0.02),
        "aiq_over_best": over,
        "aiq_log_over_best": over,
        "mean_utility_over_best": over,
        "perf_gain": about(aiq - 0.65),
        "gap_closed": about(2 * (aiq - 0.65)),
        "cost_save": {
            "100": {"reward_difference": about(0.002), "cost_saved": about(0.8, 0.05)},
            "99": {"reward_difference": about(-0.005), "cost_saved": about(0.9, 0.05)},
        },
        "brier": brier,
        "seconds": 2.0,
        "curve": curve,
    }


COVERED = {"coverage": about(0.95, 0.01), "by_sampling": 0.6, "cells": 120}


def trust(std: float | None) -> dict[str, Any]:
    member = {"ece": 0.01, "ece_95": 0.02, "brier": 0.2, "brier_base": 0.22}
    ratios = {"usd_ratio": about(1.01, 0.005), "tokens_ratio": about(0.99, 0.02)}
    chosen = {"reward_bias": about(0.004), "usd_ratio": about(0.98, 0.01)}
    return {
        "members": [{"name": name, **member, **ratios} for name in MEMBERS],
        "chosen": [{"dial_usd": dial, **chosen} for dial in DIALS],
        "std": None if std is None else COVERED | {"mean_std": std},
    }


def result(table: str = "made_up", split: str = "iid", **changes: Any) -> dict[str, Any]:
    """As benchmarks/results/quality holds them; ``changes`` replace entries at the top."""
    methods = [
        method("best single", "mark", 0.7, None, [[10.0, 0.7]]) | POINT | DEAR,
        method("random mix", "mark", 0.65, 0.22, POINTS),
        method("query oracle", "mark", 0.9, None, [[0.1, 0.7], [1.0, 0.9]]),
        method("dataset oracle", "mark", 0.665, 0.21, [[0.1, 0.5], [0.8, 0.66], [6.0, 0.73]]),
        method("soft neighbours", "tuned", 0.66, 0.205, [[0.1, 0.5], [0.8, 0.65], [5.0, 0.715]]),
        method("CARROT", "published", 0.655, 0.21, [[0.11, 0.5], [0.9, 0.64], [6.0, 0.71]]),
        method("ours", "ours", 0.67, 0.2, [[0.1, 0.5], [0.7, 0.66], [4.0, 0.72]]),
    ]
    learners = [m["name"] for m in methods if m["kind"] != "mark"]
    nothing = [{"name": name, "gain": about(-0.001), "aiq_over_mix": about(-0.002)} for name in learners]
    made: dict[str, Any] = {
        "format": 2,
        "table": table,
        "split": split,
        "encoder": "an-encoder",
        "recipe": "a-recipe",
        "seed": 0,
        "n_folds": 5,
        "n_prompts": 1234,
        "n_groups": 1200,
        "members": MEMBERS,
        "tasks": {"algebra": 1000, "law": 234},
        "best_single": {"member": "large", "reward": 0.7, "usd_per_1000": 10.0},
        "oracle_reward": 0.9,
        "best_single_in_hindsight": {"member": "dear", "reward": 0.5, "usd_per_1000": 1.0},
        "member_points": POINTS,
        "spend_range_usd_per_1000": [0.1, 10.0],
        "dials_usd": DIALS,
        "best_baseline": dict.fromkeys(("aiq", "aiq_log", "mean_utility"), "soft neighbours"),
        "methods": methods,
        "trust": {"soft neighbours": trust(None), "ours": trust(0.03)},
        "controls": {"shuffled outcomes": nothing, "random features": nothing} if split == "iid" else None,
    }
    plain: dict[str, Any] = json.loads(json.dumps(made | changes))  # shares nothing with another one
    return plain


def entry(result: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(m for m in result["methods"] if m["name"] == name)
    return found

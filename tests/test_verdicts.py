"""Aims are judged by the figures: each one that is missed is said to be, and no other."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.verdicts import contestants, has_ours, place, verdicts
from result_cases import about, entry, result

Result = dict[str, Any]


def lowered(figure: str) -> Callable[[Result], None]:
    def change(made: Result) -> None:
        entry(made, "ours")[figure] = about(0.5)

    return change


def trusted(*path: str | int, to: Any) -> Callable[[Result], None]:
    """Sets one figure of ours' trust."""

    def change(made: Result) -> None:
        inner = made["trust"]["ours"]
        for step in path[:-1]:
            inner = inner[step]
        inner[path[-1]] = to

    return change


def gaining(made: Result) -> None:
    made["controls"]["random features"][0]["gain"] = [0.02, 0.01, 0.03]


MISSES = [
    (lowered("aiq"), "highest AIQ of all", "soft neighbours"),
    (lowered("aiq_log"), "highest AIQ over log spend", "soft neighbours"),
    (lowered("mean_utility"), "highest mean utility", "soft neighbours"),
    (
        trusted("members", 1, "ece", to=0.03),
        "calibration error",
        r"2 of 3; not middle \(.0300, limit .0200\)",
    ),
    (trusted("members", 2, "brier", to=0.23), "Brier score", r"2 of 3; not large"),
    (
        trusted("chosen", 4, "reward_bias", to=[0.03, 0.02, 0.04]),
        "of the chosen",
        r"4 of 5; not .* 0.500 USD",
    ),
    (trusted("std", "coverage", to=[0.99, 0.98, 1.0]), "within 2 reward_std", "99.0 %"),
    (trusted("std", "coverage", to=[0.90, 0.88, 0.92]), "within 2 reward_std", "90.0 %"),
    (trusted("members", 0, "usd_ratio", to=[0.9, 0.88, 0.92]), "expected spend", r"7 of 8; not small"),
    (trusted("chosen", 0, "usd_ratio", to=[1.2, 1.1, 1.3]), "expected spend", r"7 of 8; not the chosen"),
    (gaining, "no method gains", r"5 of 6; not soft neighbours, random features"),
]


def test_all_aims_of_the_made_up_result_are_reached() -> None:
    iid, far = result(), result(split="leave-task-out")
    far["trust"]["ours"]["std"]["mean_std"] = 0.05
    assert [verdict for verdict in verdicts(iid) if not verdict.holds] == []
    assert len(verdicts(iid)) == 9
    assert all(verdict.holds for verdict in verdicts(far, iid))
    assert len(verdicts(far, iid)) == 3


@pytest.mark.parametrize(("change", "claim", "evidence"), MISSES)
def test_one_miss_is_told_and_no_other(change: Callable[[Result], None], claim: str, evidence: str) -> None:
    made = result()
    change(made)
    (missed,) = [verdict for verdict in verdicts(made) if not verdict.holds]
    assert claim in missed.claim
    assert re.search(evidence, missed.evidence)


def test_what_may_be_chance_is_no_miss() -> None:
    made = result()
    trust = made["trust"]["ours"]
    trust["chosen"][0] |= {"reward_bias": [0.03, -0.01, 0.07], "usd_ratio": [1.2, 0.9, 1.5]}
    trust["members"][0]["usd_ratio"] = None
    assert all(verdict.holds for verdict in verdicts(made))


def test_with_tasks_held_out_the_member_best_in_hindsight_is_a_mark_too() -> None:
    made = result(split="leave-task-out")
    claim = "utility no worse than the best single member's at the two highest dials"
    assert {v.claim: v.holds for v in verdicts(made)}[claim]
    made["best_single_in_hindsight"]["reward"] = 0.99
    (missed,) = [v for v in verdicts(made) if v.claim == claim]
    assert not missed.holds and "hindsight" in missed.evidence


def test_a_lead_within_chance_is_called_so() -> None:
    made = result()
    entry(made, "ours")["aiq_over_best"] = [0.001, -0.001, 0.003]
    (verdict,) = [v for v in verdicts(made) if v.claim.startswith("highest AIQ of all")]
    assert verdict.holds and "may be chance" in verdict.evidence


def test_on_mmlu_pro_the_dataset_oracle_and_chance_are_to_be_beaten_too() -> None:
    made = result("mmlu_pro")
    assert len(verdicts(made)) == len(verdicts(result())) + 2
    entry(made, "ours")["aiq_over_best"] = [0.001, -0.001, 0.003]
    entry(made, "dataset oracle")["aiq"] = about(0.68)
    missed = [verdict.claim for verdict in verdicts(made) if not verdict.holds]
    assert missed == ["AIQ above the dataset oracle's", "AIQ above the best baseline by more than chance"]


def test_spend_is_not_judged_where_outputs_cost_nothing() -> None:
    claims = [verdict.claim for verdict in verdicts(result("llmrouter_dc"))]
    assert not [claim for claim in claims if "spend within" in claim]


def test_held_out_tasks_are_judged_at_the_two_highest_dials_and_by_the_width() -> None:
    iid, far = result(), result(split="leave-task-out")
    entry(far, "ours")["utility"][2] = about(0.0)
    assert [v.claim for v in verdicts(far, iid) if not v.holds] == ["reward_std wider than with tasks known"]
    entry(far, "ours")["utility"][3] = about(0.0)
    assert [v.holds for v in verdicts(far)] == [False, True]  # nothing to compare the width with


def test_a_single_member_is_ranked_by_utility_and_not_by_aiq() -> None:
    made = result()
    assert place(made, "aiq") == 1
    assert "best single" not in [method["name"] for method in contestants(made, "aiq_log")]
    entry(made, "best single")["mean_utility"] = about(0.9)
    assert place(made, "mean_utility") == 2


def test_without_ours_there_is_nothing_to_judge() -> None:
    made = result()
    made["methods"] = [method for method in made["methods"] if method["kind"] != "ours"]
    assert not has_ours(made)
    assert verdicts(made) == []

"""The one line that tells a person who answered and for what reason."""

from __future__ import annotations

from typing import Any

import pytest

from ensemble.sessions import Standing
from ensemble.show import console, decision_table, explain
from policy_cases import case, member

THREE = case(*map(member, "abc"), reward=[0.62, 0.5, 0.63], std=0.05)


@pytest.mark.parametrize(
    ("wishes", "context", "said"),
    [
        ({}, {}, "best of 3 eligible where one unit of reward is worth 0.01 USD"),
        ({"willingness_to_pay_usd": float("inf")}, {}, "best of 3 eligible where reward first"),
        (
            {"spend_price": 4.0},
            {"reason": "budget"},
            "best of 3 eligible where one unit of reward is worth 0.01 USD "
            "and, for the budget, a USD of cost counts 4 times",
        ),
        ({"exploration": 0.3}, {"draw": 0.99}, "exploring: a rival of c, taken with probability 0.0"),
        ({}, {"standing": Standing("a")}, "the session keeps its member"),
        ({}, {"standing": Standing("b", forgone_usd={"a": 0.005})}, "the session has moved to it"),
        ({}, {"reason": "fallback"}, "asked once another had failed"),
        ({}, {"reason": "hedge"}, "asked while another was silent"),
    ],
)
def test_the_reason_is_told(wishes: dict[str, Any], context: dict[str, Any], said: str) -> None:
    decision = THREE.wishing(**wishes).one(**context)
    line = explain(decision)
    assert line.startswith(f"{decision.member}: expected reward {decision.chosen.reward:.3f} for ")
    assert line.split("; ")[1].startswith(said)


def test_the_table_ends_with_the_decisions_warnings() -> None:
    shown = console()
    with shown.capture() as captured:
        shown.print(decision_table(THREE.one(warnings=("the pool's file could not be read",))))
    assert captured.get().rstrip().endswith("the pool's file could not be read")

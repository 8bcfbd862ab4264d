"""Predictions, pools and wishes to decide on, and the decisions on them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from ensemble import policy
from ensemble.pool import Pool
from ensemble.records import Decision, Deployment, Member, Prediction, Wishes

CHARACTERS = 400.0  # of every prompt; at 4 to a token, 100 tokens


def member(name: str, usd_in: float = 1.0, usd_out: float = 1.0, **facts: Any) -> Member:
    return Member(
        name, facts.pop("kind", "frontier"), (Deployment(f"openai/{name}"),), usd_in, usd_out, **facts
    )


@dataclass(frozen=True)
class Case:
    """``reward``, ``std`` and ``tokens`` are (n_prompts, n_members)."""

    members: tuple[Member, ...]
    reward: np.ndarray
    std: np.ndarray
    tokens: np.ndarray
    wishes: Wishes

    def changed(self, **changes: Any) -> Case:
        return dataclasses.replace(self, **changes)

    def wishing(self, **wishes: Any) -> Case:
        return self.changed(wishes=dataclasses.replace(self.wishes, **wishes))

    @property
    def pool(self) -> Pool:
        return Pool(self.members)

    @property
    def prediction(self) -> Prediction:
        names = tuple(member.name for member in self.members)
        arrays = (self.reward, self.std, self.tokens, 3 * self.tokens)
        return Prediction(names, *(array.astype(np.float32) for array in arrays))

    def decide(
        self,
        draws: Sequence[float] = (0.0,),
        *,
        max_tokens: int | None = None,
        answers: int = 1,
        **context: Any,
    ) -> list[Decision]:
        """One decision for each draw."""
        prediction, offer = self.prediction, self.pool
        per_token = np.full(len(self.members), 4.0)
        characters = np.full(len(prediction.reward), CHARACTERS)
        standing = context.get("standing")
        expected = policy.expect(prediction, offer, characters, per_token, max_tokens, answers, standing)
        ids = [f"d{i}" for i in range(len(draws))]
        decisions = policy.decide(
            prediction, expected, offer, self.wishes, np.array(draws), ids,
            now=5.0, context=policy.Context(**context),
        )  # fmt: skip
        return list(decisions)

    def one(self, draw: float = 0.0, **more: Any) -> Decision:
        [decision] = self.decide([draw], **more)
        return decision


def case(
    *members: Member, reward: Sequence[float], std: float = 0.1, tokens: float = 100.0, **wishes: Any
) -> Case:
    """One prompt."""
    row = np.array([reward], dtype=float)
    return Case(members, row, np.full_like(row, std), np.full_like(row, tokens), Wishes(**wishes))


def parts(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, width=32)


FEW = st.integers(1, 6)
DIALS = st.one_of(st.just(0.0), st.just(math.inf), st.floats(1e-6, 100.0))


@st.composite
def cases(draw: st.DrawFn, n_members: st.SearchStrategy[int] = FEW) -> Case:
    """One prompt, any members; ties and free members among them."""
    n = draw(n_members)
    price = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0.01, 100.0))
    speed = st.one_of(st.none(), st.floats(1.0, 500.0))
    members = [
        member(f"m{i}", draw(price), draw(price), tokens_per_second=draw(speed), first_token_s=draw(speed))
        for i in range(n)
    ]
    grids = [
        draw(st.lists(st.one_of(st.sampled_from([low, high]), parts(low, high)), min_size=n, max_size=n))
        for low, high in ((0.0, 1.0), (0.0, 0.5), (1.0, 5000.0))
    ]
    wishes = Wishes(
        willingness_to_pay_usd=draw(DIALS),
        usd_per_second=draw(st.sampled_from([0.0, 1e-4])),
        exploration=draw(st.one_of(st.just(0.0), st.floats(0.0, 0.5))),
    )
    return Case(tuple(members), *(np.array([grid], dtype=np.float32) for grid in grids), wishes)

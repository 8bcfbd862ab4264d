"""What is to be decided? One prompt as the parts need it, read, encoded and predicted once, decided often."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from ensemble import policy, text
from ensemble.asked import Asked
from ensemble.budget import Budgets
from ensemble.outcomes import OutcomeLog
from ensemble.parts import Terms
from ensemble.records import Decision, FloatArray, Prediction, Wishes
from ensemble.router import Router
from ensemble.sendable import check_json
from ensemble.sessions import Standing
from ensemble.speeds import Speeds


@dataclass(frozen=True)
class Reading:
    """What one prompt says: its messages, the text of them that is encoded, how many characters are billed,
    and the abilities it needs."""

    messages: list[dict[str, Any]]
    encoded: str
    characters: int
    required: frozenset[str]

    @classmethod
    def of(cls, prompt: text.Messages, params: Mapping[str, Any]) -> Reading:
        """Raises InputError."""
        messages = text.as_messages(prompt)
        for number, message in enumerate(messages, start=1):
            for name, value in message.items():
                if not isinstance(value, str):
                    check_json(f"message {number}, {name}", _without_text(value))
        return cls(
            messages,
            text.prompt_text(messages),
            text.count_characters(messages, params),
            text.needs(messages, params),
        )


def _without_text(value: Any) -> Any:
    """The same with every string empty: they are encodable already, and may be large."""
    if isinstance(value, list | tuple):
        return [_without_text(inner) for inner in value]
    if isinstance(value, Mapping):
        return {key: _without_text(inner) for key, inner in value.items()}
    return "" if isinstance(value, str) else value


@dataclass(frozen=True, eq=False)
class Request:
    """One prompt, and all that its decisions rest on; ``standing`` is that of its session, if it has one."""

    reading: Reading
    features: FloatArray  # (1, n_features)
    prediction: Prediction  # (1, n_members) over the pool
    router: Router
    terms: Terms
    asked: Asked
    wishes: Wishes
    standing: Standing | None

    @classmethod
    def of(
        cls,
        prompt: text.Messages,
        asked: Asked,
        router: Router,
        terms: Terms,
        standing: Standing | None,
        budgets: Budgets,
    ) -> Request:
        """Raises InputError and BudgetSpentError."""
        reading = Reading.of(prompt, asked.params)
        wishes = budgets.under(asked.wishes(terms.pool.defaults, reading.required), asked.metadata)
        features, prediction = router.look(reading.encoded)
        return cls(reading, features, terms.prior.fill(prediction), router, terms, asked, wishes, standing)

    @property
    def messages(self) -> list[dict[str, Any]]:
        return self.reading.messages

    def decide(
        self,
        wishes: Wishes,
        *,
        id: str,
        now: float,
        draw: float,
        tried: Mapping[str, str] | None = None,
        unavailable: Mapping[str, str] | None = None,
        speeds: Speeds | None = None,
    ) -> Decision:
        """Who is to answer. ``draw`` in [0, 1) picks where chance has a say; where some were ``tried``, and
        why that bars them, it has none, since the propensity that is logged is that of the first choice.

        Raises NoEligibleMemberError.
        """
        context = policy.Context(
            router_id=self.router.id,
            measured=self.terms.prior.measured,
            unavailable={**(unavailable or {}), **(tried or {})},
            standing=self.standing,
            reason="fallback" if tried else free_choice(wishes),
            warnings=self.terms.pool.warnings,
        )
        if tried:
            wishes, draw = replace(wishes, exploration=0.0), 0.0
        [decision] = decide(
            [self.reading],
            self.prediction,
            self.terms,
            self.asked,
            wishes,
            [draw],
            [id],
            now,
            context,
            speeds,
        )
        return decision

    def record(self, decision: Decision, log: OutcomeLog | None) -> None:
        """Write a decision on this prompt down; a log of ``None`` keeps nothing."""
        if log is None:
            return
        log.record_decision(
            decision,
            members=self.terms.pool,
            features=self.features[0],
            encoder_sha256=self.router.encoder.sha256["encoder.onnx"],
            text=self.reading.encoded,
            metadata=self.asked.metadata,
            session=self.asked.session,
        )


def free_choice(wishes: Wishes) -> Literal["routed", "budget"]:
    """What a choice is called that nothing but the wishes has narrowed."""
    return "budget" if wishes.spend_price > 1 else "routed"


def decide(
    readings: Sequence[Reading],
    prediction: Prediction,
    terms: Terms,
    asked: Asked,
    wishes: Wishes,
    draws: Sequence[float],
    ids: Sequence[str],
    now: float,
    context: policy.Context,
    speeds: Speeds | None = None,
) -> Iterator[Decision]:
    """``policy.decide`` at the prices of the terms; ``prediction`` (n_readings, n_members) over the pool."""
    expected = policy.expect(
        prediction,
        terms.pool,
        np.array([reading.characters for reading in readings]),
        terms.characters_per_token,
        asked.max_tokens,
        asked.answers,
        context.standing,
        None if speeds is None else speeds.over(terms.pool),
    )
    return policy.decide(
        prediction, expected, terms.pool, wishes, np.array(draws), ids, now=now, context=context
    )

"""What is to be decided? One prompt as the parts need it, read, encoded and predicted once, decided often."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ensemble import policy, text
from ensemble.asked import Asked
from ensemble.outcomes import OutcomeLog
from ensemble.parts import Terms
from ensemble.records import Decision, FloatArray, Prediction, Wishes
from ensemble.router import Router


@dataclass(frozen=True, eq=False)
class Request:
    """One prompt, and all that its decisions rest on; ``bound`` is the member that its session keeps to."""

    messages: list[dict[str, Any]]
    encoded: str
    characters: int
    features: FloatArray  # (1, n_features)
    prediction: Prediction  # (1, n_members) over the pool
    router: Router
    terms: Terms
    asked: Asked
    wishes: Wishes
    bound: str | None

    @classmethod
    def of(
        cls, prompt: text.Messages, asked: Asked, router: Router, terms: Terms, bound: str | None
    ) -> Request:
        """Raises InputError."""
        messages = text.as_messages(prompt)
        wishes = asked.wishes(terms.pool.defaults, text.needs(messages, asked.params))
        encoded = text.prompt_text(messages)
        features = router.encoder.encode([encoded])
        return cls(
            messages=messages,
            encoded=encoded,
            characters=text.count_characters(messages, asked.params),
            features=features,
            prediction=terms.prior.fill(router.head.predict(features)),
            router=router,
            terms=terms,
            asked=asked,
            wishes=wishes,
            bound=bound,
        )

    def decide(
        self,
        wishes: Wishes,
        *,
        id: str,
        now: float,
        draw: float,
        tried: tuple[str, ...] = (),
        unavailable: Mapping[str, str] | None = None,
    ) -> Decision:
        """Who is to answer. ``draw`` in [0, 1) picks where chance has a say; after a failure (``tried``) it
        has none, since the propensity that is logged is that of the first choice.

        Raises NoEligibleMemberError.
        """
        expected = policy.expect(
            self.prediction,
            self.terms.pool,
            np.array([self.characters]),
            self.terms.characters_per_token,
            self.asked.max_tokens,
            self.asked.answers,
        )
        context = policy.Context(
            router_id=self.router.id,
            measured=self.terms.prior.measured,
            unavailable={**(unavailable or {}), **dict.fromkeys(tried, "failed a moment ago")},
            bound=self.bound,
            reason="fallback" if tried else "routed",
            warnings=self.terms.pool.warnings,
        )
        [decision] = policy.decide(
            self.prediction,
            expected,
            self.terms.pool,
            replace(wishes, exploration=0.0) if tried else wishes,
            np.array([0.0 if tried else draw]),
            [id],
            now=now,
            context=context,
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
            text=self.encoded,
            metadata=self.asked.metadata,
            session=self.asked.session,
        )

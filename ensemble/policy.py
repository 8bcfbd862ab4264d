"""Who should answer? Prediction, prices and wishes in, decisions out: pure, and the same every time.

    utility = willingness_to_pay_usd * reward - cost_usd - usd_per_second * seconds

The eligible member of greatest utility is the best; an infinite dial ranks by reward, then by cost.
With ``exploration`` e the best has probability 1 - e, and its rivals share e in proportion to the
chance that they are truly better, taking the errors of the two rewards as independent and Gaussian:

    weight = Phi(-gap / sqrt(reward_std_best^2 + reward_std_rival^2)),   gap = utility lost / dial

so that what is spent on learning goes where it can teach. Every probability is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ensemble.eligibility import Eligibility, Offer
from ensemble.errors import InputError, NoEligibleMemberError
from ensemble.records import Decision, Expected, FloatArray, Floats, Forecasts, Prediction, Wishes

VERSION = "1"


@dataclass(frozen=True)
class Context:
    """What a decision depends on beside prediction, pool and wishes.

    ``unavailable`` maps members that can't serve now to the reason; ``bound`` is the member a session
    keeps to while it is eligible; ``reason`` is what a free choice is called in the log.
    """

    router_id: str = ""
    measured: npt.NDArray[np.bool_] | None = None  # (n_members,), None: all of them
    unavailable: Mapping[str, str] | None = None
    bound: str | None = None
    reason: Literal["routed", "fallback", "budget", "hedge"] = "routed"
    warnings: tuple[str, ...] = ()


def expect(
    prediction: Prediction,
    offer: Offer,
    characters: FloatArray,
    characters_per_token: FloatArray,
    max_tokens: int | None = None,
    answers: int = 1,
) -> Expected:
    """Tokens, USD and seconds per prompt and member at the pool's prices.

    ``prediction`` in the pool's order; ``characters`` (n_prompts,) of everything that is sent;
    ``characters_per_token`` (n_members,); ``max_tokens`` the caller's own limit on an answer, of which
    ``answers`` are wanted and paid for.
    """
    limit = np.nan_to_num(offer.max_output_tokens, nan=math.inf)
    if max_tokens is not None:
        limit = np.minimum(limit, max_tokens)
    input_tokens = np.asarray(characters, float)[:, None] / characters_per_token
    output = np.minimum(prediction.output_tokens.astype(float), limit)
    output_p95 = np.minimum(prediction.output_tokens_p95.astype(float), limit)
    cost_in = input_tokens * offer.usd_per_million_input / 1e6
    usd_out = answers * offer.usd_per_million_output / 1e6
    seconds = offer.first_token_s + output / offer.tokens_per_second
    return Expected(
        input_tokens, output, output_p95, cost_in + output * usd_out, cost_in + output_p95 * usd_out, seconds
    )


def decide(
    prediction: Prediction,
    expected: Expected,
    offer: Offer,
    wishes: Wishes,
    draws: FloatArray,
    ids: Sequence[str],
    *,
    now: float,
    context: Context = Context(),
) -> Iterator[Decision]:
    """One decision per prompt, in turn. ``draws`` (n_prompts,) uniform in [0, 1) pick where chance has a say.

    Raises NoEligibleMemberError where a prompt's turn comes that nobody may serve.
    """
    if prediction.members != offer.names:
        raise InputError(f"expected a prediction over {offer.names}, found one over {prediction.members}")
    allowed = Eligibility(prediction, expected, offer, wishes, context.unavailable or {})
    value = utility(prediction.reward, expected, wishes)
    # Best first, ties to the cheaper and then in the pool's order; behind them who may not serve.
    order = np.lexsort((expected.cost_usd, -value, ~allowed.eligible), axis=-1)
    counts = allowed.eligible.sum(axis=1).tolist()
    lines = _lines(prediction, expected, value, context.measured)
    bound = offer.names.index(context.bound) if context.bound in offer.names else -1
    for i, decision_id in enumerate(ids):
        why = allowed.reasons(i)
        if not counts[i]:
            raise NoEligibleMemberError({n: str(w) for n, w in zip(offer.names, why, strict=True)})
        ranking = order[i, : counts[i]]
        if kept := bound >= 0 and why[bound] is None:
            chosen, chances = bound, _certain(bound, len(why))
        else:
            chances = probabilities(value[i], prediction.reward_std[i], ranking, wishes)
            chosen = _pick(chances, ranking, float(draws[i]))
        shares = chances.tolist()
        yield Decision(
            id=decision_id,
            created_at=now,
            member=offer.names[chosen],
            reason="session" if kept else context.reason,
            propensity=shares[chosen],
            randomized=not kept and context.reason == "routed",
            forecasts=Forecasts({**lines(i), "probability": shares, "ineligible_because": why}),
            ranking=tuple([offer.names[m] for m in ranking.tolist()]),
            input_tokens=float(expected.input_tokens[i, chosen]),
            wishes=wishes,
            router_id=context.router_id,
            policy_version=VERSION,
            warnings=context.warnings,
        )


def utility(reward: FloatArray, expected: Expected, wishes: Wishes) -> Floats:
    """(n_prompts, n_members): USD; for an infinite dial the reward itself. An unknown speed costs no time."""
    dial = wishes.willingness_to_pay_usd
    if math.isinf(dial):
        return reward.astype(float)
    waiting = wishes.usd_per_second * np.nan_to_num(expected.seconds) if wishes.usd_per_second else 0.0
    return dial * reward.astype(float) - expected.cost_usd - waiting


def probabilities(
    value: Floats, reward_std: FloatArray, ranking: npt.NDArray[np.intp], wishes: Wishes
) -> Floats:
    """The chance of every member to be chosen, (n_members,), summing to 1; 0 outside ``ranking``."""
    chances = _certain(int(ranking[0]), len(value))
    best, rivals = ranking[0], ranking[1:]
    dial = 1.0 if math.isinf(wishes.willingness_to_pay_usd) else wishes.willingness_to_pay_usd
    if wishes.exploration > 0 and len(rivals) and dial > 0:
        std = reward_std.astype(float)
        doubt = dial * np.sqrt(std[best] ** 2 + std[rivals] ** 2)
        gaps = (value[best] - value[rivals]) / np.maximum(doubt, 1e-12)
        weights = np.array([0.5 * math.erfc(gap / math.sqrt(2)) for gap in gaps])
        if weights.sum() > 0:
            chances[rivals] = wishes.exploration * weights / weights.sum()
            chances[best] = max(0.0, 1.0 - chances[rivals].sum())  # rounding, if exploration is all but 1
    return chances


def _certain(member: int, n_members: int) -> Floats:
    chances = np.zeros(n_members)
    chances[member] = 1.0
    return chances


def _pick(chances: Floats, ranking: npt.NDArray[np.intp], draw: float) -> int:
    """The member in whose share of [0, 1), laid out in the order of the ranking, the draw falls."""
    place = int(np.searchsorted(np.cumsum(chances[ranking]), draw, side="right"))
    while place >= len(ranking) or chances[ranking[place]] == 0:  # rounding at the far end
        place -= 1
    return int(ranking[place])


def _lines(
    prediction: Prediction, expected: Expected, value: Floats, measured: npt.NDArray[np.bool_] | None
) -> Callable[[int], dict[str, list[Any]]]:
    """The columns of a prompt's Forecasts that don't depend on who is eligible."""
    arrays = {
        "reward": prediction.reward,
        "reward_std": prediction.reward_std,
        "output_tokens": expected.output_tokens,
        "output_tokens_p95": expected.output_tokens_p95,
        "cost_usd": expected.cost_usd,
        "cost_usd_p95": expected.cost_usd_p95,
        "seconds": expected.seconds,
        "utility": value,
    }
    rows: dict[str, list[list[Any]]] = {name: array.tolist() for name, array in arrays.items()}
    if np.isnan(expected.seconds).any():
        rows["seconds"] = [[None if s != s else s for s in row] for row in rows["seconds"]]
    names = list(prediction.members)
    seen = [True] * len(names) if measured is None else measured.tolist()

    def of(i: int) -> dict[str, list[Any]]:
        return {"member": names, "measured": seen, **{name: row[i] for name, row in rows.items()}}

    return of

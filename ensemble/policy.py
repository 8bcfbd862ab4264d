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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from ensemble.errors import InputError, NoEligibleMemberError
from ensemble.records import Decision, FloatArray, Forecast, Member, Prediction, Wishes

VERSION = "1"
Floats = npt.NDArray[np.float64]


class Offer(Protocol):
    """What the policy reads of a pool: members in order, their terms as (n_members,) arrays, NaN unknown."""

    names: tuple[str, ...]
    usd_per_million_input: Floats
    usd_per_million_output: Floats
    context_window: Floats
    max_output_tokens: Floats
    first_token_s: Floats
    tokens_per_second: Floats

    def __iter__(self) -> Iterator[Member]: ...


@dataclass(frozen=True, eq=False)
class Expected:
    """What each member is expected to take and cost, all float64 (n_prompts, n_members).

    ``seconds`` is NaN where the member's speed is unknown.
    """

    input_tokens: Floats
    output_tokens: Floats
    output_tokens_p95: Floats
    cost_usd: Floats
    cost_usd_p95: Floats
    seconds: Floats


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
) -> list[Decision]:
    """One decision per prompt. ``draws`` (n_prompts,) uniform in [0, 1) pick where chance has a say.

    Raises NoEligibleMemberError for the first prompt that nobody may serve.
    """
    if prediction.members != offer.names:
        raise InputError(f"expected a prediction over {offer.names}, found one over {prediction.members}")
    shared = _barred(offer, wishes, context)
    value = utility(prediction.reward, expected, wishes)
    decisions = []
    for i, decision_id in enumerate(ids):
        reasons = [
            why or _barred_here(prediction, expected, offer, wishes, i, m) for m, why in enumerate(shared)
        ]
        eligible = np.array([why is None for why in reasons])
        if not eligible.any():
            raise NoEligibleMemberError({n: str(why) for n, why in zip(offer.names, reasons, strict=True)})
        ranking = _rank(value[i], expected.cost_usd[i], eligible)
        chances = probabilities(value[i], prediction.reward_std[i].astype(float), ranking, wishes)
        chosen, bound = _pick(chances, ranking, float(draws[i])), False
        if context.bound in offer.names and eligible[offer.names.index(context.bound)]:
            chosen, bound = offer.names.index(context.bound), True
            chances = np.where(np.arange(len(chances)) == chosen, 1.0, 0.0)
        decisions.append(
            Decision(
                id=decision_id,
                created_at=now,
                member=offer.names[chosen],
                reason="session" if bound else context.reason,
                propensity=float(chances[chosen]),
                randomized=not bound and context.reason == "routed",
                forecasts=_forecasts(prediction, expected, value, chances, reasons, context.measured, i),
                ranking=tuple(offer.names[m] for m in ranking),
                input_tokens=float(expected.input_tokens[i, chosen]),
                wishes=wishes,
                router_id=context.router_id,
                policy_version=VERSION,
                warnings=context.warnings,
            )
        )
    return decisions


def utility(reward: FloatArray, expected: Expected, wishes: Wishes) -> Floats:
    """(n_prompts, n_members): USD; for an infinite dial the reward itself. An unknown speed costs no time."""
    dial = wishes.willingness_to_pay_usd
    if math.isinf(dial):
        return reward.astype(float)
    waiting = wishes.usd_per_second * np.nan_to_num(expected.seconds) if wishes.usd_per_second else 0.0
    return dial * reward.astype(float) - expected.cost_usd - waiting


def probabilities(value: Floats, reward_std: Floats, ranking: npt.NDArray[np.intp], wishes: Wishes) -> Floats:
    """The chance of every member to be chosen, (n_members,), summing to 1; 0 outside ``ranking``."""
    chances = np.zeros(len(value))
    best, rivals = ranking[0], ranking[1:]
    dial = 1.0 if math.isinf(wishes.willingness_to_pay_usd) else wishes.willingness_to_pay_usd
    if wishes.exploration > 0 and len(rivals) and dial > 0:
        doubt = dial * np.sqrt(reward_std[best] ** 2 + reward_std[rivals] ** 2)
        gaps = (value[best] - value[rivals]) / np.maximum(doubt, 1e-12)
        weights = np.array([0.5 * math.erfc(gap / math.sqrt(2)) for gap in gaps])
        if weights.sum() > 0:
            chances[rivals] = wishes.exploration * weights / weights.sum()
    chances[best] = max(0.0, 1.0 - chances[rivals].sum())  # rounding, where exploration is all but 1
    return chances


def _rank(value: Floats, cost: Floats, eligible: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
    """Indices of the eligible members, best first; ties go to the cheaper, then to the pool's order."""
    order = np.lexsort((cost, -value))
    return order[eligible[order]]


def _pick(chances: Floats, ranking: npt.NDArray[np.intp], draw: float) -> int:
    """The member in whose share of [0, 1), laid out in the order of the ranking, the draw falls."""
    place = int(np.searchsorted(np.cumsum(chances[ranking]), draw, side="right"))
    while place >= len(ranking) or chances[ranking[place]] == 0:  # rounding at the far end
        place -= 1
    return int(ranking[place])


def _barred(offer: Offer, wishes: Wishes, context: Context) -> list[str | None]:
    """Why each member is out for every prompt, or None."""
    unknown = [name for name in (*(wishes.members or ()), *wishes.exclude) if name not in offer.names]
    if unknown:
        raise InputError(
            f"members and exclude should name members of the pool ({', '.join(offer.names)}); "
            f"found {', '.join(sorted(unknown))}"
        )
    unavailable = context.unavailable or {}
    reasons: list[str | None] = []
    for member in offer:
        lacking = wishes.requires - member.abilities if member.abilities is not None else frozenset()
        if wishes.members is not None and member.name not in wishes.members:
            reasons.append("not among the members asked for")
        elif member.name in wishes.exclude:
            reasons.append("excluded by the caller")
        elif wishes.owned_only and not member.owned:
            reasons.append("not owned, and owned_only was asked for")
        elif lacking:
            reasons.append(f"lacks {', '.join(sorted(lacking))}, which the request needs")
        else:
            reasons.append(unavailable.get(member.name))
    return reasons


def _barred_here(
    prediction: Prediction, expected: Expected, offer: Offer, wishes: Wishes, i: int, m: int
) -> str | None:
    """Why member m is out for prompt i, or None; an unknown figure bars nobody."""
    window, tokens = offer.context_window[m], expected.input_tokens[i, m]
    if tokens > window:
        return f"needs about {tokens:,.0f} input tokens, its window holds {window:,.0f}"
    if wishes.max_cost_usd is not None and expected.cost_usd_p95[i, m] > wishes.max_cost_usd:
        return (
            f"may cost {expected.cost_usd_p95[i, m]:.2g} USD (95 %), the limit is {wishes.max_cost_usd:.2g}"
        )
    if wishes.max_latency_s is not None and expected.seconds[i, m] > wishes.max_latency_s:
        return f"takes about {expected.seconds[i, m]:.1f} s, the limit is {wishes.max_latency_s:g}"
    if wishes.min_reward is not None and prediction.reward[i, m] < wishes.min_reward:
        return f"expected reward {prediction.reward[i, m]:.3f}, at least {wishes.min_reward:g} was asked for"
    return None


def _forecasts(
    prediction: Prediction,
    expected: Expected,
    value: Floats,
    chances: Floats,
    reasons: Sequence[str | None],
    measured: npt.NDArray[np.bool_] | None,
    i: int,
) -> tuple[Forecast, ...]:
    figures = (
        prediction.reward[i],
        prediction.reward_std[i],
        expected.output_tokens[i],
        expected.output_tokens_p95[i],
        expected.cost_usd[i],
        expected.cost_usd_p95[i],
        expected.seconds[i],
        value[i],
        chances,
    )
    columns: list[list[Any]] = [figure.tolist() for figure in figures]
    known = [True] * len(reasons) if measured is None else measured.tolist()
    return tuple(
        Forecast(
            name, reward, std, tokens, p95, cost, cost_p95, None if math.isnan(s) else s, u, p, seen, why
        )
        for name, reward, std, tokens, p95, cost, cost_p95, s, u, p, seen, why in zip(
            prediction.members, *columns, known, reasons, strict=True
        )
    )

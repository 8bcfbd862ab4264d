"""Who should answer? Prediction, prices and wishes in, decisions out: pure, and the same every time.

    utility = willingness_to_pay_usd * reward - spend_price * cost_usd - usd_per_second * seconds

The eligible member of greatest utility is the best; an infinite dial ranks by reward, then by cost.
With ``exploration`` e the best has probability 1 - e, and its rivals share e in proportion to the
chance that they are truly better, taking the errors of the two rewards as independent and Gaussian:

    weight = Phi(-gap / sqrt(reward_std_best^2 + reward_std_rival^2)),   gap = utility lost / dial

so that what is spent on learning goes where it can teach. Every probability is exact. A conversation's
later steps leave nothing to chance: whether it stays where it is, ``sessions`` says.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ensemble.eligibility import Eligibility, Offer
from ensemble.errors import InputError, NoEligibleMemberError
from ensemble.records import Decision, Expected, FloatArray, Floats, Forecasts, Prediction, Reason, Wishes
from ensemble.sessions import Standing

VERSION = "2"


@dataclass(frozen=True)
class Context:
    """What a decision depends on beside prediction, pool and wishes.

    ``unavailable`` maps members that can't serve now to the reason; ``standing`` is where the conversation
    stands of which this is a later step; ``reason`` is what a free choice is called in the log.
    """

    router_id: str = ""
    measured: npt.NDArray[np.bool_] | None = None  # (n_members,), None: all of them
    unavailable: Mapping[str, str] | None = None
    standing: Standing | None = None
    reason: Reason = "routed"
    warnings: tuple[str, ...] = ()


def expect(
    prediction: Prediction,
    offer: Offer,
    characters: FloatArray,
    characters_per_token: FloatArray,
    max_tokens: int | None = None,
    answers: int = 1,
    standing: Standing | None = None,
    speeds: tuple[Floats, Floats] | None = None,
) -> Expected:
    """Tokens, USD and seconds per prompt and member at the pool's prices.

    ``prediction`` in the pool's order; ``characters`` (n_prompts,) of everything that is sent;
    ``characters_per_token`` (n_members,); ``max_tokens`` the caller's own limit on an answer, of which
    ``answers`` are wanted and paid for; ``standing``: one member has part of the input in its cache;
    ``speeds``: seconds to the first token and tokens per second (n_members,), ``None``: the pool's.
    """
    limit = offer.max_output_tokens  # NaN, where it is unknown, is passed over by fmin
    if max_tokens is not None:
        limit = np.fmin(limit, max_tokens)
    input_tokens = np.asarray(characters, float)[:, None] / characters_per_token
    output = np.fmin(prediction.output_tokens, limit)
    output_p95 = np.fmin(prediction.output_tokens_p95, limit)
    cost_in = input_tokens * (offer.usd_per_million_input / 1e6)
    usd_out = offer.usd_per_million_output * (answers / 1e6)
    cost, cost_p95 = cost_in + output * usd_out, cost_in + output_p95 * usd_out
    if standing is not None and standing.member in offer.names:  # the 95 % point doesn't count on a cache
        m = offer.names.index(standing.member)
        cost[:, m] -= np.fmin(standing.cached_tokens, input_tokens[:, m]) * _discount(offer)[m]
    first_token_s, tokens_per_second = speeds or (offer.first_token_s, offer.tokens_per_second)
    seconds = first_token_s + output / tokens_per_second
    return Expected(input_tokens, output, output_p95, cost, cost_p95, seconds)


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
    columns = _columns(prediction, expected, value)
    rows, measured = allowed.eligible.tolist(), _measured(prediction, context)
    is_first = context.reason in ("routed", "budget")  # not what comes of an earlier choice
    for i, decision_id in enumerate(ids):
        line: dict[str, Sequence[Any]] = {name: column[i] for name, column in columns.items()}
        ranking = _rank(line["utility"], line["cost_usd"], rows[i])
        why = allowed.reasons(i)
        if not ranking:
            raise NoEligibleMemberError({n: str(w) for n, w in zip(offer.names, why, strict=True)})
        standing = _next_step(context.standing, offer, expected, wishes, line, rows[i], i)
        if standing is not None:
            chosen = offer.names.index(standing.member)
            chances = _certain(chosen, len(why))
        else:
            chances = probabilities(line["utility"], line["reward_std"], ranking, wishes)
            chosen = _pick(chances, ranking, float(draws[i]))
        line |= {
            "member": offer.names,
            "measured": measured,
            "probability": chances,
            "ineligible_because": why,
        }
        stays = standing is not None and standing.member == getattr(context.standing, "member", None)
        yield Decision(
            id=decision_id,
            created_at=now,
            member=offer.names[chosen],
            reason="session" if stays and is_first else context.reason,
            propensity=chances[chosen],
            randomized=standing is None and is_first,
            forecasts=Forecasts(line),
            ranking=tuple([offer.names[m] for m in ranking]),
            input_tokens=float(expected.input_tokens[i, chosen]),
            wishes=wishes,
            router_id=context.router_id,
            policy_version=VERSION,
            warnings=context.warnings,
            standing=None if standing is None else standing.as_dict(),
        )


def utility(reward: FloatArray, expected: Expected, wishes: Wishes) -> Floats:
    """(n_prompts, n_members): USD; for an infinite dial the reward itself. An unknown speed costs no time."""
    dial = wishes.willingness_to_pay_usd
    if math.isinf(dial):
        return reward.astype(float)
    waiting = wishes.usd_per_second * np.nan_to_num(expected.seconds) if wishes.usd_per_second else 0.0
    return dial * reward.astype(float) - wishes.spend_price * expected.cost_usd - waiting


def _next_step(
    standing: Standing | None,
    offer: Offer,
    expected: Expected,
    wishes: Wishes,
    line: Mapping[str, Sequence[float]],
    eligible: Sequence[bool],
    i: int,
) -> Standing | None:
    """Who serves the next step of a conversation; ``None`` where the choice is free: it has no member yet, or
    that one may not serve now."""
    if standing is None or standing.member not in offer.names:
        return None
    bound = offer.names.index(standing.member)
    if not eligible[bound]:
        return None
    dial, std = wishes.willingness_to_pay_usd, line["reward_std"]
    if math.isinf(dial):  # utility is reward then: what was forgone in USD doesn't add to it
        dial, standing, moving = 1.0, replace(standing, forgone_usd={}), [0.0] * len(std)
    else:
        read = expected.input_tokens[i]
        share = min(1.0, standing.cached_tokens / max(read[bound], 1e-9))
        moving = (wishes.spend_price * share * read * _discount(offer)).tolist()
    doubt = [dial * math.hypot(std[bound], other) for other in std]
    following = standing.next(offer.names, eligible, line["utility"], moving, doubt)
    return replace(following, forgone_usd={}) if math.isinf(wishes.willingness_to_pay_usd) else following


def _discount(offer: Offer) -> Floats:
    """(n_members,): USD less per token for what is read from a cache; 0 where that is unknown."""
    less = (offer.usd_per_million_input - offer.usd_per_million_cached_input) / 1e6
    return np.maximum(np.nan_to_num(less), 0.0)


def probabilities(
    value: Sequence[float], reward_std: Sequence[float], ranking: Sequence[int], wishes: Wishes
) -> list[float]:
    """The chance of every member to be chosen, (n_members,), summing to 1; 0 outside ``ranking``."""
    best, rivals = ranking[0], ranking[1:]
    chances = _certain(best, len(value))
    dial = 1.0 if math.isinf(wishes.willingness_to_pay_usd) else wishes.willingness_to_pay_usd
    if wishes.exploration > 0 and rivals and dial > 0:
        weights = []
        for rival in rivals:
            doubt = dial * math.hypot(reward_std[best], reward_std[rival])
            gap = (value[best] - value[rival]) / max(doubt, 1e-12)
            weights.append(0.5 * math.erfc(gap / math.sqrt(2)))
        total = sum(weights)
        if total > 0:
            for rival, weight in zip(rivals, weights, strict=True):
                chances[rival] = wishes.exploration * weight / total
            # Rounding could make it less than nothing, if exploration is all but 1.
            chances[best] = max(0.0, 1.0 - sum(chances[rival] for rival in rivals))
    return chances


def _certain(member: int, n_members: int) -> list[float]:
    chances = [0.0] * n_members
    chances[member] = 1.0
    return chances


def _rank(value: Sequence[float], cost: Sequence[float], eligible: Sequence[bool]) -> list[int]:
    """Indices of the eligible members, best first; ties go to the cheaper, then to the pool's order."""
    able = [member for member, may in enumerate(eligible) if may]
    return sorted(able, key=lambda member: (-value[member], cost[member]))


def _pick(chances: Sequence[float], ranking: Sequence[int], draw: float) -> int:
    """The member in whose share of [0, 1), laid out in the order of the ranking, the draw falls."""
    end, last = 0.0, ranking[0]
    for member in ranking:
        end += chances[member]
        last = member if chances[member] > 0 else last
        if draw < end:
            return member
    return last  # rounding at the far end


def _columns(prediction: Prediction, expected: Expected, value: Floats) -> dict[str, list[list[Any]]]:
    """The columns of Forecasts that follow from arrays, each a list per prompt."""
    arrays = {
        "reward": prediction.reward,
        "reward_std": prediction.reward_std,
        "output_tokens": expected.output_tokens,
        "output_tokens_p95": expected.output_tokens_p95,
        "cost_usd": expected.cost_usd,
        "cost_usd_p95": expected.cost_usd_p95,
        "utility": value,
    }
    columns: dict[str, list[list[Any]]] = {name: array.tolist() for name, array in arrays.items()}
    seconds = expected.seconds.tolist()
    columns["seconds"] = [[None if s != s else s for s in row] for row in seconds]  # NaN differs from itself
    return columns


def _measured(prediction: Prediction, context: Context) -> list[bool]:
    return [True] * len(prediction.members) if context.measured is None else context.measured.tolist()

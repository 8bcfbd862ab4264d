"""How long may one attempt take, how much may it cost, and what has it cost at most?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ensemble.asked import LIMITS
from ensemble.records import Decision, Member, Wishes
from ensemble.text import Messages, as_messages, count_characters

TOKENS_AROUND = 16  # of a message: more than any known template adds
LONGEST_ANSWER = 2**17  # tokens: where a member's own limit is unknown, no longer one is reckoned with
STEP_S = 0.05  # of a deadline: litellm keeps the connections of each time-out apart, so let them be few


def bounded(
    params: Mapping[str, Any], decision: Decision, member: Member, left: Wishes, answers: int
) -> dict[str, Any]:
    """The caller's parameters under what is left of the deadline and of the cap (``left``); ``member`` is
    who was decided on, asked for ``answers`` answers."""
    limited = dict(params)
    if left.max_latency_s is not None:
        names = ("stream_timeout", "timeout") if params.get("stream") else ("timeout",)
        limited |= dict.fromkeys(names, _timeout_s(names, params, member, left.max_latency_s))
    if left.max_cost_usd is not None:
        affordable = _affordable_tokens(decision, member, left.max_cost_usd, answers)
        if affordable < (_longest(params, decision, member) or LONGEST_ANSWER):  # else it'd only be refused
            told = [name for name in LIMITS if any(one.get(name) for one in _limiting(params, member))]
            limited |= dict.fromkeys(told or LIMITS[:1], int(affordable))
    return limited


def most_input_tokens(messages: Messages, params: Mapping[str, Any]) -> int:
    """As many as no tokenizer makes more of a text: one for each byte of UTF-8, and some around each message.
    An image, a sound or a file counts as in ``count_characters``: what it takes, only its provider knows."""

    def n_bytes(text: str) -> int:
        return len(text.encode("utf-8", "surrogatepass"))

    return TOKENS_AROUND * len(as_messages(messages)) + count_characters(messages, params, length=n_bytes)


def most_usd(
    params: Mapping[str, Any], decision: Decision, member: Member, answers: int, most_input_tokens: int
) -> float:
    """The most an attempt can have cost whose provider didn't say; ``params`` are those it was sent with.
    Where nothing limits the answer's length, its 95 % point counts."""
    tokens = _longest(params, decision, member) or decision.chosen.output_tokens_p95
    usd_in = most_input_tokens * member.usd_per_million_input
    return float(usd_in + answers * tokens * member.usd_per_million_output) / 1e6


def _timeout_s(names: Sequence[str], params: Mapping[str, Any], member: Member, left_s: float) -> float:
    """The deadline, rounded up to the next step, or what the caller or else the pool allows a call if that is
    less."""
    asked = any(params.get(name) for name in names)
    bounds = [
        next((given[name] for name in names if given.get(name)), None)
        for given in ([params] if asked else [place.params for place in member.deployments])
    ]
    longest = max((b if isinstance(b, int | float) else math.inf for b in bounds), default=math.inf)
    return max(0.001, min(longest, math.ceil(left_s / STEP_S) * STEP_S))


def _limiting(params: Mapping[str, Any], member: Member) -> list[Mapping[str, Any]]:
    """Whose parameters limit an answer's length before we do: the caller's, or else each deployment's."""
    return [params] if any(map(params.get, LIMITS)) else [place.params for place in member.deployments]


def _longest(params: Mapping[str, Any], decision: Decision, member: Member) -> float | None:
    """How many tokens one answer can have at most, wherever it is made; ``None`` where that is unknown."""
    told: float = max(
        min((one[name] for name in LIMITS if one.get(name)), default=math.inf)
        for one in _limiting(params, member)
    )
    if member.max_output_tokens is not None:
        return min(told, member.max_output_tokens)
    if member.context_window is not None:
        return min(told, max(1.0, member.context_window - decision.input_tokens))
    return told if told <= LONGEST_ANSWER else None


def _affordable_tokens(decision: Decision, member: Member, usd: float, answers: int) -> float:
    """How long one answer may be for so much; ``inf`` where tokens are free."""
    if member.usd_per_million_output <= 0:
        return math.inf
    left = usd - decision.input_tokens * member.usd_per_million_input / 1e6
    return max(1, math.floor(left / member.usd_per_million_output * 1e6 / answers))

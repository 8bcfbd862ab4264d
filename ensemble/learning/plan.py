"""What is there to ask, and what can it cost? Bounds that hold, and an expectation that says what it assumes.

The most a call can cost: no tokenizer makes more tokens than there are bytes of text, a template's own
come on top, and ``max_tokens`` bounds the answer. Where an answer breaks that bound (a dear image, a
provider that ignores ``max_tokens``), the member's later bounds are scaled by its largest overrun so far.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from ensemble.learning.journal import Answer, Journal, Key
from ensemble.learning.prompts import Prompt
from ensemble.records import Member
from ensemble.text import count_characters

TEMPLATE_TOKENS = 200  # set aside for what a provider puts around a prompt
CHARACTERS_PER_TOKEN = 4
ASSUMPTION = (
    f"expected: {CHARACTERS_PER_TOKEN} characters a token, and answers as long as the member's have been so "
    "far, else half of max_tokens; at most: a token for each byte of the prompt, every answer of max_tokens"
)


@dataclass(frozen=True)
class Pair:
    """A prompt to put to a member. ``most_usd`` bounds its cost, ``max_tokens`` its answer."""

    prompt: Prompt
    member: Member
    max_tokens: int
    most_usd: float

    @property
    def key(self) -> Key:
        return self.prompt.id, self.member.name


@dataclass(frozen=True)
class MemberPlan:
    """``pairs`` still to ask, ``answered`` already there; USD for asking all of those pairs."""

    member: str
    pairs: int
    answered: int
    expected_usd: float
    most_usd: float


@dataclass(frozen=True)
class Plan:
    """What a run would ask and cost, on the stated ``assumption``; ``spent_usd`` is from earlier runs."""

    members: tuple[MemberPlan, ...]
    n_prompts: int
    budget_usd: float
    spent_usd: float
    assumption: str = ASSUMPTION

    @property
    def pairs(self) -> int:
        return sum(member.pairs for member in self.members)

    @property
    def answered(self) -> int:
        return sum(member.answered for member in self.members)

    @property
    def expected_usd(self) -> float:
        return math.fsum(member.expected_usd for member in self.members)

    @property
    def most_usd(self) -> float:
        return math.fsum(member.most_usd for member in self.members)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types, complete."""
        totals = {name: getattr(self, name) for name in ("pairs", "answered", "expected_usd", "most_usd")}
        return {
            **dataclasses.asdict(self),
            "members": [dataclasses.asdict(m) for m in self.members],
            **totals,
        }


def pairs_left(
    asked: Sequence[Prompt],
    members: Sequence[Member],
    journal: Journal,
    max_tokens: int,
    params: Mapping[str, Any],
) -> list[Pair]:
    """What has no answer yet, prompt by prompt, so that a run that stops early leaves complete ones."""
    pairs = []
    for prompt in asked:
        input_tokens = most_input_tokens(prompt.messages, params)
        for member in members:
            if (prompt.id, member.name) not in journal.answers:
                limit = min(max_tokens, member.max_output_tokens or max_tokens)
                pairs.append(Pair(prompt, member, limit, _usd(member, input_tokens, limit)))
    return pairs


def _usd(member: Member, input_tokens: float, output_tokens: float) -> float:
    return (input_tokens * member.usd_per_million_input + output_tokens * member.usd_per_million_output) / 1e6


def plan_of(
    asked: Sequence[Prompt],
    members: Sequence[Member],
    pairs: Sequence[Pair],
    journal: Journal,
    budget_usd: float,
    params: Mapping[str, Any],
) -> Plan:
    input_tokens = {p.id: count_characters(p.messages, params) / CHARACTERS_PER_TOKEN for p in asked}
    factors = overruns(journal.answers.values())
    told: dict[str, list[int]] = {}
    for answer in journal.answers.values():
        if answer.output_tokens is not None:
            told.setdefault(answer.member, []).append(answer.output_tokens)
    lines = []
    for member in members:
        own = [pair for pair in pairs if pair.member is member]
        so_far = told.get(member.name)
        expected = (
            _usd(member, input_tokens[p.prompt.id], mean(so_far) if so_far else p.max_tokens / 2) for p in own
        )
        lines.append(
            MemberPlan(
                member=member.name,
                pairs=len(own),
                answered=len(asked) - len(own),
                expected_usd=math.fsum(expected),
                most_usd=math.fsum(pair.most_usd for pair in own) * factors[member.name],
            )
        )
    return Plan(tuple(lines), len(asked), budget_usd, journal.spent_usd)


def most_input_tokens(messages: Sequence[Mapping[str, Any]], params: Mapping[str, Any]) -> int:
    """An upper bound by the bytes of the text; images, sounds and files count as ``text`` counts them."""
    raw = json.dumps([list(messages), dict(params)], ensure_ascii=False, default=str)
    beyond_ascii = len(raw.encode("utf-8", "replace")) - len(raw)
    return count_characters(list(messages), params) + beyond_ascii + TEMPLATE_TOKENS


def overruns(answers: Iterable[Answer]) -> defaultdict[str, float]:
    """By member the largest factor, at least 1, by which an answer has cost more than its bound."""
    largest: defaultdict[str, float] = defaultdict(lambda: 1.0)
    for answer in answers:
        if answer.cost_usd and answer.most_usd:
            largest[answer.member] = max(largest[answer.member], answer.cost_usd / answer.most_usd)
    return largest

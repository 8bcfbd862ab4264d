"""The records that travel between the parts: frozen, without behaviour beyond reading them.

Shapes: n_prompts texts, n_members members of a router or a pool, always in the order of
the ``members`` tuple beside the arrays. Money is USD, time is seconds, rewards lie in [0, 1].
"""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]
Floats = npt.NDArray[np.float64]
Kind = Literal["frontier", "tuned", "specialist"]
Reason = Literal["routed", "session", "budget", "fallback", "hedge"]  # why a member is asked
ABILITIES = ("tools", "vision", "json_schema", "reasoning")


@dataclass(frozen=True)
class Deployment:
    """One place where a member can be called.

    ``model`` is litellm's model string; ``params`` goes to litellm unchanged (``api_base``,
    ``api_key``, ``timeout`` ...). A value ``"os.environ/NAME"`` is read by litellm at the call.
    """

    model: str
    params: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Member:
    """One model of the pool, with everything the policy must know of it.

    Prices are USD per million tokens. ``None`` means unknown: a window, an ability list or a
    speed that is unknown never makes a member ineligible.
    """

    name: str
    kind: Kind
    deployments: tuple[Deployment, ...]
    usd_per_million_input: float
    usd_per_million_output: float
    usd_per_million_cached_input: float | None = None
    context_window: int | None = None  # tokens; of litellm's map those of the input
    max_output_tokens: int | None = None
    abilities: frozenset[str] | None = None  # of ABILITIES
    first_token_s: float | None = None
    tokens_per_second: float | None = None
    owned: bool = False  # nobody can take it away: its weights are the user's
    retires: datetime.date | None = None  # the provider's own date


@dataclass(frozen=True)
class CatalogEntry:
    """What a price list knows of one model string; fields are named and measured as in Member.

    ``None`` means that the list doesn't say.
    """

    usd_per_million_input: float | None = None
    usd_per_million_output: float | None = None
    usd_per_million_cached_input: float | None = None
    context_window: int | None = None
    max_output_tokens: int | None = None
    abilities: frozenset[str] | None = None
    retires: datetime.date | None = None


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a router expects of every member it knows, per prompt; all arrays (n_prompts, n_members).

    ``reward`` in [0, 1]; ``reward_std`` is the uncertainty of that expectation, in reward;
    ``output_tokens`` is the expected number, ``output_tokens_p95`` its 95 % point.
    """

    members: tuple[str, ...]
    reward: FloatArray
    reward_std: FloatArray
    output_tokens: FloatArray
    output_tokens_p95: FloatArray

    def __getitem__(self, rows: slice) -> Prediction:
        """The same for some of the prompts."""
        arrays = (self.reward, self.reward_std, self.output_tokens, self.output_tokens_p95)
        return Prediction(self.members, *(array[rows] for array in arrays))


@dataclass(frozen=True, eq=False)
class Expected:
    """What each member is expected to take and cost at the pool's prices, all float64 (n_prompts, n_members).

    ``seconds`` is NaN where the member's speed is unknown.
    """

    input_tokens: Floats
    output_tokens: Floats
    output_tokens_p95: Floats
    cost_usd: Floats
    cost_usd_p95: Floats
    seconds: Floats


@dataclass(frozen=True)
class Wishes:
    """What the caller asks of one decision.

    ``willingness_to_pay_usd``: USD one unit of reward is worth, in [0, inf]; ``inf`` means reward
    first, then cost. ``usd_per_second``: what a second of waiting costs, >= 0. ``max_cost_usd``,
    ``max_latency_s``, ``min_reward``: hard limits, ``None`` for no limit. ``members``: only these,
    ``None`` for all. ``requires``: abilities the request needs (of ABILITIES). ``exploration``:
    probability in [0, 1) of giving a plausible rival of the best member the prompt. ``spend_price``:
    how many times its face value a USD of spend counts, >= 1; a budget raises it.
    """

    willingness_to_pay_usd: float = 0.01
    usd_per_second: float = 0.0
    max_cost_usd: float | None = None
    max_latency_s: float | None = None
    min_reward: float | None = None
    members: frozenset[str] | None = None
    exclude: frozenset[str] = frozenset()
    owned_only: bool = False
    requires: frozenset[str] = frozenset()
    exploration: float = 0.0
    spend_price: float = 1.0

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types; an infinite dial becomes the string ``"inf"``."""
        plain = dataclasses.asdict(self)
        for name, value in plain.items():
            if isinstance(value, frozenset):
                plain[name] = sorted(value)
            elif isinstance(value, float) and math.isinf(value):
                plain[name] = "inf"
        return plain


@dataclass(frozen=True)
class Forecast:
    """One member's line in a decision. ``ineligible_because`` is ``None`` when it may serve."""

    member: str
    reward: float
    reward_std: float
    output_tokens: float
    output_tokens_p95: float
    cost_usd: float
    cost_usd_p95: float
    seconds: float | None
    utility: float  # USD; reward itself when the dial is infinite
    probability: float
    measured: bool  # False: the router never saw it, the figures are a prior
    ineligible_because: str | None


FORECAST_FIELDS = tuple(field.name for field in dataclasses.fields(Forecast))


class Forecasts(Sequence[Forecast]):
    """A decision's lines, kept as columns: a line becomes a Forecast when somebody looks at it.

    ``columns`` maps every field of Forecast to its plain values, one per member.
    """

    __slots__ = ("columns",)

    def __init__(self, columns: Mapping[str, Sequence[Any]]) -> None:
        self.columns = columns

    @classmethod
    def of(cls, lines: Iterable[Forecast]) -> Forecasts:
        """The same lines as columns."""
        if isinstance(lines, Forecasts):
            return lines
        kept = list(lines)
        return cls({name: [getattr(line, name) for line in kept] for name in FORECAST_FIELDS})

    def __len__(self) -> int:
        return len(self.columns["member"])

    @overload
    def __getitem__(self, at: int) -> Forecast: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[Forecast, ...]: ...
    def __getitem__(self, at: int | slice) -> Forecast | tuple[Forecast, ...]:
        if isinstance(at, slice):
            return tuple(self[place] for place in range(*at.indices(len(self))))
        return Forecast(*(self.columns[name][at] for name in FORECAST_FIELDS))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))


@dataclass(frozen=True)
class Decision:
    """Who is to answer one prompt, with what probability, and what was expected of everyone.

    ``forecasts`` holds every member of the pool in the pool's order; ``ranking`` the eligible ones,
    best first. ``propensity`` is the probability with which ``member`` was chosen, in (0, 1].
    ``randomized`` is False where nothing was left to chance (a later step of a session). ``standing`` of
    such a step: as in sessions.Standing, after it.
    """

    id: str
    created_at: float  # seconds since 1970, UTC
    member: str
    reason: Reason
    propensity: float
    randomized: bool
    forecasts: Sequence[Forecast]
    ranking: tuple[str, ...]
    input_tokens: float  # estimated for the chosen member
    wishes: Wishes
    router_id: str
    policy_version: str
    warnings: tuple[str, ...] = ()
    standing: Mapping[str, Any] | None = None

    def __getitem__(self, member: str) -> Forecast:
        for forecast in self.forecasts:
            if forecast.member == member:
                return forecast
        raise KeyError(member)

    def __iter__(self) -> Iterator[Forecast]:
        return iter(self.forecasts)

    @property
    def chosen(self) -> Forecast:
        return self[self.member]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types, complete."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        plain["forecasts"] = [dataclasses.asdict(forecast) for forecast in self.forecasts]
        plain["wishes"] = self.wishes.as_dict()
        plain["ranking"], plain["warnings"] = list(self.ranking), list(self.warnings)
        return plain


@dataclass(frozen=True)
class Attempt:
    """One call to one member under a decision; ``number`` counts from 1."""

    decision_id: str
    number: int
    member: str
    reason: Reason
    started_at: float
    seconds: float
    error: str | None = None  # class and message, without keys; None when it answered
    model: str | None = None  # the name the provider says it served
    input_tokens: int | None = None
    cached_input_tokens: int | None = None
    output_tokens: int | None = None
    cost_usd: float | None = None
    cost_is_estimated: bool = False  # True: usage never arrived, cost_usd is an upper bound if all is text
    first_token_s: float | None = None  # of a stream
    told_usd: float | None = None  # what the provider itself says that it cost; most say nothing


@dataclass(frozen=True)
class Outcome:
    """How a decision ended, over all its attempts; ``member`` is None when nobody answered."""

    decision_id: str
    ended_at: float
    member: str | None
    reason: Reason | None
    seconds: float
    first_token_s: float | None
    input_tokens: int | None
    output_tokens: int | None
    cost_usd: float
    cost_is_estimated: bool
    error: str | None = None

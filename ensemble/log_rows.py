"""The log's records as table rows, and rows as what a reader of the log gets.

Pure functions: no database, no clock. What goes into a column of JSON is JSON already. Vectors over
members become one list per quantity, all in the order of ``members``; numbers that JSON lacks (inf, nan)
become strings and come back as floats.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import hmac
import json
import math
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any, overload

import numpy as np

from ensemble.errors import InputError
from ensemble.records import Attempt, Decision, FloatArray, Forecasts, Member, Outcome, Wishes

Row = dict[str, Any]  # column -> value; to be written, JSON as text
Rows = tuple[tuple[str, Row], ...]  # (table, row) pairs that are written together or not at all

LONGEST_SESSION = 512  # characters
LONGEST_ERROR = 1_000  # characters
DAY_S = 86_400

FORECAST_NUMBERS = {  # column -> field of Forecast
    "probability": "probability",
    "predicted_reward": "reward",
    "predicted_reward_std": "reward_std",
    "predicted_output_tokens": "output_tokens",
    "predicted_output_tokens_p95": "output_tokens_p95",
    "predicted_cost_usd": "cost_usd",
    "predicted_cost_usd_p95": "cost_usd_p95",
    "predicted_seconds": "seconds",
    "utility": "utility",
}
PRICES = ("usd_per_million_input", "usd_per_million_output", "usd_per_million_cached_input")

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")  # NUL and lone surrogates: no database takes them
_SECRETS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"\b(?:bearer|basic)\s+(?P<secret>[\w.~+/=-]{6,})",
        r"(?:api[ _-]?key|subscription-key|(?:access|auth|security)[_-]?token|signature|secret|passw(?:or)?d|"
        r"authorization|[?&]key|[\"'](?:key|token))\w*"
        r"(?: provided)?[\\\"']*\s*[:=]\s*[\\\"']*(?P<secret>[^\s\\\"',;&)}\]]{6,})",
        r"\b(?P<secret>(?:sk|rk|gsk|xai|hf|ghp|github_pat|xox[abp]|r8|nvapi|pplx)[-_](?=[\w*-]*[\d*])[\w*-]{8,})",
        r"\b(?P<secret>A[KS]IA[0-9A-Z]{16}|AIza[\w-]{30,}|eyJ[\w-]{10,}\.[\w-]+\.[\w-]+)",
        r"://[^/\s:@]*:(?P<secret>[^/\s@]+)@",
    )
)


_TERMS = operator.attrgetter("kind", *PRICES)


def decision_rows(
    decision: Decision,
    *,
    members: Iterable[Member],
    features: FloatArray,
    encoder_sha256: str,
    key: bytes,
    text: str | None,
    keep_text: bool,
    metadata: Mapping[str, Any] | None,
    session: str | None,
) -> Rows:
    """One row for the decision, and one label for each pair of its metadata.

    ``features`` (n_features,) are stored as float32; ``members`` must hold every member that the
    decision forecasts, for its kind and prices. Raises InputError.
    """
    vector = np.asarray(features)
    if vector.ndim != 1:
        raise InputError(f"expected one prompt's features (n_features,), found shape {vector.shape}.")
    if not 0 < decision.propensity <= 1:
        raise InputError(f"a propensity must lie in (0, 1], found {decision.propensity!r}.")
    digests = [] if metadata is None else label_digests(key, metadata)
    row: Row = {
        "id": decision.id,
        "created_at": float(decision.created_at),
        "chosen_member": decision.member,
        "chosen_reason": decision.reason,
        "propensity": float(decision.propensity),
        "randomized": bool(decision.randomized),
        "estimated_input_tokens": float(decision.input_tokens),
        "router_id": decision.router_id,
        "policy_version": decision.policy_version,
        "encoder_sha256": encoder_sha256,
        "features": vector.astype("<f4").tobytes(),
        "prompt_key": None if text is None else keyed_hash(key, text),
        "text": storable(text) if keep_text else None,
        "session": session_name(session),
        "metadata": None if metadata is None else to_json(dict(metadata)),
        "wishes": _wishes_json(decision.wishes),
        "ranking": to_json(decision.ranking),
        "warnings": _json_again(decision.warnings),
        "standing": None if decision.standing is None else to_json(decision.standing),
        **_member_vectors(decision, members),
    }
    labels = ({"decision_id": decision.id, "digest": digest} for digest in digests)
    return (("decisions", row), *(("labels", label) for label in labels))


def _member_vectors(decision: Decision, members: Iterable[Member]) -> Row:
    columns = Forecasts.of(decision.forecasts).columns
    terms = {member.name: _TERMS(member) for member in members}
    names = tuple(columns["member"])
    if missing := [name for name in names if name not in terms]:
        raise InputError(
            f"decision {decision.id} forecasts {', '.join(missing)}, but `members` does not hold them: "
            "pass the pool's members that the decision was made over."
        )
    return {
        **{column: _json_numbers(columns[field]) for column, field in FORECAST_NUMBERS.items()},
        **{flag: _json_again(tuple(columns[flag])) for flag in ("measured", "ineligible_because")},
        **_terms_json(names, tuple([terms[name] for name in names])),
    }


@functools.lru_cache(64)
def _terms_json(names: tuple[str, ...], terms: tuple[tuple[Any, ...], ...]) -> Row:
    """What a pool says of its members: the same in every row until it changes."""
    kinds, *prices = zip(*terms, strict=True) if terms else ((),) * (1 + len(PRICES))
    row: Row = {price: _json_numbers(values) for price, values in zip(PRICES, prices, strict=True)}
    return row | {"members": to_json(names), "kind": to_json(kinds)}


@functools.lru_cache(256)
def _wishes_json(wishes: Wishes) -> str:
    return to_json(wishes.as_dict())


@functools.lru_cache(256)
def _json_again(values: tuple[Any, ...]) -> str:
    """The JSON of what seldom changes."""
    return to_json(values)


def attempt_rows(attempt: Attempt) -> Rows:
    row = dataclasses.asdict(attempt)
    return (("attempts", row | {"error": scrubbed(attempt.error), "model": storable(attempt.model)}),)


def outcome_rows(outcome: Outcome, answer: str | None) -> Rows:
    row = dataclasses.asdict(outcome)
    row["served_member"], row["served_reason"] = row.pop("member"), row.pop("reason")
    return (("outcomes", row | {"error": scrubbed(outcome.error), "answer": storable(answer)}),)


def checked_reward(reward: Any) -> float:
    """Raises InputError."""
    with contextlib.suppress(OverflowError):  # an int of a thousand digits
        if isinstance(reward, Real | np.bool_) and 0 <= (value := float(reward)) <= 1:
            return value
    too_long = isinstance(reward, int) and abs(reward) > 2**63  # for Python to print, it may be
    found = "a very large integer" if too_long else f"{reward!r:.80}"
    raise InputError(f"a reward must be a number in [0, 1], found {found}.")


def checked_age(days: Any) -> float:
    """Raises InputError."""
    if isinstance(days, bool) or not isinstance(days, int | float) or not 0 < days < math.inf:
        raise InputError(f"an age must be a number of days above 0, found {days!r}.")
    return float(days)


def read_row(stored: Mapping[str, Any], attempts: Sequence[Row], rewards: Sequence[Row]) -> Row:
    """One decision with all that followed; ``rewards`` oldest first, the newest of a source wins."""
    row = dict(stored)
    row = {"decision_id": row.pop("id"), **row}
    for column in (*FORECAST_NUMBERS, *PRICES):
        row[column] = [float(value) if isinstance(value, str) else value for value in row[column]]
    if row["features"] is not None:
        row["features"] = np.frombuffer(row["features"], dtype="<f4").astype(np.float32)
    row["attempts"] = [{k: v for k, v in attempt.items() if k != "decision_id"} for attempt in attempts]
    row["rewards"] = {reward["source"]: reward["reward"] for reward in rewards}
    return row


def keyed_hash(key: bytes, text: str) -> str:
    """HMAC-SHA256 in hex: equal texts can be found in one log, and guessed by nobody without its key."""
    return hmac.new(key, storable(text).encode(), hashlib.sha256).hexdigest()


def label_digests(key: bytes, metadata: Mapping[str, Any]) -> list[str]:
    """One keyed hash per name and value; values are equal when their JSON is. Raises InputError."""
    if bad := [name for name in metadata if not isinstance(name, str)]:
        raise InputError(f"metadata: names must be strings, found {bad[0]!r}.")
    digests = []
    for name, value in metadata.items():
        try:
            digests.append(keyed_hash(key, to_json([name, value])))
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"metadata[{name!r}] must be what JSON can hold: {error}.") from error
    return digests


def identifier(value: Any, what: str) -> str:
    """A decision's id, or who gives a reward, as it can be asked of any database. Raises InputError."""
    if not isinstance(value, str) or len(value) > LONGEST_SESSION:
        raise InputError(
            f"{what}: expected a string of at most {LONGEST_SESSION} characters, found {value!r:.80}"
        )
    return storable(value)


def session_name(session: str | None) -> str | None:
    if session is not None and len(session) > LONGEST_SESSION:
        raise InputError(
            f"a session's name may have {LONGEST_SESSION} characters, found {len(session)}: "
            "pass an identifier, such as the conversation's id."
        )
    return storable(session)


@overload
def storable(text: str) -> str: ...
@overload
def storable(text: None) -> None: ...
def storable(text: str | None) -> str | None:
    """``text`` with what no database takes (NUL, lone surrogates) as U+FFFD."""
    return None if text is None else _UNSTORABLE.sub("\ufffd", text)


def scrubbed(error: str | None) -> str | None:
    """The error without what looks like a key or a password, at most ``LONGEST_ERROR`` characters."""
    if error is None:
        return None
    clean = storable(error[: 4 * LONGEST_ERROR])
    for secret in _SECRETS:
        clean = secret.sub(lambda found: found[0].replace(found["secret"], "[removed]"), clean)
    return clean if len(clean) <= LONGEST_ERROR else clean[: LONGEST_ERROR - 1] + "…"


def to_json(value: Any) -> str:
    """Compact JSON in ASCII with sorted names; numpy's scalars are taken, inf and nan are not."""
    return _ENCODER.encode(value)


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"found a {type(value).__name__}")


_ENCODER = json.JSONEncoder(separators=(",", ":"), sort_keys=True, allow_nan=False, default=_plain)


def _json_numbers(values: Iterable[float | None]) -> str:
    plain = repr(list(values))
    if "n" not in plain:  # none of None, nan, inf: in JSON a float reads as in Python
        return plain
    return to_json([v if v is None or math.isfinite(v) else str(float(v)) for v in values])

"""One member of a pool, from the table that describes it: every value checked, what is missing looked up."""

from __future__ import annotations

import dataclasses
import datetime
import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, get_args

from .errors import PoolError
from .records import ABILITIES, CatalogEntry, Deployment, Kind, Member

LookUp = Callable[[str], CatalogEntry | None]
_FIELDS = tuple(field.name for field in dataclasses.fields(Member))
_KEYS = (*_FIELDS, "model", "params")
_PRICES = ("usd_per_million_input", "usd_per_million_output")
LARGEST = 1e9  # of any finite number: no sum over prices, tokens and seconds gets near what a float can hold


def read_member(table: Any, where: str, look_up: LookUp | None) -> tuple[Member, tuple[str, ...]]:
    """The member that ``table`` describes, and plain remarks on it for the pool's owner.

    ``table`` is a TOML table or a Member, whose unknown fields are then looked up too. A member with
    both prices and a context window is not looked up; otherwise the first of its deployments that
    ``look_up`` knows fills in whatever is missing. ``where`` opens the text of every PoolError.
    """
    if isinstance(table, Member):
        table = {field: value for field in _FIELDS if (value := getattr(table, field)) is not None}
    if not isinstance(table, Mapping):
        raise PoolError(f"{where}: expected a table with a name and a model, found {described(table)}")
    name = table.get("name")
    if not isinstance(name, str) or not name or not name.isprintable() or name != name.strip():
        raise PoolError(f'{where}: expected a name such as name = "gpt-4o", found {described(name)}')
    where = f"{where} ({name})"
    for key in table:
        if key not in _KEYS:
            raise PoolError(f"{where}: {unknown(key, _KEYS)} The pool's own keys go above all [[members]].")
    deployments = _read_deployments(table, where)
    given = {key: read(table[key], f"{where}: {key}") for key, read in _READERS.items() if key in table}
    found: dict[str, Any] = {}
    if look_up is not None and not {*_PRICES, "context_window"} <= given.keys():
        found = _look_up_any(deployments, look_up)
    _demand_prices(given | found, where, deployments, look_up)
    remarks = []
    if found.get("usd_per_million_output") == 0 and "usd_per_million_output" not in given:
        remarks.append("litellm's map says that its answers cost nothing; give its prices if that isn't so")
    facts: dict[str, Any] = {"kind": "frontier", "owned": given.get("kind") == "tuned"} | found | given
    return Member(name=name, deployments=deployments, **facts), tuple(remarks)


def _look_up_any(deployments: Iterable[Deployment], look_up: LookUp) -> dict[str, Any]:
    for deployment in deployments:
        entry = look_up(deployment.model)
        if entry is not None:
            known = ((field.name, getattr(entry, field.name)) for field in dataclasses.fields(entry))
            return {name: value for name, value in known if value is not None}
    return {}


def _demand_prices(
    facts: Mapping[str, Any], where: str, deployments: tuple[Deployment, ...], look_up: LookUp | None
) -> None:
    missing = [price for price in _PRICES if price not in facts]
    if missing:
        models = ", ".join(repr(deployment.model) for deployment in deployments)
        why = "no price list was asked" if look_up is None else f"litellm's map has none for {models}"
        lines = ", ".join(f"{price} = ..." for price in missing)
        raise PoolError(
            f"{where}: expected a price, found no {' and no '.join(missing)}, and {why}. "
            f"Add to this member: {lines} (0 if it is free to you)"
            + (", or pass look_up=ensemble.catalog.look_up for litellm's prices." if look_up is None else ".")
        )


def _read_deployments(table: Mapping[str, Any], where: str) -> tuple[Deployment, ...]:
    if ("model" in table) == ("deployments" in table) or ("params" in table and "model" not in table):
        there = [key for key in ("model", "params", "deployments") if key in table]
        raise PoolError(
            f"{where}: expected either model (and params, if any) or [[members.deployments]], "
            f"found {' and '.join(there) or 'none of them'}. Write "
            'model = "provider/name", or one [[members.deployments]] table for each place.'
        )
    if "model" in table:
        params = table.get("params", {})
        if not isinstance(params, Mapping):
            raise PoolError(
                f"{where}: params: expected a table such as {{ timeout = 30 }}, found {described(params)}"
            )
        return (_checked_deployment(Deployment(table["model"], dict(params)), where),)
    places = table["deployments"]
    if not isinstance(places, list | tuple) or not places:
        raise PoolError(f"{where}: deployments: expected tables with a model each, found {described(places)}")
    return tuple(
        _read_deployment(place, f"{where}: deployment {n}") for n, place in enumerate(places, start=1)
    )


def _read_deployment(place: Any, where: str) -> Deployment:
    if isinstance(place, Deployment):
        return _checked_deployment(place, where)
    if not isinstance(place, Mapping):
        raise PoolError(f"{where}: expected a table with a model, found {described(place)}")
    for key in place:
        # In TOML every line below [[members.deployments]] belongs to the deployment: an easy slip,
        # and without this check a price written there would go to the provider.
        if key in _KEYS and key not in ("model", "params"):
            raise PoolError(f"{where}: {key} is the member's. Write it above [[members.deployments]].")
        if key == "params":
            raise PoolError(
                f"{where}: expected litellm's parameters beside model, found params. Move them up."
            )
    params = {key: value for key, value in place.items() if key != "model"}
    return _checked_deployment(Deployment(place.get("model", ""), params), where)


def _checked_deployment(deployment: Deployment, where: str) -> Deployment:
    model: object = deployment.model
    if not isinstance(model, str) or not model.strip() or not model.isprintable():
        raise PoolError(f'{where}: expected litellm\'s model = "provider/name", found {described(model)}')
    return deployment


def number(value: Any, where: str, *, infinite: bool = False) -> float:
    """``value`` as a float >= 0, at most LARGEST unless ``infinite`` is allowed."""
    usable = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= math.inf
    if not usable or (value > LARGEST and not infinite):
        kind = "a number of at least 0" + (", or inf" if infinite else "")
        if usable and value < math.inf:
            kind = f"a number up to {LARGEST:g}"
        raise PoolError(f"{where}: expected {kind}, found {described(value)}. Correct it.")
    return float(value) if value <= 1e300 else math.inf  # an int may be too large to become a float


def _speed(value: Any, where: str) -> float:
    speed = number(value, where)
    if speed == 0:
        raise PoolError(f"{where}: expected more than 0, found 0. Leave it out if it is not known.")
    return speed


def _tokens(value: Any, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 2**53:
        raise PoolError(f"{where}: expected a whole number of tokens, found {described(value)}. Correct it.")
    return value


def _flag(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise PoolError(f"{where}: expected true or false, found {described(value)}. Correct it.")
    return value


def _kind(value: Any, where: str) -> str:
    if not isinstance(value, str) or value not in get_args(Kind):
        raise PoolError(
            f"{where}: expected {' or '.join(get_args(Kind))}, found {described(value)}. Choose one."
        )
    return value


def _date(value: Any, where: str) -> datetime.date:
    if not isinstance(value, datetime.date) or isinstance(value, datetime.datetime):
        raise PoolError(f"{where}: expected a date such as 2026-10-23, unquoted, found {described(value)}")
    return value


def _abilities(value: Any, where: str) -> frozenset[str]:
    if not isinstance(value, list | tuple | set | frozenset):
        raise PoolError(f'{where}: expected a list such as ["tools", "vision"], found {described(value)}')
    for ability in value:
        if ability not in ABILITIES:
            raise PoolError(f"{where}: {unknown(ability, ABILITIES, 'ability')}")
    return frozenset(value)


_READERS: dict[str, Callable[[Any, str], Any]] = {
    "kind": _kind,
    "usd_per_million_input": number,
    "usd_per_million_output": number,
    "usd_per_million_cached_input": number,
    "context_window": _tokens,
    "max_output_tokens": _tokens,
    "abilities": _abilities,
    "first_token_s": number,
    "tokens_per_second": _speed,
    "owned": _flag,
    "retires": _date,
}


def unknown(word: object, known: Iterable[str], what: str = "key") -> str:
    """The sentence that says a word is unknown, and what its writer may have meant."""
    folded = {name.casefold(): name for name in sorted(known)}
    near = difflib.get_close_matches(str(word)[:100].casefold(), folded, n=1)
    hint = f"Did you mean {folded[near[0]]!r}?" if near else f"Known: {', '.join(folded.values())}."
    return f"expected a known {what}, found {described(word)}. {hint}"


def described(value: object) -> str:
    """A value as an error shows it: in short, and never the inside of a table, which may hold keys."""
    if value is None:
        return "nothing"
    if isinstance(value, Mapping | list | tuple | set | frozenset | Deployment):
        return f"a {type(value).__name__}" + (" with nothing in it" if value == [] or value == {} else "")
    if isinstance(value, int) and abs(value) > 2**63:
        return "a very large whole number"
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # numbers of more digits than Python prints, for one
        return f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:80]}..."

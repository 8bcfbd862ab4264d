"""Which settings are in force? A file, in TOML, for those who configure nothing in code.

    router = "out/mine"                 # a bundle's folder; left out: the one that comes with the library
    pool = "pool.toml"                  # left out: likewise
    log = "decisions.db"                # a path, a database URL, or false for none
    keep = "text"                       # or "text+answers"; left out: neither is kept
    keep_days = 90                      # older decisions are deleted; left out: none are
    log_mode = "before"                 # or "after"
    fsync = false
    device = "auto"                     # or "cpu", "cuda"

    [[budgets]]                         # any number of them
    usd_per_day = 5.0
    per = "team"                        # left out: one for all calls
    hard = true                         # left out: spend gets dearer, no call is refused

Paths are read from where the file lies.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ensemble.budget import Budget
from ensemble.errors import ConfigError
from ensemble.members import described
from ensemble.toml_file import read_toml

FILE = "ensemble.toml"
VARIABLE = "ENSEMBLE_CONFIG"
_KEYS: dict[str, tuple[type, ...]] = {
    "router": (str,),
    "pool": (str,),
    "log": (str, bool),
    "keep": (str,),
    "keep_days": (int, float),
    "log_mode": (str,),
    "fsync": (bool,),
    "device": (str,),
    "budgets": (list,),
}


def find_settings() -> dict[str, Any]:
    """What the file named by ENSEMBLE_CONFIG says, else ./ensemble.toml, else nothing. Raises ConfigError."""
    named = os.environ.get(VARIABLE)
    if named:
        return read_settings(named)
    return read_settings(FILE) if Path(FILE).is_file() else {}


def read_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Keyword arguments for ``Ensemble``, from a file. Raises ConfigError."""
    place = Path(path)
    settings = read_toml(place, "settings", ConfigError)
    for key, value in settings.items():
        kinds = _KEYS.get(key)
        if kinds is None:
            raise ConfigError(
                f"{place}: unknown key {described(key)}; expected some of {', '.join(_KEYS)}. Correct it."
            )
        if not isinstance(value, kinds) or (key == "log" and value is True):
            wanted = "a string or false" if key == "log" else " or ".join(k.__name__ for k in kinds)
            raise ConfigError(f"{place}: {key}: expected {wanted}, found {described(value)}. Correct it.")
        if key in ("router", "pool", "log") and isinstance(value, str) and "://" not in value:
            settings[key] = _beside(place, key, value)
    if "budgets" in settings:
        settings["budgets"] = [_budget(table, place) for table in settings["budgets"]]
    return settings


def _beside(place: Path, key: str, value: str) -> str:
    """A path as the file means it."""
    try:
        if "\0" in value:
            raise ValueError("a character that no path may hold")
        return str(place.resolve().parent / Path(value).expanduser())
    except (RuntimeError, ValueError) as error:  # the former for ~ and the name of nobody here
        raise ConfigError(f"{place}: {key}: expected a path, found: {error}. Correct it.") from error


def _budget(table: Any, place: Path) -> Budget:
    try:
        return Budget(**table)
    except TypeError:
        known = ", ".join(field.name for field in dataclasses.fields(Budget))
        found = ", ".join(table) if isinstance(table, dict) else described(table)
        raise ConfigError(
            f"{place}: budgets: expected tables of {known}, the first at least; found {found}. Correct it."
        ) from None


def as_budgets(given: object) -> tuple[Budget, ...]:
    """Those that were given in code. Raises ConfigError."""
    budgets = tuple(given) if isinstance(given, Iterable) else (None,)
    if not all(isinstance(one, Budget) for one in budgets):
        raise ConfigError(
            f"budgets: expected a list of Budget, found {given!r:.80}. Write [Budget(usd_per_day=5.0)]."
        )
    return budgets


def state_folder() -> Path:
    """Where this user's programs keep what they remember, by the XDG convention."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "ensemble"

"""Which settings are in force? A file, in TOML, for those who configure nothing in code.

    router = "out/mine"                 # a bundle's folder; left out: the one that comes with the library
    pool = "pool.toml"                  # left out: likewise
    log = "decisions.db"                # a path, a database URL, or false for none
    keep = "text"                       # or "text+answers"; left out: neither is kept
    log_mode = "before"                 # or "after"
    fsync = false
    device = "auto"                     # or "cpu", "cuda"

Paths are read from where the file lies.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

from ensemble.errors import ConfigError

FILE = "ensemble.toml"
VARIABLE = "ENSEMBLE_CONFIG"
_KEYS: dict[str, tuple[type, ...]] = {
    "router": (str,),
    "pool": (str,),
    "log": (str, bool),
    "keep": (str,),
    "log_mode": (str,),
    "fsync": (bool,),
    "device": (str,),
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
    try:
        settings = tomllib.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{place}: expected a settings file in TOML, found: {error}. Mend it.") from error
    for key, value in settings.items():
        kinds = _KEYS.get(key)
        if kinds is None:
            raise ConfigError(
                f"{place}: unknown key {key!r}; expected some of {', '.join(_KEYS)}. Correct it."
            )
        if not isinstance(value, kinds) or (key == "log" and value is True):
            wanted = "a string or false" if key == "log" else " or ".join(k.__name__ for k in kinds)
            raise ConfigError(f"{place}: {key}: expected {wanted}, found {value!r}. Correct it.")
        if key in ("router", "pool", "log") and isinstance(value, str) and "://" not in value:
            settings[key] = str(place.resolve().parent / Path(value).expanduser())
    return settings


def state_folder() -> Path:
    """Where this user's programs keep what they remember, by the XDG convention."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "ensemble"

"""How is a TOML file read? With limits: it may be anybody's, and at the next call it may be another's."""

from __future__ import annotations

import os
import re
import tomllib
from typing import Any

from ensemble.errors import ConfigError
from ensemble.plain_file import read_plain

LARGEST_FILE = 1_000_000  # bytes
DEEPEST_KEY = 20  # parts of a dotted key; tomllib takes time and memory by the square of their number

# Strings and comments as wholes, so that what stands in them is not taken for a key. An open end takes all
# that follows: tomllib gets no further, and a search for the other end from each of many would take for ever.
_TOKENS = re.compile(
    r'"""(?:[^\\]|\\.?+)*?(?:"{3,5}|\Z)|'
    r"'''.*?(?:'{3,5}|\Z)|"
    r'(?P<part>"(?:[^"\\\n]|\\.)*+"?|'
    r"'[^'\n]*'?|[\w-]+)|"
    r"(?P<dot>[ \t]*\.[ \t]*)|#[^\n]*|[ \t]+|.",
    re.DOTALL,
)


def read_toml(path: str | os.PathLike[str], what: str, error: type[ConfigError]) -> dict[str, Any]:
    """Its tables. Raises ``error``, which calls the file a ``what`` file and says what to do."""
    source = os.fspath(path)
    try:
        content = read_plain(source, LARGEST_FILE + 1)
    except OSError as problem:
        raise error(
            f"{source}: expected a readable {what} file, found: {problem.strerror}. Check the path."
        ) from problem
    if len(content) > LARGEST_FILE:
        raise error(f"{source}: expected a {what} file of at most 1 MB, found more. Is it the right file?")
    try:
        text = content.decode("utf-8")
        if _deepest_key(text) > DEEPEST_KEY:
            raise RecursionError
        return tomllib.loads(text)
    except RecursionError:
        raise error(
            f"{source}: expected a {what} file, found TOML nested too deeply to read. Flatten it."
        ) from None
    except ValueError as problem:  # broken TOML, not UTF-8, or a number with thousands of digits
        raise error(
            f"{source}: expected a {what} file in TOML, found: {problem}. Mend that place."
        ) from problem


def _deepest_key(text: str) -> int:
    """The most parts with nothing but dots between them; more than there are keys, where a value has dots."""
    deepest = parts = 0
    for token in _TOKENS.finditer(text):
        if token["part"]:
            parts += 1
            deepest = max(deepest, parts)
        elif not token["dot"]:
            parts = 0
    return deepest

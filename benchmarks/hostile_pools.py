"""What if a pool's file, or the settings, were written to harm who reads them, or are replaced meanwhile?"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

from benchmarks.hostile_case import Case
from ensemble.config import read_settings
from ensemble.errors import ConfigError, EnsembleWarning, PoolError
from ensemble.pool import Pool, PoolFile

GOOD = (
    "[[members]]\nname = 'm'\nmodel = 'x/m'\nusd_per_million_input = 1\n"
    "usd_per_million_output = 1\ncontext_window = 8192\n"
)
DEEP = "a." * 400_000 + "a = 1"


def pool(text: str | bytes, before: str = "") -> Callable[[Path], Pool]:
    """A pool file that says this is read."""

    def act(folder: Path) -> Pool:
        path = folder / "pool.toml"
        path.write_bytes(text if isinstance(text, bytes) else (before + text).encode())
        return Pool.load(path)

    return act


def line(text: str) -> Callable[[Path], Pool]:
    """A sound pool's file with a line more on its member."""
    return pool(text, before=GOOD)


def placed(put: Callable[[Path], object]) -> Callable[[Path], Pool]:
    """Something else than a file is where the pool should be."""

    def act(folder: Path) -> Pool:
        put(folder / "pool.toml")
        return Pool.load(folder / "pool.toml")

    return act


def replaced(put: Callable[[Path], object]) -> Callable[[Path], None]:
    """The file of a pool in use is replaced: it should be told once, and the pool stay as it was."""

    def act(folder: Path) -> None:
        path = folder / "pool.toml"
        path.write_text(GOOD)
        file = PoolFile(path)
        good = file.current()
        path.unlink()
        put(path)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            if any(file.current() is not good for _ in range(3)):
                raise AssertionError("another pool is in force")
        if [one.category for one in told] != [EnsembleWarning]:
            raise AssertionError(f"expected one warning, found {[str(one.message) for one in told]}")

    return act


def torn(folder: Path) -> None:
    """Rewritten piece by piece, and read after each: a piece that is no pool is not used, and at last the new
    one is in force."""
    path = folder / "pool.toml"
    path.write_text(GOOD)
    file = PoolFile(path)
    new = GOOD.replace("'m'", "'n'") + GOOD
    seen = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for end in range(0, len(new) + 1, 7):
            path.write_text(new[:end])
            seen.add(file.current().names)
        path.write_text(new)
        last = file.current().names
    if last != ("n", "m") or not seen <= {("m",), ("n",), ("n", "m")}:
        raise AssertionError(f"at last {last}, before {seen}")


def settings(text: str | bytes) -> Callable[[Path], object]:
    def act(folder: Path) -> object:
        (folder / "ensemble.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_settings(folder / "ensemble.toml")

    return act


def piped(folder: Path) -> object:
    os.mkfifo(folder / "ensemble.toml")
    return read_settings(folder / "ensemble.toml")


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def vast(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)


PLAIN = "not a plain file"
CASES = (
    Case("a pool with nothing wrong", pool(GOOD), None),
    Case("a key of 400,000 parts", pool(DEEP), PoolError, "nested too deeply"),
    Case("the same in a table's name", pool("[" + "a." * 400_000 + "a]"), PoolError, "nested too deeply"),
    Case("the same in quotes", pool('"a b" . ' * 100_000 + "a = 1"), PoolError, "nested too deeply"),
    Case("the same behind a text", pool("b = {c = '''d'''', " + DEEP + "}"), PoolError, "nested too deeply"),
    Case("100,000 brackets", pool("a = " + "[" * 100_000), PoolError, "nested too deeply"),
    Case("100,000 tables in each other", pool("a = " + "{a = " * 100_000), PoolError, "nested too deeply"),
    Case("180,000 texts that never end", pool('"""\n\\' * 180_000), PoolError, "Expected '='"),
    Case("a number of 100,000 digits", line("first_token_s = " + "9" * 100_000), PoolError, "4300"),
    Case(
        "a price of 400 digits", line("usd_per_million_cached_input = " + "9" * 400), PoolError, "very large"
    ),
    Case("a price of 1e300", line("usd_per_million_cached_input = 1e300"), PoolError, "number up to 1e"),
    Case("a price of nan", line("usd_per_million_cached_input = nan"), PoolError, "found nan"),
    Case("a price of inf", line("usd_per_million_cached_input = inf"), PoolError, "found inf"),
    Case("a price below nothing", line("usd_per_million_cached_input = -1"), PoolError, "found -1"),
    Case("a name that moves the cursor", pool(GOOD.replace("'m'", '"\\u001b[2J"')), PoolError, "a name such"),
    Case("a name that is read backwards", pool(GOOD.replace("'m'", '"\\u202em"')), PoolError, "a name such"),
    Case(
        "a model of two lines", pool(GOOD.replace("'x/m'", '"x/m\\nHost: y"')), PoolError, "litellm's model"
    ),
    Case("bytes that are no UTF-8", pool(b"# \xff\xfe"), PoolError, "'utf-8'"),
    Case("a NUL", pool(b"a\x00 = 1"), PoolError, "found: "),
    Case("a file of 2 MB", pool("#" * 2_000_000), PoolError, "at most 1 MB"),
    Case("a file of 1 TB", placed(vast), PoolError, "at most 1 MB"),
    Case("a pipe", placed(os.mkfifo), PoolError, PLAIN),
    Case("a folder", placed(os.mkdir), PoolError, PLAIN),
    Case("a link to a device without an end", placed(endless), PoolError, PLAIN),
    Case("a link to itself", placed(lambda path: path.symlink_to(path)), PoolError, "readable pool file"),
    Case("a path with a NUL", lambda folder: PoolFile(f"{folder}/\0"), PoolError, "null byte"),
    Case("in use, replaced by a pipe", replaced(os.mkfifo), None),
    Case("in use, replaced by a folder", replaced(os.mkdir), None),
    Case("in use, replaced by a device", replaced(endless), None),
    Case("in use, replaced by a deep key", replaced(lambda path: path.write_text(DEEP)), None),
    Case("in use, replaced by a file of 1 TB", replaced(vast), None),
    Case("in use, rewritten piece by piece", torn, None),
    Case("settings: a pipe", piped, ConfigError, PLAIN),
    Case("settings: a key of 400,000 parts", settings(DEEP), ConfigError, "nested too deeply"),
    Case("settings: no UTF-8", settings(b"\xff"), ConfigError, "'utf-8'"),
    Case("settings: 2 MB", settings("#" * 2_000_000), ConfigError, "at most 1 MB"),
    Case("settings: nobody's home", settings("pool = '~no such user/x'"), ConfigError, "expected a path"),
    Case("settings: a NUL in a path", settings('log = "a\\u0000b"'), ConfigError, "expected a path"),
    Case("settings: a key of 900 KB", settings("a" * 900_000 + " = 1"), ConfigError, "^.{0,400}$"),
    Case("settings: a value of 900 KB", settings(f"pool = ['{'a' * 900_000}']"), ConfigError, "^.{0,400}$"),
)

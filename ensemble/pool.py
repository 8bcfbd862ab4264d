"""Who is on offer now, and at what price: the pool, and the file that it is read from.

A pool is a TOML file, or the same tables in code::

    willingness_to_pay_usd = 0.01       # the default dial, USD per unit of reward; inf is allowed
    exploration = 0.02                  # optional, as is usd_per_second

    [[members]]
    name = "gpt-4o"                     # must be unique
    model = "openai/gpt-4o"             # litellm's model string
    params = { timeout = 30 }           # optional; goes to litellm unchanged

    [[members]]
    name = "ours"
    kind = "tuned"                      # frontier (the default), tuned or specialist
    usd_per_million_input = 0.2         # any field of records.Member; what is left out is looked up
    usd_per_million_output = 0.2
    context_window = 8192               # with both prices and this, nothing is looked up
    [[members.deployments]]             # in place of model: the same member in several places
    model = "hosted_vllm/ours"
    api_base = "http://10.0.0.5:8000/v1"    # all but model goes to litellm unchanged

``owned`` is true for a tuned member unless it says otherwise.
"""

from __future__ import annotations

import copy
import datetime
import math
import os
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import EnsembleWarning, PoolError
from .members import LookUp, described, number, read_member, unknown
from .records import Member, Wishes
from .toml_file import read_toml

NOTICE_DAYS = 30  # a member that goes away within so many days is warned about
_DIALS = ("willingness_to_pay_usd", "usd_per_second", "exploration")


class Pool:
    """The members on offer, in order; made once, then only read.

    ``look_up`` says what is known of a model string (``catalog.look_up``); None asks nobody, and
    then every member must give its prices. ``today`` is held against the members' last days; None
    reads the clock.

    ``names`` is in the pool's order, and so are the array attributes: float64 ``(n_members,)``,
    read-only, NaN where a fact is unknown. ``defaults`` holds the pool's dials, ``warnings`` one
    plain line for each thing its owner should know. Raises PoolError.
    """

    def __init__(
        self,
        members: Iterable[Member | Mapping[str, Any]],
        *,
        look_up: LookUp | None = None,
        willingness_to_pay_usd: float | str = Wishes.willingness_to_pay_usd,
        usd_per_second: float = Wishes.usd_per_second,
        exploration: float = Wishes.exploration,
        today: datetime.date | None = None,
        source: str = "pool",
    ) -> None:
        self.defaults = Wishes(
            willingness_to_pay_usd=_dial(willingness_to_pay_usd, f"{source}: willingness_to_pay_usd"),
            usd_per_second=number(usd_per_second, f"{source}: usd_per_second"),
            exploration=_probability(exploration, f"{source}: exploration"),
        )
        if isinstance(members, Mapping | str) or not isinstance(members, Iterable):
            raise PoolError(
                f"{source}: members: expected a list of tables, found {described(members)}. "
                "Open each member with [[members]], in two pairs of brackets."
            )
        today = today or datetime.date.today()
        by_name: dict[str, Member] = {}
        self._remarks: dict[str, tuple[str, ...]] = {}
        for place, table in enumerate(members, start=1):
            member, remarks = read_member(table, f"{source}: member {place}", look_up)
            if member.name in by_name:
                raise PoolError(
                    f"{source}: expected each name once, found {member.name!r} again as member {place}. "
                    "Rename it, or make the two places deployments of one member."
                )
            by_name[member.name] = member
            self._remarks[member.name] = (*remarks, *_last_day(member, today))
        if not by_name:
            raise PoolError(f"{source}: expected at least one member, found none. Add a [[members]] table.")
        self._arrange(by_name)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        look_up: LookUp | None = None,
        *,
        today: datetime.date | None = None,
    ) -> Pool:
        """The pool of a TOML file. A PoolError names the file, the member, and what to do."""
        source = os.fspath(path)
        tables = read_toml(source, "pool", PoolError)
        for key in tables:
            if key not in (*_DIALS, "members"):
                raise PoolError(f"{source}: {unknown(key, (*_DIALS, 'members'))}")
        dials = {dial: tables[dial] for dial in _DIALS if dial in tables}
        return cls(tables.get("members", ()), look_up=look_up, today=today, source=source, **dials)

    def _arrange(self, by_name: dict[str, Member]) -> None:
        self._by_name = by_name
        self.names = tuple(by_name)
        self.warnings = tuple(f"{name}: {remark}" for name in by_name for remark in self._remarks[name])
        self.usd_per_million_input = self._column("usd_per_million_input")
        self.usd_per_million_output = self._column("usd_per_million_output")
        self.usd_per_million_cached_input = self._column("usd_per_million_cached_input")
        self.context_window = self._column("context_window")
        self.max_output_tokens = self._column("max_output_tokens")
        self.first_token_s = self._column("first_token_s")
        self.tokens_per_second = self._column("tokens_per_second")

    def _column(self, field: str) -> npt.NDArray[np.float64]:
        values = (getattr(member, field) for member in self)
        column = np.array([math.nan if value is None else value for value in values], dtype=np.float64)
        column.flags.writeable = False
        return column

    def without(self, *names: str) -> Pool:
        """The same pool less these members. Raises PoolError on an unknown name, or if none would be left."""
        left_out = {self[name].name for name in names}
        kept = {name: member for name, member in self._by_name.items() if name not in left_out}
        if not kept:
            raise PoolError(f"expected a pool with a member left, found all {len(self)} left out. Keep one.")
        smaller = copy.copy(self)
        smaller._arrange(kept)
        return smaller

    def __getitem__(self, name: str) -> Member:
        if name not in self._by_name:
            raise PoolError(unknown(name, self.names, "member"))
        return self._by_name[name]

    def __iter__(self) -> Iterator[Member]:
        return iter(self._by_name.values())

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def __len__(self) -> int:
        return len(self._by_name)

    def __repr__(self) -> str:
        return f"<Pool of {len(self)}: {', '.join(self.names)}>"


class PoolFile:
    """A pool file, read again whenever it changes. Thread-safe, and usable after a fork.

    The constructor raises PoolError on a file that cannot be used. A later version that cannot be
    used is warned about once (EnsembleWarning), and the last good pool stays in force.
    """

    def __init__(self, path: str | os.PathLike[str], look_up: LookUp | None = None) -> None:
        self.path = os.fspath(path)
        self._look_up = look_up
        self._stamp = _stamp(self.path)  # taken before reading: a change in between is seen next time
        self._pool = Pool.load(self.path, look_up)
        self._reloading, self._process = threading.Lock(), os.getpid()

    def current(self) -> Pool:
        """The pool as the file has it now; microseconds while the file stays as it is."""
        stamp = _stamp(self.path)
        if stamp != self._stamp:
            self._reload(stamp)
        return self._pool

    def _reload(self, stamp: tuple[int, ...]) -> None:
        if self._process != os.getpid():  # the fork may have copied a lock that somebody held
            self._reloading, self._process = threading.Lock(), os.getpid()
        if not self._reloading.acquire(blocking=False):
            return  # another thread is at it; until then the last good pool serves
        problem = None
        try:
            if stamp != self._stamp:  # nobody was quicker
                self._pool = Pool.load(self.path, self._look_up)
        except PoolError as error:
            problem = error
        finally:
            self._stamp = stamp
            self._reloading.release()
        if problem is not None:  # outside the lock: a warning may be turned into an error
            message = f"a changed pool file is not used, the last good one stays in force: {problem}"
            warnings.warn(message, EnsembleWarning, stacklevel=3)


def _stamp(path: str) -> tuple[int, ...]:
    """What changes with the file; empty while there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # the latter for a NUL in its name
        return ()
    return status.st_mtime_ns, status.st_size, status.st_ino


def _dial(value: object, where: str) -> float:
    return number(math.inf if value == "inf" else value, where, infinite=True)


def _probability(value: object, where: str) -> float:
    probability = number(value, where)
    if probability >= 1:
        raise PoolError(f"{where}: expected a probability in [0, 1), found {probability:g}. Lower it.")
    return probability


def _last_day(member: Member, today: datetime.date) -> list[str]:
    if member.retires is None:
        return []
    days = (member.retires - today).days
    if days > NOTICE_DAYS:
        return []
    when = f"was to be retired by its provider on {member.retires}, {-days} days ago"
    if days >= 0:
        when = f"will be retired by its provider on {member.retires}, in {days} days"
    return [f"{when}: have another member ready, or take it out of the pool"]

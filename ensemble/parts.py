"""What is open, and since when? Router, pool, log, sender and health of one ``Ensemble``, on first use."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ensemble import bundle, catalog, config
from ensemble.alarms import Alarm
from ensemble.dispatch import Dispatcher
from ensemble.errors import ConfigError, EnsembleWarning
from ensemble.health import N_EARLIER, Health
from ensemble.inference import Device
from ensemble.members import described
from ensemble.outcomes import OutcomeLog
from ensemble.pool import Pool, PoolFile
from ensemble.prior import Prior
from ensemble.records import FloatArray, Member
from ensemble.router import Router

Place = str | os.PathLike[str]


@dataclass(frozen=True, eq=False)
class Terms:
    """What follows from a router and a pool together; made anew when the pool changes.

    ``characters_per_token`` (n_members,) in the pool's order.
    """

    pool: Pool
    members: Mapping[str, Member]
    prior: Prior
    characters_per_token: FloatArray


class Parts:
    """Opens what is asked for and keeps it open. Thread-safe.

    After a fork router, pool and log look after themselves; connections to providers are made anew, and of
    its members' health a child knows what the log does.
    """

    def __init__(
        self,
        router: Place | Router | None,
        pool: Place | Pool | None,
        log: Place | OutcomeLog | bool | None,
        log_settings: Mapping[str, Any],
        device: Device,
        clock: Callable[[], float],
        on_alarm: Callable[[Alarm], None] = lambda alarm: None,
    ) -> None:
        _check("router", router, Router)
        _check("pool", pool, Pool)
        _check("log", log, OutcomeLog, bool)
        self._given_router, self._given_pool, self._given_log = router, pool, log
        self._log_settings, self._device, self._clock = log_settings, device, clock
        self._on_alarm = on_alarm
        self._lock, self._process = threading.RLock(), os.getpid()
        self._router = router if isinstance(router, Router) else None
        self._pool = pool if isinstance(pool, Pool) else None
        self._pool_file: PoolFile | None = None
        self._log = log if isinstance(log, OutcomeLog) else None
        self._terms: Terms | None = None
        self._sender: tuple[Pool, Dispatcher] | None = None
        self._health: Health | None = None

    def _own(self) -> threading.RLock:
        if self._process != os.getpid():  # the fork may have copied a lock that somebody held
            self._lock, self._process = threading.RLock(), os.getpid()
            self._sender = self._health = None
        return self._lock

    def open(self) -> float:
        """Open all that a call needs; how many seconds that took, 0 where it was open."""
        if self._health is not None and self._process == os.getpid():
            return 0.0
        began = self._clock()
        self.sender(self.terms.pool)
        _ = self.health
        return self._clock() - began

    @property
    def router(self) -> Router:
        if self._router is None:
            with self._own():
                if self._router is None:
                    given = self._given_router
                    assert not isinstance(given, Router)
                    self._router = Router.load(given, self._device)
        return self._router

    @property
    def pool(self) -> Pool:
        """The pool in force: of a file, as the file is now."""
        if self._pool is not None:
            return self._pool
        if self._pool_file is None:
            with self._own():
                if self._pool_file is None:
                    given = self._given_pool
                    assert not isinstance(given, Pool)
                    file = PoolFile(
                        bundle.shipped_folder() / "pool.toml" if given is None else given, catalog.look_up
                    )
                    if given is not None:  # of its own pool the library says it in the card
                        for line in file.current().warnings:
                            warnings.warn(line, EnsembleWarning, stacklevel=2)
                    self._pool_file = file
        return self._pool_file.current()

    @property
    def log(self) -> OutcomeLog | None:
        """None where nothing is to be kept."""
        if self._given_log is False:
            return None
        if self._log is None:
            with self._own():
                if self._log is None:
                    given = self._given_log
                    assert not isinstance(given, OutcomeLog)
                    place = config.state_folder() / "log.db" if given is None or given is True else given
                    self._log = OutcomeLog.open(place, clock=self._clock, **self._log_settings)
        return self._log

    @property
    def terms(self) -> Terms:
        pool, terms = self.pool, self._terms
        if terms is None or terms.pool is not pool:
            router = self.router
            ratio = router.characters_per_token
            usual = sum(ratio.values()) / len(ratio)
            terms = self._terms = Terms(
                pool,
                {member.name: member for member in pool},
                Prior(router.members, pool, router.references()),
                np.array([ratio.get(name, usual) for name in pool.names]),
            )
        return terms

    def sender(self, pool: Pool) -> Dispatcher:
        """What calls the members of this pool."""
        with self._own():
            if self._sender is None or self._sender[0] is not pool:
                self._sender = pool, Dispatcher(pool)
            return self._sender[1]

    @property
    def health(self) -> Health:
        """What this process knows of its members, beginning with what the log does."""
        with self._own():
            if self._health is None:
                earlier = self.log.latest_attempts(N_EARLIER) if self.log is not None else ()
                self._health = Health(self._clock, self._on_alarm, earlier)
            return self._health

    def close(self) -> None:
        """Write out and close the log, unless it was opened elsewhere."""
        with self._own():
            if self._log is not None and not isinstance(self._given_log, OutcomeLog):
                self._log.close()
                self._log = None


def _check(name: str, given: object, kind: type, *others: type) -> None:
    if given is not None and not isinstance(given, str | os.PathLike | kind) and type(given) not in others:
        raise ConfigError(f"{name}: expected a path or an open {kind.__name__}, found {described(given)}.")

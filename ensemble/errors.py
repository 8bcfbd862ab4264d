"""Every error this library raises, in one tree.

    EnsembleError
    ├── ConfigError            settings: arguments, ensemble.toml, environment
    │   └── PoolError          a pool file or a member in it
    ├── InputError             what the caller passed to one call: messages, dials, rewards
    ├── BundleError            a router's folder: missing, changed, of an unknown format
    ├── TableError             an outcome table that cannot be learned from
    ├── LogError               the log cannot be opened, read or written
    ├── MissingExtraError      an optional dependency that this step needs (an ImportError too)
    ├── NoEligibleMemberError  nobody in the pool may serve this request
    ├── BudgetSpentError       a hard budget has nothing left
    └── CallFailedError        members were called and none of them answered
        └── StreamBrokenError  a stream ended after its first token had reached the caller

A message says what was expected, what was found, and what to do next. ``args`` are what an error was made
from, so that it can be copied, and sent from one process to another.
"""

from __future__ import annotations

from collections.abc import Mapping


class EnsembleError(Exception):
    """Base of every error raised on purpose by this library."""


class EnsembleWarning(UserWarning):
    """Something goes on, but not as asked: a fall-back was taken, a reload refused."""


class ConfigError(EnsembleError, ValueError):
    """A setting is missing, unknown or out of range."""


class PoolError(ConfigError):
    """A pool file or one of its members cannot be used."""


class InputError(EnsembleError, ValueError):
    """An argument of one call cannot be used."""


class BundleError(EnsembleError):
    """A router's folder is missing, changed, or of a format this version cannot read."""


class TableError(EnsembleError, ValueError):
    """An outcome table breaks its contract."""


class LogError(EnsembleError):
    """The log cannot be opened, read or written."""


class MissingExtraError(EnsembleError, ImportError):
    """An optional dependency is not installed.

    ``extra`` is the name to install: ``pip install "ensemble-router[extra]"``.
    """

    def __init__(self, module: str, extra: str, purpose: str) -> None:
        self.extra = extra
        super().__init__(module, extra, purpose)

    def __str__(self) -> str:
        module, extra, purpose = self.args
        return (
            f"{purpose} needs the module {module!r}, which is not installed. "
            f'Install it with: pip install "ensemble-router[{extra}]"'
        )


class NoEligibleMemberError(EnsembleError):
    """No member of the pool may serve this request.

    ``reasons`` maps each member's name to why it was left out.
    """

    def __init__(self, reasons: Mapping[str, str]) -> None:
        self.reasons = dict(reasons)
        super().__init__(self.reasons)

    def __str__(self) -> str:
        listing = "\n".join(f"  {name}: {why}" for name, why in self.reasons.items())
        return (
            f"none of the {len(self.reasons)} members of the pool is eligible for this request:\n"
            f"{listing}\nLoosen the request's limits, among which is what is left of a hard budget, or add a "
            "member that meets them to the pool."
        )


class BudgetSpentError(EnsembleError):
    """A hard budget has nothing left for this call."""


class CallFailedError(EnsembleError):
    """Members were called and none answered.

    ``failures`` maps each member that was tried to its error, in the order of the attempts;
    ``decision_id`` finds the attempts in the log.
    """

    def __init__(self, failures: Mapping[str, str], decision_id: str, advice: str = "") -> None:
        self.failures = dict(failures)
        self.decision_id = decision_id
        super().__init__(self.failures, decision_id, advice)

    def __str__(self) -> str:
        advice = self.args[2]
        listing = "\n".join(f"  {name}: {what}" for name, what in self.failures.items())
        tried = f" from {len(self.failures)} member(s) tried" if self.failures else ", as nobody was asked"
        return "\n".join(filter(None, [f"no answer{tried} (decision {self.decision_id}):", listing, advice]))


class StreamBrokenError(CallFailedError):
    """A stream ended early, after part of the answer had already been handed over."""

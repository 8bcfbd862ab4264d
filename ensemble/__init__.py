"""Send each prompt to the member of a model pool that will answer best per dollar, and learn from it.

    import ensemble
    reply = ensemble.complete("Prove that the square root of 2 is irrational.", willingness_to_pay_usd=0.02)
    reply.choices[0].message.content
    reply.decision
    ensemble.feedback(reply, reward=1.0)

The functions use one default ``Ensemble``: made by ``configure(...)``, else from the file named by the
variable ENSEMBLE_CONFIG, else from ./ensemble.toml, else of the router and pool that come along, with a
log in the user's state folder. Importing does nothing; everything is opened on first use.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from ensemble.budget import Budget
    from ensemble.engine import Ensemble
    from ensemble.errors import (
        BudgetSpentError,
        BundleError,
        CallFailedError,
        ConfigError,
        EnsembleError,
        EnsembleWarning,
        InputError,
        LogError,
        MissingExtraError,
        NoEligibleMemberError,
        PoolError,
        StreamBrokenError,
        TableError,
    )
    from ensemble.outcomes import OutcomeLog
    from ensemble.pool import Pool
    from ensemble.records import Decision, Deployment, Forecast, Member, Prediction, Wishes
    from ensemble.router import Router
    from ensemble.text import Messages

_HOMES = {
    "budget": ("Budget",),
    "engine": ("Ensemble",),
    "errors": (
        "BudgetSpentError",
        "BundleError",
        "CallFailedError",
        "ConfigError",
        "EnsembleError",
        "EnsembleWarning",
        "InputError",
        "LogError",
        "MissingExtraError",
        "NoEligibleMemberError",
        "PoolError",
        "StreamBrokenError",
        "TableError",
    ),
    "outcomes": ("OutcomeLog",),
    "pool": ("Pool",),
    "records": ("Decision", "Deployment", "Forecast", "Member", "Prediction", "Wishes"),
    "router": ("Router",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Budget",
    "BudgetSpentError",
    "BundleError",
    "CallFailedError",
    "ConfigError",
    "Decision",
    "Deployment",
    "Ensemble",
    "EnsembleError",
    "EnsembleWarning",
    "Forecast",
    "InputError",
    "LogError",
    "Member",
    "MissingExtraError",
    "NoEligibleMemberError",
    "OutcomeLog",
    "Pool",
    "PoolError",
    "Prediction",
    "Router",
    "StreamBrokenError",
    "TableError",
    "Wishes",
    "acomplete",
    "aroute",
    "complete",
    "configure",
    "feedback",
    "forget",
    "route",
    "route_batch",
]
__version__ = "0.1.0"

_default: Ensemble | None = None
_lock = threading.Lock()


def configure(**settings: Any) -> Ensemble:
    """Make the default instance; takes the keywords of ``Ensemble`` and returns it."""
    global _default
    from ensemble.engine import Ensemble

    fresh = Ensemble(**settings)
    with _lock:
        stale, _default = _default, fresh
    if stale is not None:
        stale.close()
    return fresh


def _instance() -> Ensemble:
    global _default
    if _default is None:
        from ensemble.config import find_settings
        from ensemble.engine import Ensemble

        with _lock:
            if _default is None:
                _default = Ensemble(**find_settings())
    return _default


def complete(prompt: Messages, **keywords: Any) -> Any:
    """``Ensemble.complete`` of the default instance."""
    return _instance().complete(prompt, **keywords)


async def acomplete(prompt: Messages, **keywords: Any) -> Any:
    """``Ensemble.acomplete`` of the default instance."""
    return await _instance().acomplete(prompt, **keywords)


def route(prompt: Messages, **keywords: Any) -> Decision:
    """``Ensemble.route`` of the default instance."""
    return _instance().route(prompt, **keywords)


async def aroute(prompt: Messages, **keywords: Any) -> Decision:
    """``Ensemble.aroute`` of the default instance."""
    return await _instance().aroute(prompt, **keywords)


def route_batch(prompts: Iterable[Messages], **keywords: Any) -> Iterator[Decision]:
    """``Ensemble.route_batch`` of the default instance."""
    return _instance().route_batch(prompts, **keywords)


def feedback(decision: Any, reward: float, *, source: str = "caller") -> None:
    """``Ensemble.feedback`` of the default instance."""
    _instance().feedback(decision, reward, source=source)


def forget(decision: Any = None, *, metadata: Mapping[str, Any] | None = None) -> int:
    """``Ensemble.forget`` of the default instance."""
    return _instance().forget(decision, metadata=metadata)


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

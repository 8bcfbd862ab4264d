"""One provider is gone for the middle third of a run: who notices, and how much longer does a call take?

The member that the dial prefers is served by a process of its own, which is killed after a third of the calls
and started again, at the same port, after two. A second member, elsewhere, is well all the time. For every
call there is one in a control, made just after it by the same thread: the second member, asked directly, in
an ensemble that nothing happens to.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.faults_callers import FIRST, SECOND, Ended, ask, crowd, member, prompts, unheard
from benchmarks.faults_provider import Started, provider, start
from ensemble.engine import Ensemble
from ensemble.pool import Pool
from ensemble.router import Router

CALLERS = 4
PACE_S = 0.02  # between a caller's calls: what is measured is a call, not a queue

Row = Mapping[str, Any]


def outage(
    router: Router, n_calls: int, places: int, seed: int, folder: Path, told: Callable[[str], None]
) -> dict[str, Any]:
    """Figures of a run whose preferred member has so many deployments (``places``), all at the provider that
    goes away; milliseconds."""
    told(f"outage: {n_calls:,} calls and as many in the control, {places} deployment(s) of the member")
    with contextlib.ExitStack() as stack:
        well = stack.enter_context(provider())
        move, comes = stack.enter_context(_coming_and_going(n_calls))
        pools = (
            Pool([member(FIRST, *[comes.base] * places), member(SECOND, well.base)]),
            Pool([member(FIRST, well.base), member(SECOND, well.base)]),
        )
        ours, control = (
            stack.enter_context(
                Ensemble(router=router, pool=pool, log=folder / f"outage-{places}-{i}.db", on_alarm=unheard)
            )
            for i, pool in enumerate(pools)
        )
        for each in (ours, control):
            for name in (FIRST, SECOND):
                ask(each, "warm", "warm up, please", {"members": [name]})
        beside: dict[str, Ended] = {}

        def one(item: tuple[int, tuple[str, str], tuple[str, str]]) -> Ended:
            i, call, again = item
            move(i)
            ended = ask(ours, *call, {})
            time.sleep(PACE_S)
            beside[ended.tag] = ask(control, *again, {"members": [SECOND]})
            time.sleep(PACE_S)
            return ended

        rng = random.Random(seed)
        items = zip(itertools.count(), prompts(n_calls, rng), prompts(n_calls, rng, "same"), strict=False)
        ended = crowd(one, items, CALLERS, lambda done: None)
        assert ours.log is not None
        rows = {row["decision_id"]: row for row in ours.log.rows()}
    counts = {"places": places, "calls": n_calls, "callers": CALLERS}
    return counts | figures(ended, [beside[call.tag] for call in ended], rows)


@contextlib.contextmanager
def _coming_and_going(n: int) -> Iterator[tuple[Callable[[int], None], Started]]:
    """What is to be called before call i of n, and a provider: killed after a third, back after two."""
    current, lock, steps = [start()], threading.Lock(), [0]

    def move(i: int) -> None:
        with lock:
            if steps[0] == 0 and i >= n // 3:
                steps[0] = 1
                current[0].kill()
            elif steps[0] == 1 and i >= 2 * n // 3:
                steps[0] = 2
                current[0] = start(port=current[0].port)

    try:
        yield move, current[0]
    finally:
        current[0].kill()


def figures(ended: Sequence[Ended], control: Sequence[Ended], rows: Mapping[str, Row]) -> dict[str, Any]:
    """``ended`` in the order of the calls, with the control of each. The cool-down has started with the first
    call of the middle third that another member served without the dead one being tried."""
    n = len(ended)
    middle, after = ended[n // 3 : 2 * n // 3], ended[2 * n // 3 :]
    tried = [_tried(rows[str(call.decision_id)]) for call in middle]
    spared = [call.at for call, names in zip(middle, tried, strict=True) if FIRST not in names]
    cooled = [call for call in middle if spared and call.at >= min(spared)]
    # Where none has started there is nothing else to hold against the aim than all of the third.
    since = min((call.at for call in cooled), default=-math.inf)
    beside = [c for call, c in zip(middle, control[n // 3 :], strict=False) if call.at >= since]
    control_ms, middle_ms = _p50(beside), _p50(middle)
    cooled_ms = _p50(cooled) if cooled else None
    return {
        "failed": sum(call.error is not None for call in ended),
        "control_ms": control_ms,
        "middle_ms": middle_ms,
        "cooled_ms": cooled_ms,
        "healthy_ms": _p50(ended[: n // 3]),
        "added_ms": (middle_ms if cooled_ms is None else cooled_ms) - control_ms,
        "middle_calls": len(middle),
        "cooled_calls": len(cooled),
        "tried_the_dead": sum(FIRST in names for names in tried),
        "asked_the_dead": sum(_asked(rows[str(call.decision_id)]) for call in middle),
        "back": sum(_tried(rows[str(call.decision_id)]) == [FIRST] for call in after) / max(1, len(after)),
    }


def _tried(row: Row) -> list[str]:
    return [attempt["member"] for attempt in row["attempts"]]


def _asked(row: Row) -> bool:
    """Whether a connection to the dead member was tried, and not only litellm asked, who knew better."""
    return any(
        a["member"] == FIRST and "RouterRateLimitError" not in str(a["error"]) for a in row["attempts"]
    )


def _p50(calls: Sequence[Ended]) -> float:
    return 1e3 * statistics.median(call.seconds for call in calls)

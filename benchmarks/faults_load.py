"""What do callers, log and bill say of thousands of calls of which a third meet a fault?

Three members at one provider, two of them flaky. The log's attempts are held against the provider's bill by
the prompt's tag and the member, who is asked at most once for a call.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.faults_callers import (
    FIRST,
    MEMBERS,
    PRICES,
    SECOND,
    Ended,
    ask,
    crowd,
    member,
    prompts,
    unheard,
)
from benchmarks.faults_provider import provider
from ensemble.engine import Ensemble
from ensemble.pool import Pool
from ensemble.router import Router

CALLERS = 64
DELAY_S = 1.5  # of every answer: callers wait for members, not for the processor
DEADLINES_S = (4.5, 4.5, 4.5, 4.5, 1.0)  # beyond that; the last is sooner than a slow answer
TIMEOUT_S = 0.8  # beyond it, too, of one attempt, where a call asks for it
FLAKY = (FIRST, SECOND)
SHORT = 16  # max_tokens of some calls
TOLERANCE_S = 0.5  # to notice that the deadline has passed, with 64 threads on few cores

Line = Mapping[str, Any]


def load(
    router: Router,
    n_calls: int,
    share: float,
    seed: int,
    folder: Path,
    told: Callable[[str], None],
    delay_s: float = DELAY_S,
) -> dict[str, Any]:
    """Plain figures of one run; every answer takes ``delay_s`` at least."""
    rng = random.Random(seed)
    items = [(tag, prompt, _keywords(tag, rng, delay_s)) for tag, prompt in prompts(n_calls, rng)]
    with provider(flaky=FLAKY, share=share, seed=seed, delay_s=delay_s) as server:
        pool = Pool([member(name, server.base) for name in MEMBERS])
        with Ensemble(router=router, pool=pool, log=folder / "load.db", on_alarm=unheard) as ours:
            ask(ours, "warm", "warm up, please", {"members": [MEMBERS[-1]]})
            began = time.perf_counter()
            ended = crowd(
                lambda item: ask(ours, *item),
                items,
                CALLERS,
                lambda n: told(f"load: {n:,} of {n_calls:,} calls") if n % 100 == 0 else None,
            )
            seconds = time.perf_counter() - began
            assert ours.log is not None
            rows = [row for row in ours.log.rows() if (row["metadata"] or {}).get("tag")]
            bill = [line for line in server.bill() if line["tag"] != "warm"]
    figures = {"calls": n_calls, "callers": CALLERS, "members": len(MEMBERS), "seconds": seconds}
    return figures | callers_see(ended) | answers(ended, bill) | log_holds(ended, rows) | money(rows, bill)


def _keywords(tag: str, rng: random.Random, delay_s: float) -> dict[str, Any]:
    keywords: dict[str, Any] = {
        "max_latency_s": delay_s + rng.choice(DEADLINES_S),
        "metadata": {"tag": tag},
    }
    if rng.random() < 0.3:
        keywords["stream"] = True
    if rng.random() < 0.3:
        keywords["timeout"] = delay_s + TIMEOUT_S
    if rng.random() < 0.3:
        keywords["max_tokens"] = SHORT
    return keywords


def callers_see(ended: Sequence[Ended]) -> dict[str, Any]:
    """How calls ended, and by how much their deadlines were overrun."""
    over = [call.seconds - call.deadline_s for call in ended if call.deadline_s is not None]
    failed = [call for call in ended if call.error]
    # Before its deadline a call has no reason to fail while a member is well, but in the middle of a stream.
    early = [call for call in failed if call.deadline_s is not None and call.seconds < call.deadline_s - 0.05]
    times = sorted(call.seconds for call in ended)
    return {
        "answered": sum(call.error is None for call in ended),
        "errors": dict(Counter(str(call.error) for call in failed)),
        "failed_early": dict(Counter(str(call.error) for call in early)),
        "tolerance_s": TOLERANCE_S,
        "overrun_s": max(0.0, *over) if over else 0.0,
        "overruns": sum(each > TOLERANCE_S for each in over),
        "p50_s": times[len(times) // 2],
        "p99_s": times[int(0.99 * (len(times) - 1))],
    }


def answers(ended: Iterable[Ended], bill: Sequence[Line]) -> dict[str, Any]:
    """Whether each answer is one that the provider gave to that very call, and to nobody else."""
    good = {(line["tag"], str(line["serial"])) for line in bill if line["whole"]}
    got = [(call.tag, *(call.text or "").split()[:2]) for call in ended if call.error is None]
    asked = Counter((line["tag"], line["model"]) for line in bill)
    return {
        "strange_answers": sum(len(said) != 3 or said[0] != said[1] or said[1:] not in good for said in got),
        "answers_given_twice": sum(n > 1 for n in Counter(got).values()),
        "members_asked_twice": sum(n > 1 for n in asked.values()),
    }


def log_holds(ended: Iterable[Ended], rows: Sequence[Line]) -> dict[str, Any]:
    """Decisions, outcomes and who served, against what callers got."""
    by_tag = Counter(row["metadata"]["tag"] for row in rows)
    served = {row["decision_id"]: row["served_member"] for row in rows}
    wrong = 0
    for call in ended:
        whole = call.error is None
        wrong += whole != (served.get(str(call.decision_id)) is not None)
    return {
        "decisions": len(rows),
        "without_outcome": sum(row["ended_at"] is None for row in rows),
        "calls_with_other_than_one_decision": sum(by_tag[call.tag] != 1 for call in ended),
        "served_otherwise_than_seen": wrong,
        "served_by": dict(Counter(str(row["served_member"]) for row in rows)),
        "attempts": sum(len(row["attempts"]) for row in rows),
        "attempt_errors": dict(
            Counter(
                a["error"].split(":")[0] for row in rows for a in row["attempts"] if a["error"] is not None
            )
        ),
    }


def cost_usd(line: Line) -> float:
    """What a line of the bill comes to."""
    if not line["billed"]:
        return 0.0
    usd_in, usd_out = PRICES[line["model"]]
    return float(line["input_tokens"] * usd_in + line["output_tokens"] * usd_out) / 1e6


def money(rows: Sequence[Line], bill: Sequence[Line]) -> dict[str, Any]:
    """The log's USD against the bill's, attempt by attempt: known costs, and upper bounds."""
    owed = {(line["tag"], line["model"]): line for line in bill}
    known, known_owed, bound, bound_owed = 0.0, 0.0, 0.0, 0.0
    differ, uncovered, free = 0, Counter[str](), Counter[str]()
    short = 0.0
    for row in rows:
        for attempt in row["attempts"]:
            line = owed.pop((row["metadata"]["tag"], attempt["member"]), None)
            usd, truly = attempt["cost_usd"], cost_usd(line) if line else 0.0
            fault = (line["fault"] or "none") if line else "not asked"
            if attempt["cost_is_estimated"]:
                bound, bound_owed = bound + usd, bound_owed + truly
                if usd < truly - 1e-12:
                    uncovered[fault] += 1
                    short = max(short, truly / usd)
            else:
                known, known_owed = known + usd, known_owed + truly
                differ += abs(usd - truly) > 1e-9
                if usd == 0 < truly:
                    free[fault] += 1
    faults = Counter(line["fault"] for line in bill if line["fault"])
    return {
        "requests": len(bill),
        "faults": dict(sorted(faults.items())),
        "share_of_calls": len({line["tag"] for line in bill if line["fault"]}) / max(1, len(rows)),
        "share_of_requests": sum(faults.values()) / max(1, sum(line["model"] in FLAKY for line in bill)),
        "known_usd": known,
        "known_usd_billed": known_owed,
        "known_that_differ": differ,
        "taken_for_free": dict(free),
        "bound_usd": bound,
        "bound_usd_billed": bound_owed,
        "uncovered": dict(uncovered),
        "worst_uncovered": short,
        "billed_and_not_logged": sum(cost_usd(line) > 0 for line in owed.values()),
        "estimated": sum(a["cost_is_estimated"] for row in rows for a in row["attempts"]),
    }

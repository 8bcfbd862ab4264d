"""Do calls get through, and is nothing lost? Each aim as a claim that one run's figures uphold or refute."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.verdicts import Verdict
from benchmarks.wording import percent

Result = Mapping[str, Any]
Figures = Mapping[str, Any]

CENT = 0.005  # USD: half of one
ADDED_MS = 5.0


def aims(result: Result) -> list[Verdict]:
    """What the figures say of every aim of the parts that were run."""
    found: list[Verdict] = []
    if figures := result.get("load"):
        found += [_answered(figures), _deadline(figures), _once(figures), _dollars(figures)]
        found += [_bounds(figures), _outcomes(figures)]
    for figures in result.get("outage") or []:
        found += [_no_failures(figures), _added(figures)]
    if figures := result.get("kill"):
        found += _kept(figures)
    if rows := result.get("hostile"):
        held = sum(row["held"] for row in rows)
        found.append(Verdict("every hostile input is held off", held == len(rows), f"{held} of {len(rows)}"))
    return found


def _answered(load: Figures) -> Verdict:
    told = f"{load['answered']:,} of {load['calls']:,} answered, others at their deadline or within a stream"
    others = {name: n for name, n in load["failed_early"].items() if name != "StreamBrokenError"}
    strange = {name: n for name, n in load["errors"].items() if name.startswith("not ours")}
    broken = load["failed_early"].get("StreamBrokenError", 0)
    told += f" ({broken} streams broke before it); failed otherwise: {_counts(others | strange)}"
    claim = "every call is answered, or ends at its deadline, or within a stream that broke"
    return Verdict(claim, not others and not strange, told)


def _deadline(load: Figures) -> Verdict:
    claim = f"no call outlives its deadline by over {load['tolerance_s']:g} s"
    told = f"{load['overruns']} did, the worst overrun is {load['overrun_s']:.2f} s"
    return Verdict(claim, load["overruns"] == 0, told)


def _once(load: Figures) -> Verdict:
    names = ("strange_answers", "answers_given_twice", "members_asked_twice", "served_otherwise_than_seen")
    bad = {name.replace("_", " "): load[name] for name in names if load[name]}
    claim = "no call is answered twice, and each gets the answer that was made for it"
    return Verdict(claim, not bad, _counts(bad))


def _dollars(load: Figures) -> Verdict:
    off = abs(load["known_usd"] - load["known_usd_billed"])
    holds = off < CENT and not load["known_that_differ"] and not load["billed_and_not_logged"]
    told = f"{load['known_usd']:.2f} USD logged, {load['known_usd_billed']:.2f} billed; "
    told += f"{load['known_that_differ']} attempts differ, {load['billed_and_not_logged']} are missing"
    if load["taken_for_free"]:
        told += f"; taken for free: {_counts(load['taken_for_free'])}"
    return Verdict("where usage arrived the log's USD are the bill's, to the cent", holds, told)


def _bounds(load: Figures) -> Verdict:
    missed = sum(load["uncovered"].values())
    told = f"{load['bound_usd']:.2f} USD for {load['bound_usd_billed']:.2f} billed; "
    told += f"{missed} of {load['estimated']} bounds are too low"
    if missed:
        told += f", by up to {percent(load['worst_uncovered'] - 1, 0)}: {_counts(load['uncovered'])}"
    return Verdict("where it did not, the upper bound covers the bill, call by call", not missed, told)


def _outcomes(load: Figures) -> Verdict:
    bad = load["without_outcome"] + load["calls_with_other_than_one_decision"]
    told = f"{load['decisions']:,} decisions, {load['without_outcome']} without an outcome"
    return Verdict("exactly one decision per call and one outcome per decision", not bad, told)


def _no_failures(outage: Figures) -> Verdict:
    claim = f"while a provider is gone no call fails ({_places(outage)})"
    return Verdict(claim, outage["failed"] == 0, f"{outage['failed']} of {outage['calls']:,}")


def _added(outage: Figures) -> Verdict:
    claim = f"and once its cool-down has started adds under {ADDED_MS:g} ms at p50 ({_places(outage)})"
    told = f"{outage['added_ms']:+.1f} ms over {outage['control_ms']:.1f}"
    if not outage["cooled_calls"]:
        told += "; no cool-down ever started"
    told += f"; {outage['tried_the_dead']} of {outage['middle_calls']} calls tried the dead member first"
    return Verdict(claim, bool(outage["cooled_calls"]) and outage["added_ms"] < ADDED_MS, told)


def _places(outage: Figures) -> str:
    return "one deployment" if outage["places"] == 1 else f"{outage['places']} deployments"


def _kept(kill: Figures) -> list[Verdict]:
    found = []
    for name, where in {"sqlite_before": "SQLite", "postgres_before": "PostgreSQL"}.items():
        if one := kill[name]:
            found += [_recorded(one, where), _whole(one, where)]
    after = kill["sqlite_after"]
    worst, bound = after["most_records_lost_at_once"], kill["queue_size"]
    told = f"{after['kills']} kills, {after['answers']:,} answers; at most {worst} records lost at once"
    claim = f'kill -9, log "after": at most {bound:,} records are lost'
    return [*found, Verdict(claim, worst <= bound and not after["corrupt"], told)]


def _recorded(one: Figures, where: str) -> Verdict:
    told = f"{one['kills']} kills, {one['answers']:,} answers; without a decision {one['without_decision']}, "
    told += f"without an outcome {one['without_outcome']} (warned of: {one['warned_of']})"
    if server := one.get("server_killed"):
        told += f"; the server was killed {server} times"
    claim = f'kill -9, log "before", {where}: every answer that reached its caller has its records'
    lost = one["without_decision"] + one["without_outcome"]
    return Verdict(claim, not lost and one["answers"] > 0, told)


def _whole(one: Figures, where: str) -> Verdict:
    told = f"{one['corrupt']} corrupt, {one['starts_that_failed']} starts failed; "
    told += f"{one['decisions']:,} decisions read at the end"
    bad = one["corrupt"] + one["starts_that_failed"] + one["without_decision"]
    claim = f"and no log is corrupt, and the next start works ({where})"
    return Verdict(claim, not bad and one["decisions"] >= one["answers"], told)


def _counts(some: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {n}" for name, n in some.items()) or "none"

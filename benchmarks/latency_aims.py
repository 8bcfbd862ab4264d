"""Are decisions as fast as the encoder? Each aim as a claim that the figures of one run uphold or refute.

All are ratios, differences and counts within the run; none is a time that another machine would miss.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.latency_contenders import AWAITED, BARE, LEARNED, OURS
from benchmarks.verdicts import Verdict
from benchmarks.wording import percent

Result = Mapping[str, Any]

SHORT = 16  # tokens: below 64 what is added weighs, from there on the encoder does
TIMES_BARE, OVER_BARE_MS = 1.15, 0.3
TIMES_FASTER = 2.5
SHARE_OF_BARE, BATCH_SHARE_OF_BARE = 0.85, 0.9
OVER_DECISION_MS = 1.0
SERVING_MB, STREAM_MB = (
    320,
    10,
)  # the latter by as much may the peak of the longest stream exceed the shortest's
LEAST_STREAM = 4096  # prompts: in fewer memory still grows because more are at work
LINEAR = 1.1  # exponent: what noise may add to 1


def aims(result: Result) -> list[Verdict]:
    """What the figures say of every aim; none where a contender was left out."""
    found = [_near_bare(result), _over_bare(result), *_faster(result)]
    found += [_crowd(result, name) for name in (OURS, AWAITED)]
    found += [_batch(result), _calls(result), *_memory(result), *_linear(result)]
    return found


def p50(result: Result, tokens: int, callers: int, contender: str) -> float | None:
    """Milliseconds; ``None`` where that was not measured."""
    return figure(result, tokens, callers, contender, "p50_ms")


def figure(result: Result, tokens: int, callers: int, contender: str, name: str) -> float | None:
    """One figure of one contender at one length, with so many callers."""
    for row in result["decisions"]:
        if (row["tokens"], row["callers"], row["contender"]) == (tokens, callers, contender):
            return float(row[name])
    return None


def better_bare(bare: Mapping[str, Any]) -> float:
    """Texts a second that the bare encoder does at one length, batched or one by one."""
    return float(max(bare["batched"], bare["alone"]))


def _near_bare(result: Result) -> Verdict:
    cases = []
    for tokens in _lengths(result, long=True):
        ours, bare = _both(result, tokens, BARE)
        said = f"{ours / bare:.2f} at {tokens:,} ({ours:.2f} and {bare:.2f} ms)"
        cases.append((ours <= TIMES_BARE * bare, said))
    return _each(f"route() at most {TIMES_BARE} times the bare encoder, from 64 tokens on", cases)


def _over_bare(result: Result) -> Verdict:
    cases = []
    for tokens in _lengths(result, long=False):
        ours, bare = _both(result, tokens, BARE)
        said = f"{ours - bare:+.2f} ms at {tokens} ({ours:.2f} and {bare:.2f} ms)"
        cases.append((ours - bare <= OVER_BARE_MS, said))
    return _each(f"route() at most {OVER_BARE_MS} ms over the bare encoder at {SHORT} tokens", cases)


def _faster(result: Result) -> list[Verdict]:
    if p50(result, result["lengths"][0], 1, LEARNED) is None:
        return []
    claims = {
        False: (
            f"route() at least {TIMES_FASTER} times as fast as {LEARNED} at {SHORT} tokens",
            TIMES_FASTER,
        ),
        True: (f"route() not slower than {LEARNED} from 64 tokens on", 1.0),
    }
    found = []
    for long, (claim, least) in claims.items():
        pairs = [(tokens, *_both(result, tokens, LEARNED)) for tokens in _lengths(result, long)]
        cases = [
            (theirs >= least * ours, f"{theirs / ours:.2f} at {tokens:,} ({theirs:.2f} ms)")
            for tokens, ours, theirs in pairs
        ]
        found.append(_each(claim, cases))
    return found


def _crowd(result: Result, contender: str) -> Verdict:
    """At the largest number of callers that was measured."""
    callers = max(result["callers"])
    cases = []
    for bare in result["bare"]:
        if bare["callers"] == callers:
            rate = figure(result, bare["tokens"], callers, contender, "per_second") or 0.0
            share = rate / better_bare(bare)
            said = f"{percent(share, 0)} at {bare['tokens']:,} ({rate:,.0f} of {better_bare(bare):,.0f}/s)"
            cases.append((share >= SHARE_OF_BARE, said))
    return _each(
        f"{callers} callers of {contender} reach {percent(SHARE_OF_BARE, 0)} of the encoder alone", cases
    )


def _batch(result: Result) -> Verdict:
    batch = result["batch"]
    share = batch["route_batch"] / batch["bare"]
    said = f"{percent(share, 0)} ({batch['route_batch']:,.0f} of {batch['bare']:,.0f}/s)"
    claim = f"route_batch() reaches {percent(BATCH_SHARE_OF_BARE, 0)} of the encoder alone"
    return Verdict(claim, share >= BATCH_SHARE_OF_BARE, said)


def _calls(result: Result) -> Verdict:
    cases = []
    for mode in result["calls"]["modes"]:
        added, decision = mode["added_ms"], mode["route"]["p50_ms"]
        by_hand = mode["by_hand"]["p50_ms"] - result["calls"]["litellm"]["p50_ms"]
        said = f'{added:.2f} ms with log "{mode["log_mode"]}" (a decision alone takes {decision:.2f}, '
        said += f"one made by hand before the call adds {by_hand:.2f})"
        cases.append((added <= decision + OVER_DECISION_MS, said))
    claim = f"complete() adds at most the decision and {OVER_DECISION_MS:g} ms to litellm's own call"
    return _each(claim, cases)


def _memory(result: Result) -> list[Verdict]:
    found = []
    served = result["processes"]["served"]["rss_mb"]
    if served is not None:
        claim = f"a serving process stays under {SERVING_MB} MB"
        found.append(Verdict(claim, served < SERVING_MB, f"{served:.0f} MB"))
    rows = result["streams"]["streams"]
    if rows[0]["prompts"] < LEAST_STREAM:
        return found
    grown = rows[-1]["peak_mb"] - rows[0]["peak_mb"]
    times = rows[-1]["prompts"] // rows[0]["prompts"]
    claim = f"route_batch() holds no more memory over {times} times the prompts"
    said = f"{grown:+.1f} MB from {rows[0]['prompts']:,} to {rows[-1]['prompts']:,}"
    return [*found, Verdict(claim, grown <= STREAM_MB, said)]


def _linear(result: Result) -> list[Verdict]:
    """From the exponents; told beside them is the last step by itself."""
    found = []
    streams, pools = result["streams"], result["members"]
    for what, rows, cost, power in (
        ("prompts", streams["streams"], "seconds", streams["exponent"]),
        ("members", pools["costs"], "ms", pools["exponent"]),
    ):
        if power is not None:
            before, last = rows[-2:]
            more, longer = (last[unit] / before[unit] for unit in (what, cost))
            said = f"with power {power:.2f}; {more:.2f} times the {what} take {longer:.2f} times as long"
            claim = f"cost grows linearly in {what}, up to {last[what]:,}"
            found.append(Verdict(claim, power <= LINEAR, said))
    return found


def _lengths(result: Result, long: bool) -> list[int]:
    return [tokens for tokens in result["lengths"] if (tokens > SHORT) == long]


def _both(result: Result, tokens: int, other: str) -> tuple[float, float]:
    """p50 of route() and of another contender, for one caller."""
    ours, theirs = (p50(result, tokens, 1, name) for name in (OURS, other))
    assert ours is not None and theirs is not None
    return ours, theirs


def _each(claim: str, cases: Iterable[tuple[bool, str]]) -> Verdict:
    """One claim about several (whether it holds, figures): all figures are told, exceptions called so."""
    listed = list(cases)
    some = any(holds for holds, _ in listed)
    told = [figures if holds or not some else f"{figures}, missed" for holds, figures in listed]
    return Verdict(claim, all(holds for holds, _ in listed), "; ".join(told))

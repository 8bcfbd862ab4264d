"""Are the aims reached? Each aim of the router as a claim that the stored figures uphold or refute."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.marks import BEST_SINGLE, DATASET_ORACLE, QUERY_ORACLE
from benchmarks.wording import Interval, interval, number, percent
from ensemble.show import usd

Result = Mapping[str, Any]

COMPARED = {"aiq": "AIQ", "aiq_log": "AIQ over log spend", "mean_utility": "mean utility"}
ABOVE_ORACLE = "mmlu_pro"  # where the dataset oracle is to be beaten too
NO_OUTPUT_COST = "llmrouter_dc"  # its costs leave the output out, so there is no spend to foresee
BIAS, SPEND, COVERAGE = 0.01, 0.05, (0.93, 0.97)


@dataclass(frozen=True)
class Verdict:
    """``claim`` is the aim, ``evidence`` the figures that decide whether it ``holds``."""

    claim: str
    holds: bool
    evidence: str


def verdicts(result: Result, iid: Result | None = None) -> list[Verdict]:
    """What one result says of ours. ``iid`` is the same table's result with prompts held out at random, with
    which one of held-out tasks is compared."""
    if not has_ours(result):
        return []
    if result["split"] == "iid":
        found = [_highest(result, figure) for figure in COMPARED if ours(result)[figure] is not None]
        if result["table"] == ABOVE_ORACLE and DATASET_ORACLE in by_name(result):
            found += [_above_the_oracle(result), _surely_above_the_rest(result)]
        found += _trustworthy(result)
    else:
        found = [_no_worse_than_best_single(result), *_covered(result), *_wider(result, iid)]
    return found + _nothing_from_nothing(result)


def ours(result: Result) -> Mapping[str, Any]:
    """The entry of our own method."""
    entry: Mapping[str, Any] = next(each for each in result["methods"] if each["kind"] == "ours")
    return entry


def has_ours(result: Result) -> bool:
    """Not where only some of the other methods were measured."""
    return any(each["kind"] == "ours" for each in result["methods"])


def by_name(result: Result) -> dict[str, Mapping[str, Any]]:
    """The entries of all methods; there is no dataset oracle where tasks are not known."""
    return {each["name"]: each for each in result["methods"]}


def contestants(result: Result, figure: str) -> list[Mapping[str, Any]]:
    """The methods that are ranked by ``figure``: all that have it, less the oracles, which know what no
    method may. The best single member has no AIQ: it is a point, and no curve."""
    oracles = (DATASET_ORACLE, QUERY_ORACLE)
    return [each for each in result["methods"] if each["name"] not in oracles and each[figure] is not None]


def place(result: Result, figure: str) -> int:
    """1 where ours has the highest ``figure`` of the contestants."""
    mine = ours(result)[figure][0]
    return 1 + len([each for each in contestants(result, figure) if each[figure][0] > mine])


def _highest(result: Result, figure: str) -> Verdict:
    mine, best = ours(result), result["best_baseline"][figure]
    difference = mine[f"{figure}_over_best"]
    evidence = f"{number(mine[figure][0])}, {interval(difference, signed=True)} over {best}"
    if difference[1] <= 0 <= difference[2]:
        evidence += ", which may be chance"
    return Verdict(f"highest {COMPARED[figure]} of all but the oracles", place(result, figure) == 1, evidence)


def _above_the_oracle(result: Result) -> Verdict:
    mine, marked = ours(result)["aiq"][0], by_name(result)[DATASET_ORACLE]["aiq"][0]
    evidence = f"{number(mine)} against {number(marked)}"
    return Verdict("AIQ above the dataset oracle's", mine > marked, evidence)


def _surely_above_the_rest(result: Result) -> Verdict:
    difference = ours(result)["aiq_over_best"]
    evidence = f"{interval(difference, signed=True)} over {result['best_baseline']['aiq']}"
    return Verdict("AIQ above the best baseline by more than chance", difference[1] > 0, evidence)


def _no_worse_than_best_single(result: Result) -> Verdict:
    """Against the member that was best on the learned tasks, and against the best in hindsight, whom nobody
    could have known: with whole tasks held out they may be two."""
    mine, known = ours(result), by_name(result)[BEST_SINGLE]["utility"]
    ideal = result["best_single_in_hindsight"]
    cases = []
    for d, dial in list(enumerate(result["dials_usd"]))[-2:]:
        utility, single, lead = mine["utility"][d][0], known[d][0], mine["utility_over_single"][d]
        hindsight = ideal["reward"] - ideal["usd_per_1000"] / 1000 / dial
        shown = f"{number(utility)}, {interval(lead, signed=True)} over {number(single)}"
        shown += f", in hindsight {number(hindsight)}"
        cases.append((f"at {usd(dial)} USD", utility >= max(single, hindsight), shown))
    return _every("utility no worse than the best single member's at the two highest dials", cases)


def _trustworthy(result: Result) -> list[Verdict]:
    trust = result["trust"][ours(result)["name"]]
    members, chosen = trust["members"], trust["chosen"]
    ece = (
        (m["name"], m["ece"] < m["ece_95"], f"{number(m['ece'])}, limit {number(m['ece_95'])}")
        for m in members
    )
    brier = (
        (m["name"], m["brier"] < m["brier_base"], f"{number(m['brier'])} against {number(m['brier_base'])}")
        for m in members
    )
    bias = (
        (_dial(c), _near(c["reward_bias"], 0, BIAS), interval(c["reward_bias"], signed=True)) for c in chosen
    )
    found = [
        _every("each member's calibration error below the 95 % point of a calibrated one", ece),
        _every("each member's Brier score better than the base rate's", brier),
        _every("predicted reward of the chosen within .01 of the realized, or within chance", bias),
        *_covered(result),
    ]
    if result["table"] != NO_OUTPUT_COST:
        spend = [(m["name"], m["usd_ratio"]) for m in members] + [(_dial(c), c["usd_ratio"]) for c in chosen]
        judged = ((name, _near(ratio, 1, SPEND), interval(ratio, 3)) for name, ratio in spend)
        found.append(_every("expected spend within 5 % of the realized, or within chance", judged))
    return found


def _covered(result: Result) -> list[Verdict]:
    std = result["trust"][ours(result)["name"]]["std"]
    if std is None:
        return []
    share, low, high = std["coverage"]
    evidence = (
        f"{percent(share)} [{percent(low)} {percent(high)}] of {std['cells']:,} cells; "
        f"{percent(std['by_sampling'])} were it 0"
    )
    claim = "realized means of clusters within 2 reward_std in 93 to 97 % of cases"
    return [Verdict(claim, COVERAGE[0] <= share <= COVERAGE[1], evidence)]


def _wider(result: Result, iid: Result | None) -> list[Verdict]:
    far = result["trust"][ours(result)["name"]]["std"]
    near = iid["trust"][ours(iid)["name"]]["std"] if iid and has_ours(iid) else None
    if far is None or near is None:
        return []
    evidence = f"mean {number(far['mean_std'])} against {number(near['mean_std'])}"
    return [Verdict("reward_std wider than with tasks known", far["mean_std"] > near["mean_std"], evidence)]


def _nothing_from_nothing(result: Result) -> list[Verdict]:
    if result["controls"] is None:
        return []
    figures = [
        (f"{row['name']}, {control}", not any(triple and triple[1] > 0 for triple in shown), shown)
        for control, rows in result["controls"].items()
        for row in rows
        for shown in [(row["gain"], row["aiq_over_mix"])]
    ]
    judged = (
        (name, holds, " and ".join(interval(t, signed=True) for t in shown)) for name, holds, shown in figures
    )
    return [_every("no method gains where there is nothing to learn", judged)]


def _every(claim: str, cases: Iterable[tuple[str, bool, str]]) -> Verdict:
    """One claim about several (name, whether it holds, figures): the exceptions are named."""
    listed = list(cases)
    broken = [f"{name} ({figures})" for name, holds, figures in listed if not holds]
    upheld = f"{len(listed) - len(broken)} of {len(listed)}"
    return Verdict(claim, not broken, upheld + (f"; not {', '.join(broken)}" if broken else ""))


def _near(ratio: Interval, target: float, tolerance: float) -> bool:
    """Whether the value is near enough, or its interval holds the target; what is unknown doesn't count."""
    if ratio is None:
        return True
    value, low, high = ratio
    return abs(value - target) <= tolerance or low <= target <= high


def _dial(chosen: Mapping[str, Any]) -> str:
    return f"the chosen at {usd(chosen['dial_usd'])} USD"

"""Which figures stand in which table? From a stored result to cells of text, for terminal and README."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.marks import DATASET_ORACLE, QUERY_ORACLE
from benchmarks.verdicts import COMPARED, Result, contestants, ours, place
from benchmarks.wording import UNKNOWN, Interval, interval, number, percent, value
from ensemble.show import usd

ORACLES = (DATASET_ORACLE, QUERY_ORACLE)
HEADS = {"aiq": "AIQ", "aiq_log": "log AIQ", "mean_utility": "utility"}
Method = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """``cells`` of text under a ``head``; the rows in ``bold`` are to catch the eye."""

    head: str
    cells: Sequence[str]
    bold: Collection[int] = ()


@dataclass(frozen=True)
class Sheet:
    """A table under a ``title``; its first column names the rows."""

    title: str
    columns: Sequence[Column]

    def markdown(self) -> str:
        marked = [
            [f"**{cell}**" if i in column.bold else cell for i, cell in enumerate(column.cells)]
            for column in self.columns
        ]
        heads = [column.head for column in self.columns]
        rule = ["---", *["---:"] * (len(heads) - 1)]
        return "\n".join(f"| {' | '.join(row)} |" for row in (heads, rule, *zip(*marked, strict=True)))


def quality(result: Result) -> Sheet:
    """What is compared, with each method's difference to the best baseline; bold are the highest."""
    methods = _sorted(result)
    columns = [_names(methods)]
    for figure, head in HEADS.items():
        columns.append(_figures(head, [value(m[figure]) for m in methods], number, _fair(methods)))
        over = [interval(m[f"{figure}_over_best"], signed=True) for m in methods]
        columns.append(Column("over best baseline", over))
    best = ", ".join(f"{head} {result['best_baseline'][figure]}" for figure, head in HEADS.items())
    return Sheet(f"methods (best baseline: {best})", columns)


def savings(result: Result) -> Sheet:
    """What routing brings against always calling the best single member; bold are the best."""
    methods = _sorted(result)
    fair = _fair(methods)

    def saved(share: str) -> list[str]:
        pairs = [m["cost_save"][share] for m in methods]
        rewards = [number(value(pair["reward_difference"]), signed=True) for pair in pairs]
        costs = [percent(value(pair["cost_saved"]), 0) for pair in pairs]
        return [f"{reward}, {cost}" for reward, cost in zip(rewards, costs, strict=True)]

    columns = [
        _names(methods),
        _figures("PerfGain", [value(m["perf_gain"]) for m in methods], _gain, fair),
        Column("CostSave at 100 %", saved("100")),
        Column("at 99 %", saved("99")),
        _figures("gap closed", [value(m["gap_closed"]) for m in methods], percent, fair),
        _figures("Brier", [m["brier"] for m in methods], number, fair, best=min),
        Column("fit, s", [f"{m['seconds']:.1f}" for m in methods]),
    ]
    return Sheet("against the best single member", columns)


def utilities(result: Result) -> Sheet:
    """Mean of reward - USD / dial, at each of the five dials; bold are the highest."""
    methods = _sorted(result)
    columns = [_names(methods)]
    for d, dial in enumerate(result["dials_usd"]):
        values = [value(m["utility"][d]) for m in methods]
        columns.append(_figures(f"{usd(dial)} USD", values, number, _fair(methods)))
    return Sheet("utility at five dials", columns)


def trust(result: Result) -> Sheet:
    """Do predictions mean what they say: one row per method that predicts rewards."""
    entries = list(result["trust"].values())
    members, chosen = [e["members"] for e in entries], [e["chosen"] for e in entries]
    worst = [max(each, key=lambda m: m["ece"] / max(m["ece_95"], 1e-12)) for each in members]
    bias = [max((c["reward_bias"] for c in each), key=lambda triple: abs(triple[0])) for each in chosen]
    std = [e["std"] or {"coverage": None, "mean_std": None} for e in entries]
    columns = [
        Column("method", list(result["trust"])),
        Column("calibrated", [_share(m["ece"] < m["ece_95"] for m in each) for each in members]),
        Column("worst ECE", [f"{number(m['ece'])} ({number(m['ece_95'])})" for m in worst]),
        Column("Brier", [_share(m["brier"] < m["brier_base"] for m in each) for each in members]),
        Column("bias of chosen", [interval(each, 3, signed=True) for each in bias]),
        Column("spend", [_span(m["usd_ratio"] for m in each) for each in members]),
        Column("of chosen", [_span(c["usd_ratio"] for c in each) for each in chosen]),
        Column("within 2 std", [interval(each["coverage"], 3) for each in std]),
        Column("std", [number(each["mean_std"], 3) for each in std]),
    ]
    return Sheet("trust (ECE: limit if calibrated; Brier: members below the base rate's)", columns)


def members(result: Result) -> Sheet:
    """Ours, member by member; bold are calibration errors above their limit."""
    rows = result["trust"][ours(result)["name"]]["members"]
    missed = [i for i, m in enumerate(rows) if m["ece"] >= m["ece_95"]]
    columns = [
        Column("member", [m["name"] for m in rows]),
        Column("ECE", [number(m["ece"]) for m in rows], missed),
        Column("limit", [number(m["ece_95"]) for m in rows]),
        Column("Brier", [number(m["brier"]) for m in rows]),
        Column("base rate's", [number(m["brier_base"]) for m in rows]),
        Column("expected / real USD", [interval(m["usd_ratio"], 3) for m in rows]),
        Column("expected / real tokens", [interval(m["tokens_ratio"], 3) for m in rows]),
    ]
    return Sheet("ours by member (bold: calibration error above its limit)", columns)


def chosen(result: Result) -> Sheet:
    """Ours, dial by dial: what was promised of the chosen members, less what came."""
    rows = result["trust"][ours(result)["name"]]["chosen"]
    columns = [
        Column("dial", [f"{usd(c['dial_usd'])} USD" for c in rows]),
        Column("expected - real reward", [interval(c["reward_bias"], signed=True) for c in rows]),
        Column("expected / real USD", [interval(c["usd_ratio"], 3) for c in rows]),
    ]
    return Sheet("ours by dial", columns)


def controls(result: Result) -> Sheet | None:
    """What each method seems to gain where nothing can be learned; ``None`` where that was not measured."""
    if result["controls"] is None:
        return None
    columns = [Column("method", [row["name"] for row in next(iter(result["controls"].values()))])]
    for control, rows in result["controls"].items():
        columns.append(Column(f"{control}: gain", [interval(row["gain"], signed=True) for row in rows]))
        columns.append(Column("AIQ over mix", [interval(row["aiq_over_mix"], signed=True) for row in rows]))
    return Sheet("controls", columns)


def overview(results: Sequence[Result]) -> Sheet:
    """Ours in a row per result, with its difference to the best baseline; bold where it is first."""
    columns = [Column("table, split", [f"{result['table']}, {result['split']}" for result in results])]
    for figure, name in COMPARED.items():
        mine = [ours(result) for result in results]
        places = [_place(result, figure) for result in results]
        first = [i for i, text in enumerate(places) if text.startswith("first")]
        columns.append(Column(name, [number(value(m[figure])) for m in mine], first))
        columns.append(
            Column("over the best baseline", [interval(m[f"{figure}_over_best"], signed=True) for m in mine])
        )
        columns.append(Column("place", places))
    return Sheet("where ours stands", columns)


def standing(result: Result) -> str:
    """One sentence: where ours stands by each of the figures compared."""
    mine, best = ours(result), result["best_baseline"]
    parts = [
        f"{_place(result, figure)} by {name} ({interval(mine[f'{figure}_over_best'], signed=True)} over "
        f"{best[figure]})"
        for figure, name in COMPARED.items()
        if mine[figure] is not None
    ]
    return f"Ours is {', '.join(parts)}."


def _sorted(result: Result) -> list[Method]:
    """By AIQ from the highest down, then those that have none, then the oracles."""
    return sorted(result["methods"], key=lambda m: (m["name"] in ORACLES, -(value(m["aiq"]) or 0.0)))


def _fair(methods: Sequence[Method]) -> list[int]:
    return [i for i, m in enumerate(methods) if m["name"] not in ORACLES]


def _names(methods: Sequence[Method]) -> Column:
    return Column("method", [m["name"] for m in methods])


def _figures(
    head: str,
    values: Sequence[float | None],
    write: Callable[[float | None], str],
    among: Sequence[int],
    best: Callable[[Sequence[float]], float] = max,
) -> Column:
    """A column of figures, the ``best`` of those ``among`` the rows bold."""
    known = [each for i in among if (each := values[i]) is not None]
    bold = [i for i in among if known and values[i] == best(known)]
    return Column(head, [write(each) for each in values], bold)


def _gain(share: float | None) -> str:
    return percent(share, 2, signed=True)


def _share(cases: Iterable[bool]) -> str:
    listed = list(cases)
    return f"{sum(listed)}/{len(listed)}"


def _span(ratios: Iterable[Interval]) -> str:
    known = [ratio[0] for ratio in ratios if ratio is not None]
    return f"{min(known):.2f}-{max(known):.2f}" if known else UNKNOWN


def _place(result: Result, figure: str) -> str:
    if ours(result)[figure] is None:
        return UNKNOWN
    n = place(result, figure)
    ordinal = {1: "first", 2: "second", 3: "third"}.get(n, f"number {n}")
    return f"{ordinal} of {len(contestants(result, figure))}"

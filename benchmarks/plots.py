"""What does each method buy for the money? The cost-quality frontiers of one stored result, as a picture.

Above, everything on one scale: the single members, their random mix, the oracles, the methods. There all
methods lie within a line's width of each other, so below is what each earns *beyond the random mix* at the
same spend, which is what routing itself is worth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator
from matplotlib.transforms import Bbox

from benchmarks.marks import BEST_SINGLE, DATASET_ORACLE, QUERY_ORACLE, RANDOM_MIX
from benchmarks.wording import number, value
from ensemble.learning import metrics
from ensemble.learning.metrics import Array

# Told apart by colour-blind readers too (Okabe & Ito 2008, less black, which is ours, and yellow, which is
# lost on white); published methods are dashed, so that no colour has to tell two lines apart alone.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
GREY = "#8A8A8A"
POINTS = 60  # of a curve: straight in USD is bent on a logarithmic axis
# Where a name may stand about its point, best first: offset in points, and which end of the name is there.
PLACES = [
    (6, 0, "left", "center"),
    (-6, 0, "right", "center"),
    (5, -4, "left", "top"),
    (-5, 4, "right", "bottom"),
    (5, 4, "left", "bottom"),
    (-5, -4, "right", "top"),
    (0, -6, "center", "top"),
    (0, 6, "center", "bottom"),
    (5, 13, "left", "bottom"),
    (-5, 13, "right", "bottom"),
    (5, -13, "left", "top"),
    (-5, -13, "right", "top"),
]
Style = Mapping[str, Any]


def plot_frontier(result: Mapping[str, Any], path: Path | None = None) -> Figure:
    """Draw ``result`` (benchmarks/results/quality/*.json) and, with ``path``, save it as SVG.

    The file holds no date and no random ids: the same result gives the same bytes.
    """
    with matplotlib.rc_context({"svg.hashsalt": "frontier", "font.size": 9, "axes.spines.top": False}):
        figure = Figure(figsize=(10, 8), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(5, 4))
        styles = _styles(result["methods"])
        _draw_rewards(above, result, styles)
        _draw_gains(below, result, styles)
        _name_axes(above, below, result)
        figure.legend(
            handles=_legend(result["methods"], styles),
            loc="outside right upper",
            title="AIQ",
            frameon=False,
            alignment="left",
        )
        _label_members(figure, above, result)
        if path is not None:
            figure.savefig(path, format="svg", metadata={"Date": None})
    return figure


def _styles(methods: Sequence[Mapping[str, Any]]) -> dict[str, Style]:
    """How each method is drawn; best single is a point, not a line, and has none."""
    colours = cycle(COLOURS)
    dashes = {"tuned": "-", "published": (0, (4, 1.5))}
    styles: dict[str, Style] = {}
    for method in methods:
        name, kind = method["name"], method["kind"]
        if kind in dashes:
            styles[name] = dict(color=next(colours), linestyle=dashes[kind], linewidth=1.3, zorder=3)
        elif kind == "ours":
            styles[name] = dict(color="black", linewidth=2.6, zorder=4)
        elif name != BEST_SINGLE:
            dotted = {RANDOM_MIX: "-", DATASET_ORACLE: (0, (5, 2)), QUERY_ORACLE: (0, (1, 1.5))}[name]
            styles[name] = dict(color=GREY, linestyle=dotted, linewidth=1.3, zorder=2)
    return styles


def _draw_rewards(axes: Axes, result: Mapping[str, Any], styles: Mapping[str, Style]) -> None:
    for method in result["methods"]:
        if method["name"] in styles:
            spend, reward = _curve(method)
            axes.plot(spend, reward, **styles[method["name"]])
    axes.set_ylabel("mean reward")


def _draw_gains(axes: Axes, result: Mapping[str, Any], styles: Mapping[str, Style]) -> None:
    """Reward less the mix's at the same spend; the query oracle is far beyond it and left out.

    The axis holds all of ours and of the tuned methods; a published one that is far worse may leave it.
    """
    mix = next(method for method in result["methods"] if method["name"] == RANDOM_MIX)
    high, worst = 0.0, {True: 0.0, False: 0.0}  # worst of ours and the tuned, and of the others
    for method in result["methods"]:
        if method["name"] in styles and method["name"] != QUERY_ORACLE:
            spend, reward = _curve(method)
            gain = reward - metrics.reward_at(mix["curve"], spend)
            axes.plot(spend, gain, marker="o", markevery=[-1], markersize=3.5, **styles[method["name"]])
            high = max(high, float(gain.max()))
            held = method["kind"] in ("ours", "tuned")
            worst[held] = gain[spend >= mix["curve"][0][0]].min(initial=worst[held])
    low = min(worst[True], max(worst[False], -high / 3))
    room = max(high - low, 1e-3)
    axes.set_ylim(low - 0.08 * room, high + 0.08 * room)
    axes.set_ylabel("reward beyond the random mix")


def _curve(method: Mapping[str, Any]) -> tuple[Array, Array]:
    """Spend (USD per 1,000 prompts) and reward along the hull, from its cheapest corner to its best."""
    corners = np.array(method["curve"], np.float64)
    low, high = corners[[0, -1], 0]
    if not 0 < low < high:
        return corners[:, 0], corners[:, 1]
    spend = np.union1d(np.geomspace(low, high, POINTS), corners[:, 0]).clip(low, high)
    return spend, metrics.reward_at(corners, spend)


def _name_axes(above: Axes, below: Axes, result: Mapping[str, Any]) -> None:
    split = {"iid": "prompts held out at random", "leave-task-out": "whole tasks held out"}
    above.set_title(
        f"{result['table']}: {result['n_prompts']:,} prompts, {split[result['split']]}", loc="left"
    )
    below.set_xlabel("USD per 1,000 prompts")
    below.set_xscale("log")
    below.axhline(0, color=GREY, linewidth=1.3, zorder=2)
    below.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    below.xaxis.set_major_formatter(lambda usd, _: f"{usd:g}")
    below.margins(x=0.09)  # a name beside the dearest member needs room
    for axes in (above, below):
        axes.spines["right"].set_visible(False)
        axes.grid(color="#E6E6E6", linewidth=0.6)
        axes.set_axisbelow(True)


def _legend(methods: Sequence[Mapping[str, Any]], styles: Mapping[str, Style]) -> list[Line2D]:
    """From the highest AIQ down, those without one last."""
    drawn = sorted(methods, key=lambda method: -(value(method["aiq"]) or 0.0))
    return [
        Line2D([], [], label=f"{number(value(m['aiq']), 3)}  {m['name']}", **styles[m["name"]])
        for m in drawn
        if m["name"] in styles
    ]


def _label_members(figure: Figure, axes: Axes, result: Mapping[str, Any]) -> None:
    """A point and a name per member, each name where it covers least of what is already there."""
    points = np.array(result["member_points"], np.float64)
    lines = list(axes.lines)
    axes.plot(*points.T, "o", color=GREY, markersize=4, zorder=5)
    figure.draw_without_rendering()  # lays everything out: from here on places are known
    dots = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in axes.transData.transform(points)]
    curves = [axes.transData.transform(line.get_xydata()) for line in lines]
    ink = np.concatenate([*curves, *map(_pixels, dots)])
    for (usd, reward), name in zip(points, result["members"], strict=True):
        label = axes.annotate(
            name, (usd, reward), (0, 0), textcoords="offset points", fontsize=7.5, color="#555555"
        )
        label.set(in_layout=False, zorder=6, bbox=dict(facecolor="white", alpha=0.7, linewidth=0, pad=0.5))
        boxes = []
        for dx, dy, across, up in PLACES:
            label.set(position=(dx, dy), horizontalalignment=across, verticalalignment=up)
            boxes.append(label.get_window_extent())
        best = int(np.argmin([_hidden(box, ink, axes.get_window_extent()) for box in boxes]))
        dx, dy, across, up = PLACES[best]
        label.set(position=(dx, dy), horizontalalignment=across, verticalalignment=up)
        ink = np.concatenate([ink, _pixels(boxes[best])])


def _hidden(box: Bbox, ink: Array, frame: Bbox) -> float:
    """How much of ``ink`` (n, 2) a name in ``box`` would cover; leaving the frame is worse."""
    outside = max(frame.x0 - box.x0, box.x1 - frame.x1, frame.y0 - box.y0, box.y1 - frame.y1, 0)
    return float(1000 * outside + ((ink > box.min) & (ink < box.max)).all(axis=1).sum())


def _pixels(box: Bbox) -> Array:
    """A grid of places all over a box, (n, 2)."""
    x, y = np.meshgrid(np.arange(box.x0, box.x1, 2), np.arange(box.y0, box.y1, 2))
    return np.stack([x.ravel(), y.ravel()], axis=1)

"""How is a figure written? The same in the terminal, in the README and in a verdict."""

from __future__ import annotations

from collections.abc import Sequence

Interval = Sequence[float] | None  # value, low and high end of its 95 % interval
UNKNOWN = "-"


def number(value: float | None, digits: int = 4, *, signed: bool = False) -> str:
    """``.7512``, ``+.0021``, ``1.0300``: a fixed number of decimals, no nought before the point."""
    if value is None:
        return UNKNOWN
    text = f"{value:{'+' if signed else ''}.{digits}f}"
    return text.replace("0.", ".", 1) if abs(float(text)) < 1 else text


def percent(value: float | None, digits: int = 1, *, signed: bool = False) -> str:
    """``93.1 %`` of a share of 0.931."""
    return UNKNOWN if value is None else f"{100 * value:{'+' if signed else ''}.{digits}f} %"


def interval(triple: Interval, digits: int = 4, *, signed: bool = False) -> str:
    """``+.0021 [+.0003 +.0040]``: a value and its 95 % interval."""
    if triple is None:
        return UNKNOWN
    value, low, high = (number(each, digits, signed=signed) for each in triple)
    return f"{value} [{low} {high}]"


def value(triple: Interval) -> float | None:
    """The value alone."""
    return None if triple is None else triple[0]

"""Axes, ticks and paths of a chart: places in percent of its width and height, 0 at the left and the top.

A plot is stretched to whatever width its page has; its words are HTML beside it and keep their size.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MOST_TICKS = 8
"""Of a logarithmic axis, before only powers of ten have one."""


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: where, in percent, and what it says."""

    at: float
    text: str


@dataclass(frozen=True)
class Axis:
    """A stretch of numbers, `low` below `high`."""

    label: str
    low: float
    high: float
    ticks: tuple[Tick, ...] = ()
    log: bool = False

    def place(self, value: float) -> float:
        """Where `value` stands, in percent from `low`; what is outside stands at the edge."""
        low, high, value = (
            math.log(v) if self.log else v for v in (self.low, self.high, max(value, self.low))
        )
        return round(min(100 * (value - low) / (high - low), 100.0), 3)


@dataclass(frozen=True)
class Mark:
    """A shape: an SVG path, the class that gives it its look, and what it says when pointed at."""

    path: str
    look: str
    says: str = ""


@dataclass(frozen=True)
class Plot:
    """Marks between two axes, and a sentence for those who cannot see them."""

    x: Axis
    y: Axis
    marks: tuple[Mark, ...]
    says: str


def linear(
    label: str, values: Iterable[float], count: int = 5, *, tight: bool = False, whole: bool = False
) -> Axis:
    """An axis over `values` with about `count` round ticks: whole numbers where they count something.

    It ends at ticks, or with `tight` at the values.

    >>> [tick.text for tick in linear("epoch", [0, 37]).ticks]
    ['0', '10', '20', '30', '40']
    """
    low, high = min(values := list(values)), max(values)
    if low == high:
        low, high = low - (abs(low) / 10 or 1), high + (abs(high) / 10 or 1)
    step = max(_round_step((high - low) / count), 1.0 if whole else 0.0)
    if not tight:
        low, high = step * math.floor(low / step), step * math.ceil(high / step)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    axis = Axis(label, low, high)
    ticks = tuple(Tick(axis.place(step * i), _short(step * i, step)) for i in range(first, last + 1))
    return Axis(label, low, high, ticks)


def logarithmic(label: str, values: Iterable[float], unit: str = "") -> Axis:
    """An axis over positive `values` with ticks at 1, 2 and 5 times powers of ten, or at these powers alone.

    >>> [tick.text for tick in logarithmic("ratio", [1, 60], "×").ticks]
    ['1×', '2×', '5×', '10×', '20×', '50×', '100×']
    """
    low, high = min(values := list(values)), max(values)
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 3)
    fine, coarse = [f * 10.0**p for p in powers for f in (1, 2, 5)], [10.0**p for p in powers]
    chosen = _around(fine, low, high)
    if len(chosen) > MOST_TICKS:
        chosen = _around(coarse, low, high)
    axis = Axis(label, chosen[0], chosen[-1], log=True)
    ticks = tuple(Tick(axis.place(s), f"{s:,g}{unit}") for s in chosen)
    return Axis(label, chosen[0], chosen[-1], ticks, log=True)


def line(x: Axis, y: Axis, points: Iterable[tuple[float, float]]) -> str:
    """The path through `points`; a single one is a dot where line ends are round."""
    places = [f"{x.place(a):g} {100 - y.place(b):g}" for a, b in points]
    return "M" + "L".join(places if len(places) > 1 else places * 2)


def steps(x: Axis, y: Axis, edges: Sequence[float], counts: Sequence[int]) -> str:
    """The filled outline of a histogram, from the bottom and back to it; empty bins at its ends left out."""
    filled = [i for i, count in enumerate(counts) if count]
    if not filled:
        return ""
    first, last = filled[0], filled[-1]
    path = f"M{x.place(edges[first]):.2f} 100"
    for i in range(first, last + 1):
        path += f"V{100 - y.place(counts[i]):.2f}H{x.place(edges[i + 1]):.2f}"
    return path + "V100Z"


def hover_column(x: Axis, center: float, width: float) -> str:
    """A column as high as the plot, to point at."""
    left, right = x.place(center - width / 2), x.place(center + width / 2)
    return f"M{left:g} 0H{right:g}V100H{left:g}Z"


def _around(stops: Sequence[float], low: float, high: float) -> Sequence[float]:
    """The stops from the last that is not above `low` to the first that is not below `high`; at least two."""
    first = max(i for i, stop in enumerate(stops) if stop <= low * (1 + 1e-9))
    last = min(i for i, stop in enumerate(stops) if stop >= high * (1 - 1e-9))
    return stops[first : max(last, first + 1) + 1]


def _round_step(rough: float) -> float:
    power: float = 10.0 ** math.floor(math.log10(rough))
    return next(f * power for f in (1, 2, 5, 10) if f * power >= rough * (1 - 1e-9))


def _short(value: float, step: float) -> str:
    places = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value + 0.0:,.{places}f}" if abs(value) > step / 2 else "0"

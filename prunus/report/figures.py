"""Figures of experiments: a picture as PNG and SVG, and the numbers in it as CSV beside them.

One name has one colour and one marker in every figure. The same arguments give the same bytes.
"""

import csv
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunus.errors import PrunusError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6b4c9a", "#7f7f7f")
"""Okabe and Ito's colours, which the colour-blind tell apart; purple and grey for their black and yellow."""
MARKERS = "osD^vPX*"

STYLES = {
    "L1, no retraining": 5,
    "L2, no retraining": 3,
    "L1, retraining": 4,
    "L2, retraining": 2,
    "L2, iterative": 1,
    "pruning": 0,
    "sharing": 4,
    "pruning and sharing": 1,
    "linear": 0,
    "density": 1,
    "density^(1/3)": 2,
    "random": 3,
    "optimal": 6,
    "magnitude": 0,
    "dense": 7,
}
"""The place in the palette of names that several figures share; others get one by a checksum of the name."""


@dataclass(frozen=True)
class Curve:
    """A named curve: at each `x` the mean over `n` replicates, in a band from `low` to `high`."""

    name: str
    x: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    n: int


@dataclass(frozen=True)
class Reference:
    """What others report, or a level to compare with: drawn dashed in grey."""

    name: str
    points: Sequence[tuple[float, float]]


def save_lines(
    path: str | Path,
    series: Sequence[Curve],
    *,
    title: str,
    x_label: str,
    y_label: str,
    x_log: bool = False,
    invert_x: bool = False,
    reference: Sequence[Reference] = (),
    band: str = "min to max",
) -> tuple[Path, Path, Path]:
    """Draw `series` and write `path`.png, `path`.svg and `path`.csv; returns the three.

    Args:
        path: without suffix; a dot in its name is part of the name.
        series: names are unlike; lengths within a curve are equal.
        x_log, invert_x: a logarithmic x axis; one that falls to the right.
        reference: curves without replicates.
        band: what `low` and `high` are, for the legend.

    Raises PrunusError for no curve, curves that do not fit together, or where matplotlib is not installed.
    """
    _check(series)
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PrunusError(
            "Figures need matplotlib, which is not installed: pip install 'prunus[cli]'."
        ) from error
    base = Path(path)
    png, svg, table = (base.with_name(f"{base.name}.{suffix}") for suffix in ("png", "svg", "csv"))
    with matplotlib.rc_context({"svg.hashsalt": "prunus", "font.size": 10, "font.family": "DejaVu Sans"}):
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.add_subplot()
        _draw(axes, series, reference, band)
        axes.set(title=title, xlabel=x_label, ylabel=y_label)
        if x_log:
            _log_ticks(axes)
        if invert_x:
            axes.invert_xaxis()
        figure.savefig(png, dpi=150, metadata={"Software": None})
        figure.savefig(svg, metadata={"Date": None, "Creator": None})
    _write_numbers(table, series, reference)
    return png, svg, table


def styles(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """The colour and the marker of each name; two names of one figure never share them while eight suffice.

    >>> styles(["L2, iterative"])
    {'L2, iterative': ('#d55e00', 's')}
    """
    places = {name: STYLES[name] for name in names if name in STYLES}
    for name in sorted(set(names) - set(places)):
        wish = zlib.crc32(name.encode()) % len(PALETTE)
        free = [p for p in range(len(PALETTE)) if p not in places.values()]
        places[name] = min(free, key=lambda p: (p - wish) % len(PALETTE)) if free else wish
    return {name: (PALETTE[places[name]], MARKERS[places[name]]) for name in names}


def _check(series: Sequence[Curve]) -> None:
    if not series:
        raise PrunusError("A figure was asked for without a curve to draw.")
    names = [curve.name for curve in series]
    if len(set(names)) < len(names):
        raise PrunusError(f"Two curves of a figure have one name: {names}.")
    for curve in series:
        lengths = {len(part) for part in (curve.x, curve.mean, curve.low, curve.high)}
        if len(lengths) > 1 or not len(curve.x):
            raise PrunusError(
                f"The curve {curve.name!r} has {len(curve.x)} x, {len(curve.mean)} means, "
                f"{len(curve.low)} lows and {len(curve.high)} highs; give equally many, and at least one."
            )


def _draw(axes: "Axes", series: Sequence[Curve], reference: Sequence[Reference], band: str) -> None:
    looks = styles([curve.name for curve in series])
    for curve in series:
        colour, marker = looks[curve.name]
        label = f"{curve.name} (n = {curve.n})"
        axes.plot(curve.x, curve.mean, color=colour, marker=marker, markersize=4, linewidth=1.5, label=label)
        axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.18, linewidth=0)
    for other in reference:
        places: list[Any] = list(zip(*other.points, strict=True))
        axes.plot(*places, color="#555555", linestyle="--", linewidth=1, label=other.name)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    banded = any(curve.n > 1 for curve in series)
    axes.legend(frameon=False, fontsize=8.5, title=f"band: {band}" if banded else None, title_fontsize=8.5)


def _log_ticks(axes: "Axes") -> None:
    """Plain numbers: 1, 2 and 5 times powers of ten, or every digit where the axis is short."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high > 10 * low else range(1, 10)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def _write_numbers(path: Path, series: Sequence[Curve], reference: Sequence[Reference]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["name", "x", "mean", "low", "high", "n"])
        for curve in series:
            rows = zip(curve.x, curve.mean, curve.low, curve.high, strict=True)
            writer.writerows([curve.name, *(repr(float(v)) for v in row), curve.n] for row in rows)
        for other in reference:
            writer.writerows([other.name, float(x), float(y), "", "", ""] for x, y in other.points)

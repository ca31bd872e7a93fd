"""The content of a figure: curves, references and labels, and their numbers as CSV."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from prunus.errors import PrunusError


@dataclass(frozen=True)
class Curve:
    """A named curve: at each `x` the mean over `n` replicates, with a band from `low` to `high`."""

    name: str
    x: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    n: int
    failed: Sequence[int] = ()
    """Indices of the points whose results failed an invariant check."""


@dataclass(frozen=True)
class Reference:
    """Published values or a constant level, drawn dashed in gray."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class FigureData:
    """The content of a figure; see `save_line_plot` for the fields."""

    series: Sequence[Curve]
    title: str
    x_label: str
    y_label: str
    x_log: bool = False
    invert_x: bool = False
    reference: Sequence[Reference] = ()
    band: str = "min to max"
    footer: str = ""

    @property
    def banded(self) -> bool:
        """Whether any curve has more than one replicate."""
        return any(curve.n > 1 for curve in self.series)

    @property
    def failed(self) -> bool:
        """Whether any point failed an invariant check."""
        return any(curve.failed for curve in self.series)


def check_curves(series: Sequence[Curve]) -> None:
    """Raise PrunusError for no curve, equal names, unequal lengths, or indices out of range."""
    if not series:
        raise PrunusError("Expected at least one curve to draw, got none.")
    names = [curve.name for curve in series]
    if len(set(names)) < len(names):
        raise PrunusError(f"Expected curves with different names, got {names}.")
    for curve in series:
        lengths = {len(part) for part in (curve.x, curve.mean, curve.low, curve.high)}
        if len(lengths) > 1 or not len(curve.x):
            raise PrunusError(
                f"Expected equally many values, and at least one, in the curve {curve.name!r}, got {len(curve.x)} x, "
                f"{len(curve.mean)} mean, {len(curve.low)} low and {len(curve.high)} high."
            )
        outside = [index for index in curve.failed if not 0 <= index < len(curve.x)]
        if outside:
            raise PrunusError(
                f"Expected indices of the {len(curve.x)} points of the curve {curve.name!r} as failed, got {outside}."
            )


def to_csv(drawing: FigureData) -> str:
    """Return the numbers of a figure as CSV, with a column of failed points where there are any."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["name", "x", "mean", "low", "high", "n"] + ["failed"] * drawing.failed)
    for curve in drawing.series:
        for index, row in enumerate(zip(curve.x, curve.mean, curve.low, curve.high, strict=True)):
            failed = [int(index in curve.failed)] * drawing.failed
            writer.writerow([curve.name, *(repr(float(v)) for v in row), curve.n, *failed])
    for other in drawing.reference:
        rest = ["", "", ""] + [""] * drawing.failed
        writer.writerows([other.name, float(x), float(y), *rest] for x, y in other.points)
    return file.getvalue()

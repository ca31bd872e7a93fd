"""The content of a figure: curves, references and labels, and their numbers as rows and as CSV."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
    """The content of a figure. Text is drawn literally: a dollar sign does not begin a formula."""

    series: Sequence[Curve]
    """Curves with different names."""
    title: str
    x_label: str
    y_label: str
    x_log: bool = False
    """Whether the x axis is logarithmic."""
    invert_x: bool = False
    """Whether x decreases to the right."""
    y_log: bool = False
    """Whether the y axis is logarithmic where all values of curves are above zero."""
    references: Sequence[Reference] = ()
    band: str = "min to max"
    """What the bands of the curves are."""
    footer: str = ""
    """A line under the figure, such as "invariants: 120 of 120 points passed"."""

    @property
    def banded(self) -> bool:
        """Whether any curve has more than one replicate."""
        return any(curve.n > 1 for curve in self.series)

    @property
    def has_log_y(self) -> bool:
        """Whether the y axis is logarithmic."""
        return self.y_log and all(value > 0 for curve in self.series for value in (*curve.low, *curve.mean))

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


def numbers_of(figure: FigureData) -> list[dict[str, Any]]:
    """Return the points of a figure as rows of numbers, with the column "failed" where any point has failed."""
    rows: list[dict[str, Any]] = []
    for curve in figure.series:
        for index, point in enumerate(zip(curve.x, curve.mean, curve.low, curve.high, strict=True)):
            row = dict(zip(("x", "mean", "low", "high"), map(float, point), strict=True))
            failed = {"failed": int(index in curve.failed)} if figure.failed else {}
            rows.append({"name": curve.name, **row, "n": curve.n, **failed})
    for other in figure.references:
        rows += [{"name": other.name, "x": float(x), "mean": float(y)} for x, y in other.points]
    return rows


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as CSV; the columns are the keys of the first, and a value that a row lacks is empty."""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()

"""What a figure shows, before anything is drawn: curves, references, words, and all of it as CSV."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from prunus.errors import PrunusError


@dataclass(frozen=True)
class Curve:
    """A named curve: at each `x` the mean over `n` replicates, in a band from `low` to `high`."""

    name: str
    x: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    n: int
    failed: Sequence[int] = ()
    """The indices of points that a receipt which failed stands behind."""


@dataclass(frozen=True)
class Reference:
    """What others report, or a level to compare with: drawn dashed in gray."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class FigureData:
    """All that a figure says; `save_lines` explains the parts."""

    series: Sequence[Curve]
    title: str
    x_label: str
    y_label: str
    x_log: bool = False
    invert_x: bool = False
    reference: Sequence[Reference] = ()
    band: str = "min to max"
    receipts: str = ""

    @property
    def banded(self) -> bool:
        """Whether any curve has replicates that may differ."""
        return any(curve.n > 1 for curve in self.series)

    @property
    def failed(self) -> bool:
        """Whether the receipt of any point failed."""
        return any(curve.failed for curve in self.series)


def check(series: Sequence[Curve]) -> None:
    """Raise PrunusError for no curve, and for curves that do not fit together."""
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
        outside = [index for index in curve.failed if not 0 <= index < len(curve.x)]
        if outside:
            raise PrunusError(
                f"The curve {curve.name!r} has {len(curve.x)} points, numbered from 0; "
                f"its failed receipts name {outside}."
            )


def to_csv(drawing: FigureData) -> str:
    """The numbers of a drawing as CSV; a column says whose receipt failed, where any did."""
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

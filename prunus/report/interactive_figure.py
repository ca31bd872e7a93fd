"""The page of a figure: the same picture to point at, in one HTML file that needs nothing else and no network.

The chart is drawn by a script of our own (`templates/figure.js`), the only one that the page lets run. Without it
there are still the numbers, as a table and as CSV.
"""

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prunus.report.curve_styles import assign_styles
from prunus.report.figure_data import FigureData
from prunus.report.templating import TEMPLATES, environment

SHAPES = {
    "o": "M-1 0A1 1 0 1 0 1 0A1 1 0 1 0-1 0Z",
    "s": "M-1-1H1V1H-1Z",
    "D": "M0-1.4L1.4 0 0 1.4-1.4 0Z",
    "^": "M0-1L1 1H-1Z",
    "v": "M0 1L1-1H-1Z",
    "P": "M-.4-1.2H.4V-.4H1.2V.4H.4V1.2H-.4V.4H-1.2V-.4H-.4Z",
    "X": "M-1.2-.6L-.6-1.2 0-.6 .6-1.2 1.2-.6 .6 0 1.2 .6 .6 1.2 0 .6-.6 1.2-1.2 .6-.6 0Z",
    "*": "M0-1.4L.32-.44 1.33-.43 .52 .17 .82 1.13 0 .55-.82 1.13-.52 .17-1.33-.43-.32-.44Z",
}
"""The markers as SVG paths about (0, 0), about 2 wide and high."""
DASHES = {"-": "none", "--": "7 3", ":": "1.5 2.5"}


def interactive(drawing: FigureData, csv_text: str, csv_name: str) -> str:
    """The page of `drawing`; the same arguments give the same text.

    Args:
        csv_text: its numbers, which the page hands out as a file called `csv_name`.
    """
    code, shown = script(), chart(drawing, csv_text, csv_name)
    return environment().get_template("figure.html").render(chart=shown, script=code, digest=digest(code))


@dataclass(frozen=True)
class Chart:
    """A drawing as the macro of `chart.html` wants it."""

    drawing: FigureData
    figure: Mapping[str, Any]
    """What the script draws."""
    csv: str
    csv_name: str
    rows: Sequence[Sequence[str]]
    picture: str = ""
    """The drawing as SVG, base64, for where no script may run; empty: the table below the chart has to do."""


def chart(drawing: FigureData, csv_text: str, csv_name: str, svg: str = "") -> Chart:
    """The chart of a drawing, for a page that has `script` at its end."""
    numbers = base64_of(csv_text.encode())
    return Chart(drawing, _figure(drawing), numbers, csv_name, _rows(drawing), base64_of(svg.encode()))


def script() -> str:
    """What draws every chart of a page."""
    return (TEMPLATES / "figure.js").read_text(encoding="utf-8")


def digest(code: str) -> str:
    """By which a page says that `code` is the only script that may run."""
    return base64_of(hashlib.sha256(code.encode()).digest())


def _figure(drawing: FigureData) -> dict[str, Any]:
    """What the script draws: plain lists, numbers that are not finite as None."""
    looks = assign_styles([curve.name for curve in drawing.series])
    curves = [
        {
            "name": curve.name,
            "n": curve.n,
            "color": looks[curve.name].color,
            "shape": SHAPES[looks[curve.name].marker],
            "dashes": DASHES[looks[curve.name].line],
            "points": [
                [*map(_finite, row), index in curve.failed]
                for index, row in enumerate(zip(curve.x, curve.mean, curve.low, curve.high, strict=True))
            ],
        }
        for curve in drawing.series
    ]
    references = [
        {
            "name": other.name,
            "n": None,
            "color": None,
            "shape": None,
            "dashes": "5 4",
            "points": [[_finite(x), _finite(y), None, None, False] for x, y in other.points],
        }
        for other in drawing.reference
    ]
    return {
        "x": drawing.x_label,
        "y": drawing.y_label,
        "log": drawing.x_log,
        "invert": drawing.invert_x,
        "band": drawing.band,
        "curves": curves + references,
    }


def _rows(drawing: FigureData) -> list[list[str]]:
    """The numbers as the table shows them."""
    rows = []
    for curve in drawing.series:
        for index, row in enumerate(zip(curve.x, curve.mean, curve.low, curve.high, strict=True)):
            failed = "invariants failed" if index in curve.failed else ""
            rows.append([curve.name, *(f"{float(v):.6g}" for v in row), str(curve.n), failed])
    for other in drawing.reference:
        rows += [[other.name, f"{float(x):.6g}", f"{float(y):.6g}", "", "", "", ""] for x, y in other.points]
    return rows


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def base64_of(data: bytes) -> str:
    """As a data URI has it."""
    return base64.b64encode(data).decode()

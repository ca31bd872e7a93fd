"""The interactive page of a figure: one HTML file that needs no other file and no network.

The chart is drawn by `templates/figure.js`, the only script that the page allows. Without scripts, the page still has
the numbers as a table and as CSV.
"""

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prunus.report.curve_styles import assign_styles
from prunus.report.figure_data import FigureData
from prunus.report.templating import TEMPLATES, load_template

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
"""The markers as SVG paths around (0, 0), about 2 wide and high."""
DASHES = {"-": "none", "--": "7 3", ":": "1.5 2.5"}
"""The SVG dash arrays of the line styles."""


def interactive(drawing: FigureData, csv_text: str, csv_name: str) -> str:
    """Return the page of a figure; the same arguments give the same text.

    Args:
        drawing: The figure.
        csv_text: Its numbers, which the page offers for download.
        csv_name: The name of the downloaded file.

    Returns:
        The HTML page.

    Raises:
        PrunusError: Jinja2 is not installed.
    """
    code, shown = script(), chart(drawing, csv_text, csv_name)
    return load_template("figure.html").render(chart=shown, script=code, digest=script_digest(code))


@dataclass(frozen=True)
class Chart:
    """A figure as the macro of `chart.html` expects it."""

    drawing: FigureData
    figure: Mapping[str, Any]
    """The data that the script draws."""
    csv: str
    """The numbers, base64."""
    csv_name: str
    rows: Sequence[Sequence[str]]
    fallback_svg: str = ""
    """The figure as SVG, base64, shown where scripts are disabled; may be empty."""


def chart(drawing: FigureData, csv_text: str, csv_name: str, svg: str = "") -> Chart:
    """Return the chart of a figure, for a page that has `script` at its end.

    Args:
        drawing: The figure.
        csv_text: Its numbers, which the page offers for download.
        csv_name: The name of the downloaded file.
        svg: The figure as SVG, shown where scripts are disabled; empty: there is none.

    Returns:
        What the macro of `chart.html` and the script need.
    """
    numbers = base64_of(csv_text.encode())
    return Chart(drawing, _figure(drawing), numbers, csv_name, _rows(drawing), base64_of(svg.encode()))


def script() -> str:
    """The script that draws every chart of a page."""
    return (TEMPLATES / "figure.js").read_text(encoding="utf-8")


def script_digest(code: str) -> str:
    """The digest of the only script that the Content-Security-Policy of a page allows."""
    return base64_of(hashlib.sha256(code.encode()).digest())


def _figure(drawing: FigureData) -> dict[str, Any]:
    """The data that the script draws, as lists; non-finite numbers are None."""
    styles = assign_styles([curve.name for curve in drawing.series])
    curves = [
        {
            "name": curve.name,
            "n": curve.n,
            "color": styles[curve.name].color,
            "shape": SHAPES[styles[curve.name].marker],
            "dashes": DASHES[styles[curve.name].line],
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
    """The rows of the table."""
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
    """Encode bytes for a data URI."""
    return base64.b64encode(data).decode()

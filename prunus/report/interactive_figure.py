"""Interactive charts: pages with them are one HTML file that needs no other file and no network.

A chart is drawn by `templates/figure.js`, the only script that a page allows. Without scripts, a page still has the
numbers as a table and as CSV.
"""

import hashlib
import math
from typing import Any

from prunus.report.curve_styles import assign_styles
from prunus.report.figure_data import FigureData, numbers_of, to_csv
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


def chart(figure: FigureData, csv_name: str, svg: str = "") -> dict[str, Any]:
    """Return what the macro of `chart.html` and the script need, for a page that `render_with_script` makes.

    Args:
        figure: The figure.
        csv_name: The name under which a reader can save its numbers.
        svg: The figure as SVG, shown where scripts are disabled; empty: there is none.

    Returns:
        The figure, its curves and references as the script draws them, and its numbers, also as CSV.
    """
    styles = assign_styles([curve.name for curve in figure.series])
    curves: list[dict[str, Any]] = []
    for curve in figure.series:
        color, marker, line = styles[curve.name]
        points = [
            [*map(_finite, row), index in curve.failed]
            for index, row in enumerate(zip(curve.x, curve.mean, curve.low, curve.high, strict=True))
        ]
        style = {"color": color, "shape": SHAPES[marker], "dashes": DASHES[line]}
        curves.append({"name": curve.name, "n": curve.n, **style, "points": points})
    for other in figure.references:
        points = [[_finite(x), _finite(y), None, None, False] for x, y in other.points]
        unmarked = {"n": None, "color": None, "shape": None, "dashes": "5 4"}
        curves.append({"name": other.name, **unmarked, "points": points})
    numbers = numbers_of(figure)
    csv = {"csv": to_csv(numbers), "csv_name": csv_name}
    return {"figure": figure, "curves": curves, "numbers": numbers, **csv, "fallback_svg": svg}


def render_with_script(template: str, **values: Any) -> str:
    """Render a page with charts; the same arguments give the same text.

    Args:
        template: Name of its template.
        **values: The variables of the template.

    Returns:
        The HTML page.

    Raises:
        PrunusError: Jinja2 is not installed.
    """
    script = (TEMPLATES / "figure.js").read_text(encoding="utf-8")
    digest = hashlib.sha256(script.encode()).digest()
    return load_template(template).render(script=script, digest=digest, **values)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None

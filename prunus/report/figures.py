"""Figures of experiments: a picture as PNG and SVG, a page to look closer, and the numbers in it as CSV.

One name has one color, one marker and one kind of line in every figure. The same arguments give the same bytes.
"""

import io
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunus.errors import PrunusError
from prunus.files import write_atomic
from prunus.report.curve_styles import assign_styles
from prunus.report.figure_data import Curve, FigureData, Reference, check, to_csv
from prunus.report.interactive_figure import interactive

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Curve", "FigureData", "Reference", "save_drawing", "save_line_plot"]

FAILED = "#d0021b"
"""The edge of a point whose receipt failed."""
QUIET = "#555555"
MANY = 6
"""With more curves than this, the legend stands beside the axes; `figure.js` has the same number."""
LINE = 0.185
"""Inches that a line of the legend takes."""


def save_line_plot(
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
    receipts: str = "",
) -> tuple[Path, Path, Path, Path]:
    """Draw `series` and write `path`.png, `path`.svg, `path`.html and `path`.csv; returns the four.

    Args:
        path: without suffix; a dot in its name is part of the name.
        series: names are unlike; lengths within a curve are equal.
        x_log, invert_x: a logarithmic x axis; one that falls to the right.
        reference: curves without replicates.
        band: what `low` and `high` are, for the legend.
        receipts: a line under the picture, "receipts: 120 of 120 points passed".

    Words are drawn as they are: a dollar sign begins no formula.

    Raises PrunusError for no curve, curves that do not fit together, or where matplotlib is not installed.
    """
    return save_drawing(
        path, FigureData(series, title, x_label, y_label, x_log, invert_x, reference, band, receipts)
    )


def save_drawing(path: str | Path, drawing: FigureData) -> tuple[Path, Path, Path, Path]:
    """Write `path`.csv, .png, .svg and .html of a drawing, as `save_lines` does; returns PNG, SVG, page and CSV."""
    save_numbers(path, drawing)
    return save_pictures(path, drawing)


def save_numbers(path: str | Path, drawing: FigureData) -> Path:
    """Write the numbers of a drawing as `path`.csv, which needs neither matplotlib nor jinja2; returns the file."""
    check(drawing.series)
    table = files_of(path)[-1]
    write_atomic(table, to_csv(drawing))
    return table


def files_of(path: str | Path) -> tuple[Path, Path, Path, Path]:
    """The four files of a drawing: PNG, SVG, page and CSV."""
    base = Path(path)
    png, svg, page, table = (
        base.with_name(f"{base.name}.{suffix}") for suffix in ("png", "svg", "html", "csv")
    )
    return png, svg, page, table


def check_figure_libraries() -> None:
    """Import what figures and their pages need, before the work whose results they show.

    Whatever the environment names as the backend of matplotlib, an inline one of a notebook or one that does not
    exist, has no effect on prunus: figures are drawn without one. It is still what pyplot finds afterwards.

    Raises:
        PrunusError: One of them is not installed.
    """
    inherited = None if "matplotlib" in sys.modules else os.environ.pop("MPLBACKEND", None)
    try:
        import jinja2  # noqa: F401
        import matplotlib
        import matplotlib.backends.backend_agg
        import matplotlib.backends.backend_svg
        import matplotlib.figure
    except ImportError as error:
        library = (error.name or "a library").partition(".")[0]
        raise PrunusError(
            f"Figures need {library}, which is not installed: pip install 'prunus[cli]'."
        ) from error
    finally:
        if inherited is not None:
            os.environ["MPLBACKEND"] = inherited
    if inherited:
        with suppress(ValueError):  # a backend that does not exist
            matplotlib.rcParams["backend"] = inherited


def save_pictures(path: str | Path, drawing: FigureData) -> tuple[Path, Path, Path, Path]:
    """Write `path`.png, .svg and .html of a drawing, whose numbers are in `path`.csv; returns the four."""
    check(drawing.series)
    check_figure_libraries()
    import matplotlib
    from matplotlib.figure import Figure

    png, svg, page, table = files_of(path)
    fixed = {
        "svg.hashsalt": "prunus",
        "font.size": 10,
        "font.family": "DejaVu Sans",
        "text.parse_math": False,
    }
    with matplotlib.rc_context(fixed):
        entries = len(drawing.series) + len(drawing.reference)
        crowded = entries > MANY
        height = max(4.5, LINE * (entries + 3))  # with a heading, a failed receipt, and room
        figure = Figure(figsize=(9.5 if crowded else 7, height), layout="constrained")
        _draw(figure, drawing, crowded)
        as_png, as_svg = io.BytesIO(), io.BytesIO()
        figure.savefig(as_png, format="png", backend="agg", dpi=150, metadata={"Software": None})
        figure.savefig(as_svg, format="svg", backend="svg", metadata={"Date": None, "Creator": None})
    write_atomic(png, as_png.getvalue())
    write_atomic(svg, as_svg.getvalue())
    write_atomic(page, interactive(drawing, to_csv(drawing), table.name))
    return png, svg, page, table


def _draw(figure: "Figure", drawing: FigureData, crowded: bool) -> None:
    """One pair of axes with its legend: beside them where it would cover the curves, which then are many."""
    axes = figure.add_subplot()
    words = _curves(axes, drawing, 0.07 if crowded else 0.18)
    axes.set(title=drawing.title, xlabel=drawing.x_label, ylabel=drawing.y_label)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if drawing.x_log:
        _log_ticks(axes)
    if drawing.invert_x:
        axes.invert_xaxis()
    legend = (figure if crowded else axes).legend(
        handles=list(words),
        labels=[str(place) for place in range(len(words))],
        loc="outside right upper" if crowded else "best",
        frameon=False,
        fontsize=8.5,
        title=f"band: {drawing.band}" if drawing.banded else None,
        title_fontsize=8.5,
        handlelength=2.8,
    )
    for label, name in zip(legend.get_texts(), words.values(), strict=True):
        label.set_text(name)  # as a label above, "_a" is left out by matplotlib before 3.10
    if drawing.receipts:
        figure.supxlabel(drawing.receipts, fontsize=8, color=QUIET)


def _curves(axes: "Axes", drawing: FigureData, shade: float) -> dict[Any, str]:
    """Draw curves, references and failed receipts; what stands in the legend, with its words."""
    looks = assign_styles([curve.name for curve in drawing.series])
    words: dict[Any, str] = {}
    failed = None
    for curve in drawing.series:
        color, marker, dashes = looks[curve.name]
        (line,) = axes.plot(
            curve.x, curve.mean, color=color, marker=marker, linestyle=dashes, markersize=4, linewidth=1.5
        )
        words[line] = f"{curve.name} (n = {curve.n})"
        axes.fill_between(curve.x, curve.low, curve.high, color=color, alpha=shade, linewidth=0)
        if curve.failed:
            places = [curve.x[i] for i in curve.failed], [curve.mean[i] for i in curve.failed]
            (failed,) = axes.plot(*places, "o", mfc="white", mec=FAILED, mew=1.6, markersize=8, zorder=3)
    for other in drawing.reference:
        points: list[Any] = list(zip(*other.points, strict=True))
        (line,) = axes.plot(*points, color=QUIET, linestyle="--", linewidth=1)
        words[line] = other.name
    if failed is not None:
        words[failed] = "invariants failed"
    return words


def _log_ticks(axes: "Axes") -> None:
    """Plain numbers: 1, 2 and 5 times powers of ten, or every digit where the axis is short."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high > 10 * low else range(1, 10)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())

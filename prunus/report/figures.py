"""Figures of experiments as PNG, SVG, interactive HTML and CSV.

A name has the same color, marker and line style in every figure. The same arguments give the same bytes.
"""

import io
import os
import sys
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any, Literal

from prunus.errors import PrunusError
from prunus.files import write_atomic
from prunus.report.curve_styles import assign_styles
from prunus.report.figure_data import FigureData, check_curves, numbers_of, to_csv
from prunus.report.interactive_figure import chart, render_with_script

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FAILED_COLOR = "#d0021b"
"""The edge of a point that failed an invariant check."""
REFERENCE_COLOR = "#555555"
MAX_INSIDE_LEGEND = 6
"""With more curves, the legend is outside the axes; `figure.js` has the same number."""
LEGEND_LINE = 0.185
"""Height of a line of the legend, in inches."""
TITLE_WIDTH = 68
"""Characters of a line of the title, which is longer than the axes otherwise."""


def save_numbers(path: str | Path, drawing: FigureData) -> Path:
    """Write the numbers of a figure as `path`.csv, without matplotlib and jinja2.

    Args:
        path: The files without suffix; a dot is part of the name.
        drawing: The content of the figure.

    Returns:
        The CSV file.

    Raises:
        PrunusError: There is no curve, or the curves are inconsistent.
        OutputError: The file cannot be written.
    """
    check_curves(drawing.series)
    table = files_of(path)[-1]
    write_atomic(table, to_csv(numbers_of(drawing)))
    return table


def files_of(path: str | Path) -> tuple[Path, ...]:
    """The four files of a figure: PNG, SVG, HTML and CSV."""
    return tuple(Path(f"{path}.{suffix}") for suffix in ("png", "svg", "html", "csv"))


def check_figure_libraries() -> None:
    """Check before any work that the libraries of figures and pages are installed.

    Figures are drawn without a matplotlib backend, so that the backend that the environment names, such as that of a
    notebook or one that does not exist, has no effect. pyplot still finds it afterwards.

    Raises:
        PrunusError: A library is not installed.
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


def save_images(path: str | Path, drawing: FigureData) -> tuple[Path, ...]:
    """Write `path`.png, .svg and .html of a figure whose numbers are in `path`.csv.

    Args:
        path: The files without suffix; a dot is part of the name.
        drawing: The content of the figure.

    Returns:
        The four files of the figure: PNG, SVG, HTML and CSV, of which the last is not written.

    Raises:
        PrunusError: There is no curve, the curves are inconsistent, or matplotlib or jinja2 is not installed.
        OutputError: A file cannot be written.
    """
    check_curves(drawing.series)
    files = png, svg, page, table = files_of(path)
    entries = len(drawing.series) + len(drawing.references)
    outside = entries > MAX_INSIDE_LEGEND
    with figure_style():
        # With a heading and failed points.
        figure = new_figure(9.5 if outside else 7, max(4.5, LEGEND_LINE * (entries + 3)))
        _draw(figure, drawing, outside)
        as_svg = io.BytesIO()
        figure.savefig(as_svg, format="svg", backend="svg", metadata={"Date": None, "Creator": None})
    write_atomic(png, to_png(figure))
    write_atomic(svg, as_svg.getvalue())
    write_atomic(page, render_with_script("figure.html", chart=chart(drawing, table.name)))
    return files


def figure_style() -> AbstractContextManager[None]:
    """The same text and the same bytes whatever the settings of the user."""
    check_figure_libraries()
    import matplotlib

    text = {"font.size": 10, "font.family": "DejaVu Sans", "text.parse_math": False}
    return matplotlib.rc_context({"svg.hashsalt": "prunus", **text})


def new_figure(width: float, height: float) -> "Figure":
    """Make an empty figure.

    Args:
        width: In inches.
        height: In inches.

    Returns:
        The figure, which no window shows.
    """
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def to_png(figure: "Figure") -> bytes:
    """Return a figure as PNG; the same figure gives the same bytes."""
    file = io.BytesIO()
    with figure_style():
        figure.savefig(file, format="png", backend="agg", dpi=150, metadata={"Software": None})
    return file.getvalue()


def _draw(figure: "Figure", drawing: FigureData, outside: bool) -> None:
    """Draw the axes and their legend, which may be outside them so that it does not cover many curves."""
    axes = figure.add_subplot()
    labels = _draw_curves(axes, drawing, 0.07 if outside else 0.18)
    axes.set(title=fill(drawing.title, TITLE_WIDTH), xlabel=drawing.x_label, ylabel=drawing.y_label)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if drawing.x_log:
        set_log_ticks(axes)
    if drawing.has_log_y:
        set_log_ticks(axes, "y")
    if drawing.invert_x:
        axes.invert_xaxis()
    legend = (figure if outside else axes).legend(
        handles=list(labels),
        labels=[str(index) for index in range(len(labels))],
        loc="outside right upper" if outside else "best",
        frameon=False,
        fontsize=8.5,
        title=f"band: {drawing.band}" if drawing.banded else None,
        title_fontsize=8.5,
        handlelength=2.8,
    )
    for text, label in zip(legend.get_texts(), labels.values(), strict=True):
        text.set_text(label)  # matplotlib before 3.10 leaves out labels above that begin with "_"
    if drawing.footer:
        figure.supxlabel(drawing.footer, fontsize=8, color=REFERENCE_COLOR)


def _draw_curves(axes: "Axes", drawing: FigureData, band_opacity: float) -> dict[Any, str]:
    """Draw curves, references and failed points, and return the labels of the legend by their artists."""
    styles = assign_styles([curve.name for curve in drawing.series])
    labels: dict[Any, str] = {}
    failed = None
    for curve in drawing.series:
        color, marker, dashes = styles[curve.name]
        (line,) = axes.plot(
            curve.x, curve.mean, color=color, marker=marker, linestyle=dashes, markersize=4, linewidth=1.5
        )
        labels[line] = f"{curve.name} (n = {curve.n})"
        axes.fill_between(curve.x, curve.low, curve.high, color=color, alpha=band_opacity, linewidth=0)
        if curve.failed:
            points = [curve.x[i] for i in curve.failed], [curve.mean[i] for i in curve.failed]
            (failed,) = axes.plot(
                *points, "o", mfc="white", mec=FAILED_COLOR, mew=1.6, markersize=8, zorder=3
            )
    for other in drawing.references:
        (line,) = axes.plot(
            *zip(*other.points, strict=True), color=REFERENCE_COLOR, linestyle="--", linewidth=1
        )
        labels[line] = other.name
    if failed is not None:
        labels[failed] = "invariants failed"
    return labels


def set_log_ticks(axes: "Axes", which: Literal["x", "y"] = "x") -> None:
    """Make an axis logarithmic, with ticks at 1, 2 and 5 times powers of ten.

    They are at every digit where the axis spans less than a power of ten, and evenly spaced where it ends at less than
    twice its beginning.

    Args:
        axes: The axes, with their curves.
        which: The axis.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    axis = axes.xaxis if which == "x" else axes.yaxis
    logarithmic = LogLocator(subs=(1, 2, 5) if high > 10 * low else range(1, 10))
    axis.set_major_locator(logarithmic if high > 2 * low else MaxNLocator(6))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())

"""The table of an experiment: rows summarized over the replicates, as numbers and as text."""

import math
from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

from prunus.errors import SpecError
from prunus.experiments.comparisons import METRICS
from prunus.experiments.experiment import Experiment
from prunus.experiments.rows import average_draws, group_rows
from prunus.report.formatting import format_density
from prunus.runs.content import Row


def table_of(experiment: Experiment, rows: Sequence[Row]) -> list[Row]:
    """Summarize rows over the replicates: one row per curve and point, with published values next to the measured ones.

    A density and its sparsity are rounded together, so that they add up to 100 as they are printed.

    Args:
        experiment: The experiment, which names the metrics, the keys of a point and the published values.
        rows: One row per run and point, as `Experiment.select` returns them; those without any of the metrics are left
            out.

    Returns:
        Rows with the same columns: "group" where there are several networks, "curve", the keys of the point, "n", the
        number of replicates, then each metric with its standard deviation, "METRIC ±", and its published value. A cell
        without a value is an empty text.

    Raises:
        SpecError: No row has any of the metrics.
    """
    with_metrics = [row for row in rows if any(metric in row for metric in experiment.metrics)]
    if not with_metrics:
        got = (
            f"rows with {', '.join(dict.fromkeys(key for row in rows for key in row))}" if rows else "no rows"
        )
        raise SpecError(
            f"Expected rows with one of the metrics {', '.join(experiment.metrics)} of {experiment.name}, got {got}; "
            "correct `metrics` or `select` of the experiment, or the rows of its runs."
        )
    by = [key for key in ("group", "curve", *experiment.points) if all(key in row for row in with_metrics)]
    if "density %" not in by:
        by = [key for key in by if key != "level"]  # positions between two networks, not levels of density
    table = []
    for key, members in group_rows(with_metrics, by).items():
        row: Row = dict(zip(by, key, strict=True))
        row["n"] = len({member["replicate"] for member in members})
        for metric in experiment.metrics:
            row |= _summary(metric, members, by)
            row |= {
                f"published {metric}": value.value
                for value in experiment.published
                if value.metric == metric and value.where.items() <= members[0].items()
            }
        table.append(row)
    columns = dict.fromkeys(column for row in table for column in row)
    return [{column: row.get(column, "") for column in columns} for row in table]


def _summary(metric: str, rows: Sequence[Row], by: Sequence[str]) -> Row:
    """Mean and standard deviation of a metric over the replicates, or an empty cell."""
    key = metric.replace("sparsity %", "density %")
    values = [row[key] for row in average_draws((row for row in rows if key in row), by, (key,))]
    if not values:
        return {metric: ""}
    if key != metric:
        return {metric: round(100 - round(mean(values), 2), 2)}
    average = round(mean(values), 2) if metric.startswith("density %") else mean(values)
    return {metric: average, f"{metric} ±": stdev(values) if len(values) > 1 else 0.0}


def table_cells(experiment: Experiment, rows: Sequence[Row]) -> dict[str, Any]:
    """Format the table.

    Args:
        experiment: The experiment.
        rows: The rows of `table_of`.

    Returns:
        The "header", whose first column is the curve, and the "rows", each with the name of its curve and its cells,
        each a text and its standard deviation as text, which is empty where there is none. The dense network, level 0,
        is only in the first of the curves that share it; then "shares_dense" is True.
    """
    names = [key for key in ("group", "curve", "over", "from") if key in rows[0]]
    columns = [key for key in rows[0] if key not in names and not key.endswith(" ±")]
    by_density = "density %" in experiment.points
    if by_density:
        columns = [key for key in columns if key != "sparsity %" or key in experiment.metrics]
    cells = [
        [
            (format_density(row[key] / 100), "") if by_density and key == "density %" else cell(row, key)
            for key in columns
        ]
        for row in rows
    ]
    # Where each network is a curve of its own, its name is there twice.
    curves = [", ".join(dict.fromkeys(str(row[key]) for key in names)) for row in rows]
    titles = ["density (sparsity)" if by_density and key == "density %" else title(key) for key in columns]
    shown: dict[Any, tuple[str, list[tuple[str, str]]]] = {}
    for i, (row, curve, texts) in enumerate(zip(rows, curves, cells, strict=True)):
        shown.setdefault((row.get("group"), *texts) if row.get("level") == 0 else i, (curve, texts))
    return {"header": ["curve", *titles], "rows": [*shown.values()], "shares_dense": len(shown) < len(rows)}


def title(key: str) -> str:
    """Return the title of a column.

    Args:
        key: The key of a metric, also after "published ", or another column.

    Returns:
        The name of the metric with its unit.

    >>> title("published stop_step"), title("bits")
    ('published early-stopping iteration', 'bits')
    """
    if key.startswith("published "):
        return f"published {title(key.removeprefix('published '))}"
    return METRICS[key].column if key in METRICS else key


def cell(row: Row, column: str) -> tuple[str, str]:
    """Format a value and its standard deviation; the second is empty where it is missing or zero.

    Args:
        row: A summarized row; the standard deviation of a column "x" has the key "x ±".
        column: Key of the value; a key that the row lacks gives an empty text.

    Returns:
        The standard deviation with two significant digits, and the value with as many decimal places; a float without a
        standard deviation has four significant digits.

    >>> cell({"x": 97.5, "x ±": 0.0512}, "x"), cell({"x": 33512, "x ±": 238.1}, "x"), cell({"x": 3.14159}, "x")
    (('97.500', '0.051'), ('33512', '240'), ('3.142', ''))
    >>> cell({"x": 8.5e-11, "x ±": 4.7e-11}, "x"), cell({"x": 6.98999, "x ±": 4.6e-05}, "x")
    (('8.5e-11', '4.7e-11'), ('6.99', '4.6e-05'))
    """
    value, spread = row.get(column, ""), row.get(f"{column} ±", 0.0)
    if not spread or isinstance(value, str):
        digits = ".0f" if isinstance(value, float) and abs(value) >= 1e4 else ".4g"
        return f"{value:{digits}}" if isinstance(value, float) else str(value), ""
    if max(abs(value), spread) < 1e-3:
        return f"{value:.2g}", f"{spread:.2g}"
    if spread < abs(value) * 1e-4 or column.startswith("density %"):  # with its sparsity, it adds up to 100
        return f"{value:.4g}", f"{spread:.2g}"
    spread = float(f"{spread:.2g}")
    places = max(0, 1 - math.floor(math.log10(spread)))
    return f"{value:z.{places}f}", f"{spread:.{places}f}"

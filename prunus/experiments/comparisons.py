"""Paired comparisons: two curves on the same replicates, point by point, as rows and as tables.

A replicate with several draws counts once, by the mean of its draws.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from prunus.experiments.rows import average_draws, group_rows
from prunus.report import formatting
from prunus.report.statistics import Comparison, compare_paired
from prunus.runs.content import Row

DENSE = "the dense network"
"""The name of level 0 of every curve."""


@dataclass(frozen=True)
class Metric:
    """The name of a metric, the unit of a difference, and adjectives for a larger and a smaller value."""

    name: str
    unit: str
    more: str
    less: str
    value_unit: str = ""
    """The unit of the values; empty where it is that of a difference."""

    @property
    def column(self) -> str:
        """The name with the unit of the values."""
        return f"{self.name} ({self.value_unit or self.unit})" if self.unit == "pp" else self.name


_ACCURACY = ("pp", "more accurate", "less accurate", "%")
METRICS: Mapping[str, Metric] = {
    "stop_step": Metric("early-stopping iteration", "iterations", "later to stop", "earlier to stop"),
    "stop_test_accuracy": Metric("test accuracy at the early-stopping iteration", *_ACCURACY),
    "final_test_accuracy": Metric("test accuracy at the end of training", *_ACCURACY),
    "recalibrated": Metric("test accuracy after BatchNorm recalibration", *_ACCURACY),
    "as pruned": Metric("test accuracy without BatchNorm recalibration", *_ACCURACY),
    "test accuracy": Metric("test accuracy", *_ACCURACY),
    "training accuracy": Metric("training accuracy", *_ACCURACY),
    "k-means": Metric("test accuracy after k-means", *_ACCURACY),
    "fine-tuned": Metric("test accuracy after fine-tuning the centroids", *_ACCURACY),
    "accuracy lost": Metric("loss of test accuracy", "pp", "a larger loss", "a smaller loss"),
    "barrier": Metric("error barrier", "pp", "a higher barrier", "a lower barrier"),
    "error": Metric("test error", "pp", "a higher error", "a lower error", "%"),
    "error increase": Metric("increase of the test error", "pp", "a larger increase", "a smaller increase"),
    "training error": Metric("training error", "nats", "a higher error", "a lower error"),
    "test error": Metric("test error", "nats", "a higher error", "a lower error"),
    "dense": Metric("weights of the dense network", "weights", "more weights", "fewer weights"),
    "dense test": Metric("test accuracy of the dense network", *_ACCURACY),
    "error lower by": Metric(
        "reduction of the test error", "pp", "a larger reduction", "a smaller reduction"
    ),
    **{
        f"error added{per}{after}": Metric(
            f"increase of the test error{per}{after}", "pp", "a larger increase", "a smaller increase"
        )
        for per in ("", " per 1,000")
        for after in ("", " after retraining")
    },
    "smallest file %": Metric(
        "smallest file without loss", "% of the dense file", "a larger file", "a smaller file"
    ),
    "pruned parameters": Metric("pruned parameters", "parameters", "more parameters", "fewer parameters"),
    "zeros added": Metric("zeros more than in the dense network", "pp", "more zeros", "fewer zeros"),
    **{
        f"stops earlier than {other}": Metric(
            f"early-stopping iteration of {name}, divided by that of the ticket",
            "",
            "earlier to stop",
            "later to stop",
        )
        for other, name in (
            ("dense", DENSE),
            ("new weights", "newly drawn weights"),
            ("dense at best", f"{DENSE} at the best density"),
        )
    },
    "weights": Metric("remaining weights", "weights", "more weights", "fewer weights"),
    "MACs %": Metric("remaining MACs", "pp", "more", "fewer", "%"),
    "parameters %": Metric("remaining parameters", "pp", "more", "fewer", "%"),
    "change": Metric("change of test accuracy", "pp", "a larger change", "a smaller change", "pp"),
}
"""The metrics that are compared, and others whose keys are not clear."""


@dataclass(frozen=True)
class Difference:
    """A curve compared with another at one point, on the replicates that both have."""

    group: str
    curve: str
    against: str
    point: float
    """A density in percent, or a value of the experiment's `point`."""
    metric: str
    comparison: Comparison
    key: str = "density %"
    """What the point is a value of."""

    @property
    def sign(self) -> int:
        """1 or -1 where the curve is significantly above or below the other; else 0."""
        if self.comparison.n < 2 or not self.comparison.significant:
            return 0
        return 1 if self.comparison.difference > 0 else -1

    @property
    def where(self) -> str:
        """The point with what it is a value of."""
        if self.key == "density %":
            return formatting.format_density(self.point / 100)
        return f"{self.key.removesuffix(' %')} {self.point:g}{' %' * self.key.endswith(' %')}"


def compare(
    rows: Iterable[Row], against: str, metrics: Sequence[str], point: str = "density %"
) -> list[Difference]:
    """Compare every other curve with `against`, and after them `against` with the dense network where there is one.

    Args:
        rows: One row per replicate and point, with "curve", "replicate", `point` and the metrics.
        against: Name of a curve.
        metrics: Keys of METRICS.
        point: The key by which curves are compared.

    Returns:
        One difference per network, curve, point and metric for which at least one replicate has both sides. Comparisons
        with the dense network come last; they are made where rows of level 0 exist.
    """
    selected = [
        {**row, "group": row.get("group", ""), "curve": row["curve"] if row.get("level", 1) else DENSE}
        for row in rows
        if point in row and (row.get("level", 1) or row["curve"] == against)
    ]
    means: dict[tuple[str, str, float, str], dict[int, float]] = {}
    for metric in metrics:
        with_metric = (row for row in selected if metric in row)
        for row in average_draws(with_metric, ("group", "curve", point), (metric,)):
            key = (row["group"], row["curve"], row[point], metric)
            means.setdefault(key, {})[row["replicate"]] = row[metric]
    differences = []
    for (group, curve, where, metric), values in means.items():
        other_curve = (DENSE, 100.0) if curve == against else (against, where)
        other = means.get((group, *other_curve, metric), {})
        if curve != DENSE and other.keys() & values:
            comparison = compare_paired(other, values)
            differences.append(Difference(group, curve, other_curve[0], where, metric, comparison, point))
    return sorted(differences, key=lambda difference: difference.against == DENSE)


def as_rows(differences: Iterable[Difference]) -> list[Row]:
    """Convert every comparison to a row of numbers."""
    rows: list[Row] = []
    for difference in differences:
        row: Row = {"group": difference.group} if difference.group else {}
        row |= {"curve": difference.curve, "against": difference.against, difference.key: difference.point}
        row["metric"] = difference.metric
        rows.append(row | asdict(difference.comparison))
        del rows[-1]["confidence"]
    return rows


def comparison_tables(differences: Sequence[Difference]) -> list[dict[str, Any]]:
    """Group comparisons for the page, point by point; empty where no comparison has two pairs.

    Args:
        differences: The comparisons to describe.

    Returns:
        One table per network, metric and reference curve: its "heading", adjectives for "more" and "less", and "rows",
        one per point: "at", and the curves that are significantly above ("more") and below ("less") the reference
        curve, each with its difference, and the curves that are neither ("same").
    """
    if not any(difference.comparison.n > 1 for difference in differences):
        return []
    keyed = [
        {"table": (d.group, d.metric, d.against), "point": d.point, "difference": d} for d in differences
    ]
    tables = []
    for ((group, metric, against),), members in group_rows(keyed, ("table",)).items():
        name, unit = METRICS[metric].name, METRICS[metric].unit
        heading = f"{f'{group}, ' if group else ''}{name}, compared with {against}"
        rows = []
        for at_point in group_rows(members, ("point",)).values():
            curves: dict[int, list[Any]] = {1: [], -1: [], 0: []}
            for difference in (row["difference"] for row in at_point):
                curves[difference.sign].append((difference.curve, difference.comparison.amount(unit)))
            same = [curve for curve, _ in curves[0]]
            where = at_point[0]["difference"].where
            rows.append({"at": where, "more": curves[1], "less": curves[-1], "same": same})
        names = {"more": METRICS[metric].more, "less": METRICS[metric].less}
        tables.append({"heading": heading[:1].upper() + heading[1:], **names, "rows": rows})
    return tables

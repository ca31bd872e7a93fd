"""Paired comparisons: two curves on the same replicates, point by point, as rows, sentences and tables.

A replicate with several draws counts once, by the mean of its draws.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from prunus.experiments.rows import average_draws
from prunus.report import formatting
from prunus.report.experiment_page import DensityComparison, MetricComparison
from prunus.report.statistics import Comparison, compare_paired
from prunus.runs.content import Row

K = TypeVar("K", bound=Hashable)

DENSE = "the dense network"
"""The name of level 0 of every curve."""


@dataclass(frozen=True)
class Metric:
    """The name of a metric, the unit of a difference, and adjectives for a larger and a smaller value."""

    name: str
    unit: str
    more: str
    less: str

    @property
    def column(self) -> str:
        """The name with the unit of the values."""
        return f"{self.name} (%)" if self.unit == "pp" else self.name


_ACCURACY = ("pp", "more accurate", "less accurate")
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
    "training error": Metric("training error", "nats", "a higher error", "a lower error"),
    "weights": Metric("remaining weights", "weights", "more weights", "fewer weights"),
}
"""The metrics that are compared."""


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
        return (self.comparison.difference > 0) - (self.comparison.difference < 0) if self.significant else 0

    @property
    def significant(self) -> bool:
        """Whether the interval of at least two pairs excludes zero."""
        return self.comparison.n > 1 and self.comparison.significant

    @property
    def where(self) -> str:
        """The point with what it is a value of."""
        if self.key == "density %":
            return formatting.format_density(self.point / 100)
        return f"{self.key.removesuffix(' %')} {self.point:g}{' %' * self.key.endswith(' %')}"

    def amount(self, brief: bool = False) -> str:
        """Format the difference with its interval; the interval alone if `brief`."""
        return self.comparison.amount(METRICS[self.metric].unit, brief=brief)


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
    return [
        {
            **({"group": difference.group} if difference.group else {}),
            "curve": difference.curve,
            "against": difference.against,
            difference.key: difference.point,
            "metric": difference.metric,
            "n": difference.comparison.n,
            "difference": difference.comparison.difference,
            "low": difference.comparison.low,
            "high": difference.comparison.high,
            "p": difference.comparison.p,
        }
        for difference in differences
    ]


def comparison_lines(differences: Iterable[Difference], metrics: Sequence[str], file: str) -> list[str]:
    """Describe comparisons: one line per curve, under a heading per network and metric.

    Args:
        differences: All comparisons of an experiment.
        metrics: The metrics to describe.
        file: Name of the file that contains every comparison.

    Returns:
        Lines of Markdown: empty where none of the metrics was compared, one line without numbers where no comparison
        has two pairs.
    """
    described = [difference for difference in differences if difference.metric in metrics]
    if not described:
        return []
    if not any(difference.comparison.n > 1 for difference in described):
        return [f"one replicate cannot show a difference; the measured differences are in {file}"]
    lines = [f"every comparison, with its interval: {file}"]
    for (group, metric, against), members in _grouped(described, _heading_key).items():
        heading = f"{METRICS[metric].name}, compared with {against} on the same replicates"
        lines += ["", f"{group + ', ' if group else ''}{heading}:", ""]
        lines += [
            f"- {curve}: {_line(of_curve)}"
            for curve, of_curve in _grouped(members, lambda difference: difference.curve).items()
        ]
    return lines


def _line(differences: Sequence[Difference]) -> str:
    """The comparisons of a curve at all points, with the largest of the significant differences."""
    metric, unit = METRICS[differences[0].metric], " %" * differences[0].key.endswith(" %")
    parts = []
    for sign, adjective in ((1, metric.more), (-1, metric.less)):
        if members := [difference for difference in differences if difference.sign == sign]:
            at = f"most at {_largest(members).point:.3g}{unit}, " if len(members) > 1 else ""
            by = f"{at}by {_largest(members).amount()}"
            parts.append(
                f"{adjective} than {differences[0].against} at {_points(members, differences)}, {by}"
            )
    if all(difference.comparison.low == difference.comparison.high == 0 for difference in differences):
        return f"no difference in any pair at {_points(differences, differences, 'any')}"
    if members := [difference for difference in differences if not difference.sign]:
        parts.append(f"no significant difference at {_points(members, differences, 'any')}")
        if len(parts) == 1:
            at = f", the largest at {_largest(members).point:.3g}{unit}" if len(members) > 1 else ""
            parts[0] += f"{at}: {_largest(members).amount()}"
    return "; ".join(parts)


def _points(members: Sequence[Difference], all_: Sequence[Difference], every: str = "every") -> str:
    name, unit = all_[0].key.removesuffix(" %"), " %" * all_[0].key.endswith(" %")
    if len(members) == len(all_) > 2:
        return f"{every} {name} from {members[0].point:.3g} to {members[-1].point:.3g}{unit}"
    return f"{name} {', '.join(f'{difference.point:.3g}' for difference in members)}{unit}"


def _largest(differences: Sequence[Difference]) -> Difference:
    return max(differences, key=lambda difference: abs(difference.comparison.difference))


def comparison_tables(differences: Iterable[Difference], metrics: Sequence[str]) -> list[MetricComparison]:
    """Group comparisons for the page, point by point; empty where no comparison has two pairs.

    Args:
        differences: All comparisons of an experiment.
        metrics: The metrics to describe, keys of METRICS.

    Returns:
        One table per network, metric and reference curve, each with one row per point.
    """
    described = [difference for difference in differences if difference.metric in metrics]
    if not any(difference.comparison.n > 1 for difference in described):
        return []
    tables = []
    for (group, metric, against), members in _grouped(described, _heading_key).items():
        names = METRICS[metric]
        heading = f"{group + ', ' if group else ''}{names.name}, compared with {against}"
        rows = [
            _row(of_curve) for of_curve in _grouped(members, lambda difference: difference.point).values()
        ]
        tables.append(MetricComparison(heading[:1].upper() + heading[1:], names.more, names.less, rows))
    return tables


def _heading_key(difference: Difference) -> tuple[str, str, str]:
    return difference.group, difference.metric, difference.against


def _row(differences: Sequence[Difference]) -> DensityComparison:
    more, less = (
        [
            (difference.curve, difference.amount(brief=True))
            for difference in differences
            if difference.sign == sign
        ]
        for sign in (1, -1)
    )
    same = [difference.curve for difference in differences if not difference.sign]
    return DensityComparison(differences[0].where, more, less, same)


def _grouped(members: Sequence[Difference], key: Callable[[Difference], K]) -> dict[K, list[Difference]]:
    """Group by key, in the order of the first member of each."""
    groups: dict[K, list[Difference]] = {}
    for member in members:
        groups.setdefault(key(member), []).append(member)
    return groups

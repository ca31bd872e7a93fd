"""Paired comparisons: two curves on the same replicates, level by level, and what they come to in a few lines.

A replicate that drew several times counts once, by the mean of its draws.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from prunus.experiments.results import Row, average_draws
from prunus.report import formatting
from prunus.report.experiment_page import DensityComparison, MetricComparison
from prunus.report.statistics import Comparison, compare_paired

K = TypeVar("K", bound=Hashable)

DENSE = "the dense network"
"""What a curve's level 0 is called."""


@dataclass(frozen=True)
class Metric:
    """What a metric is called, the unit of a difference, and what the larger and the smaller value are."""

    name: str
    unit: str
    more: str
    less: str

    @property
    def column(self) -> str:
        """The name with the unit of the values."""
        return f"{self.name} (%)" if self.unit == "pp" else self.name


METRICS = {
    "stop_step": Metric("early-stopping iteration", "iterations", "later to stop", "earlier to stop"),
    "stop_test_accuracy": Metric(
        "test accuracy at the early-stopping iteration", "pp", "more accurate", "less accurate"
    ),
    "final_test_accuracy": Metric(
        "test accuracy at the end of training", "pp", "more accurate", "less accurate"
    ),
}
"""Those that are compared."""


@dataclass(frozen=True)
class Difference:
    """A curve against another at one density, on the replicates both have."""

    group: str
    curve: str
    against: str
    density: float
    """In percent."""
    metric: str
    comparison: Comparison

    @property
    def sign(self) -> int:
        """1 or -1 where the curve is shown to lie above or below the other; else 0."""
        return (self.comparison.difference > 0) - (self.comparison.difference < 0) if self.shown else 0

    @property
    def shown(self) -> bool:
        """Whether there is a difference for which one pair is not all the proof."""
        return self.comparison.n > 1 and self.comparison.shown

    def amount(self, brief: bool = False) -> str:
        """How large it is, with its interval."""
        return self.comparison.amount(METRICS[self.metric].unit, brief=brief)


def compare(rows: Iterable[Row], against: str, metrics: Sequence[str]) -> list[Difference]:
    """For every other curve, density and metric of a pruned network: the difference to `against`.

    After them that of `against` itself to the dense network, where there is one.
    """
    asked = [
        {**row, "group": row.get("group", ""), "curve": row["curve"] if row.get("level") else DENSE}
        for row in rows
        if row.get("level") or row["curve"] == against
    ]
    means: dict[tuple[str, str, float, str], dict[int, float]] = {}
    for metric in metrics:
        told = (row for row in asked if metric in row)
        for row in average_draws(told, ("group", "curve", "density %"), (metric,)):
            key = (row["group"], row["curve"], row["density %"], metric)
            means.setdefault(key, {})[row["replicate"]] = row[metric]
    found = []
    for (group, curve, density, metric), mine in means.items():
        beside = (DENSE, 100.0) if curve == against else (against, density)
        other = means.get((group, *beside, metric), {})
        if curve != DENSE and other.keys() & mine:
            found.append(Difference(group, curve, beside[0], density, metric, compare_paired(other, mine)))
    return sorted(found, key=lambda one: one.against == DENSE)


def as_rows(found: Iterable[Difference]) -> list[Row]:
    """Every comparison as a row of numbers."""
    return [
        {
            **({"group": one.group} if one.group else {}),
            "curve": one.curve,
            "against": one.against,
            "density %": one.density,
            "metric": one.metric,
            "n": one.comparison.n,
            "difference": one.comparison.difference,
            "low": one.comparison.low,
            "high": one.comparison.high,
            "p": one.comparison.p,
        }
        for one in found
    ]


def comparison_lines(found: Iterable[Difference], said: Sequence[str], where: str) -> list[str]:
    """What the comparisons of the metrics `said` come to: a line a curve, under a heading a network and metric.

    Args:
        where: the file that holds every single one.
    """
    asked = [one for one in found if one.metric in said]
    if not asked:
        return []
    if not any(one.comparison.n > 1 for one in asked):
        return [f"one replicate: no difference is proved; what there is stands in {where}"]
    told = [f"every comparison, with its interval: {where}"]
    for (group, metric, against), members in _grouped(asked, _beside).items():
        heading = f"{METRICS[metric].name}, against {against} on the same replicates"
        told += ["", f"{group + ', ' if group else ''}{heading}:", ""]
        told += [
            f"- {curve}: {_line(own)}" for curve, own in _grouped(members, lambda one: one.curve).items()
        ]
    return told


def _line(found: Sequence[Difference]) -> str:
    """A curve's comparisons at all densities, with the largest of the differences that are shown."""
    words = METRICS[found[0].metric]
    parts = []
    for sign, word in ((1, words.more), (-1, words.less)):
        if mine := [one for one in found if one.sign == sign]:
            at = f"most at {_largest(mine).density:.3g} %, " if len(mine) > 1 else ""
            by = f"{at}by {_largest(mine).amount()}"
            parts.append(f"{word} than {found[0].against} at {_densities(mine, found)}, {by}")
    if all(one.comparison.low == one.comparison.high == 0 for one in found):
        return f"no difference in any pair at {_densities(found, found, 'any')}"
    if mine := [one for one in found if not one.sign]:
        parts.append(f"no difference shown at {_densities(mine, found, 'any')}")
        if len(parts) == 1:
            at = f", the largest at {_largest(mine).density:.3g} %" if len(mine) > 1 else ""
            parts[0] += f"{at}: {_largest(mine).amount()}"
    return "; ".join(parts)


def _densities(mine: Sequence[Difference], found: Sequence[Difference], every: str = "every") -> str:
    if len(mine) == len(found) > 2:
        return f"{every} density from {mine[0].density:.3g} to {mine[-1].density:.3g} %"
    return f"density {', '.join(f'{one.density:.3g}' for one in mine)} %"


def _largest(found: Sequence[Difference]) -> Difference:
    return max(found, key=lambda one: abs(one.comparison.difference))


def comparison_tables(found: Iterable[Difference], said: Sequence[str]) -> list[MetricComparison]:
    """The same for the page: density by density; nothing where no comparison has two pairs."""
    asked = [one for one in found if one.metric in said]
    if not any(one.comparison.n > 1 for one in asked):
        return []
    told = []
    for (group, metric, against), members in _grouped(asked, _beside).items():
        words = METRICS[metric]
        heading = f"{group + ', ' if group else ''}{words.name}, against {against}"
        rows = [_verdict(own) for own in _grouped(members, lambda one: one.density).values()]
        told.append(MetricComparison(heading[:1].upper() + heading[1:], words.more, words.less, rows))
    return told


def _beside(one: Difference) -> tuple[str, str, str]:
    """What stands under one heading."""
    return one.group, one.metric, one.against


def _verdict(found: Sequence[Difference]) -> DensityComparison:
    more, less = (
        [(one.curve, one.amount(brief=True)) for one in found if one.sign == sign] for sign in (1, -1)
    )
    same = [one.curve for one in found if not one.sign]
    return DensityComparison(formatting.format_density(found[0].density / 100), more, less, same)


def _grouped(members: Iterable[Difference], key: Callable[[Difference], K]) -> dict[K, list[Difference]]:
    found: dict[K, list[Difference]] = {}
    for one in members:
        found.setdefault(key(one), []).append(one)
    return found

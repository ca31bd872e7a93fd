"""Claims of papers, and the verdicts that the rows of an experiment give on them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

from prunus.experiments.comparisons import METRICS
from prunus.experiments.rows import average_draws, group_rows
from prunus.report.statistics import (
    WITHIN_MARGIN,
    Comparison,
    Expectation,
    Verdict,
    claim_p_value,
    compare_paired,
    decide,
    format_interval,
    format_number,
    holm,
)
from prunus.runs.content import Row

Points = Mapping[str, Sequence[Any]]
"""Rows whose value of each key is one of those given; all rows where empty."""


@dataclass(frozen=True)
class Claim:
    """A statement of a paper: a metric of one curve is higher or lower than, or equal to, that of another.

    The values of a replicate are averaged over the points that it has of both curves; then the replicates are paired.
    """

    text: str
    curve: str
    expected: Expectation
    against: str | float
    """Another curve, or a number."""
    metric: str
    source: str
    """Figure, table or section of the paper."""
    at: Points = field(default_factory=dict)
    against_at: Points | None = None
    """Points of the other curve, where they differ, such as level 0 for the dense network."""
    margin: float = 0.0
    """Half-width of what counts as equal, in the unit of the metric."""
    published: str = ""
    """The published value with its unit, where the paper gives one."""
    effect: float | None = None
    """The published difference, without its sign, in the unit of the metric; None where it is not known."""
    networks: Sequence[str] = ()
    """The networks of the experiment that the claim is about, by name; all of them where empty."""

    @property
    def other_points(self) -> Points:
        """Points of the other curve."""
        return self.at if self.against_at is None else self.against_at

    def is_about(self, *networks: str) -> bool:
        """Whether the claim is about one of these networks; a network without a name ("") may be any."""
        return not self.networks or any(name in ("", *self.networks) for name in networks)


@dataclass(frozen=True)
class Published:
    """A published value, shown next to the measured one of the rows that it belongs to."""

    where: Mapping[str, Any]
    """Key and value of the rows."""
    metric: str
    value: float
    source: str
    """Figure or table of the paper; "second-hand" or "authors' code" where the value was not read in the paper."""


@dataclass(frozen=True)
class Decision:
    """The verdict on one claim, with the numbers behind it."""

    claim: str
    source: str
    """Where the paper makes the claim."""
    verdict: Verdict
    n: int
    """Number of replicates."""
    published: str
    """The value in the paper, with its unit; empty where it gives none."""
    metric: str
    against: float | None
    """The number that the metric is compared with; None: another curve."""
    measured: float | None
    """Mean of the metric, or of its difference between two curves; None without data."""
    interval: tuple[float, float] | None
    """95 % interval of `measured`, not corrected; None for fewer than two replicates."""
    uncorrected_p: float
    """p-value of this claim alone."""
    p: float
    """p-value, corrected for the number of claims by Holm's method."""
    where: str
    """The measured points, such as "levels 7, 11"."""
    reason: str
    """Why there is nothing to decide, where that is so."""
    shown_from: float | None
    """The smallest distance from the limit that would have been shown, as `shown_from` computes it."""


def decide_claims(claims: Sequence[Claim], rows: Sequence[Row], num_claims: int = 0) -> list[Decision]:
    """Decide every claim on every network that has rows, with p-values that are corrected by Holm's method.

    A claim that names other networks, or is about a curve that only others have, is not one about this network.

    Args:
        claims: The claims of one experiment.
        rows: One row per run and point, each with "curve", "replicate" and the metrics.
        num_claims: The number of claims, on all networks, that p-values are corrected for. Those that have no rows yet
            count as not shown (p = 1), so that the runs of other networks can only lower a corrected p-value.

    Returns:
        One decision per network and claim, in the order of the networks' first rows. A claim is "not shown" where no
        replicate has values of both sides.
    """
    groups = group_rows(({"group": "", **row} for row in rows), ("group",)) or {("",): []}
    curves = {group: {row["curve"] for row in members} for group, members in groups.items()}
    compared = [
        (group, claim, members, *_compare(claim, members))
        for (group,), members in groups.items()
        for claim in claims
        if claim.is_about(group)
        and (claim.curve in curves[group,] or not any(claim.curve in names for names in curves.values()))
    ]
    p_values = [
        claim_p_value(comparison, claim.expected, claim.margin) if comparison else 1.0
        for _, claim, _, comparison, _ in compared
    ]
    missing = max(num_claims - len(p_values), 0)
    corrected = holm([*p_values, *[1.0] * missing])[: len(p_values)]
    return [
        _decide(*each, *p, len(p_values) + missing)
        for each, p in zip(compared, zip(p_values, corrected, strict=True), strict=True)
    ]


def shown_from(comparison: Comparison, expected: Expectation, num_claims: int) -> float | None:
    """Compute the smallest distance from the limit of a claim that would have been shown with the measured spread.

    The limit is zero, the number that is compared with, or the margin. The p-value of the claim would be below 0.05
    after Bonferroni's correction, which is the strictest step of Holm's: a smaller distance may be shown where other
    claims have smaller p-values.

    Args:
        comparison: The paired comparison of the two sides.
        expected: The claimed relation; within a margin, the test is one-sided.
        num_claims: The number of claims that p-values are corrected for.

    Returns:
        The distance, in the unit of the metric; None for one pair, and for equal differences, which have no spread.

    >>> round(shown_from(Comparison(3, 0.0, -1.0, 1.0, 1.0, 0.95), "higher", 8), 2)
    2.93
    """
    half = (comparison.high - comparison.low) / 2
    if comparison.n < 2 or not half:
        return None
    from scipy.special import stdtrit

    level = 1 - comparison.confidence
    tail = (level if expected in WITHIN_MARGIN else level / 2) / num_claims
    quantiles = (float(stdtrit(comparison.n - 1, 1 - below)) for below in (tail, level / 2))
    corrected, uncorrected = quantiles
    return half * corrected / uncorrected


def measured_text(decision: Decision) -> str:
    """Format what was measured, with its interval: a signed difference, or a metric and a number to compare with."""
    if decision.measured is None:
        return "–"
    is_difference = decision.against is None
    name, unit = _name_and_unit(decision.metric, is_difference)
    unit = f" {unit}".rstrip()
    low, high = decision.interval or (0.0, 0.0)
    if low < high:
        center, low_text, high_text = format_interval(decision.measured, low, high)
        text = f"{center}{unit} ({low_text} to {high_text})"
    else:
        text = f"{format_number(decision.measured)}{unit}"
    if is_difference:
        return f"{'+' * (decision.measured > 0)}{text}"
    return f"{name}: {text}, compared with {decision.against:.4g}{unit}"


def _name_and_unit(metric: str, is_difference: bool) -> tuple[str, str]:
    """The name of a metric, and the unit of its value or of its difference between two curves; empty if it has none."""
    if (known := METRICS.get(metric)) is not None:
        return known.name, known.unit if is_difference else known.value_unit or known.unit
    unit = "pp" if is_difference else "%"
    return metric.removesuffix(" %"), unit if metric.endswith(" %") else ""


def _decide(
    group: str,
    claim: Claim,
    rows: Sequence[Row],
    comparison: Comparison | None,
    where: str,
    uncorrected_p: float,
    p: float,
    num_claims: int,
) -> Decision:
    against = None if isinstance(claim.against, str) else float(claim.against)
    zero, pairs = against or 0.0, comparison.n if comparison else 0
    return Decision(
        claim=f"{group}: {claim.text}" if group else claim.text,
        source=claim.source,
        verdict=decide(comparison, claim.expected, p, claim.margin) if comparison else "not shown",
        n=pairs,
        published=claim.published,
        metric=claim.metric,
        against=against,
        measured=comparison.difference + zero if comparison else None,
        interval=(comparison.low + zero, comparison.high + zero) if comparison and pairs > 1 else None,
        uncorrected_p=uncorrected_p,
        p=p,
        where=where,
        reason="" if pairs > 1 else "one replicate is not enough" if pairs else _missing(claim, rows),
        shown_from=shown_from(comparison, claim.expected, num_claims) if comparison else None,
    )


def _missing(claim: Claim, rows: Sequence[Row]) -> str:
    """Say which curve or points of a claim the rows lack."""
    others = [(claim.against, claim.other_points)] if isinstance(claim.against, str) else []
    for curve, points in [(claim.curve, claim.at), *others]:
        of_curve = [row for row in rows if row["curve"] == curve]
        if not of_curve:
            return f"there is no curve {curve!r}"
        for key, values in points.items():
            if not any(row.get(key) in values for row in of_curve):
                return f"there is no {_where(key, values)}"
    return "no replicate has both sides"


def _compare(claim: Claim, rows: Sequence[Row]) -> tuple[Comparison | None, str]:
    """Pair the replicates of a claim; None where no replicate has both sides. Also says at which points."""
    measured = _values(rows, claim.curve, claim.metric, claim.at)
    if isinstance(claim.against, str):
        other = _values(rows, claim.against, claim.metric, claim.other_points)
        if claim.against_at is None:
            shared = {r: values.keys() & other.get(r, {}).keys() for r, values in measured.items()}
            measured, other = (
                {r: {p: v for p, v in side.get(r, {}).items() if p in shared[r]} for r in shared}
                for side in (measured, other)
            )
    else:
        other = {replicate: {(): float(claim.against)} for replicate in measured}
    points = {point for values in measured.values() for point in values}
    a, b = ({r: mean(v.values()) for r, v in side.items() if v} for side in (other, measured))
    where = "; ".join(
        _where(key, [value for value in values if value in {point[i] for point in points}])
        for i, (key, values) in enumerate(claim.at.items())
    )
    return (compare_paired(a, b) if a.keys() & b.keys() else None), where if points else ""


def _where(key: str, values: Sequence[Any]) -> str:
    """Name points.

    >>> _where("deleted %", [30.0, 40.0]), _where("level", [7, 11]), _where("over", ["l1", "sss"])
    ('deleted 30, 40 %', 'levels 7, 11', 'l1, sss')
    """
    texts = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
    name = {"over": "", "level": f"level{'s' * (len(values) > 1)} "}.get(key, f"{key.removesuffix(' %')} ")
    return f"{name}{', '.join(texts)}{' %' * key.endswith(' %')}"


def _values(
    rows: Sequence[Row], curve: str, metric: str, at: Points
) -> dict[int, dict[tuple[Any, ...], float]]:
    """The metric of a curve, by replicate and point."""
    of_curve = [row for row in rows if row["curve"] == curve and metric in row]
    selected = [row for row in of_curve if all(row.get(key) in values for key, values in at.items())]
    by_replicate: dict[int, dict[tuple[Any, ...], float]] = {}
    for row in average_draws(selected, tuple(at), (metric,)):
        by_replicate.setdefault(row["replicate"], {})[tuple(row[key] for key in at)] = row[metric]
    return by_replicate

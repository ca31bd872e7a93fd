"""Claims of papers, and the verdicts that the rows of an experiment give on them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

from prunus.experiments.rows import average_draws, group_rows
from prunus.report.statistics import (
    Comparison,
    Expectation,
    Verdict,
    claim_p_value,
    compare_paired,
    decide,
    holm,
)
from prunus.runs.content import Row


@dataclass(frozen=True)
class Claim:
    """A statement of a paper: a metric of one curve is higher or lower than, or equal to, that of another.

    The values of a replicate are averaged over the points that both curves have; then the replicates are paired.
    """

    text: str
    curve: str
    expected: Expectation
    against: str | float
    """Another curve, or a number."""
    metric: str
    source: str
    """Figure, table or section of the paper."""
    at: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """The points: rows whose value of each key is one of those given. All points where empty."""
    against_at: Mapping[str, Sequence[Any]] | None = None
    """Points of the other curve, where they differ, such as level 0 for the dense network."""
    margin: float = 0.0
    """Half-width of what counts as equal, in the unit of the metric."""
    published: str = ""
    """The published value with its unit, where the paper gives one."""


@dataclass(frozen=True)
class Published:
    """A published value, shown beside the measured one of the rows that it belongs to."""

    where: Mapping[str, Any]
    """Key and value of the rows."""
    metric: str
    value: float
    source: str
    """Figure or table of the paper; "second-hand" or "authors' code" where the value was not read in the paper."""


def verdicts(claims: Sequence[Claim], rows: Sequence[Row]) -> list[Verdict]:
    """Decide every claim on every network that has rows, Holm-corrected over all of them.

    Args:
        claims: The claims of one experiment.
        rows: One row per run and point, each with "curve", "replicate" and the metrics.

    Returns:
        One verdict per network and claim, in the order of the networks' first rows. A claim is "not shown" where no
        replicate has values of both sides.
    """
    groups = group_rows(({"group": "", **row} for row in rows), ("group",)) or {("",): []}
    compared = [
        (group, claim, *_compare(claim, members)) for (group,), members in groups.items() for claim in claims
    ]
    corrected = holm([
        claim_p_value(comparison, claim.expected, claim.margin) if comparison else 1.0
        for _, claim, comparison, _ in compared
    ])  # fmt: skip
    return [
        Verdict(
            claim=f"{group}: {claim.text}" if group else claim.text,
            source=claim.source,
            verdict=decide(comparison, claim.expected, p, claim.margin) if comparison else "not shown",
            n=comparison.n if comparison else 0,
            published=claim.published,
            measured=comparison.difference if comparison else None,
            interval=(comparison.low, comparison.high) if comparison and comparison.n > 1 else None,
            p=p,
            where=where,
        )
        for (group, claim, comparison, where), p in zip(compared, corrected, strict=True)
    ]


def _compare(claim: Claim, rows: Sequence[Row]) -> tuple[Comparison | None, str]:
    """Pair the replicates of a claim; None where no replicate has both sides. Also says at which points."""
    measured = _values(rows, claim.curve, claim.metric, claim.at)
    points = sorted({point for values in measured.values() for point in values}, key=str)
    if isinstance(claim.against, str):
        other = _values(
            rows, claim.against, claim.metric, claim.at if claim.against_at is None else claim.against_at
        )
        if claim.against_at is None:
            shared = {point for values in other.values() for point in values}
            points = [point for point in points if point in shared]
            measured, other = (
                {r: {p: v for p, v in values.items() if p in points} for r, values in side.items()}
                for side in (measured, other)
            )
    else:
        other = {replicate: {(): float(claim.against)} for replicate in measured}
    a, b = ({r: mean(v.values()) for r, v in side.items() if v} for side in (other, measured))
    where = "; ".join(
        f"{key} {', '.join(dict.fromkeys(str(point[i]) for point in points))}"
        for i, key in enumerate(claim.at)
    )
    return (compare_paired(a, b) if a.keys() & b.keys() else None), where if points else ""


def _values(
    rows: Sequence[Row], curve: str, metric: str, at: Mapping[str, Sequence[Any]]
) -> dict[int, dict[tuple[Any, ...], float]]:
    """The metric of a curve, by replicate and point."""
    selected = [
        row
        for row in rows
        if row["curve"] == curve
        and metric in row
        and all(row.get(key) in values for key, values in at.items())
    ]
    by_replicate: dict[int, dict[tuple[Any, ...], float]] = {}
    for row in average_draws(selected, tuple(at), (metric,)):
        by_replicate.setdefault(row["replicate"], {})[tuple(row[key] for key in at)] = row[metric]
    return by_replicate

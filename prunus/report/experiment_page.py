"""The page of an experiment: all that came of it in one HTML file that needs nothing else and no network.

It shows what it is given and asks no store.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prunus.files import write_atomic
from prunus.report.interactive_figure import Chart, digest, script
from prunus.report.templating import environment

Cell = tuple[str, str]
"""A value, and its standard deviation; empty where it has none."""


@dataclass(frozen=True)
class Card:
    """A number at the top."""

    what: str
    number: str
    words: str
    bad: bool = False


@dataclass(frozen=True)
class DensityComparison:
    """What is shown at one density: the curves that lie above, below, and neither."""

    density: str
    """With the sparsity beside it."""
    more: Sequence[tuple[str, str]]
    """Curves, each with how large the difference is."""
    less: Sequence[tuple[str, str]]
    same: Sequence[str]


@dataclass(frozen=True)
class MetricComparison:
    """A metric of every curve against one of them, density by density."""

    heading: str
    more: str
    """What a curve is whose values are larger."""
    less: str
    rows: Sequence[DensityComparison]


@dataclass(frozen=True)
class Table:
    """Rows in groups; a group's name stands in the first column."""

    header: Sequence[str]
    groups: Sequence[tuple[str, Sequence[Sequence[Cell]]]]


@dataclass(frozen=True)
class InvariantSummary:
    """What was checked, and what does not hold."""

    points: int
    passed: int
    checks: Sequence[tuple[str, int, int]]
    """A sentence, at how many points it holds, and of how many it was asked."""
    failed: Sequence[tuple[str, str, str]]
    """The point, the sentence, the run."""


@dataclass(frozen=True)
class ExperimentPage:
    """All that the page says, in words."""

    name: str
    title: str
    place: str
    """Which figures of the paper; may be empty."""
    paper: str
    notes: Sequence[str]
    size: str
    """One of the sizes' names."""
    about_size: str
    shortened: Sequence[str]
    """Where the size differs from the paper's: "epochs 5 instead of 55"."""
    cards: Sequence[Card]
    charts: Sequence[Chart]
    about_comparisons: str
    """What is compared; or why nothing is, where `comparisons` are empty; empty where nothing was to be."""
    comparisons: Sequence[MetricComparison]
    table: Table
    receipts: InvariantSummary
    command: str
    settings: Mapping[str, str]
    evidence: Mapping[str, str]
    runs: Sequence[tuple[str, str]]
    """What a run is, and its identity."""
    files: Sequence[str]
    """The names of the files beside the page."""


def write_experiment_page(path: Path, page: ExperimentPage) -> None:
    """Write the page to `path`, whole or not at all; the same page gives the same bytes.

    Raises OutputError where it cannot be written, PrunusError where jinja2 is not installed.
    """
    code = script()
    template = environment().get_template("experiment.html")
    write_atomic(path, template.render(page=page, script=code, digest=digest(code)))

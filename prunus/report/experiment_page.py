"""The page of an experiment: one HTML file that needs no network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prunus.files import write_atomic
from prunus.report.interactive_figure import Chart, script, script_digest
from prunus.report.statistics import Verdict
from prunus.report.templating import load_template

Cell = tuple[str, str]
"""A value and its standard deviation, which is empty where there is none."""


@dataclass(frozen=True)
class KeyFigure:
    """A number at the top of the page."""

    label: str
    value: str
    explanation: str
    bad: bool = False


@dataclass(frozen=True)
class DensityComparison:
    """The comparisons at one density: the curves significantly above, significantly below, and neither."""

    density: str
    """The density with its sparsity, or another point of the curves."""
    more: Sequence[tuple[str, str]]
    """Curves, each with the difference and its interval."""
    less: Sequence[tuple[str, str]]
    same: Sequence[str]


@dataclass(frozen=True)
class MetricComparison:
    """A metric of every curve compared with one of them, density by density."""

    heading: str
    more: str
    """Adjective of a curve with larger values."""
    less: str
    rows: Sequence[DensityComparison]


@dataclass(frozen=True)
class Table:
    """Rows in groups; the name of a group is in the first column."""

    header: Sequence[str]
    groups: Sequence[tuple[str, Sequence[Sequence[Cell]]]]


@dataclass(frozen=True)
class InvariantSummary:
    """How many results were checked, and which checks failed."""

    points: int
    passed: int
    checks: Sequence[tuple[str, int, int]]
    """A check, the number of results that it holds for, and the number that it was made for."""
    failed: Sequence[tuple[str, str, str]]
    """The result, the check, the run."""


@dataclass(frozen=True)
class ExperimentPage:
    """The content of the page of an experiment."""

    name: str
    title: str
    question: str
    place: str
    """Figures and tables of the paper; may be empty."""
    paper: str
    notes: Sequence[str]
    """How the experiment differs from the paper at every size."""
    size: str
    about_size: str
    size_differences: Sequence[str]
    """Settings that differ from the paper's size: "epochs 5 instead of 55"."""
    key_figures: Sequence[KeyFigure]
    verdicts: Sequence[Verdict]
    charts: Sequence[Chart]
    about_comparisons: str
    """What is compared, or why nothing is; empty for an experiment without comparisons."""
    comparisons: Sequence[MetricComparison]
    table: Table
    about_table: str
    published: Sequence[tuple[str, str, float, str]]
    """Published values: row, metric, value, source."""
    invariants: InvariantSummary
    command: str
    settings: Mapping[str, str]
    evidence: Mapping[str, str]
    runs: Sequence[tuple[str, str]]
    """The label and the ID of each run."""
    files: Sequence[str]
    """Names of the files beside the page."""


def write_experiment_page(path: Path, page: ExperimentPage) -> None:
    """Write the page to `path`, completely or not at all; the same page gives the same bytes.

    Args:
        path: The file to write; an existing file is replaced.
        page: The content of the page.

    Raises:
        OutputError: The file cannot be written.
        PrunusError: Jinja2 is not installed.
    """
    code = script()
    template = load_template("experiment.html")
    write_atomic(path, template.render(page=page, script=code, digest=script_digest(code)))

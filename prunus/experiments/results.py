"""What every experiment gives back and leaves behind: rows of numbers with their evidence, a table, a picture."""

import csv
import io
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

import torch

from prunus.errors import UnknownNameError
from prunus.files import after_writing, create_folder, write_atomic
from prunus.report.figure_data import Curve, FigureData
from prunus.report.figures import check_figure_libraries, files_of, save_numbers, save_pictures
from prunus.types import Progress

Size = Literal["smoke", "default", "full"]
SIZES = ("smoke", "default", "full")
Say = Callable[[str], None]
Row = dict[str, Any]


@dataclass(frozen=True)
class Result:
    """The rows of an experiment, the same as a markdown table, and the files that hold and draw them."""

    name: str
    rows: Sequence[Row]
    files: Sequence[Path]
    table: str


@dataclass
class Record:
    """An experiment while it runs: where it writes, at which size, since when, and what it says."""

    name: str
    size: str
    out: Path
    seeds: Sequence[int]
    say: Say
    started: float = field(default_factory=time.perf_counter)
    files: list[Path] = field(default_factory=list)
    drawn: list[tuple[FigureData, Path]] = field(default_factory=list)
    """The figures so far, each with the path of its files without their suffixes."""
    progress: Progress | None = None

    def report(self, what: str, done: int, total: int) -> None:
        """Report how much of some work is done, if a caller follows the progress."""
        if self.progress is not None:
            self.progress(what, done, total)

    def draw(self, suffix: str, curves: Sequence[Curve], *, title: str, **labels: Any) -> None:
        """Write the numbers of `curves` into NAME.SUFFIX.csv, for `finish` to draw beside it as .png, .svg and .html.

        The title says when it is not full size.
        """
        mark = {"smoke": " (smoke size)", "default": " (shortened)"}.get(self.size, "")
        drawing = FigureData(curves, title=title + mark, **labels)
        create_folder(self.out)
        path = self.out / f"{self.name}.{suffix}"
        save_numbers(path, drawing)
        self.files += files_of(path)
        self.drawn.append((drawing, path))

    def save_rows(self, suffix: str, rows: Sequence[Row]) -> None:
        """Write rows of one shape as the table NAME.SUFFIX.csv."""
        create_folder(self.out)
        path = self.out / f"{self.name}.{suffix}.csv"
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomic(path, text.getvalue())
        self.files.append(path)

    def finish(self, rows: Sequence[Row], note: str = "", **evidence: Any) -> Result:
        """Write the rows with their evidence into NAME.json and NAME.md, then draw the figures.

        Raises:
            PrunusError: A file cannot be written, or a figure cannot be drawn; then the message names the files of
                numbers, which are complete.
        """
        create_folder(self.out)
        known = {
            "experiment": self.name,
            "size": self.size,
            "seeds": list(self.seeds),
            "seconds": round(time.perf_counter() - self.started, 1),
            "threads": torch.get_num_threads(),
            "device": "cpu",
            **{library: version(library) for library in ("prunus", "torch", "numpy", "constriction")},
            **evidence,
        }
        numbers, table = self.out / f"{self.name}.json", self.out / f"{self.name}.md"
        result = Result(
            self.name, rows, [numbers, table, *self.files], f"{markdown(rows)}\n\n{note}".rstrip()
        )
        write_atomic(
            numbers, json.dumps({"evidence": known, "rows": list(rows), "note": note}, indent=1) + "\n"
        )
        write_atomic(table, f"# {self.name} ({self.size}, n = {len(self.seeds)})\n\n{result.table}\n")
        with after_writing(*(file for file in result.files if file.suffix in (".json", ".md", ".csv"))):
            for drawing, path in self.drawn:
                save_pictures(path, drawing)
        return result


def start_record(
    name: str,
    size: str,
    out: Path,
    replicates: int | None,
    seed: int,
    say: Say | None,
    progress: Progress | None = None,
) -> Record:
    """Start an experiment: 1, 3 or 5 replicates by size where no number is asked for.

    Raises UnknownNameError for an unknown size, PrunusError where what draws its figures is not installed.
    """
    if size not in SIZES:
        raise UnknownNameError(f"No size is called {size!r}; there are: {', '.join(SIZES)}.")
    check_figure_libraries()
    n = replicates or {"smoke": 1, "default": 3, "full": 5}[size]
    return Record(name, size, Path(out), range(seed, seed + n), say or (lambda line: None), progress=progress)


def average_draws(rows: Iterable[Row], by: Sequence[str], values: Iterable[str]) -> list[Row]:
    """One row a group and replicate: of a replicate that drew several times, the mean of each value.

    A replicate has passed where every one of its draws has.

    >>> rows = [{"arm": "a", "replicate": 0, "draw": draw, "error": 2.0 * draw} for draw in range(3)]
    >>> average_draws(rows, ["arm"], ["error"])
    [{'arm': 'a', 'replicate': 0, 'error': 2.0}]
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in (*by, "replicate")), []).append(row)
    return [
        {
            **dict(zip((*by, "replicate"), key, strict=True)),
            **{value: _mean([row[value] for row in draws]) for value in values},
            **({} if all(row.get("passed", True) for row in draws) else {"passed": False}),
        }
        for key, draws in groups.items()
    ]


def _mean(values: Sequence[float]) -> float:
    """Equal values as they are, not off by a rounding."""
    return values[0] if len(set(values)) == 1 else mean(values)


def summarize(rows: Iterable[Row], by: Sequence[str], values: Sequence[str]) -> list[Row]:
    """One row a group: n, the number of its rows, and mean and standard deviation of each value over them."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in by), []).append(row)
    return [
        {
            **dict(zip(by, key, strict=True)),
            "n": len(members),
            **{value: mean(row[value] for row in members) for value in values},
            **{
                f"{value} ±": stdev([row[value] for row in members]) if len(members) > 1 else 0.0
                for value in values
            },
        }
        for key, members in groups.items()
    ]


def curve(name: str, rows: Iterable[Row], x: str, y: str, by: str | None = None) -> Curve:
    """The rows, one a replicate and point, as one curve: at each point the mean of y, in a band from lowest to highest.

    A point is a value of `by`, or of x; where the replicates' x differ at one, it lies at their mean. It has failed
    where the receipt of any of its rows has.

    >>> rows = [{"level": 1, "density": d, "accuracy": 90 + d} for d in (2, 4)]
    >>> curve("learned", rows, "density", "accuracy", "level")
    Curve(name='learned', x=[3], mean=[93], low=[92], high=[94], n=2, failed=[])
    """
    points: dict[Any, list[Row]] = {}
    for row in rows:
        points.setdefault(row[by or x], []).append(row)
    placed = sorted(
        ((_mean([row[x] for row in own]), own) for own in points.values()), key=lambda one: one[0]
    )
    ys = [[row[y] for row in own] for _, own in placed]
    return Curve(
        name,
        [place for place, _ in placed],
        [mean(v) for v in ys],
        [min(v) for v in ys],
        [max(v) for v in ys],
        max(map(len, ys)),
        [index for index, (_, own) in enumerate(placed) if not all(row.get("passed", True) for row in own)],
    )


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a table; a standard deviation stands beside its mean."""
    columns = [column for column in rows[0] if not column.endswith(" ±")]
    lines = [columns, ["---"] * len(columns), *([_cell(row, column) for column in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(row: Row, column: str) -> tuple[str, str]:
    """The value, and its standard deviation; empty where that is not there or zero."""
    value, spread = row.get(column, ""), row.get(f"{column} ±", 0.0)
    return f"{value:.4g}" if isinstance(value, float) else str(value), _two_digits(spread) if spread else ""


def _two_digits(spread: float) -> str:
    """Two significant digits, without an exponent where the number is large.

    >>> _two_digits(292.7), _two_digits(0.0512)
    ('290', '0.051')
    """
    return f"{float(f'{spread:.2g}'):.0f}" if spread >= 10 else f"{spread:.2g}"


def _cell(row: Row, column: str) -> str:
    value, spread = cell(row, column)
    return f"{value} ± {spread}" if spread else value

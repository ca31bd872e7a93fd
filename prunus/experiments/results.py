"""The files of an experiment: numbers as JSON, a table as markdown, figures as CSV, PNG, SVG and HTML."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunus.files import after_writing, create_folder, write_atomic
from prunus.report.figure_data import FigureData
from prunus.report.figures import files_of, save_numbers, save_pictures
from prunus.report.formatting import pluralize
from prunus.runs.content import Row

SIZE_MARKS = {"smoke": " (smoke size)", "default": " (shortened)", "full": ""}


@dataclass(frozen=True)
class Result:
    """An experiment's verdicts, rows and table, and the files that contain and draw them."""

    name: str
    content: Mapping[str, Any]
    """What NAME.json contains."""
    table: Sequence[Row]
    """The rows summarized over the replicates."""
    text: str
    """The table as markdown, with notes."""
    files: Sequence[Path]


@dataclass
class ResultFiles:
    """Writes the files of one experiment into a folder."""

    name: str
    size: str
    out: Path
    files: list[Path] = field(default_factory=list)
    figures: list[tuple[FigureData, Path]] = field(default_factory=list)
    """The figures, each with the path of its files without their suffixes."""

    def add_figure(self, suffix: str, figure: FigureData) -> None:
        """Write the numbers of a figure into NAME.SUFFIX.csv; `finish` draws it as .png, .svg and .html.

        Args:
            suffix: The part of the file names that follows the name of the experiment, such as "accuracy".
            figure: The curves with title, labels and axes.

        Raises:
            OutputError: The file cannot be written.
        """
        create_folder(self.out)
        path = self.out / f"{self.name}.{suffix}"
        save_numbers(path, figure)
        self.files += files_of(path)
        self.figures.append((figure, path))

    def add_rows(self, suffix: str, rows: Sequence[Row]) -> None:
        """Write rows of one shape as the table NAME.SUFFIX.csv.

        Args:
            suffix: The part of the file name that follows the name of the experiment.
            rows: At least one row; all have the keys of the first, which are the columns.

        Raises:
            OutputError: The file cannot be written.
        """
        create_folder(self.out)
        path = self.out / f"{self.name}.{suffix}.csv"
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomic(path, text.getvalue())
        self.files.append(path)

    def finish(self, content: Mapping[str, Any], table: Sequence[Row], notes: str, n: int) -> Result:
        """Write NAME.json and NAME.md, then draw the figures.

        Args:
            content: What NAME.json contains.
            table: The summarized rows, for NAME.md.
            notes: Markdown below the table.
            n: Number of replicates.

        Returns:
            The content, the table, its text and the paths of all files, those of earlier calls included.

        Raises:
            PrunusError: A file cannot be written, or a figure cannot be drawn; then the message names the files of
                numbers, which are complete.
        """
        create_folder(self.out)
        numbers, document = self.out / f"{self.name}.json", self.out / f"{self.name}.md"
        text = f"{markdown(table)}\n\n{notes}".rstrip()
        result = Result(self.name, content, table, text, [numbers, document, *self.files])
        write_atomic(numbers, json.dumps(content, indent=1) + "\n")
        write_atomic(document, f"# {self.name} ({self.size} size, {pluralize(n, 'replicate')})\n\n{text}\n")
        with after_writing(*(file for file in result.files if file.suffix in (".json", ".md", ".csv"))):
            for figure, path in self.figures:
                save_pictures(path, figure)
        return result


def merge_results(name: str, results: Sequence[Result]) -> Result:
    """Join the results of the experiments of a paper.

    Args:
        name: Name of the paper.
        results: The results of its experiments, in the order of the paper.

    Returns:
        A result whose content is that of each experiment by name, whose text has a heading per experiment, and whose
        rows have the additional key "experiment".
    """
    text = "\n\n".join(f"## {result.name}\n\n{result.text}" for result in results)
    table = [{"experiment": result.name, **row} for result in results for row in result.table]
    content = {result.name: result.content for result in results}
    return Result(name, content, table, text, [file for result in results for file in result.files])


def markdown(rows: Sequence[Row]) -> str:
    """Format rows as a markdown table; a standard deviation is shown next to its mean."""
    columns = [column for column in rows[0] if not column.endswith(" ±")]
    lines = [columns, ["---"] * len(columns), *([_cell(row, column) for column in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(row: Row, column: str) -> tuple[str, str]:
    """Format a value and its standard deviation; the second is empty where it is missing or zero.

    Args:
        row: A summarized row; the standard deviation of a column "x" has the key "x ±".
        column: Key of the value; a key that the row lacks gives an empty text.

    Returns:
        The value, a float with four significant digits, and its standard deviation with two.
    """
    value, spread = row.get(column, ""), row.get(f"{column} ±", 0.0)
    return f"{value:.4g}" if isinstance(value, float) else str(value), _two_digits(spread) if spread else ""


def _two_digits(spread: float) -> str:
    """Format with two significant digits, without an exponent for large numbers.

    >>> _two_digits(292.7), _two_digits(0.0512)
    ('290', '0.051')
    """
    return f"{float(f'{spread:.2g}'):.0f}" if spread >= 10 else f"{spread:.2g}"


def _cell(row: Row, column: str) -> str:
    value, spread = cell(row, column)
    return f"{value} ± {spread}" if spread else value

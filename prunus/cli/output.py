"""Print results to stdout, as a table or as JSON, and everything else to stderr, line by line.

Text from a file is never interpreted as markup or control codes.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from itertools import zip_longest
from pathlib import Path
from typing import TextIO

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from prunus.errors import OutputError


class _Errors(Console):
    """The console of stderr. If it is closed, or a file on a full disk, the command continues without it."""

    def on_broken_pipe(self) -> None:
        """Print nothing from now on; `Console` itself would end the process."""
        self.quiet = True


class _Results(Console):
    """The console of stdout."""

    def on_broken_pipe(self) -> None:
        """Raise the error as `print` does, so that `exit_codes.py` alone handles it."""
        raise BrokenPipeError


errors = _Errors(stderr=True, highlight=False)
"""The console for progress, warnings and errors."""

FILE_WIDTH = 140
"""Columns of a table that is written to a file or a pipe."""

GAP = "   "
"""What is between the columns of a table."""

_stdout: list[TextIO] = []
"""The stdout of the commands that run, the innermost last."""

before_output: list[Callable[[], None]] = []
"""Called before anything is written to stdout, for example to remove a progress bar."""


def clean(text: str) -> str:
    r"""Replace line ends by spaces and other unprintable characters by escapes.

    >>> clean("a\nb\x1b[2J")
    'a b\\x1b[2J'
    """
    if text.isprintable():
        return text
    line = " ".join(text.split("\n"))
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


@contextmanager
def results_to_stdout() -> Iterator[None]:
    """In the block, results go to stdout, and the output of other code, such as a user's function, to stderr."""
    _stdout.append(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _stdout.pop()


def stdout() -> TextIO:
    """The stream for results."""
    return _stdout[-1] if _stdout else sys.stdout


def log(text: str) -> None:
    """Write one line to stderr, above a progress bar."""
    with suppress(OSError):
        errors.print(Text(clean(text)), soft_wrap=True)


def echo(text: str) -> None:
    """Print text to stdout unchanged."""
    for function in before_output:
        function()
    print(text, file=stdout())


def check_ending(path: Path, *endings: str) -> None:
    """Raise OutputError unless the name of a file to write has one of the endings, each with its dot."""
    if path.suffix not in endings:
        raise OutputError(f"Expected an --out that ends in {' or '.join(endings)}, got {path}.")


def echo_json(value: object) -> None:
    """Print JSON to stdout."""
    echo(json.dumps(value, indent=2))


def echo_json_list(values: Iterable[object]) -> None:
    """Print a JSON list to stdout, one element per line: for long lists, which `json` indents slowly."""
    lines = ",\n".join(map(json.dumps, values))
    echo(f"[\n{lines}\n]" if lines else "[]")


def echo_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    text_columns: int = 1,
    footer: int = 0,
    title: str = "",
) -> None:
    """Print a table to stdout.

    Args:
        columns: The column titles.
        rows: The cells of each row.
        text_columns: The number of columns, from the left, that contain text and are aligned left. The others contain
            numbers and are aligned right.
        footer: The number of rows, from the bottom, that are below a line.
        title: Printed above the table.
    """
    has_width = stdout().isatty() or "COLUMNS" in os.environ
    console = _Results(file=stdout(), highlight=False, width=None if has_width else FILE_WIDTH)
    cells = [[clean(cell) for cell in row] for row in (columns, *rows)]
    widths = _column_widths(cells, console.width)
    lines = [_table_row(row, widths, text_columns) for row in cells]
    rule = ("-" if console.options.ascii_only else "─") * (sum(widths) + len(GAP) * (len(widths) - 1))
    for function in before_output:
        function()
    if title:
        console.print(Text(title, "table.title"))
    console.print(Text(lines[0], "table.header"), soft_wrap=True)
    body = [rule, *lines[1:]]
    if 0 < footer < len(rows):
        body.insert(len(body) - footer, rule)
    print("\n".join(body), file=stdout())


def _column_widths(cells: Sequence[Sequence[str]], available: int) -> list[int]:
    """Return the width of each column: that of its widest cell, or less where the table would be too wide.

    The widest column is narrowed first, to its longest word at most: IDs, which users copy, stay on one line. Words are
    broken only where that is not enough.
    """
    columns = list(zip(*cells, strict=True))
    widths = [max(1, *map(cell_len, column)) for column in columns]
    words = [max(1, *(cell_len(word) for cell in column for word in cell.split())) for column in columns]
    available -= len(GAP) * (len(widths) - 1)
    for least in (words, [1] * len(words)):
        while sum(widths) > available and widths != least:
            narrowed = max(
                range(len(widths)), key=lambda index: (widths[index] > least[index], widths[index])
            )
            widths[narrowed] -= 1
    return widths


def _table_row(row: Sequence[str], widths: Sequence[int], text_columns: int) -> str:
    """Return a row as one line, or as several if a cell is wider than its column."""
    parts = [
        [cell]
        if cell_len(cell) <= width
        else [line.plain.rstrip() for line in Text(cell).wrap(errors, width)]
        for cell, width in zip(row, widths, strict=True)
    ]
    return "\n".join(
        GAP.join(
            set_cell_size(cell, width) if index < text_columns else " " * (width - cell_len(cell)) + cell
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in zip_longest(*parts, fillvalue="")
    )

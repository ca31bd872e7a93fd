"""Print results to stdout, as a table or as JSON, and everything else to stderr, line by line.

Text from a file is never interpreted as markup or control codes.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from typing import TextIO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text


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

_stdout: list[TextIO] = []
"""The stdout of the commands that run, the innermost last."""

before_output: list[Callable[[], None]] = []
"""Called before anything is written to stdout, for example to remove a progress bar."""


def clean(text: str) -> str:
    r"""Replace line ends by spaces and other unprintable characters by escapes.

    >>> clean("a\nb\x1b[2J")
    'a b\\x1b[2J'
    """
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


def echo_json(value: object) -> None:
    """Print JSON to stdout."""
    echo(json.dumps(value, indent=2))


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
    for function in before_output:
        function()
    table = Table(
        title=title or None, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False
    )
    for index, name in enumerate(columns):
        table.add_column(Text(name), justify="left" if index < text_columns else "right", overflow="fold")
    for number, row in enumerate(rows, start=1):
        table.add_row(*(Text(clean(cell)) for cell in row), end_section=number == len(rows) - footer)
    has_width = stdout().isatty() or "COLUMNS" in os.environ
    _Results(file=stdout(), highlight=False, width=None if has_width else FILE_WIDTH).print(table)

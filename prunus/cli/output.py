"""Printing: results to stdout, as a table or as JSON; everything else, a line at a time, to stderr.

What comes from a file is never taken for markup or control codes.
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
    """Stderr. Where nobody reads it any more, or it is a file on a full disk, the command goes on without it."""

    def on_broken_pipe(self) -> None:
        """As `Console` has it, but without ending the process."""
        self.quiet = True


class _Results(Console):
    """Stdout."""

    def on_broken_pipe(self) -> None:
        """Raise the error as `print` does, so that it is handled in one place, `prunus.cli.exit_codes`."""
        raise BrokenPipeError


errors = _Errors(stderr=True, highlight=False)
"""Where progress, warnings and errors go."""

UNSEEN_WIDTH = 140
"""Columns of a table that goes into a file or a pipe."""

_stdout: list[TextIO] = []
"""The stdout of the command that runs."""

before_output: list[Callable[[], None]] = []
"""Called before anything is written to stdout: a progress bar would stand in the middle of it."""


def clean(text: str) -> str:
    r"""`text` with line ends as spaces, and whatever else cannot be printed in escapes.

    >>> clean("a\nb\x1b[2J")
    'a b\\x1b[2J'
    """
    line = " ".join(text.split("\n"))
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


@contextmanager
def stdout_for_results() -> Iterator[None]:
    """Inside, what other code prints, such as a user's own function, goes to stderr; results still go to stdout."""
    _stdout.append(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _stdout.pop()


def stdout() -> TextIO:
    """Where results go."""
    return _stdout[-1] if _stdout else sys.stdout


def log(text: str) -> None:
    """One line on stderr, above the progress bar where there is one."""
    with suppress(OSError):
        errors.print(Text(clean(text)), soft_wrap=True)


def _prepare_output() -> None:
    for function in before_output:
        function()


def echo(text: str) -> None:
    """Text on stdout as it is."""
    _prepare_output()
    print(text, file=stdout())


def echo_json(value: object) -> None:
    """JSON on stdout."""
    _prepare_output()
    print(json.dumps(value, indent=2), file=stdout())


def echo_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, words: int = 1, footer: int = 0, title: str = ""
) -> None:
    """A table on stdout: `words` columns of words, then numbers; a rule above the last `footer` rows."""
    _prepare_output()
    table = Table(
        title=title or None, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False
    )
    for place, name in enumerate(columns):
        table.add_column(Text(name), justify="left" if place < words else "right", overflow="fold")
    for place, row in enumerate(rows, start=1):
        table.add_row(*(Text(clean(cell)) for cell in row), end_section=place == len(rows) - footer)
    seen = stdout().isatty() or "COLUMNS" in os.environ
    _Results(file=stdout(), highlight=False, width=None if seen else UNSEEN_WIDTH).print(table)

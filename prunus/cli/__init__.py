"""The command line: one file per command, listed in `app.py`. A command imports the library when it runs."""

import io
import sys
from collections.abc import Sequence
from importlib.util import find_spec

from prunus.cli.interrupts import Interrupted, interruptible

REQUIRED = ("typer", "rich")
"""The packages that every command needs; a command that needs more of the extra "cli" checks that before its work."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `prunus` with `arguments`, by default those of the process; ends in SystemExit (see `exit_codes.py`)."""
    missing = [name for name in REQUIRED if find_spec(name) is None]
    if missing:
        print(f'error: the command line needs {missing[0]}: pip install "prunus[cli]"', file=sys.stderr)
        sys.exit(1)
    if sys.stdout is None:  # it was closed before the process began
        sys.stdout = io.StringIO()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show "×" shows a replacement
    try:
        with interruptible():
            from prunus.cli.app import app
            from prunus.cli.exit_codes import run_app

            code = run_app(app, None if arguments is None else list(arguments))
    except Interrupted as error:  # while the command was being imported
        print(f"error: {error.sentence}", file=sys.stderr)
        code = error.exit_code
    sys.exit(code)

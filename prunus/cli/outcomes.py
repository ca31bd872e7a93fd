"""How a command ends: quietly, or with one sentence on stderr and an exit code; never with a traceback.

    0     done
    1     something could not be read or written, or anything else that prunus refuses; without a word where
          nobody reads the output any more (`prunus list | head -1`)
    2-8   as `prunus.errors` says; 2 also for a wrong option
    70    not foreseen: a user's own module that failed while it was trained, or a fault of prunus
    129   the terminal was closed (SIGHUP)
    130   interrupted (SIGINT, Ctrl-C)
    143   terminated (SIGTERM)

Where a signal ends a command, temporary files are removed, files that were there before stay whole, and no worker
process is left; see `prunus.cli.interrupts`. What `prunus run` had finished stays in its store, and the same command
goes on from there to the same bits.

With PRUNUS_TRACEBACK=1 in the environment, what was not foreseen shows its traceback, and so does what came of
another error (a user's own function that failed).
"""

import functools
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn, ParamSpec

import typer

from prunus.cli.interrupts import Interrupted, describe
from prunus.cli.progress import reporting
from prunus.cli.show import say
from prunus.errors import PrunusError

Arguments = ParamSpec("Arguments")

UNFORESEEN, INTERRUPTED = 70, 130


def ended(command: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """`command`, ending as the card of this file says."""

    @functools.wraps(command)
    def wrapped(*arguments: Arguments.args, **options: Arguments.kwargs) -> None:
        with _warnings_in_a_line():
            try:
                with reporting(f"prunus {command.__name__.rstrip('_')}"):
                    command(*arguments, **options)
                sys.stdout.flush()
            except (typer.Exit, typer.Abort, typer.BadParameter):
                raise
            except Interrupted as error:
                _fail(error.sentence, error.exit_code)
            except KeyboardInterrupt as error:
                _fail(describe("interrupted", error), INTERRUPTED)
            except BrokenPipeError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the last flush complains
                raise typer.Exit(1) from None
            except PrunusError as error:
                if error.__cause__ is not None and _traceback_wanted():
                    raise
                _fail(str(error), error.exit_code)
            except OSError as error:
                what = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
                _fail(f"{what}{error.strerror or error}.", 1)
            except Exception as error:
                if _traceback_wanted():
                    raise
                _fail(f"{type(error).__name__}: {error} (PRUNUS_TRACEBACK=1 shows where)", UNFORESEEN)

    return wrapped


def _traceback_wanted() -> bool:
    return os.environ.get("PRUNUS_TRACEBACK") == "1"


def _fail(sentence: str, code: int) -> NoReturn:
    say(f"error: {sentence}")
    raise typer.Exit(code) from None


@contextmanager
def _warnings_in_a_line() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = lambda message, *rest: say(f"warning: {message}")
        yield

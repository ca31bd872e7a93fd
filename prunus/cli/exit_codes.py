"""How a command ends: quietly, or with one sentence on stderr and an exit code of EXIT_CODES; never with a traceback.

Where a signal ends a command, temporary files are removed, files that were there before stay whole, and no worker
process is left; see `prunus.cli.interrupts`. What `prunus run` had finished stays in its store, and the same command
goes on from there to the same bits.

With PRUNUS_TRACEBACK=1 in the environment, an unexpected error shows its traceback, and so does an error with
another error as its cause (a user's own function that failed).
"""

import functools
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn, ParamSpec, TextIO

import typer
from typer.core import TyperGroup

from prunus.cli.interrupts import Interrupted, describe
from prunus.cli.output import log, stdout, stdout_for_results
from prunus.cli.progress import reporting
from prunus.errors import PrunusError
from prunus.registry import suggestion

Arguments = ParamSpec("Arguments")

EXIT_CODES = {
    0: "success",
    1: "a file or folder that cannot be read or written, a missing package, a problem that "
    "`prunus doctor` found, output that nobody reads, or any other refusal",
    2: "a wrong command line: an unknown command, option, name or setting, or a value out of range",
    3: "a data set that is missing, damaged, or unsuitable",
    4: "a model, or a file of weights, that prunus cannot work on",
    5: "a density, criterion, scope or sharing that cannot be had, or NaN or infinity where numbers are needed",
    6: "training that diverged, or a checkpoint of another run",
    7: "a file that is not a sound prunus file, or one of another model",
    8: "a store of runs, or a run in it, that cannot be used",
    70: "an unexpected error: a user's own module that failed during training, or a bug in prunus",
    129: "the terminal was closed (SIGHUP)",
    130: "interrupted (SIGINT, Ctrl-C)",
    143: "terminated (SIGTERM)",
}
"""What each exit code means; the class of `prunus.errors` that a command raises has the code."""

REFUSED, WRONG_USAGE, UNEXPECTED, INTERRUPTED = 1, 2, 70, 130

# Typer uses click, of which its later versions bring a copy of their own; the base class is the same in both.
UsageError: type[Exception] = typer.BadParameter.__bases__[0]


class CommandGroup(TyperGroup):
    """A group of commands that shows its help if no command is given, and suggests one if it is misspelled."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As any group, except that no arguments are answered by the help and the exit code of a wrong usage."""
        if not args and not ctx.resilient_parsing:
            print(ctx.get_help())
            ctx.exit(WRONG_USAGE)
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that the first argument names, and what it is given."""
        name = args[0]
        if name not in self.commands and not name.startswith("-") and not ctx.resilient_parsing:
            hint = suggestion(name, self.commands) or f"the commands are: {', '.join(self.commands)}."
            raise UsageError(f"No command is called {name!r}; {hint}")
        return super().resolve_command(ctx, args)


def run(app: typer.Typer, arguments: Sequence[str] | None = None) -> int:
    """Run the command line `app` and return its exit code; a wrong option ends in one sentence on stderr."""
    try:
        return _run(app, arguments)
    finally:
        try:
            sys.stderr.flush()
        except (OSError, ValueError, AttributeError):  # a full disk, a closed stream, or none
            _discard(sys.stderr)


def _run(app: typer.Typer, arguments: Sequence[str] | None) -> int:
    try:
        # Named, because what is run by `python -m prunus` is not a name that shell completion can be installed for.
        code = app(arguments, prog_name="prunus", standalone_mode=False)
        sys.stdout.flush()
    except UsageError as error:
        log(f"error: {_describe(error)}")
        return WRONG_USAGE
    except typer.Abort:
        log("error: interrupted.")
        return INTERRUPTED
    except BrokenPipeError:
        _discard(sys.stdout)
        return REFUSED
    except OSError as error:  # the help or the version cannot be written
        _discard(sys.stdout)
        log(f"error: {_sentence(error)}")
        return REFUSED
    return code if isinstance(code, int) else 0


def _describe(error: Any) -> str:
    """A usage error in one sentence, with a suggestion if an option is misspelled, and where to read more."""
    context = error.ctx
    if context is None:
        return str(error.message)
    if hasattr(error, "possibilities"):  # an option that does not exist
        options = [
            name for option in context.command.params for name in (*option.opts, *option.secondary_opts)
        ]
        sentence = f"No option is called {error.option_name!r}"
        if hint := suggestion(error.option_name, [*options, "--help"]):
            return f"{sentence}; {hint}"
    elif getattr(error, "param", None) is None and getattr(error, "param_hint", None) is None:
        sentence = str(error.message)  # without the "Invalid value" that is about no option
    else:
        sentence = error.format_message()
    return f"{sentence.strip().rstrip('.')}; see `{context.command_path} --help`."


def with_exit_codes(command: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """`command`, ending in an exit code of EXIT_CODES."""

    @functools.wraps(command)
    def wrapped(*arguments: Arguments.args, **options: Arguments.kwargs) -> None:
        with _warnings_in_a_line():
            try:
                with reporting(f"prunus {command.__name__.rstrip('_')}"), stdout_for_results():
                    command(*arguments, **options)
                    stdout().flush()
            except (typer.Exit, typer.Abort, UsageError):
                raise
            except Interrupted as error:
                _fail(error.sentence, error.exit_code)
            except KeyboardInterrupt as error:
                _fail(describe("interrupted", error), INTERRUPTED)
            except BrokenPipeError:
                _discard(sys.stdout)
                raise typer.Exit(REFUSED) from None
            except PrunusError as error:
                if error.__cause__ is not None and _traceback_wanted():
                    raise
                _fail(str(error), error.exit_code)
            except ModuleNotFoundError as error:
                _fail(
                    f"The package {error.name} is not installed; `prunus doctor` says how to install what is missing.",
                    REFUSED,
                )
            except OSError as error:
                _fail(_sentence(error), REFUSED)
            except BaseException as error:  # SystemExit included: a command is done when its function returns
                if _traceback_wanted() and not isinstance(error, SystemExit):
                    raise
                _fail(f"{type(error).__name__}: {error} (PRUNUS_TRACEBACK=1 shows where)", UNEXPECTED)

    return wrapped


def _sentence(error: OSError) -> str:
    what = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    return f"{what}{error.strerror or error}."


def _discard(stream: TextIO) -> None:
    """Discard what is still to be written to `stream`; otherwise the interpreter's last flush changes the exit code."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _traceback_wanted() -> bool:
    return os.environ.get("PRUNUS_TRACEBACK") == "1"


def _fail(sentence: str, code: int) -> NoReturn:
    log(f"error: {sentence}")
    raise typer.Exit(code) from None


@contextmanager
def _warnings_in_a_line() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = lambda message, *rest: log(f"warning: {message}")
        yield

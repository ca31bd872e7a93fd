"""Exit codes and error messages of the commands: an error is one sentence on stderr, never a traceback.

When a signal ends a command, temporary files are removed, existing files are not changed, and no worker process
remains; see `interrupts.py`. The finished runs of `prunus run` are in its store, and the same command continues from
them with the same results, bit for bit.

With PRUNUS_TRACEBACK=1 in the environment, an unexpected error shows its traceback, and so does an error that was
caused by another one (a user's own function that failed).
"""

import functools
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, ParamSpec, TextIO

import typer
from typer.core import TyperGroup

from prunus.cli.interrupts import Interrupted, format_sentence
from prunus.cli.output import log, results_to_stdout, stdout
from prunus.cli.progress import show_progress
from prunus.errors import PrunusError
from prunus.registry import suggestion

Arguments = ParamSpec("Arguments")

EXIT_CODES = {
    0: "success",
    1: "a file or folder that cannot be written, a missing package, a problem that `prunus doctor` found, closed "
    "standard output, or any other error",
    2: "a wrong command line: an unknown command, option, name or setting, or a value out of range",
    3: "a data set that is missing, damaged, or unsuitable",
    4: "a model or a weights file that is missing or that prunus cannot use",
    5: "a density, criterion, scope or codebook that is not possible, or NaN or infinity in weights or data",
    6: "training that diverged, or a checkpoint of a different run",
    7: "a prunus file that is missing, damaged, unsupported or of another model",
    8: "a run store, a run in it or exported runs that cannot be used, or workers that cannot be started",
    70: "an unexpected error: a failure in the user's own module during training, or a bug in prunus",
    129: "the terminal was closed (SIGHUP)",
    130: "interrupted (SIGINT, Ctrl-C)",
    143: "terminated (SIGTERM)",
}
"""The meaning of each exit code; the code of an error is an attribute of its class in `prunus.errors`."""

REFUSED, WRONG_USAGE, UNEXPECTED, INTERRUPTED = 1, 2, 70, 130

# Later versions of Typer contain a copy of click of their own; the base class is the same in both.
UsageError: type[Exception] = typer.BadParameter.__bases__[0]


class CommandGroup(TyperGroup):
    """A group of commands that shows its help if no command is given, and suggests one if it is misspelled."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse as any group does; without arguments, print the help and end with the code of a wrong usage.

        Args:
            ctx: The context of the group.
            args: The arguments after the name of the group.

        Returns:
            The remaining arguments.
        """
        if not args and not ctx.resilient_parsing:
            print(ctx.get_help())
            ctx.exit(WRONG_USAGE)
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that the first argument names.

        Args:
            ctx: The context of the group.
            args: The name of the command and its arguments.

        Returns:
            The name, the command and its arguments.

        Raises:
            UsageError: There is no such command; the message suggests a similar one or lists all.
        """
        name = args[0]
        if name not in self.commands and not name.startswith("-") and not ctx.resilient_parsing:
            hint = suggestion(name, self.commands) or f"available: {', '.join(self.commands)}."
            raise UsageError(f"Unknown command {name!r}; {hint}")
        return super().resolve_command(ctx, args)


def run_app(app: typer.Typer, arguments: Sequence[str] | None = None) -> int:
    """Run a command line; a wrong option gives one sentence on stderr.

    Args:
        app: The commands.
        arguments: By default the arguments of the process.

    Returns:
        The exit code.
    """
    try:
        return _run(app, arguments)
    finally:
        try:
            sys.stderr.flush()
        except (OSError, ValueError, AttributeError):  # a full disk, a closed stream, or none
            _discard(sys.stderr)


def _run(app: typer.Typer, arguments: Sequence[str] | None) -> int:
    try:
        # The name is given because shell completion cannot be installed for that of `python -m prunus`.
        code = app(arguments, prog_name="prunus", standalone_mode=False)
        sys.stdout.flush()
    except UsageError as error:
        log(f"error: {_describe_usage(error)}")
        return WRONG_USAGE
    except typer.Abort:
        log("error: interrupted.")
        return INTERRUPTED
    except BrokenPipeError:
        _discard(sys.stdout)
        return REFUSED
    except OSError as error:  # the help or the version cannot be written
        _discard(sys.stdout)
        log(f"error: {_describe(error)[0]}")
        return REFUSED
    return code if isinstance(code, int) else 0


def with_exit_codes(command: Callable[Arguments, None], name: str) -> Callable[Arguments, None]:
    """Make a command end with an exit code of EXIT_CODES, with progress and warnings on stderr.

    Args:
        command: The function of the command.
        name: The name of the command after `prunus`, for lines of progress.

    Returns:
        A function with the same parameters.
    """

    @functools.wraps(command)
    def wrapped(*arguments: Arguments.args, **options: Arguments.kwargs) -> None:
        with _one_line_warnings():
            try:
                with show_progress(f"prunus {name}"), results_to_stdout():
                    command(*arguments, **options)
                    stdout().flush()
            except (typer.Exit, typer.Abort, UsageError):
                raise
            except BrokenPipeError:
                _discard(sys.stdout)
                raise typer.Exit(REFUSED) from None
            except BaseException as error:  # SystemExit included: a command ends when its function returns
                if _shows_traceback(error):
                    raise
                sentence, code = _describe(error)
                log(f"error: {sentence}")
                raise typer.Exit(code) from None

    return wrapped


def _describe(error: BaseException) -> tuple[str, int]:
    """The sentence and the exit code for an error."""
    match error:
        case Interrupted():
            return error.sentence, error.exit_code
        case KeyboardInterrupt():
            return format_sentence("interrupted", error), INTERRUPTED
        case PrunusError():
            return str(error), error.exit_code
        case ModuleNotFoundError():
            advice = "run `prunus doctor` to see how to install it"
            return f"The package {error.name} is not installed; {advice}.", REFUSED
        case OSError():
            path = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
            return f"{path}{error.strerror or error}.", REFUSED
    return f"{type(error).__name__}: {error} (PRUNUS_TRACEBACK=1 shows where)", UNEXPECTED


def _describe_usage(error: Any) -> str:
    """Describe a usage error in one sentence, with a similar option or the help command."""
    context = error.ctx
    if context is None:
        return str(error.message)
    if hasattr(error, "possibilities"):  # an option that does not exist
        parameters = context.command.params
        options = [name for option in parameters for name in (*option.opts, *option.secondary_opts)]
        sentence = f"Unknown option {error.option_name!r}"
        if hint := suggestion(error.option_name, [*options, "--help"]):
            return f"{sentence}; {hint}"
    elif getattr(error, "param", None) is None and getattr(error, "param_hint", None) is None:
        sentence = str(error.message)  # without "Invalid value", as no option is named
    else:
        sentence = error.format_message()
        details = getattr(error.__cause__, "errors", None)  # of pydantic, whose messages lack the value
        if callable(details):
            sentence = f"{sentence}, got {details()[0]['input']!r}"
    return f"{sentence.strip().rstrip('.')}; see `{context.command_path} --help`."


def _shows_traceback(error: BaseException) -> bool:
    """Whether the user wants the traceback of an error: an unexpected one, or one that another one caused."""
    if os.environ.get("PRUNUS_TRACEBACK") != "1" or isinstance(error, SystemExit):
        return False
    if isinstance(error, PrunusError):
        return error.__cause__ is not None
    return _describe(error)[1] == UNEXPECTED


def _discard(stream: TextIO) -> None:
    """Discard what is still to be written to `stream`; otherwise the interpreter's last flush changes the exit code."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def _one_line_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = lambda message, *rest: log(f"warning: {message}")
        yield

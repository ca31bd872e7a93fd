"""Options and arguments of commands, and those that several commands share."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from prunus.cli.names import completion


def option(
    metavar: str,
    text: str,
    *names: str,
    lowest: float | None = None,
    highest: float | None = None,
    complete: str = "",
    show_default: bool = True,
) -> Any:
    """Make an option with a value.

    Args:
        metavar: The name of the value in the help.
        text: The help text.
        *names: The name of the option, where it is not that of the parameter.
        lowest: The smallest valid value.
        highest: The largest valid value.
        complete: The kind of names that a shell completes, a key of NAMES; empty: none.
        show_default: Whether the help shows the default; otherwise the text must describe it.

    Returns:
        An option for `typing.Annotated`.
    """
    return typer.Option(
        *names, metavar=metavar, help=text, min=lowest, max=highest, show_default=show_default,
        autocompletion=completion(complete) if complete else None,
    )  # fmt: skip


optional = partial(option, show_default=False)
"""Make an option whose default is not shown, because there is none or its text describes it."""


def flag(name: str, text: str) -> Any:
    """Make an option without a value.

    Args:
        name: The name of the option.
        text: The help text.

    Returns:
        An option for `typing.Annotated`.
    """
    return typer.Option(name, help=text)


def argument(metavar: str, text: str, complete: str = "") -> Any:
    """Make a positional argument.

    Args:
        metavar: The name of the argument in the help.
        text: The help text.
        complete: As in `option`.

    Returns:
        An argument for `typing.Annotated`.
    """
    autocompletion = completion(complete) if complete else None
    return typer.Argument(metavar=metavar, help=text, show_default=False, autocompletion=autocompletion)


File = Annotated[Path, argument("FILE", "A compressed file that prunus wrote.")]
MAX_BYTES = (
    "Maximum memory for reading the file, in bytes. By default 256 MiB, or 1000 times the size of the file if that is "
    "larger."
)
MaxBytes = Annotated[int | None, optional("N", MAX_BYTES, lowest=0)]
DATA = "A built-in data set, or package.module:function for your own function that returns a prunus.Dataset."
DataName = Annotated[str, optional("NAME", DATA, "--data", complete="data set")]
StoreDir = Annotated[Path, option("DIR", "Run store.")]
AsJson = Annotated[bool, flag("--json", "Print JSON instead of a table.")]
Force = Annotated[bool, flag("--force", "Overwrite existing files, except those that the command reads.")]

MAX_SEED = 2**63 - 1
"""The largest seed: a signed 64-bit integer, as `prunus.seeds` derives seeds for torch."""


def _check_seed(seed: int) -> int:
    if seed > MAX_SEED:
        raise typer.BadParameter(f"{seed} is not in the range 0 to {MAX_SEED}.")
    return seed


def seed_option(text: str) -> Any:
    """Make an option for a seed from 0 to `MAX_SEED`, whose help does not show the end of the range, which is long.

    Args:
        text: The help text.

    Returns:
        An option for `typing.Annotated`.
    """
    return typer.Option(metavar="N", help=text, min=0, callback=_check_seed)


Seed = Annotated[int, seed_option("Seed of all random numbers.")]
THREADS = (
    "Number of CPU threads. More threads speed up large networks, but slow down ones as small as the LeNets. Results "
    "are reproducible only with the same number."
)
Threads = Annotated[int, option("N", THREADS, lowest=1)]
BACKEND = (
    "Backend of training and evaluation: dense is PyTorch, sparse computes with the remaining weights only, and auto "
    "chooses the faster one by a fixed rule."
)
Backend = Annotated[str, option("NAME", BACKEND)]
DEVICE = (
    "Where to compute: cpu, cuda, or a GPU by its number such as cuda:1. Results are reproducible bit for bit only on "
    "cpu."
)
Device = Annotated[str, option("NAME", DEVICE)]

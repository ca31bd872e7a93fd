"""Options that several commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from prunus.cli.names import completion


def optional(
    metavar: str,
    text: str,
    lowest: int | None = None,
    highest: int | None = None,
    complete: Callable[[str], list[str]] | None = None,
) -> Any:
    """Make an option whose default is None; its help text says what that means.

    Args:
        metavar: The name of the value in the help.
        text: The help text.
        lowest: The smallest value that is accepted.
        highest: The largest value that is accepted.
        complete: A function of `completion` that offers values.

    Returns:
        An option for `typing.Annotated`.
    """
    return typer.Option(
        metavar=metavar, help=text, min=lowest, max=highest, show_default=False, autocompletion=complete
    )


File = Annotated[Path, typer.Argument(metavar="FILE", help="A file that prunus wrote.", show_default=False)]

MaxBytes = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=0,
        help="Refuse a file that takes more memory than this to read, in bytes: the file, its tensors, and the working "
        "memory. By default the larger of 256 MiB and 1000 times the size of the file.",
        show_default=False,
    ),
]

DataName = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="NAME",
        help="A built-in data set, or yours: package.module:function, which returns a prunus Dataset.",
        show_default=False,
        autocompletion=completion("data set"),
    ),
]

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON to stdout, and nothing else.")]

Force = Annotated[
    bool, typer.Option("--force", help="Overwrite existing files; never one that the command reads.")
]

MAX_SEED = 2**63 - 1
"""The largest seed: a signed 64-bit integer, as `prunus.seeds` derives seeds for torch."""

Seed = Annotated[
    int,
    typer.Option(metavar="N", min=0, max=MAX_SEED, help="The seed of all random numbers."),
]

Threads = Annotated[
    int,
    typer.Option(
        metavar="N",
        min=1,
        help="Number of threads, at most the number of CPUs. One is the fastest for networks as small as the LeNets; "
        "larger ones gain from more. The same seed gives the same bits only with the same number.",
    ),
]

Device = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="The device: cpu, cuda, or one GPU of several, cuda:1. The same seed gives the same bits only on cpu.",
    ),
]

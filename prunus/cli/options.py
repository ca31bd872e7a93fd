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
    """Make an option whose default is None. Its help text must describe the default.

    Args:
        metavar: The name of the value in the help.
        text: The help text.
        lowest: The smallest valid value.
        highest: The largest valid value.
        complete: A function that completes values, made by `completion`.

    Returns:
        An option for `typing.Annotated`.
    """
    return typer.Option(
        metavar=metavar, help=text, min=lowest, max=highest, show_default=False, autocompletion=complete
    )


File = Annotated[
    Path, typer.Argument(metavar="FILE", help="A compressed file that prunus wrote.", show_default=False)
]

MaxBytes = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=0,
        help="Maximum memory for reading the file, in bytes. By default 256 MiB, or 1000 times the size of the file if "
        "that is larger.",
        show_default=False,
    ),
]

DataName = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="NAME",
        help="A built-in data set, or package.module:function for your own function that returns a prunus.Dataset.",
        show_default=False,
        autocompletion=completion("data set"),
    ),
]

StoreDir = Annotated[Path, typer.Option("--store", metavar="DIR", help="Run store.", show_default=False)]

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

Force = Annotated[
    bool, typer.Option("--force", help="Overwrite existing files, except those that the command reads.")
]

MAX_SEED = 2**63 - 1
"""The largest seed: a signed 64-bit integer, as `prunus.seeds` derives seeds for torch."""

Seed = Annotated[
    int,
    typer.Option(metavar="N", min=0, max=MAX_SEED, help="Seed of all random numbers."),
]

Threads = Annotated[
    int,
    typer.Option(
        metavar="N",
        min=1,
        help="Number of CPU threads. More threads speed up large networks, but slow down ones as small as the LeNets. "
        "Results are reproducible only with the same number.",
    ),
]

Backend = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Backend of training and evaluation: dense is PyTorch, sparse computes with the remaining weights only, "
        "and auto chooses the faster one by a fixed rule.",
    ),
]

Device = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Where to compute: cpu, cuda, or a GPU by its number such as cuda:1. Results are reproducible bit for bit "
        "only on cpu.",
    ),
]

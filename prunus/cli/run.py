"""`prunus run`."""

from pathlib import Path
from typing import Annotated

import typer

from prunus.cli.options import AsJson
from prunus.cli.show import put, put_json, say


def run(
    name: Annotated[str, typer.Argument(metavar="NAME", help="One of `prunus list`.", show_default=False)],
    smoke: Annotated[bool, typer.Option("--smoke", help="The smallest size: does it run?")] = False,
    full: Annotated[bool, typer.Option("--full", help="The size of the paper.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where to; runs/NAME by default.", show_default=False),
    ] = None,
    replicates: Annotated[
        int | None,
        typer.Option(min=1, help="How often, each with its own seeds; else the size's.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(help="The seed of the first replicate.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Run an experiment of a paper, and write its numbers and its figure.

    Example: prunus run han2015.tradeoff --smoke
    """
    from prunus.cli.files import make_folder
    from prunus.experiments import EXPERIMENTS
    from prunus.tables import look_up

    if smoke and full:
        raise typer.BadParameter("--smoke and --full are two sizes; choose one.")
    experiment = look_up("experiment", EXPERIMENTS, name)
    folder = Path("runs") / name if out is None else out
    make_folder(folder)
    size = "smoke" if smoke else "full" if full else "default"
    result = experiment(size, folder, replicates=replicates, seed=seed, report=say)
    if as_json:
        files = [str(file) for file in result.files]
        put_json({"name": name, "size": size, "files": files, "table": result.table})
        return
    put(result.table)
    for file in result.files:
        put(str(file))

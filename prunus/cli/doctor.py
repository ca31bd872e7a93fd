"""`prunus doctor`."""

from pathlib import Path
from typing import Annotated

import typer

from prunus.cli.options import AsJson
from prunus.cli.output import clean, echo, echo_json, echo_table, log
from prunus.cli.run import STORE


def doctor(
    store: Annotated[Path, typer.Option(metavar="FOLDER", help="The store of runs to check.")] = STORE,
    as_json: AsJson = False,
) -> None:
    """Check the installation and the machine: versions, CPU and GPUs, data sets, store, optional packages, cache.

    The exit code is 1, with one line for each problem on stderr, if a command will fail: a package cannot be imported,
    torch and numpy do not work together, a data set cannot be downloaded because the data root cannot be written, or
    a store cannot be written. What is only missing (an optional package, a data set that will be downloaded, a cache
    for compiled code) is no problem. Nothing is created, nothing is downloaded.

    Example: prunus doctor --store store
    """
    from prunus.diagnostics import diagnose

    diagnosis = diagnose(store)
    if as_json:
        echo_json(diagnosis.to_json())
    else:
        sections = ["", *(finding.section for finding in diagnosis.findings)]
        rows = [
            (finding.section if finding.section != before else "", finding.name, str(finding.value))
            for finding, before in zip(diagnosis.findings, sections, strict=False)
        ]
        echo_table(("", "name", ""), rows, words=3)
        if not diagnosis.problems:
            echo("No problem found.")
    for problem in diagnosis.problems:
        log(clean(f"problem: {problem}"))
    if diagnosis.problems:
        raise typer.Exit(1)

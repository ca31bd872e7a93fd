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

    The exit code is 1, with one line for each problem on stderr, if something will not work: a package that cannot be
    imported, torch and numpy that do not fit each other, a data set that cannot be fetched because the data root cannot
    be written, a store that cannot be written. What is only missing (an optional package, a data set that will be
    fetched when it is first used, a cache for compiled code) is no problem. Nothing is created, nothing is fetched.

    Example: prunus doctor --store store
    """
    from prunus.diagnostics import diagnose

    diagnosis = diagnose(store)
    if as_json:
        echo_json(diagnosis.to_json())
    else:
        sections = [finding.section for finding in diagnosis.findings]
        rows = [
            (
                "" if place and sections[place - 1] == finding.section else finding.section,
                finding.name,
                str(finding.value),
            )
            for place, finding in enumerate(diagnosis.findings)
        ]
        echo_table(("", "name", ""), rows, words=3)
        if not diagnosis.problems:
            echo("No problem found.")
    for problem in diagnosis.problems:
        log(clean(f"problem: {problem}"))
    if diagnosis.problems:
        raise typer.Exit(1)

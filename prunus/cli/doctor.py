"""`prunus doctor`."""

from pathlib import Path
from typing import Annotated

import typer

from prunus.cli.options import AsJson, option
from prunus.cli.output import clean, echo, echo_json, echo_table, log
from prunus.cli.run import STORE


def doctor(
    store: Annotated[Path, option("DIR", "Run store to check.")] = STORE,
    as_json: AsJson = False,
) -> None:
    """Check the installation: versions, CPU and GPUs, data sets, run store, optional packages and the cache.

    Ends with exit code 1 and one line per problem on stderr if another command
    would fail: a package cannot be imported, torch and numpy do not work
    together, a data set is missing and cannot be downloaded, or the store cannot
    be written. Missing optional packages are not problems. This command creates
    and downloads nothing.

    Example: prunus doctor --store store
    """
    from prunus.diagnostics import diagnose

    diagnosis = diagnose(store)
    if as_json:
        echo_json(diagnosis.to_json())
    else:
        sections = ["", *(finding.section for finding in diagnosis.findings)]
        rows = [
            (finding.section if finding.section != previous else "", finding.name, str(finding.value))
            for finding, previous in zip(diagnosis.findings, sections, strict=False)
        ]
        echo_table(("section", "name", "value"), rows, text_columns=3)
        if not diagnosis.problems:
            echo("No problem found.")
    for problem in diagnosis.problems:
        log(clean(f"problem: {problem}"))
    if diagnosis.problems:
        raise typer.Exit(1)

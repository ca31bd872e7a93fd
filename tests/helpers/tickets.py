"""Run the procedures of ticket specs in temporary directories."""

import tempfile
from pathlib import Path

from prunus.registry import import_object
from prunus.runs.directory import RunDirectory

FOLDER = tempfile.TemporaryDirectory(prefix="prunus-tickets-")


def new_directory(of: type[RunDirectory] = RunDirectory, *arguments) -> RunDirectory:
    """Return an empty directory, which is removed at the end of the tests."""
    return of(Path(tempfile.mkdtemp(dir=FOLDER.name)), *arguments)


def run(spec, *needed: RunDirectory, directory: RunDirectory | None = None) -> RunDirectory:
    """Run the procedure of a spec; `needed` are the directories of its dependencies, in their order."""
    directory = new_directory() if directory is None else directory
    run_with_summary(spec, directory, *needed)
    return directory


def run_with_summary(spec, directory: RunDirectory, *needed: RunDirectory):
    """Run the procedure of a spec, and return its summary."""
    return import_object(spec.procedure)(
        spec, directory, dict(zip(spec.dependencies(), needed, strict=False))
    )

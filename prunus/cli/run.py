"""`prunus run` and `prunus figure`."""

import glob
import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from prunus.cli.interrupts import Interrupted
from prunus.cli.names import completion
from prunus.cli.options import MAX_SEED, AsJson, Force, optional
from prunus.cli.output import echo, echo_json, log

STORE = Path("store")
"""Where runs are kept when nothing is said."""
MAX_REPLICATES = 10_000
"""A plan lists the runs of every replicate before the first one is started."""
RESULTS = (".json", ".md", ".csv", ".html", ".png", ".svg")
"""How the files of an experiment end."""

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="One of `prunus list`.",
        show_default=False,
        autocompletion=completion("experiment"),
    ),
]
Out = Annotated[Path | None, optional("FOLDER", "Where to; runs/NAME by default.")]


def run(
    name: Name,
    smoke: Annotated[bool, typer.Option("--smoke", help="The smallest size: does it run?")] = False,
    full: Annotated[bool, typer.Option("--full", help="The size of the paper.")] = False,
    out: Out = None,
    replicates: Annotated[
        int | None,
        optional("N", "How often, each with its own seeds; else the size's.", 1, MAX_REPLICATES),
    ] = None,
    seed: Annotated[
        int, typer.Option(metavar="N", min=0, max=MAX_SEED, help="The seed of the first replicate.")
    ] = 0,
    store: Annotated[
        Path | None,
        optional("FOLDER", f"Ticket experiments: where runs are kept, and found again; {STORE}/ by default."),
    ] = None,
    engine: Annotated[
        str | None,
        optional(
            "NAME",
            "Ticket experiments: inline, or processes (the default).",
            complete=completion("engine"),
        ),
    ] = None,
    workers: Annotated[
        int | None, optional("N", "Ticket experiments: processes at work; one a core by default.", lowest=1)
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Ticket experiments: another setting, e.g. network=conv-2, epochs=10, rounds=8; can be repeated.",
            show_default=False,
        ),
    ] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Run an experiment of a paper, and write its numbers and its figures.

    Results of a ticket experiment, which can be drawn again from its store, take the place of its earlier ones; other
    files are replaced only with --force.

    A ticket experiment does the runs that its store lacks, in several processes, and draws what is in the store; one
    that was killed goes on where it was.

    Example: prunus run zhou2019.criteria --smoke --store store
    """
    from prunus.cli.progress import report, report_line
    from prunus.data.download import progress as downloads
    from prunus.experiments import EXPERIMENTS, STORED_EXPERIMENTS, parts_of
    from prunus.files import output_folder
    from prunus.registry import lookup

    if smoke and full:
        raise typer.BadParameter("--smoke and --full are two sizes; choose one.")
    experiment = lookup("experiment", EXPERIMENTS, name)
    more: dict[str, Any] = {}
    if any(part in STORED_EXPERIMENTS for part in parts_of(name)):
        more = {
            "store": _checked(store or STORE),
            "engine": "processes" if engine is None else engine,
            "workers": workers or os.cpu_count() or 1,
            "settings": _settings(change or []),
        }
    elif store or engine is not None or workers or change:
        raise typer.BadParameter(
            f"--store, --engine, --workers and --set are for ticket experiments; {name} is none of them."
        )
    folder = Path("runs") / name if out is None else out
    size = "smoke" if smoke else "full" if full else "default"
    downloads.set(report)
    try:
        with output_folder(folder):
            _check_results(folder, name, more.get("store"), force)
            result = experiment(
                size, folder, replicates=replicates, seed=seed, report=report_line, progress=report, **more
            )
    except (Interrupted, KeyboardInterrupt) as error:
        if "store" in more:
            error.add_note(f"what is finished is in {more['store']}: run the same command again to go on")
        raise
    _show(result, size, as_json)


def figure(
    name: Name,
    store: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the runs are.")] = STORE,
    out: Out = None,
    size: Annotated[
        str | None,
        optional(
            "SIZE",
            "smoke, default or full; else the largest of which a run is finished.",
            complete=completion("size"),
        ),
    ] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Draw the figures of a ticket experiment from the finished runs in a store, and from nothing else.

    Drawn is what was asked for last and is finished altogether; where nothing is, what there is of it, which is said.

    Example: prunus figure zhou2019.criteria --store store --out figures
    """
    from prunus.experiments import EXPERIMENTS, STORED_EXPERIMENTS, merge_results, parts_of
    from prunus.files import output_folder
    from prunus.registry import lookup
    from prunus.runs.store import Store

    lookup("experiment", EXPERIMENTS, name)
    kept = Store(store, create=False)
    asked = {
        request.experiment
        for request in kept.requests()
        if size in (None, request.size) and any(kept.is_done(entry.id) for entry in request.entries)
    }
    parts = [part for part in parts_of(name) if part in STORED_EXPERIMENTS]
    if not parts:
        raise typer.BadParameter(f"{name} keeps no runs in a store; `prunus run {name}` draws it.")
    parts = [part for part in parts if part in asked] or parts
    folder = Path("runs") / name if out is None else out
    with output_folder(folder):
        _check_results(folder, name, store, force)
        results = [STORED_EXPERIMENTS[part].figure(kept, folder, size=size, report=log) for part in parts]
    _show(results[0] if len(results) == 1 else merge_results(name, results), size or "", as_json)


def _show(result: Any, size: str, as_json: bool) -> None:
    if as_json:
        files = [str(file) for file in result.files]
        echo_json({"name": result.name, "size": size, "files": files, "table": result.table})
        return
    echo(result.table)
    for file in result.files:
        echo(str(file))


def _check_results(folder: Path, name: str, store: Path | None, force: bool) -> None:
    """Create `folder` and check that the files of the experiment `name` may be written there.

    Those that an earlier run of the same ticket experiment wrote may be replaced: they can be drawn again from its
    store. Raises OutputError.
    """
    from prunus.errors import OutputError
    from prunus.experiments import STORED_EXPERIMENTS, parts_of
    from prunus.files import check_writable, create_folder

    if store is not None:
        for part in ("runs", "locks", "experiments"):
            inside = (store / part).resolve()
            if folder.resolve() == inside or inside in folder.resolve().parents:
                raise OutputError(
                    f"{folder} is inside the store {store}; name a folder outside it with --out."
                )
    create_folder(folder)
    for part in parts_of(name) or [name]:
        numbers = folder / f"{part}.json"
        own = part in STORED_EXPERIMENTS and _is_result(numbers, part)
        there = [path for path in folder.glob(f"{glob.escape(part)}.*") if path.suffix in RESULTS]
        for path in sorted({numbers, *there}):
            check_writable(path, force=force or own)


def _is_result(path: Path, experiment: str) -> bool:
    """Whether `path` holds numbers that a run of the experiment wrote."""
    try:
        return bool(json.loads(path.read_bytes())["evidence"]["experiment"] == experiment)
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _checked(store: Path) -> Path:
    """`store` itself. Raises StoreError where a store cannot have the name."""
    from prunus.errors import StoreError
    from prunus.files import has_control_characters

    if has_control_characters(store):
        raise StoreError(f"The store {str(store)!r} cannot be made: its name has control characters.")
    return store


def _settings(changes: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for change in changes:
        key, sign, value = change.partition("=")
        if not (key and sign):
            raise typer.BadParameter(f"--set takes KEY=VALUE, not {change!r}.")
        key = key.strip()
        if key in found:
            raise typer.BadParameter(
                f"--set gives {key} twice, {found[key]!r} and {value.strip()!r}; give it once."
            )
        found[key] = value.strip()
    return found

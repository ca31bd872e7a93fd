"""`prunus runs`: list, show and compare the runs of a store, save their networks, remove them, move them elsewhere."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from prunus.cli.exit_codes import CommandGroup, with_exit_codes
from prunus.cli.options import AsJson, Force
from prunus.cli.output import echo, echo_json, echo_table, log

StoreFolder = Annotated[
    Path, typer.Option("--store", metavar="FOLDER", help="The store of runs.", show_default=False)
]

RunId = Annotated[
    str,
    typer.Argument(
        metavar="ID", help="A run: its ID, or the beginning of the ID or of its hash.", show_default=False
    ),
]


def list_(store: StoreFolder, as_json: AsJson = False) -> None:
    """List the runs of a store, with how far they got and their last level.

    Example: prunus runs list --store store
    """
    from prunus.cli.runs_tables import LISTED, list_cells, list_json
    from prunus.runs.store import Store

    runs = Store(store, create=False).runs()
    if as_json:
        echo_json([list_json(run) for run in runs])
    elif runs:
        echo_table(LISTED, [list_cells(run) for run in runs], words=4)
    else:
        echo(f"The store {store} has no runs.")


def show(id: RunId, store: StoreFolder, as_json: AsJson = False) -> None:
    """Show a run: its settings, the machine that computed it, its levels and the checks of its invariants.

    Example: prunus runs show ticket-3f --store store
    """
    from prunus.cli.runs_tables import invariant_cells, level_table, pair_cells, run_sections
    from prunus.runs.store import Store

    opened = Store(store, create=False)
    run = opened.run(opened.find(id))
    rows = opened.directory(run.id, unfinished=True).rows()
    if as_json:
        echo_json({**asdict(run), "environment": run.environment, "levels": rows})
        return
    tables = [((title, ""), pair_cells(values)) for title, values in run_sections(run).items()]
    for head, cells in tables:
        if cells:
            echo("")
            echo_table(head, cells, words=2)
    if rows:
        echo("")
        echo_table(*level_table(rows))
    if checks := invariant_cells(rows):
        echo("")
        echo_table(("invariants", "holds"), checks, words=2)


def compare(first: RunId, second: RunId, store: StoreFolder, as_json: AsJson = False) -> None:
    """Compare two runs: the settings that differ, and each metric of each level with the difference.

    Example: prunus runs compare ticket-3f ticket-a0 --store store
    """
    from prunus.cli.runs_tables import difference_cells, different_settings, level_differences, text
    from prunus.runs.store import Store

    opened = Store(store, create=False)
    ids = [opened.find(first), opened.find(second)]
    first_run, second_run = (opened.directory(id, unfinished=True) for id in ids)
    settings = different_settings(first_run.record(), second_run.record())
    levels = level_differences(first_run.rows(), second_run.rows())
    if as_json:
        echo_json({"runs": ids, "settings": settings, "levels": levels})
        return
    echo_table(("setting", *ids), [(key, text(a), text(b)) for key, (a, b) in settings.items()], words=3)
    echo("")
    echo_table(
        ("level", "metric", *ids, "difference"), [difference_cells(level) for level in levels], words=2
    )


def save(
    id: RunId,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write.", show_default=False)],
    store: StoreFolder,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Write the network that a run ended with to a file: a supermask over weights from a seed as a seed and a mask.

    The network of a ticket is that of its last level, that of a supermask the one under its most likely mask.

    Example: prunus runs save supermask-3f mask.prunus --store store
    """
    from prunus.compression.save import save as write
    from prunus.errors import PrunusError
    from prunus.files import check_writable
    from prunus.report import formatting
    from prunus.runs.store import Store
    from prunus.tickets.baseline import BaselineSpec
    from prunus.tickets.export import load_trained_network

    opened = Store(store, create=False)
    run = opened.run(opened.find(id))
    directory = opened.directory(run.id, unfinished=True)
    baseline = run.all_settings.get("dense", run.all_settings)
    if run.state != "done":
        raise PrunusError(f"{run.id} has no network to write: it is {run.state}, not done.")
    if not directory.has("final") or not {"model", "replicate"} <= baseline.keys():
        raise PrunusError(f"{run.id} has no network to write: the result of a run of its kind is numbers.")
    check_writable(file, force=force, inputs=opened.path.rglob("*"))
    spec = BaselineSpec(model=baseline["model"], replicate=baseline["replicate"])
    model, generated, factors = load_trained_network(spec, directory)
    size = write(model, file, made={"run": run.id}, generated=generated, factors=factors)
    if as_json:
        echo_json({"run": run.id, "file": str(file), "bytes": size, "generated": list(generated)})
        return
    weights = sum(parameter.numel() for parameter in model.parameters())
    layers = (
        f", the weights of {formatting.pluralize(len(generated), 'layer')} from a seed" if generated else ""
    )
    echo(
        f"{file}: {formatting.format_int(weights)} parameters in {formatting.format_int(size)} bytes{layers}."
    )


def rm(
    ids: Annotated[
        list[str], typer.Argument(metavar="ID...", help="Runs, as in `list`.", show_default=False)
    ],
    store: StoreFolder,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Remove also runs that other runs were made from, or are being made from."
        ),
    ] = False,
) -> None:
    """Remove runs from a store; runs that a process works on are refused.

    Example: prunus runs rm ticket-3f --store store
    """
    from prunus.runs.store import Store

    opened = Store(store, create=False)
    for id in dict.fromkeys(map(opened.find, ids)):
        opened.remove(id, force=force)
        log(f"removed {id}")


def export(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="The store of runs.", show_default=False)],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The file to write.", show_default=False)],
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Write the finished runs of a store to one file of JSON lines: settings, environments and rows, but no weights.

    Example: prunus runs export store --out runs.jsonl
    """
    from prunus.files import check_writable
    from prunus.report.formatting import format_int, pluralize
    from prunus.runs.store import Store
    from prunus.runs.transfer import export_runs

    opened = Store(store, create=False)
    check_writable(out, force=force, inputs=opened.path.rglob("*"))
    result = export_runs(opened, out)
    if as_json:
        echo_json({"file": str(out), **asdict(result)})
        return
    if result.skipped:
        log(f"left out, because they are not finished: {', '.join(result.skipped)}")
    echo(f"{out}: {pluralize(len(result.runs), 'run')} in {format_int(out.stat().st_size)} bytes.")


def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file of `export`.", show_default=False)],
    store: StoreFolder,
    as_json: AsJson = False,
) -> None:
    """Add the runs of a file of `prunus runs export` to a store, so that `prunus figure` draws them.

    A run that the store has already is not changed. The imported runs have no weights.

    Example: prunus runs import runs.jsonl --store store
    """
    from prunus.report.formatting import pluralize
    from prunus.runs.store import Store
    from prunus.runs.transfer import import_runs

    result = import_runs(file, Store(store))
    if as_json:
        echo_json({"store": str(store), **asdict(result)})
        return
    known = f"; the store had {pluralize(len(result.skipped), 'run')} already" if result.skipped else ""
    echo(f"{store}: {pluralize(len(result.runs), 'run')} imported{known}.")


COMMANDS: dict[str, Callable[..., None]] = {
    "list": list_,
    "show": show,
    "compare": compare,
    "save": save,
    "rm": rm,
    "export": export,
    "import": import_,
}

app = typer.Typer(cls=CommandGroup, help="List, compare, export and remove the runs of a store.")
for _name, _command in COMMANDS.items():
    app.command(_name)(with_exit_codes(_command))

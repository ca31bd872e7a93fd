"""`prunus runs`: look into a store of runs, compare two of them, remove some."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from prunus.cli.exit_codes import CommandGroup, with_exit_codes
from prunus.cli.options import AsJson, Force
from prunus.cli.output import echo, echo_json, echo_table, log

StoreFolder = Annotated[
    Path, typer.Option("--store", metavar="DIR", help="The store of runs.", show_default=False)
]

RunId = Annotated[
    str,
    typer.Argument(
        metavar="ID", help="A run; the beginning will do, or that of its hash.", show_default=False
    ),
]


def list_(store: StoreFolder, as_json: AsJson = False) -> None:
    """Name every run of a store, with where it stands and its last level.

    Example: prunus runs list --store store
    """
    from prunus.cli.runs_tables import LISTED, listed_json, run_row
    from prunus.runs.store import Store

    opened = Store(store, create=False)
    runs = opened.runs()
    if as_json:
        echo_json([listed_json(run) for run in runs])
    elif runs:
        echo_table(LISTED, [run_row(run) for run in runs], words=4)
    else:
        echo(f"The store {store} has no runs.")


def show(id: RunId, store: StoreFolder, as_json: AsJson = False) -> None:
    """Tell all of a run: its settings, on what it was computed, its levels, its receipt.

    Example: prunus runs show ticket-3f --store store
    """
    from prunus.cli.runs_tables import invariant_rows, levels, pairs
    from prunus.runs.settings import flatten_settings
    from prunus.runs.store import Store

    opened = Store(store, create=False)
    found = opened.find(id)
    run = opened.run(found)
    rows = opened.directory(found, unfinished=True).rows()
    environment = run.environment
    if as_json:
        echo_json({**asdict(run), "environment": environment, "levels": rows})
        return
    about = {"status": run.state, "experiments": ", ".join(run.experiments), "invariants": run.invariants}
    more = {
        "seconds": run.seconds,
        "attempts": run.attempts,
        "dependencies": ", ".join(run.dependencies.values()),
        "error": run.error,
    }
    for title, values in (
        (run.id, {**about, **more}),
        ("settings that differ from their defaults", flatten_settings(run.settings)),
        ("environment", environment),
        ("summary", flatten_settings(run.summary)),
    ):
        if cells := pairs(values):
            echo("")
            echo_table((title, ""), cells, words=2)
    if rows:
        echo("")
        echo_table(*levels(rows))
    if any(row.get("invariants") for row in rows):
        echo("")
        echo_table(("invariants", "holds"), invariant_rows(rows), words=2)


def compare(first: RunId, second: RunId, store: StoreFolder, as_json: AsJson = False) -> None:
    """Set two runs side by side: the settings that differ, and each metric of each level with the difference.

    Example: prunus runs compare ticket-3f ticket-a0 --store store
    """
    from prunus.cli.runs_tables import comparison_row, differences, other_settings, text
    from prunus.runs.store import Store

    opened = Store(store, create=False)
    ids = [opened.find(first), opened.find(second)]
    one, two = (opened.directory(id, unfinished=True) for id in ids)
    settings = other_settings(one.record(), two.record())
    levels = differences(one.rows(), two.rows())
    if as_json:
        echo_json({"runs": ids, "settings": settings, "levels": levels})
        return
    echo_table(("setting", *ids), [(key, text(a), text(b)) for key, (a, b) in settings.items()], words=3)
    echo("")
    echo_table(("level", "metric", *ids, "difference"), [comparison_row(level) for level in levels], words=2)


def save(
    id: RunId,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to.", show_default=False)],
    store: StoreFolder,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Write the network that a run ended with into a file: a supermask over weights from a seed as a seed and a mask.

    A ticket's network is that of its last level, a supermask's that of the most likely mask.

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
    found = opened.find(id)
    folder = opened.directory(found, unfinished=True)
    complete = folder.record().all_settings
    dense = complete.get("dense", complete)
    if not opened.is_done(found):
        raise PrunusError(f"{found} has no network to write: it is {opened.run(found).state}, not done.")
    if not folder.has("final") or not isinstance(dense, dict) or not {"model", "replicate"} <= dense.keys():
        raise PrunusError(f"{found} has no network to write: what a run of its kind leaves is numbers.")
    check_writable(file, force=force, inputs=opened.path.rglob("*"))
    spec = BaselineSpec(model=dense["model"], replicate=dense["replicate"])
    model, generated, factors = load_trained_network(spec, folder)
    size = write(model, file, made={"run": found}, generated=generated, factors=factors)
    if as_json:
        echo_json({"run": found, "file": str(file), "bytes": size, "generated": list(generated)})
        return
    weights = sum(parameter.numel() for parameter in model.parameters())
    how = f", the weights of {formatting.pluralize(len(generated), 'layer')} from a seed" if generated else ""
    echo(f"{file}: {formatting.format_int(weights)} parameters in {formatting.format_int(size)} bytes{how}.")


def rm(
    ids: Annotated[
        list[str], typer.Argument(metavar="ID...", help="Runs, as in `list`.", show_default=False)
    ],
    store: StoreFolder,
    force: Annotated[
        bool,
        typer.Option("--force", help="Also those that other runs were made from, or are being made from."),
    ] = False,
) -> None:
    """Remove runs from a store; those that are under way are refused.

    Example: prunus runs rm ticket-3f --store store
    """
    from prunus.runs.store import Store

    opened = Store(store, create=False)
    for id in dict.fromkeys(map(opened.find, ids)):
        opened.remove(id, force=force)
        log(f"removed {id}")


COMMANDS: dict[str, Callable[..., None]] = {
    "list": list_,
    "show": show,
    "compare": compare,
    "save": save,
    "rm": rm,
}

app = typer.Typer(cls=CommandGroup, help="Look into a store of runs, and clear it up.")
for _name, _command in COMMANDS.items():
    app.command(_name)(with_exit_codes(_command))

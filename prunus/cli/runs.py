"""`prunus runs`: list, show, compare, save, remove, export, import, watch and pause the runs of a store."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from prunus.cli.exit_codes import CommandGroup, with_exit_codes
from prunus.cli.options import AsJson, Force, StoreDir, argument, flag, optional
from prunus.cli.output import echo, echo_json, echo_json_list, echo_table, log
from prunus.cli.runs_watch import pause, resume, watch

RUN_ID = "ID of a run. The first characters of the ID or of its hash suffice."
RunId = Annotated[str, argument("RUN_ID", RUN_ID)]
RUN_IDS = "IDs of the runs to remove. The first characters suffice."
EXPERIMENT = (
    "Export only the runs of this experiment and those that they depend on. May be given several times."
)


def list_(store: StoreDir, as_json: AsJson = False) -> None:
    """List the runs of a store, with the state and the last metrics of each.

    Example: prunus runs list --store store
    """
    from prunus.cli.runs_tables import LISTED, list_cells, list_json
    from prunus.runs.store import Store, without_garbage_collection

    with without_garbage_collection():
        runs = Store(store, create=False).runs()
        if as_json:
            echo_json_list(map(list_json, runs))
        elif runs:
            echo_table(LISTED, [list_cells(run) for run in runs], text_columns=4)
        else:
            echo(f"The store {store} has no runs.")


def show(id: RunId, store: StoreDir, as_json: AsJson = False) -> None:
    """Show the settings, environment, metrics per level and invariant checks of a run.

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
    for title, values in run_sections(run).items():
        if cells := pair_cells(values):
            echo("")
            echo_table((title, ""), cells, text_columns=2)
    if rows:
        echo("")
        echo_table(*level_table(rows))
    if checks := invariant_cells(rows):
        echo("")
        echo_table(("invariants", "holds"), checks, text_columns=2)


def compare(first: RunId, second: RunId, store: StoreDir, as_json: AsJson = False) -> None:
    """Compare two runs: show the settings that differ, and both values of each metric per level.

    Example: prunus runs compare ticket-3f ticket-a0 --store store
    """
    from prunus.cli.runs_tables import difference_cells, different_settings, level_differences
    from prunus.report.formatting import format_settings
    from prunus.runs.store import Store

    opened = Store(store, create=False)
    ids = [opened.find(first), opened.find(second)]
    first_run, second_run = (opened.directory(id, unfinished=True) for id in ids)
    settings = different_settings(first_run.record(), second_run.record())
    levels = level_differences(first_run.rows(), second_run.rows())
    if as_json:
        echo_json({"runs": ids, "settings": settings, "levels": levels})
        return
    cells = [(key, *map(format_settings, values)) for key, values in settings.items()]
    echo_table(("setting", *ids), cells, text_columns=3)
    echo("")
    echo_table(("level", "metric", *ids, "difference"), [*map(difference_cells, levels)], text_columns=2)


def save(
    id: RunId,
    file: Annotated[Path, argument("FILE", "Output path.")],
    store: StoreDir,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Write the final network of a run to a compressed file.

    For a ticket, this is the network after its last level; for a supermask, the
    network under its most probable mask. Weights that were generated from a seed
    are stored as the seed and the mask.

    Example: prunus runs save supermask-3f mask.prunus --store store
    """
    from prunus.compression.save import save as write
    from prunus.errors import PrunusError
    from prunus.files import check_writable
    from prunus.runs.store import Store
    from prunus.text_tables import pluralize
    from prunus.tickets.baseline import BaselineSpec
    from prunus.tickets.export import load_trained_network

    opened = Store(store, create=False)
    run = opened.run(opened.find(id))
    directory = opened.directory(run.id, unfinished=True)
    baseline = run.all_settings.get("baseline", run.all_settings)
    if run.state != "done":
        raise PrunusError(
            f"{run.id} has no network to write: it is {run.state}, not done; repeat its `prunus run` command."
        )
    if not directory.has("final") or not {"model", "replicate"} <= baseline.keys():
        raise PrunusError(f"{run.id} has no network to write: runs of its kind store only numbers.")
    check_writable(file, force=force, inputs=opened.path.rglob("*"))
    spec = BaselineSpec(model=baseline["model"], replicate=baseline["replicate"])
    model, generated, factors = load_trained_network(spec, directory)
    size = write(model, file, metadata={"run": run.id}, generated=generated, factors=factors)
    if as_json:
        echo_json({"run": run.id, "file": str(file), "bytes": size, "generated": list(generated)})
        return
    weights = sum(parameter.numel() for parameter in model.parameters())
    layers = f", the weights of {pluralize(len(generated), 'layer')} from a seed" if generated else ""
    echo(f"{file}: {weights:,} parameters in {size:,} bytes{layers}.")


def rm(
    ids: Annotated[list[str], argument("RUN_ID...", RUN_IDS)],
    store: StoreDir,
    force: Annotated[bool, flag("--force", "Also remove runs that other runs depend on.")] = False,
) -> None:
    """Remove runs from a store. Runs that a process is still computing are not removed.

    Example: prunus runs rm ticket-3f --store store
    """
    from prunus.runs.store import Store

    opened = Store(store, create=False)
    for id in dict.fromkeys(map(opened.find, ids)):
        opened.remove(id, force=force)
        log(f"removed {id}")


def export(
    store: Annotated[Path, argument("STORE", "Run store.")],
    out: Annotated[Path, optional("FILE", "Output path.")],
    experiment: Annotated[list[str] | None, optional("NAME", EXPERIMENT)] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Write the finished runs of a store to one JSON Lines file.

    The file contains settings, environments and metrics, but no weights.

    Example: prunus runs export store --out runs.jsonl
    """
    from prunus.files import check_writable
    from prunus.runs.store import Store
    from prunus.runs.transfer import export_runs
    from prunus.text_tables import pluralize

    opened = Store(store, create=False)
    check_writable(out, force=force, inputs=opened.path.rglob("*"))
    result = export_runs(opened, out, experiment or ())
    if as_json:
        echo_json({"file": str(out), **asdict(result)})
        return
    if result.skipped:
        log(f"left out, because they are not finished: {', '.join(result.skipped)}")
    echo(f"{out}: {pluralize(len(result.runs), 'run')} in {out.stat().st_size:,} bytes.")


def import_(
    file: Annotated[Path, argument("FILE", "A file that `prunus runs export` wrote.")],
    store: StoreDir,
    as_json: AsJson = False,
) -> None:
    """Add exported runs to a store, so that `prunus figure` can draw them.

    Runs that are already in the store are left unchanged. Imported runs have no weights.

    Example: prunus runs import runs.jsonl --store store
    """
    from prunus.runs.store import Store
    from prunus.runs.transfer import import_runs
    from prunus.text_tables import pluralize

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
    "watch": watch,
    "pause": pause,
    "resume": resume,
}

app = typer.Typer(
    cls=CommandGroup,
    help="List, show, compare, save, remove, export, import, watch and pause the runs of a store.",
)
for _name, _command in COMMANDS.items():
    app.command(_name)(with_exit_codes(_command, f"runs {_name}"))

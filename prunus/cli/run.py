"""`prunus run` and `prunus figure`."""

import glob
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from prunus.cli.interrupts import Interrupted
from prunus.cli.names import NAMES
from prunus.cli.options import AsJson, Force, StoreDir, argument, flag, option, optional, seed_option
from prunus.cli.output import echo, echo_json, log

if TYPE_CHECKING:
    from prunus.runs.executors.worker import Executor

STORE = Path("store")
"""The default store."""
MAX_REPLICATES = 10_000
"""A plan lists the runs of all replicates before the first one is started."""
RESULTS = (".json", ".md", ".csv", ".html", ".png", ".svg")
"""Suffixes of the files of an experiment."""

NAME = "An experiment of `prunus list`, or a paper or subject to run all of its experiments."
Name = Annotated[str, argument("NAME", NAME, complete="experiment")]
Out = Annotated[Path | None, optional("DIR", "Output directory. By default runs/NAME.")]
REPLICATES = "Number of replicates, each with its own seeds. The default depends on the size."
EXECUTOR = (
    "Where runs are computed: processes (in parallel on this machine), inline (one after another in this process), ray "
    "or slurm (on several machines)."
)
WORKERS = (
    "Number of workers. By default one process per core, one per CPU of the Ray cluster, or 8 Slurm jobs."
)
RAY = (
    "Compute on a Ray cluster: HOST:PORT, or auto for the cluster that runs on this machine. Without an address, Ray "
    "is started on this machine."
)
BACKEND = (
    "Backend that trains tickets and their baselines: dense, sparse or auto. The same as --set backend=NAME. By "
    "default auto."
)
CHANGES = "Change a setting, for example network=conv-2, epochs=10 or rounds=8. May be repeated."
SIZE = "smoke, default or full. By default the largest size that has a finished run."


def run(
    name: Name,
    smoke: Annotated[bool, flag("--smoke", "Run the smallest size, to test that it works.")] = False,
    full: Annotated[bool, flag("--full", "Run the size of the paper.")] = False,
    out: Out = None,
    replicates: Annotated[int | None, optional("N", REPLICATES, lowest=1, highest=MAX_REPLICATES)] = None,
    seed: Annotated[int, seed_option("Number of the first replicate.")] = 0,
    store: StoreDir = STORE,
    executor: Annotated[str, option("NAME", EXECUTOR, complete="executor")] = "processes",
    workers: Annotated[int | None, optional("N", WORKERS, lowest=1)] = None,
    ray: Annotated[str | None, optional("[ADDRESS]", RAY)] = None,
    slurm: Annotated[bool, flag("--slurm", "Compute in a Slurm job array.")] = False,
    backend: Annotated[str | None, optional("NAME", BACKEND)] = None,
    changes: Annotated[list[str] | None, optional("KEY=VALUE", CHANGES, "--set")] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Run an experiment of a paper: its claims with their verdicts, its table and its figures.

    The runs that the store lacks are computed in several processes, or on several
    machines that share its folder. If a command was killed, the same command
    continues it. Earlier results of the same experiment are replaced; other files
    only with --force.

    Example: prunus run zhou2019.criteria --smoke --store store
    """
    from prunus.cli.progress import report, report_line
    from prunus.data.download import progress as downloads
    from prunus.errors import StoreError
    from prunus.experiments import EXPERIMENTS
    from prunus.experiments.running import run_experiment
    from prunus.files import has_control_characters, output_folder

    if smoke and full:
        raise typer.BadParameter("--smoke and --full are two sizes; choose one.")
    selected_executor = _executor(executor, ray, slurm)
    names = _experiments(name)
    settings = _settings([*(changes or []), *([f"backend={backend}"] if backend else [])])
    folder, size = out or Path("runs") / name, "smoke" if smoke else "full" if full else "default"
    if has_control_characters(store):
        raise StoreError(
            f"The store {str(store)!r} cannot be created: its name has control characters; name another folder."
        )
    downloads.set(report)
    try:
        with output_folder(folder):
            _check_results(folder, names, store, force)
            results = [
                run_experiment(
                    EXPERIMENTS[each], size, folder, store=store, replicates=replicates, seed=seed,
                    executor=selected_executor, workers=workers, settings=settings, log=report_line, progress=report,
                )
                for each in names
            ]  # fmt: skip
    except (Interrupted, KeyboardInterrupt) as error:
        error.add_note(f"the finished runs are in {store}: repeat the same command to continue")
        raise
    _show(name, results, size, as_json)


def figure(
    name: Name,
    store: StoreDir = STORE,
    out: Out = None,
    size: Annotated[str | None, optional("SIZE", SIZE, complete="size")] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Draw the page of an experiment again from the finished runs in a store.

    The page shows the last request whose runs are all finished. If there is none,
    it shows the finished runs, with a note. Networks that this request lacks are
    added from requests that differ only in the network, the backend and the dtype
    of autocast.

    Example: prunus figure zhou2019.criteria --store store --out figures
    """
    from prunus.experiments import EXPERIMENTS
    from prunus.experiments.running import draw_experiment
    from prunus.files import output_folder
    from prunus.runs.store import Store

    names, runs = _experiments(name), Store(store, create=False)
    drawable = {
        request.experiment
        for request in runs.requests()
        if size in (None, request.size) and any(runs.is_done(entry.id) for entry in request.entries)
    }
    names = [each for each in names if each in drawable] or names
    folder = out or Path("runs") / name
    with output_folder(folder):
        _check_results(folder, names, store, force)
        results = [draw_experiment(EXPERIMENTS[each], runs, folder, size=size, log=log) for each in names]
    _show(name, results, size or "", as_json)


class RunCommand(TyperCommand):
    """The command `run`, whose option --ray may have no value: Typer has no such options."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse as any command does, after "local" was put where an option, an experiment or nothing follows --ray.

        Args:
            ctx: The context of the command.
            args: The arguments after its name.

        Returns:
            The remaining arguments.
        """
        experiments = NAMES["experiment"]
        args = [
            "--ray=local" if arg == "--ray" and (value[:1] in ("", "-") or value in experiments) else arg
            for arg, value in zip(args, [*args[1:], ""], strict=False)
        ]
        return super().parse_args(ctx, args)


def _executor(executor: str, ray: str | None, slurm: bool) -> "str | Executor":
    """Return what the options --executor, --ray and --slurm name; they are alternatives."""
    from prunus.runs.executors.ray_cluster import on_ray

    if (executor != "processes") + (ray is not None) + slurm > 1:
        raise typer.BadParameter("--executor, --ray and --slurm are alternatives; give one of them.")
    if ray is not None:
        return partial(on_ray, address=ray)
    return "slurm" if slurm else executor


def _experiments(name: str) -> list[str]:
    """The experiments that a name stands for. Raises UnknownNameError for an unknown name."""
    from prunus.experiments import EXPERIMENTS, PAPERS, experiments_of
    from prunus.registry import lookup

    lookup("experiment", dict.fromkeys((*PAPERS, *EXPERIMENTS), ""), name)
    return experiments_of(name)


def _show(name: str, results: Sequence[Any], size: str, as_json: bool) -> None:
    from prunus.experiments.results import merge_results

    result = results[0] if len(results) == 1 else merge_results(name, results)
    if as_json:
        files = [str(file) for file in result.files]
        content = {key: result.content[key] for key in ("question", "verdicts") if key in result.content}
        echo_json({"name": result.name, "size": size, **content, "files": files, "table": result.text})
        return
    echo(result.text)
    for file in result.files:
        echo(str(file))


def _check_results(folder: Path, names: Sequence[str], store: Path, force: bool) -> None:
    """Create `folder` and check that the files of the experiments may be written there.

    Files of an earlier run of the same experiment may be replaced: they can be drawn again from its store.

    Raises:
        OutputError: They may not.
    """
    from prunus.errors import OutputError
    from prunus.files import check_writable, create_folder

    for part in ("runs", "locks", "experiments"):
        inside = (store / part).resolve()
        if folder.resolve() == inside or inside in folder.resolve().parents:
            raise OutputError(f"{folder} is inside the store {store}; name a folder outside it with --out.")
    create_folder(folder)
    for name in names:
        numbers = folder / f"{name}.json"
        replaceable = _is_result(numbers, name)
        files = [path for path in folder.glob(f"{glob.escape(name)}.*") if path.suffix in RESULTS]
        for path in sorted({numbers, *files}):
            check_writable(path, force=force or replaceable)


def _is_result(path: Path, experiment: str) -> bool:
    """Whether `path` holds results of the experiment."""
    try:
        return bool(json.loads(path.read_bytes())["experiment"] == experiment)
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _settings(changes: list[str]) -> dict[str, str]:
    settings: dict[str, str] = {}
    for change in changes:
        key, sign, value = change.partition("=")
        if not (key and sign):
            raise typer.BadParameter(f"--set takes KEY=VALUE, not {change!r}.")
        key = key.strip()
        if key in settings:
            raise typer.BadParameter(
                f"--set gives {key} twice, {settings[key]!r} and {value.strip()!r}; give it once."
            )
        settings[key] = value.strip()
    return settings

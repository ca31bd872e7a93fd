"""Cost of the store and of the invariant checks: CPU time of a ticket run against its bare trainings; size of a mask.

The bare trainings start from the same states under the same masks and are evaluated as often, without a criterion, an
invariant report, a count of violations, a checkpoint or files.
"""

import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from torch import nn

from benchmarks.timing import interleaved, table
from prunus.runs.directory import RunDirectory
from prunus.runs.executors.run_task import SingleThread, run_to_completion
from prunus.runs.spec import run_id
from prunus.runs.store import Store
from prunus.tickets.baseline import BaselineSpec, final_metrics, masks_name
from prunus.tickets.monitor import TrainingMonitor
from prunus.tickets.procedure import run_ticket
from prunus.tickets.ticket import TicketSpec
from prunus.training import RECIPES, EpochMetrics, Recipe, train
from prunus.types import Dataset


def make_ticket(epochs: int) -> TicketSpec:
    """A ticket of two levels."""
    return TicketSpec(BaselineSpec(recipe=RECIPES["lenet-300-100"].replace(epochs=epochs)), rounds=2)


def bare_trainings(ticket: TicketSpec, store: Store) -> list[Callable[[], None]]:
    """Functions that repeat the trainings of the run, each of which only trains and evaluates."""
    trainings: list[Callable[[], None]] = []

    def record(model: nn.Module, data: Dataset, recipe: Recipe, **arguments: Any) -> list[EpochMetrics]:
        trainings.append(partial(train_bare, ticket.baseline, model, data, recipe, **arguments))
        return train(model, data, recipe, **arguments)

    needed = {role: store.directory(run_id(spec)) for role, spec in ticket.dependencies().items()}
    with patch("prunus.tickets.baseline.train", record), tempfile.TemporaryDirectory() as folder:
        run_ticket(ticket, RunDirectory(folder), needed)
    return trainings


def train_bare(
    spec: BaselineSpec,
    model: nn.Module,
    data: Dataset,
    recipe: Recipe,
    *,
    observer: TrainingMonitor,
    **arguments: Any,
) -> None:
    """Train and evaluate, and nothing else."""
    monitor = TrainingMonitor(
        data.validation,
        first_step=observer.first_step,
        last_step=observer.last_step,
        eval_every=observer.eval_every,
    )
    train(model, data, recipe, observer=monitor, **{**arguments, "checkpoint": None})
    final_metrics(model, monitor, spec)


def run_again(ticket: TicketSpec, store: Store) -> None:
    """The complete run, computed again."""
    shutil.rmtree(store.runs_path / run_id(ticket), ignore_errors=True)
    assert run_to_completion(ticket, store, "inline")


def run(rounds: int = 7, epochs: int = 5) -> str:
    ticket = make_ticket(epochs)
    with tempfile.TemporaryDirectory() as folder, SingleThread():
        store = Store(folder)
        for spec in ticket.dependencies().values():
            run_to_completion(spec, store, "inline")
        trainings = bare_trainings(ticket, store)
        functions: dict[str, Callable[[], object]] = {
            "bare trainings": lambda: [bare() for bare in trainings],
            "run with store and invariant checks": lambda: run_again(ticket, store),
        }
        timed = interleaved(functions, rounds=rounds)
        costs = table(
            [
                f"LeNet-300-100, {len(trainings)} levels of {epochs} epochs, one thread, n = {rounds}",
                "CPU s",
                "ratio",
            ],
            [[name, f"{timed.median(name):.2f}", timed.ratio(name, "bare trainings")] for name in functions],
        )
        directory = store.directory(run_id(ticket))
        path = Path(directory.path) / f"{masks_name(1)}.safetensors"
        weights = sum(mask.numel() for mask in directory.load_masks(masks_name(1)).values())
        size = path.stat().st_size
    masks = table(
        ["stored mask", "weights", "bytes", "bits per weight"],
        [["LeNet-300-100", weights, size, f"{8 * size / weights:.4f}"]],
    )
    return f"{costs}\n\n{masks}\n\nTargets: 1.03 times the bare trainings; 1.01 bits per weight."

"""What a ticket's store and receipts cost: CPU of whole runs beside that of their bare trainings; bytes of a mask.

Bare: the same trainings from the same states under the same masks, evaluated as often, with no criterion, no receipt,
no count of broken weights, no checkpoint and nowhere to write.
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
from prunus.runs.executors.run_task import SingleThread, run_to_completion
from prunus.runs.spec import run_id
from prunus.runs.store import Store
from prunus.tickets.artifacts import InMemoryArtifacts
from prunus.tickets.baseline import BaselineSpec, final_metrics
from prunus.tickets.monitor import TrainingMonitor
from prunus.tickets.procedure import mask_key
from prunus.tickets.ticket import TicketSpec
from prunus.training import RECIPES, Recipe, train
from prunus.types import Dataset


def spec(epochs: int) -> TicketSpec:
    return TicketSpec(BaselineSpec(recipe=RECIPES["lenet-300-100"].replace(epochs=epochs)), rounds=2)


def trainings_of(ticket: TicketSpec, store: Store) -> list[Callable[[], None]]:
    """The trainings of the run, each of which only trains and evaluates when it is called."""
    bare_trainings: list[Callable[[], None]] = []

    def record(model: nn.Module, data: Dataset, recipe: Recipe, **arguments: Any) -> None:
        bare_trainings.append(partial(train_bare, model, data, recipe, **arguments))
        train(model, data, recipe, **arguments)

    with patch("prunus.tickets.baseline.train", record):
        ticket.run(
            InMemoryArtifacts(),
            {role: store.directory(run_id(one)) for role, one in ticket.dependencies().items()},
        )
    return bare_trainings


def train_bare(
    model: nn.Module, data: Dataset, recipe: Recipe, *, observer: TrainingMonitor, **arguments: Any
) -> None:
    """Train and evaluate, and nothing else."""
    watch = TrainingMonitor(data.validation, first=observer.first, last=observer.last, every=observer.every)
    train(model, data, recipe, observer=watch, **{**arguments, "checkpoint": None})
    final_metrics(model, watch, data)


def kept(ticket: TicketSpec, store: Store) -> None:
    """The whole run, anew."""
    shutil.rmtree(store.runs_path / run_id(ticket), ignore_errors=True)
    assert run_to_completion(ticket, store, "inline")


def run(rounds: int = 7, epochs: int = 5) -> str:
    ticket = spec(epochs)
    with tempfile.TemporaryDirectory() as folder, SingleThread():
        store = Store(folder)
        for need in ticket.dependencies().values():
            run_to_completion(need, store, "inline")
        trainings = trainings_of(ticket, store)
        functions: dict[str, Callable[[], object]] = {
            "bare trainings": lambda: [bare() for bare in trainings],
            "run with store and receipts": lambda: kept(ticket, store),
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
        path = Path(store.directory(run_id(ticket)).path) / f"{mask_key(1)}.safetensors"
        weights = sum(
            mask.numel() for mask in store.directory(run_id(ticket)).load_masks(mask_key(1)).values()
        )
        size = path.stat().st_size
    masks = table(
        ["stored mask", "weights", "bytes", "bits a weight"],
        [["LeNet-300-100", weights, size, f"{8 * size / weights:.4f}"]],
    )
    return f"{costs}\n\n{masks}\n\nBars: 1.03 times the bare trainings; 1.01 bits a weight."

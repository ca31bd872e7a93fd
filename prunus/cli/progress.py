"""Epochs as they pass: a bar where stderr is a terminal, lines where it is not."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from prunus.cli.show import errors, say
from prunus.compression.recipes import CompressionRecipe
from prunus.training import Epoch

EVERY_SECONDS = 20.0
"""How long after a line of progress the next one comes."""
_due = 0.0

WORDS = {"dense": "training", "pruned": "pruning", "shared": "sharing"}


def report(what: str, done: int, total: int) -> None:
    """Say how much of some long work is done, now and then: a `prunus.nouns.Progress`."""
    global _due
    if time.monotonic() >= _due:
        _due = time.monotonic() + EVERY_SECONDS
        say(f"{what}: {done} of {total}")


def total(recipe: CompressionRecipe, rounds: int, train: bool) -> int:
    """The epochs of a recipe whose schedule has `rounds`, at most; with those of the dense network or not."""
    pruning = (rounds - 1) * recipe.retrain.epochs + recipe.settle.epochs
    return (recipe.dense.epochs if train else 0) + pruning + recipe.finetune.epochs


@contextmanager
def epochs(total: int) -> Iterator[Callable[[str, Epoch], None]]:
    """What to call after each epoch with its stage."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, disable=not errors.is_terminal, transient=True) as bar:
        task = bar.add_task("", total=total)
        passed = 0

        def report(stage: str, epoch: Epoch) -> None:
            nonlocal passed
            passed += 1
            line = f"{WORDS.get(stage, stage)}: validation error {100 - epoch.validation_accuracy:.2f} %"
            if errors.is_terminal:
                bar.update(task, advance=1, description=line)
            else:
                say(f"{line} ({passed} of {total} epochs)")

        yield report

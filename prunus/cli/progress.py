"""Progress of whatever takes longer than two seconds: a bar where stderr is a terminal, plain lines where it is not.

Every command reports through one `Reporter`. The library calls `report(what, done, total)`, a `prunus.types.Progress`,
by batch, layer or run. A thread looks at the clock, so that a line comes at least every thirty seconds, even while a
single step takes minutes.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from prunus.cli.output import before_output, errors, log

if TYPE_CHECKING:
    from prunus.compression.presets import CompressionRecipe
    from prunus.training import EpochMetrics, Recipe
    from prunus.types import Dataset, Progress

FIRST_SECONDS, EVERY_SECONDS = 2.0, 20.0
"""When the first line comes, and how long after a line the next one; on a slow machine it may come later."""
TICK_SECONDS = 0.25
"""How often the clock is looked at."""

STAGES = {"dense": "training", "pruned": "pruning", "quantized": "quantizing"}
"""What the stages of a compression are called."""


class Reporter:
    """Progress as lines: told as often as one likes how much is done, it writes a line now and then.

    >>> seconds = [0.0]
    >>> reporter = Reporter("prune", print, lambda: seconds[0])
    >>> reporter("fc1.weight", 0, 4)
    >>> seconds[0] = 10.0
    >>> reporter("fc2.weight", 2, 4)
    fc2.weight: 50 %, about 10 s left
    """

    def __init__(
        self, what: str, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin with `what`; `write` takes a line, `clock` gives seconds."""
        self.write, self.clock = write, clock
        self.what, self.done, self.total = what, 0, 0
        self.began, self.first = clock(), 0
        """When the work that is reported began, and how much of it was done then."""
        self.due = self.began + FIRST_SECONDS
        self.lock = threading.Lock()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Take note of how much is done, and write a line where one is due; a `total` of 0 is not known."""
        with self.lock:
            if total != self.total or done < self.done or (total == 0 and what != self.what):
                self.began, self.first = self.clock(), done  # other work than before
            self.what, self.done, self.total = what, done, total
        self.tick()

    def line(self, text: str) -> None:
        """Write a line of its own; the next line of progress comes so much later."""
        with self.lock:
            self.due = self.clock() + EVERY_SECONDS
        self.write(text)

    def tick(self) -> None:
        """Write a line where one is due."""
        with self.lock:
            if self.clock() < self.due:
                return
            self.due = self.clock() + EVERY_SECONDS
            text = self.describe()
        self.write(text)

    def describe(self) -> str:
        """How much is done and how long the rest will take at this pace, or how long it has taken so far."""
        passed, done, left = self.clock() - self.began, self.done - self.first, self.total - self.done
        if self.total <= 0:
            return f"{self.what}: {duration(passed)} so far"
        share = f"{self.what}: {100 * self.done // self.total} %"
        if done <= 0 or left <= 0:
            return f"{share}, {duration(passed)} so far"
        return f"{share}, about {duration(passed * left / done)} left"


def duration(seconds: float) -> str:
    """A rough time.

    >>> duration(0.2), duration(40.4), duration(200), duration(9000)
    ('1 s', '40 s', '3 min', '2.5 h')
    """
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


_current: list[Reporter] = []
"""The reporter of the command that runs in this process."""


@contextmanager
def reporting(what: str) -> Iterator[None]:
    """Inside, `report` shows progress on stderr, until the first result is printed; it begins with `what`."""
    reporter = Reporter(what, (lambda line: None) if errors.is_terminal else log)
    ended = threading.Event()
    thread = threading.Thread(target=_watch, args=(reporter, ended), daemon=True)

    def stop() -> None:
        ended.set()
        thread.join()

    _current.append(reporter)
    before_output.append(stop)
    thread.start()
    try:
        yield
    finally:
        before_output.remove(stop)
        _current.remove(reporter)
        stop()


def report(what: str, done: int, total: int) -> None:
    """Show how much of some work is done, where a command is running."""
    if _current:
        _current[-1](what, done, total)


def report_line(text: str) -> None:
    """Write a line about the work on stderr, above the bar where there is one."""
    if _current and not errors.is_terminal:
        _current[-1].line(text)
    else:
        log(text)


def _watch(reporter: Reporter, ended: threading.Event) -> None:
    """Write the lines that become due, or draw the bar, until the command has ended."""
    if not errors.is_terminal:
        while not ended.wait(TICK_SECONDS):
            reporter.tick()
        return
    if ended.wait(FIRST_SECONDS):
        return
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

    with Progress(
        SpinnerColumn(), BarColumn(), TextColumn("{task.description}", markup=False),
        console=errors, transient=True,
    ) as bar:  # fmt: skip
        task = bar.add_task("", total=None)
        while not ended.wait(TICK_SECONDS):
            with reporter.lock:
                text, done, total = reporter.describe(), reporter.done, reporter.total
            bar.update(task, description=text, completed=done, total=total or None)


def num_epochs(recipe: "CompressionRecipe", rounds: int, train: bool) -> int:
    """The epochs of a recipe whose schedule has `rounds`, at most; with those of the dense network or not."""
    return sum(stage.epochs for stage in _trainings(recipe, rounds, train))


def num_steps(recipe: "CompressionRecipe", rounds: int, train: bool, data: "Dataset") -> int:
    """The training steps of these epochs."""
    from prunus.training.loop import steps_per_epoch

    return sum(
        stage.epochs * steps_per_epoch(stage, data.train) for stage in _trainings(recipe, rounds, train)
    )


def _trainings(recipe: "CompressionRecipe", rounds: int, train: bool) -> "list[Recipe]":
    dense = [recipe.dense] if train else []
    return [*dense, *[recipe.retrain] * (rounds - 1), recipe.final_retrain, recipe.finetune]


def epoch_lines(total: int) -> "Callable[[str, EpochMetrics], None]":
    """What to call after each of `total` epochs, with its stage: it writes a line where stderr is no terminal."""
    passed = 0

    def write(stage: str, epoch: "EpochMetrics") -> None:
        nonlocal passed
        passed += 1
        if not errors.is_terminal:
            error = 100 - epoch.validation_accuracy
            report_line(
                f"{STAGES.get(stage, stage)}: validation error {error:.2f} % ({passed} of {total} epochs)"
            )

    return write


def added_up(total: int, progress: "Progress") -> "Progress":
    """The progress of several calls of `train`, one after the other, as that of one of `total` steps.

    What other work between them reports is passed on as it is.

    >>> add = added_up(20, print)
    >>> add("epoch 2 of 2", 9, 10)
    epoch 2 of 2 9 20
    >>> add("epoch 1 of 2", 0, 10)
    epoch 1 of 2 10 20
    """
    before = last = length = 0

    def add(what: str, done: int, of: int) -> None:
        nonlocal before, last, length
        if what != "training" and not what.startswith("epoch "):
            progress(what, done, of)
            return
        if done <= last and length:
            before += length
        last, length = done, of
        progress(what, min(before + done, total), total)

    return add

"""Progress of work that takes longer than two seconds: a bar if stderr is a terminal, plain lines if it is not.

Every command reports through one `Reporter`. The library calls `report(what, done, total)`, a `prunus.types.Progress`,
for each batch, layer or run. A thread checks the clock, so that a line is written at least every thirty seconds, even
while a single step takes minutes.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from prunus.cli.output import before_output, errors, log

if TYPE_CHECKING:
    from prunus.training import EpochMetrics
    from prunus.types import Progress

FIRST_SECONDS, EVERY_SECONDS = 2.0, 20.0
"""The time before the first line, and between two lines; on a slow machine it may be longer."""
MIN_FRACTION = 0.02
"""How much of the work must be done before the remaining time is estimated."""
TICK_SECONDS = 0.25
"""How often the clock is checked."""

STAGES = {"dense": "training", "pruned": "pruning", "quantized": "quantizing"}
"""What the stages of a compression are called."""


class Reporter:
    """Turns frequent calls of `Progress` into one line of text every `EVERY_SECONDS`.

    Args:
        what: A description of the work, used until the first call gives another.
        write: Called with each line.
        clock: Returns the time in seconds.

    Example:
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
        self.write, self.clock = write, clock
        self.what, self.done, self.total = what, 0, 0
        self.start_time, self.start_done = clock(), 0
        """The time of the first report of the current work, and the part that was done then."""
        self.next_time = self.start_time + FIRST_SECONDS
        self.lock = threading.Lock()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Record the progress, and write a line if it is time; a `total` of 0 means that it is unknown."""
        with self.lock:
            is_new = total != self.total or done < self.done or (total == 0 and what != self.what)
            if is_new:
                self.start_time, self.start_done = self.clock(), done
            self.what, self.done, self.total = what, done, total
        self.tick()

    def line(self, text: str) -> None:
        """Write a line with other text; it counts as a line of progress."""
        with self.lock:
            self.next_time = self.clock() + EVERY_SECONDS
        self.write(text)

    def tick(self) -> None:
        """Write a line if it is time."""
        with self.lock:
            if self.clock() < self.next_time:
                return
            self.next_time = self.clock() + EVERY_SECONDS
            text = self.describe()
        self.write(text)

    def describe(self) -> str:
        """The percentage that is done, with the remaining time at this pace, or the time so far."""
        elapsed = self.clock() - self.start_time
        done, remaining = self.done - self.start_done, self.total - self.done
        if self.total <= 0:
            return f"{self.what}: {duration(elapsed)} so far"
        percent = f"{self.what}: {100 * self.done // self.total} %"
        if done < MIN_FRACTION * (self.total - self.start_done) or remaining <= 0:
            return f"{percent}, {duration(elapsed)} so far"
        return f"{percent}, about {duration(elapsed * remaining / done)} left"


def duration(seconds: float) -> str:
    """A rounded duration.

    >>> duration(0.2), duration(40.4), duration(200), duration(9000)
    ('1 s', '40 s', '3 min', '2.5 h')
    """
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


_reporters: list[Reporter] = []
"""The reporters of the commands that run in this process, the innermost last."""


@contextmanager
def show_progress(what: str) -> Iterator[None]:
    """In the block, `report` shows progress on stderr until the first result is printed.

    Args:
        what: A description of the work, used until the first call of `report` gives another.
    """
    reporter = Reporter(what, (lambda line: None) if errors.is_terminal else log)
    ended = threading.Event()
    thread = threading.Thread(target=_watch, args=(reporter, ended), daemon=True)

    def stop() -> None:
        ended.set()
        thread.join()

    _reporters.append(reporter)
    before_output.append(stop)
    thread.start()
    try:
        yield
    finally:
        before_output.remove(stop)
        _reporters.remove(reporter)
        stop()


def report(what: str, done: int, total: int) -> None:
    """Show the progress of some work, if a command is running.

    Args:
        what: A description of the work.
        done: The part that is done, in any unit.
        total: The whole, in the same unit; 0 if it is unknown.
    """
    if _reporters:
        _reporters[-1](what, done, total)


def report_line(text: str) -> None:
    """Write a line about the work to stderr, above a progress bar."""
    if _reporters and not errors.is_terminal:
        _reporters[-1].line(text)
    else:
        log(text)


def _watch(reporter: Reporter, ended: threading.Event) -> None:
    """Write the lines when it is time, or draw the bar, until the command has ended."""
    if not errors.is_terminal:
        while not ended.wait(TICK_SECONDS):
            reporter.tick()
        return
    if ended.wait(FIRST_SECONDS):
        return
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

    columns = (SpinnerColumn(), BarColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=errors, transient=True) as bar:
        task = bar.add_task("", total=None)
        while not ended.wait(TICK_SECONDS):
            with reporter.lock:
                text, done, total = reporter.describe(), reporter.done, reporter.total
            bar.update(task, description=text, completed=done, total=total or None)


def epoch_lines(total: int) -> "Callable[[str, EpochMetrics], None]":
    """Make a function to call after each of `total` epochs, which writes a line if stderr is not a terminal."""
    epochs = 0

    def write(stage: str, epoch: "EpochMetrics") -> None:
        nonlocal epochs
        epochs += 1
        if not errors.is_terminal:
            error = 100 - epoch.validation_accuracy  # NaN where labels are not classes
            quality = f"error {error:.2f} %" if error == error else f"loss {epoch.validation_loss:.4g}"
            report_line(f"{STAGES.get(stage, stage)}: validation {quality} ({epochs} of {total} epochs)")

    return write


def cumulative_progress(total: int, progress: "Progress") -> "Progress":
    """Make a progress function that counts the steps of several trainings, one after another.

    Args:
        total: The steps of all trainings together.
        progress: Called with the number of steps so far. Progress of other work is passed on unchanged.

    Returns:
        The function to pass to each training.

    Example:
        >>> add = cumulative_progress(20, print)
        >>> add("epoch 2 of 2", 9, 10)
        epoch 2 of 2 9 20
        >>> add("epoch 1 of 2", 0, 10)
        epoch 1 of 2 10 20
    """
    earlier = last = length = 0

    def add(what: str, done: int, of: int) -> None:
        nonlocal earlier, last, length
        if what != "training" and not what.startswith("epoch "):
            progress(what, done, of)
            return
        if done <= last and length:
            earlier += length
        last, length = done, of
        progress(what, min(earlier + done, total), total)

    return add

"""Signals that end a command: Ctrl-C, a request to terminate, a terminal that was closed.

The first one raises `Interrupted` in the main thread, so that temporary files are removed and worker processes are
ended on the way out. A second one ends the child processes and this process at once. A signal that the process was
started to ignore (`nohup`, or a job in the background of a script) stays ignored.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

SIGNALS = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "hung up"}
"""The signals by name, and how a command that is ended by one is called."""


class Interrupted(BaseException):
    """A signal that ends the command; no `except Exception` of a user's function holds it up."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def exit_code(self) -> int:
        """What a shell reports of a process that a signal ended: 128 and the number of the signal."""
        return 128 + self.number

    @property
    def sentence(self) -> str:
        """What is said on stderr, with what to do next where a note says it."""
        return describe(SIGNALS[signal.Signals(self.number).name], self)


def describe(what: str, error: BaseException) -> str:
    """A sentence from what ended a command and from the notes of the exception.

    >>> describe("interrupted", KeyboardInterrupt())
    'interrupted.'
    """
    return f"{'; '.join([what, *getattr(error, '__notes__', [])])}."


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside, in the main thread, the signals raise `Interrupted`; afterwards they do what they did before."""
    first: list[int] = []

    def end(number: int, frame: FrameType | None) -> NoReturn:
        error = Interrupted(number)
        if first:
            for child in multiprocessing.active_children():
                child.kill()
            show_cursor = "\x1b[?25h" if os.isatty(2) else ""  # which a progress bar hides
            os.write(2, f"{show_cursor}error: {error.sentence}\n".encode())
            os._exit(error.exit_code)
        first.append(number)
        raise error

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    handled = [number for number in numbers if before[number] not in (signal.SIG_IGN, None)]
    for number in handled:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, before[number])

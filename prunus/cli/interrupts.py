"""Handle the signals that end a command: Ctrl-C, a request to terminate, a closed terminal.

The first one raises `Interrupted` in the main thread, so that temporary files are removed and worker processes are
ended before the command ends. A second one ends the child processes and this process at once. A signal that the process
was started to ignore (`nohup`, or a background job of a script) is ignored.
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
"""The signals by name, each with the word for the error message."""


class Interrupted(BaseException):
    """A signal ended the command. Not an Exception, so that `except Exception` in a user's function cannot stop it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def exit_code(self) -> int:
        """The exit code that a shell reports for a process that a signal ended: 128 plus the number of the signal."""
        return 128 + self.number

    @property
    def sentence(self) -> str:
        """The sentence for stderr; the notes of the exception say what to do next."""
        return format_sentence(SIGNALS[signal.Signals(self.number).name], self)


def format_sentence(what: str, error: BaseException) -> str:
    """Format an event and the notes of an exception as one sentence.

    Args:
        what: The event.
        error: An exception whose notes say what to do next.

    Returns:
        The sentence, with its full stop.

    Example:
        >>> format_sentence("interrupted", KeyboardInterrupt())
        'interrupted.'
    """
    return f"{'; '.join([what, *getattr(error, '__notes__', [])])}."


@contextmanager
def interruptible() -> Iterator[None]:
    """In the block, if it runs in the main thread, the signals raise `Interrupted`; afterwards they act as before."""
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> NoReturn:
        error = Interrupted(number)
        if received:
            for child in multiprocessing.active_children():
                child.kill()
            show_cursor = "\x1b[?25h" if os.isatty(2) else ""  # a progress bar hides it
            os.write(2, f"{show_cursor}error: {error.sentence}\n".encode())
            os._exit(error.exit_code)
        received.append(number)
        raise error

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
    previous = {number: signal.getsignal(number) for number in numbers}
    handled = [number for number in numbers if previous[number] not in (signal.SIG_IGN, None)]
    for number in handled:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, previous[number])

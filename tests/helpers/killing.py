"""The command line in a process that ends itself by SIGKILL before one of its writes to a store.

What a process leaves behind changes only when it writes, so a kill at another moment equals one before the next write.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
from pathlib import Path

WRITES = {"open", "os.rename", "os.remove", "os.truncate", "os.mkdir"}
"""The audit events of Python that can change a folder."""
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        *("killing", "tiny_networks", "scipy.special", "jinja2", "matplotlib.backends.backend_svg"),
        *(
            "matplotlib.backends.backend_agg",
            "matplotlib.figure",
            "prunus.cli.run",
            "prunus.experiments.running",
        ),
        *(
            "prunus.experiments.zhou2019_supermasks",
            "prunus.experiments.han2016",
            "prunus.experiments.one_shot",
        ),
    ]
)


def run_until(arguments: list[str], folder: Path, last: int | None, log: Path) -> int:
    """Run a command in a new process, which is killed before it writes to a folder for the `last`-th time.

    Returns:
        The exit code; -9 after the kill. The last line of the file `log` has the number of writes.
    """
    process = CONTEXT.Process(target=_run, args=(arguments, str(folder), last, log))
    process.start()
    process.join()
    return process.exitcode


def _run(arguments: list[str], folder: str, last: int | None, log: Path) -> None:
    count = 0

    def note(event: str, details: tuple[object, ...]) -> None:
        nonlocal count
        if event not in WRITES or not str(details[0]).startswith(folder):
            return
        if event != "open" or details[2] & (os.O_WRONLY | os.O_RDWR):
            count += 1
            if count == last:
                os.kill(os.getpid(), signal.SIGKILL)

    from prunus.cli import main

    with (
        log.open("a", encoding="utf-8") as out,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(out),
    ):
        sys.addaudithook(note)
        try:
            main(arguments)
        except SystemExit as ended:
            print(f"\n{count}", flush=True)
            os._exit(ended.code or 0)

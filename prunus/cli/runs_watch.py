"""`prunus runs watch`, `pause` and `resume`: the runs that commands compute in a store."""

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from prunus.cli.options import AsJson, StoreDir, option
from prunus.cli.output import echo, echo_json, log

if TYPE_CHECKING:
    from prunus.runs.sweeps import SweepStatus


def watch(
    store: StoreDir,
    every: Annotated[float, option("SECONDS", "Time between two readings of the store.", lowest=0.1)] = 5.0,
    as_json: AsJson = False,
) -> None:
    """Show how many of the requested runs are finished, and the estimated remaining time, until they have ended.

    A line is printed when something has changed. The command ends when no run is
    running and no command works on the store, also after a failure; runs that
    depend on a failed one count as failed. With --json, the state is printed
    once, with the steps of each run.

    Example: prunus runs watch --store store
    """
    from prunus.runs.store import Store
    from prunus.runs.sweeps import sweep_status

    opened = Store(store, create=False)
    status = sweep_status(opened)
    if as_json:
        steps = {id: counts or (None, None) for id, counts in status.running.items()}
        running = [{"id": id, "step": done, "steps": total} for id, (done, total) in steps.items()]
        echo_json({**asdict(status), "running": running})
        return
    last = ""
    while True:
        if (line := describe_status(status)) != last:
            echo(line)
        if not (status.running or status.active):
            return
        last = line
        time.sleep(every)
        status = sweep_status(opened)


def pause(store: StoreDir) -> None:
    """Pause a store: no command on any machine starts another run in it; runs that are being computed are finished.

    Example: prunus runs pause --store store
    """
    from prunus.runs.store import Store
    from prunus.runs.sweeps import pause
    from prunus.text_tables import pluralize

    opened = Store(store, create=False)
    pause(opened)
    running = sum(map(opened.is_locked, opened.ids()))  # no file is read, which may be damaged
    log(f"paused; {pluralize(running, 'run')} running; `prunus runs resume --store {store}` continues")


def resume(store: StoreDir) -> None:
    """Resume a store that was paused. Commands that are still running continue; repeat those that have ended.

    Example: prunus runs resume --store store
    """
    from prunus.runs.store import Store
    from prunus.runs.sweeps import is_paused, resume

    opened = Store(store, create=False)
    was_paused = is_paused(opened)
    resume(opened)
    log("resumed" if was_paused else f"the store {store} was not paused")


def describe_status(status: "SweepStatus") -> str:
    """Return the state of a sweep as a line."""
    from prunus.report.formatting import format_duration

    left = {"running": len(status.running), "failed": len(status.failed), "waiting": len(status.waiting)}
    total = len(status.finished) + sum(left.values())
    parts = [
        f"{len(status.finished)} of {total} runs finished",
        *(f"{n} {name}" for name, n in left.items() if n),
    ]
    text = ", ".join(parts) + (", paused" if status.paused else "")
    if not (status.running or status.waiting):
        return text
    if not (status.running or status.active):
        return f"{text}; no command computes them: run it again"
    if status.seconds_left is None:
        return f"{text}; the remaining time is known after the first run of each kind"
    return f"{text}; about {format_duration(status.seconds_left)} left"

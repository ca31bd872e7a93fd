"""Which process this is, and whether another one still lives, in a form that can be written down.

A process id alone is not enough: it is used again after a while, after a restart of the machine, and in another
container of the same host name. `started` tells the first two apart, `host` the third.
"""

import os
import socket
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True)
class Process:
    """A process that works on a run."""

    host: str
    """The machine, and the room of process ids in it."""
    pid: int
    started: str
    """When, in the machine's own count; empty where the system does not say."""


def this_process() -> Process:
    """The process that asks."""
    return Process(_host(), os.getpid(), _started(os.getpid()) or "")


def is_alive(process: Process) -> bool | None:
    """Whether `process` still runs; None where that cannot be seen from here."""
    if process.host != _host() or os.name != "posix":
        return None
    try:
        os.kill(process.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is there, and another user's
    started = _started(process.pid)
    if started is None or not process.started:
        return None
    return started == process.started


@cache
def _host() -> str:
    try:
        return f"{socket.gethostname()}/{(PROC / 'self/ns/pid').stat().st_ino}"
    except OSError:
        return socket.gethostname()


def _started(pid: int) -> str | None:
    """The start of a process in clock ticks of this boot; "dead" for one that waits to be buried."""
    try:
        boot = (PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        words = (
            (PROC / str(pid) / "stat")
            .read_text(encoding="utf-8", errors="replace")
            .rpartition(")")[2]
            .split()
        )
    except (OSError, ValueError):
        return None
    return "dead" if words[0] in "ZX" else f"{boot}-{words[19]}"

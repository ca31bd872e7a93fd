"""Locks of runs: an empty file per run, locked by the process that works on it.

The system releases the lock of a process that dies. Readers look whether a run is locked and write nothing.
"""

import sys
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from prunus.runs.content import store_errors

if sys.platform != "win32":
    import fcntl

LOCK_SECONDS = 0.1
"""How long to try to lock a run: a reader that looks whether it is locked may hold the lock for a moment."""


def acquire(path: Path) -> BaseFileLock | None:
    """Lock the file `path`, whose folder is created; None if another process has locked it. Raises StoreError."""
    lock = FileLock(path, timeout=LOCK_SECONDS, thread_local=False)
    with store_errors(path):
        path.parent.mkdir(exist_ok=True)
        try:
            lock.acquire(poll_interval=LOCK_SECONDS / 5)
        except Timeout:
            return None
    return lock


def is_locked(path: Path) -> bool:
    """Return whether a process has locked the file `path`, which need not exist."""
    if sys.platform == "win32":
        lock = acquire(path)
        if lock is not None:
            lock.release()
        return lock is None
    try:
        with path.open("rb") as file:  # a shared lock needs no right to write
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False

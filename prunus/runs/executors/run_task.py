"""What every executor does with a run: lock it, compute it, record that it is done, or leave it for another attempt."""

import time
from collections.abc import Callable

import torch

from prunus.errors import PrunusError
from prunus.registry import import_object
from prunus.runs.spec import RunSpec, run_id
from prunus.runs.store import Store
from prunus.types import Progress

LogFn = Callable[[str], None]
"""(line) -> None: called with each line for the user."""

REPORT_SECONDS = 2.0
"""A run writes its number of steps into the store no more often than this."""


def run_to_completion(
    spec: RunSpec,
    store: Store,
    executor: str,
    progress: Progress | None = None,
    *,
    attempts: int | None = None,
) -> bool:
    """Compute a run from where an earlier attempt ended.

    Args:
        spec: The run; its dependencies must be done.
        store: Where it is stored.
        executor: The name of the executor, which is recorded.
        progress: Called with the training steps of all trainings of the run, done and in total.
        attempts: As for `Store.open`.

    Returns:
        Whether it was done here; False if it is done already, has failed since, or another process works on it.

    Raises:
        Exception: What the procedure raises; what the run wrote is kept for another attempt.
    """
    directory = store.open(spec, executor, getattr(spec, "device", "cpu"), attempts=attempts)
    if directory is None:
        return False
    done, total, last = 0, int(spec.cost()[1]), time.monotonic()

    def report_steps(steps: int) -> None:
        nonlocal done, last
        done += steps
        if progress is not None:
            progress(directory.id, min(done, total), total)
        if time.monotonic() - last >= REPORT_SECONDS:
            directory.write_steps(min(done, total), total)
            last = time.monotonic()

    try:
        needed = {
            role: store.directory(run_id(dependency)) for role, dependency in spec.dependencies().items()
        }
        procedure = import_object(spec.procedure)
        store.finish(directory, procedure(spec, directory, needed, report_steps=report_steps))
    except Exception as error:  # a user's own function may fail in any way
        store.fail(directory, describe_error(error))
        raise
    finally:
        directory.release()
    return True


def describe_error(error: BaseException) -> str:
    """Return the message of an error, with the type of one that is not of prunus.

    >>> describe_error(PrunusError("Too hot.")), describe_error(KeyError("x"))
    ('Too hot.', "KeyError: 'x'")
    """
    return str(error) if isinstance(error, PrunusError) else f"{type(error).__name__}: {error}"


class SingleThread:
    """A block in which torch uses one thread, which is the fastest for small networks, and fixes the bits."""

    def __enter__(self) -> None:
        self.before = torch.get_num_threads()
        torch.set_num_threads(1)

    def __exit__(self, *reason: object) -> None:
        torch.set_num_threads(self.before)

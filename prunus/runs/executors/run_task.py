"""What every engine does with a run: claim it, carry it out, finish it; or leave what is there for the next attempt."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from prunus.errors import LeaseLostError, PrunusError
from prunus.runs.spec import RunSpec, run_id
from prunus.runs.store import Store
from prunus.types import Progress

Say = Callable[[str], None]


class ExecutableSpec(RunSpec, Protocol):
    """A spec that says how it is carried out."""

    @property
    def device(self) -> str:
        """Where it computes."""

    def pace(self) -> float:
        """Seconds that a unit of its cost takes here, measured now."""

    def run(self, shelf: Any, needed: Sequence[Any], report_steps: Callable[[int], None]) -> dict[str, Any]:
        """Carry it out in the folder `shelf`, from where an earlier attempt ended; returns a summary.

        `needed` are the folders of `needs()`. `report_steps` is called with the number of training steps since the last
        call.
        """


def describe_error(error: BaseException) -> str:
    """What is said of an error: our own speak for themselves, of others the type says more.

    >>> describe_error(PrunusError("Too hot.")), describe_error(KeyError("x"))
    ('Too hot.', "KeyError: 'x'")
    """
    return str(error) if isinstance(error, PrunusError) else f"{type(error).__name__}: {error}"


def run_to_completion(
    spec: ExecutableSpec, store: Store, engine: str, progress: Progress | None = None
) -> bool:
    """Do a run from where it is to its end; False where it is done, or somebody else holds it.

    Raises what the run fails with; its folder stays for another attempt. `progress` is told of the training steps of
    all trainings of the run.
    """
    folder = store.begin(spec, engine, spec.device)
    if folder is None:
        return False
    done, total = 0, int(spec.cost()[1])

    def report_steps(steps: int) -> None:
        nonlocal done
        done += steps
        if progress is not None:
            progress(folder.id, min(done, total), total)

    try:
        needed = [store.folder(run_id(need)) for need in spec.needs()]
        store.finish(folder, spec.run(folder, needed, report_steps))
    except LeaseLostError:
        return False
    except Exception as error:  # a user's own function may fail in any way at all
        try:
            store.fail(folder, describe_error(error))
        except LeaseLostError:
            return False
        raise
    except BaseException as error:
        store.fail(folder, error)
        raise
    return True


class SingleThread:
    """Inside, torch computes with one thread, which for networks of this size is the fastest, and fixes the bits."""

    def __enter__(self) -> None:
        self.before = torch.get_num_threads()
        torch.set_num_threads(1)

    def __exit__(self, *reason: object) -> None:
        torch.set_num_threads(self.before)

"""What every engine does with a run: claim it, drive its procedure, finish it; or leave what is there for the next."""

import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, Protocol

import torch

from prunus.errors import LostClaimError, PrunusError
from prunus.runs.folder import RunFolder
from prunus.runs.spec import Spec, identity
from prunus.runs.store import Store
from prunus.training import Epoch
from prunus.training.job import Job

Say = Callable[[str], None]


class Procedure(Spec, Protocol):
    """A spec that says how it is carried out."""

    @property
    def device(self) -> str:
        """Where it computes."""

    def pace(self) -> float:
        """Seconds that a unit of its cost takes here, measured now."""

    def steps(self, shelf: Any, needed: Sequence[Any]) -> Generator[Job, list[Epoch], dict[str, Any]]:
        """Yield the trainings it needs, take what came of each, return a summary."""


class Work:
    """A claimed run between two of its trainings."""

    def __init__(self, spec: Procedure, store: Store, folder: RunFolder, share: int) -> None:
        self.spec, self.store, self.folder, self.share = spec, store, folder, share
        self.began = time.monotonic()
        self.procedure: Generator[Job, list[Epoch], dict[str, Any]]
        self.job: Job | None = None
        """The training it waits for; None: it is finished, or has failed."""
        self.error: PrunusError | None = None
        self._advance(self._first)

    def _first(self) -> Job:
        needed = [self.store.folder(identity(need)) for need in self.spec.needs()]
        self.procedure = self.spec.steps(self.folder, needed)
        return next(self.procedure)

    def trained(self, epochs: list[Epoch]) -> None:
        """Go on with what came of the training."""
        self._advance(lambda: self.procedure.send(epochs))

    def failed(self, error: PrunusError) -> None:
        """Leave the run, with the reason, for another attempt."""
        self.job, self.error = None, error
        if not isinstance(error, LostClaimError):
            try:
                self.store.fail(self.folder, str(error))
            except LostClaimError as lost:
                self.error = lost

    def _advance(self, on: Callable[[], Job]) -> None:
        try:
            self.job = on()
        except StopIteration as end:
            self.job = None
            alone = self.share == 1
            self.store.finish(
                self.folder, end.value, None if alone else (time.monotonic() - self.began) / self.share
            )
        except PrunusError as error:
            self.failed(error)
        except BaseException as error:
            self.store.fail(self.folder, error)
            raise


def begin(spec: Procedure, store: Store, engine: str, share: int = 1) -> Work | None:
    """Claim a run and go to its first training; None where it is done, or somebody else holds it.

    `share` is how many runs are worked on together.
    """
    folder = store.begin(spec, engine, spec.device)
    return None if folder is None else Work(spec, store, folder, share)


def carry_out(spec: Procedure, store: Store, engine: str) -> bool:
    """Do a run from where it is to its end; False where it is done, or somebody else holds it.

    Raises PrunusError where the run fails; its folder stays for another attempt.
    """
    work = begin(spec, store, engine)
    if work is None:
        return False
    while work.job is not None:
        try:
            epochs = work.job.carry_out()
        except PrunusError as error:
            work.failed(error)
        except BaseException as error:
            store.fail(work.folder, error)
            raise
        else:
            work.trained(epochs)
    if isinstance(work.error, LostClaimError):
        return False
    if work.error is not None:
        raise work.error
    return True


class OneThread:
    """Inside, torch computes with one thread, which for networks of this size is the fastest, and fixes the bits."""

    def __enter__(self) -> None:
        self.before = torch.get_num_threads()
        torch.set_num_threads(1)

    def __exit__(self, *reason: object) -> None:
        torch.set_num_threads(self.before)

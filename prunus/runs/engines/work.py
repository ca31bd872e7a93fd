"""What every engine does with a run: claim it, drive its procedure, finish it; or leave what is there for the next."""

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from prunus.errors import LostClaimError, PrunusError
from prunus.nouns import Progress
from prunus.runs.folder import RunFolder
from prunus.runs.spec import Spec, identity
from prunus.runs.store import Store
from prunus.training import Epoch
from prunus.training.job import Job
from prunus.training.loop import steps_per_epoch
from prunus.training.state import Observer

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


def words(error: BaseException) -> str:
    """What is said of an error: our own speak for themselves, of others the type says more.

    >>> words(PrunusError("Too hot.")), words(KeyError("x"))
    ('Too hot.', "KeyError: 'x'")
    """
    return str(error) if isinstance(error, PrunusError) else f"{type(error).__name__}: {error}"


class Guarded:
    """An observer whose training writes no checkpoint into the folder of a run that is another's by now.

    `report` is told of every step.
    """

    def __init__(self, observer: Observer, folder: RunFolder, report: Callable[[int], None]) -> None:
        self.observer, self.folder, self.report = observer, folder, report
        self.observe, self.restore = observer.observe, observer.restore

    def due(self, step: int) -> bool:
        """Whether the observer is due at a step, which every step of a training asks."""
        self.report(step)
        return self.observer.due(step)

    def state(self) -> tuple[dict[str, Tensor], Any]:
        """Asked for right before a checkpoint is written. Raises LostClaimError."""
        self.folder.beat()
        return self.observer.state()


class Work:
    """A claimed run between two of its trainings."""

    def __init__(
        self, spec: Procedure, store: Store, folder: RunFolder, share: int, progress: Progress | None = None
    ) -> None:
        self.spec, self.store, self.folder, self.share = spec, store, folder, share
        self.progress = progress
        self.num_steps = int(spec.cost()[1])
        """The training steps of the whole run, where those are its cost."""
        self.steps_before = 0
        """The steps of its trainings that are over."""
        self.began = time.monotonic()
        self.procedure: Generator[Job, list[Epoch], dict[str, Any]]
        self.job: Job | None = None
        """The training it waits for; None: it is finished, or has failed."""
        self.error: Exception | None = None
        self._advance(self._first)

    def _first(self) -> Job:
        needed = [self.store.folder(identity(need)) for need in self.spec.needs()]
        self.procedure = self.spec.steps(self.folder, needed)
        return next(self.procedure)

    def trained(self, epochs: list[Epoch]) -> None:
        """Go on with what came of the training."""
        if self.job is not None:
            self.steps_before += num_steps(self.job)
        self._advance(lambda: self.procedure.send(epochs))

    def failed(self, error: Exception) -> None:
        """Leave the run, with the reason, for another attempt."""
        self.job, self.error = None, error
        if not isinstance(error, LostClaimError):
            try:
                self.store.fail(self.folder, words(error))
            except LostClaimError as lost:
                self.error = lost

    def _advance(self, on: Callable[[], Job]) -> None:
        try:
            job = on()
            first = 0 if job.start is None else job.start.step
            guard = (
                None
                if job.observer is None
                else Guarded(job.observer, self.folder, lambda step: self._report(step - first))
            )
            self.job = replace(job, observer=guard)
        except StopIteration as end:
            self.job = None
            alone = self.share == 1
            self.store.finish(
                self.folder, end.value, None if alone else (time.monotonic() - self.began) / self.share
            )
        except Exception as error:  # a user's own function may fail in any way at all
            self.failed(error)
        except BaseException as error:
            self.store.fail(self.folder, error)
            raise

    def _report(self, step: int) -> None:
        if self.progress is not None:
            done = self.steps_before + step
            self.progress(self.folder.id, min(done, self.num_steps), self.num_steps)


def num_steps(job: Job) -> int:
    """The training steps of a job, from its start."""
    first = 0 if job.start is None else job.start.step
    return job.recipe.epochs * steps_per_epoch(job.recipe, job.data.train) - first


def begin(
    spec: Procedure, store: Store, engine: str, share: int = 1, progress: Progress | None = None
) -> Work | None:
    """Claim a run and go to its first training; None where it is done, or somebody else holds it.

    `share` is how many runs are worked on together.
    """
    folder = store.begin(spec, engine, spec.device)
    return None if folder is None else Work(spec, store, folder, share, progress)


def carry_out(spec: Procedure, store: Store, engine: str, progress: Progress | None = None) -> bool:
    """Do a run from where it is to its end; False where it is done, or somebody else holds it.

    Raises what the run fails with; its folder stays for another attempt.
    """
    work = begin(spec, store, engine, progress=progress)
    if work is None:
        return False
    while work.job is not None:
        try:
            epochs = work.job.carry_out()
        except Exception as error:
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

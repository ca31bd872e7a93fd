"""Which trainings can go together in a stack: those that differ only in what replicates may differ in."""

from collections.abc import Sequence

import torch

from prunus.errors import ModelError, SpecError
from prunus.nouns import IGNORE_INDEX
from prunus.training.constraints import Free, Masked
from prunus.training.job import Job


def check_together(jobs: Sequence[Job]) -> None:
    """Raise SpecError, or ModelError where it is the networks' fault, unless `jobs` can be stacked."""
    _check_networks(jobs)
    kinds = {type(job.constraint) for job in jobs}
    data = {(job.data.train.inputs.data_ptr(), len(job.data.train)) for job in jobs}
    if len({job.recipe for job in jobs}) > 1 or len(data) > 1:
        raise SpecError("Trainings can be stacked only with one recipe on one data set.")
    if jobs[0].recipe.patience is not None:
        raise SpecError("Trainings that stop at different times (`patience`) cannot be stacked.")
    if len(kinds) > 1 or not kinds <= {Free, Masked}:
        raise SpecError(f"Trainings under {sorted(kind.__name__ for kind in kinds)} cannot be stacked.")
    if any(getattr(job.constraint, "model", job.model) is not job.model for job in jobs):
        raise SpecError("Trainings whose constraint is of another module than the model cannot be stacked.")
    if bool((jobs[0].data.train.labels == IGNORE_INDEX).any()):
        raise SpecError(
            f"Trainings on examples without a label ({IGNORE_INDEX}) cannot be stacked; use the engine inline or "
            "processes."
        )
    if len({tuple(job.constraint.names) for job in jobs if isinstance(job.constraint, Masked)}) > 1:
        raise SpecError("Trainings whose masks are of different tensors cannot be stacked.")
    _check_starts(jobs)


def _check_networks(jobs: Sequence[Job]) -> None:
    shapes = [{name: tuple(p.shape) for name, p in job.model.named_parameters()} for job in jobs]
    if any(other != shapes[0] for other in shapes):
        raise ModelError("Networks of different shapes cannot be stacked.")
    still = [name for name, p in jobs[0].model.named_parameters() if not p.requires_grad]
    if still:
        raise ModelError(
            f"{still[0]!r} of {type(jobs[0].model).__name__} asks for no gradient, and in a stack everything "
            "trains; use the engine inline or processes."
        )


def _check_starts(jobs: Sequence[Job]) -> None:
    starts = [job.start for job in jobs if job.start is not None]
    if starts and len(starts) < len(jobs):
        raise SpecError("Trainings of which some start from a state and some do not cannot be stacked.")
    if len({start.step for start in starts}) > 1:
        raise SpecError("Trainings that start at different steps cannot be stacked.")
    first = starts[0].optimiser if starts else {}
    counts = {key: value for key, value in first.items() if value.dim() == 0}
    for start in starts:
        mine = start.optimiser
        if mine.keys() != first.keys() or not all(torch.equal(mine[key], counts[key]) for key in counts):
            raise SpecError("Trainings whose optimisers remember different things cannot be stacked.")

"""R trainings of one network as one: for fully connected ones, weights [R, in, out] and batched products.

The overhead of a step is shared, which can only pay where it is large beside the products, as for narrow networks or
on a GPU (not measured). LeNet-300-100 on a CPU has nothing to gain: 0.95 times the pace of one after the other
(`python -m benchmarks stacked`). Each replicate has its own weights, order of examples and masks; what one does never
reaches another. The numbers agree with those of `train` to rounding, not to the bit.

R replicate, B batch, I in, O out, C classes.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from prunus.data.batches import order
from prunus.data.check import check_dataset
from prunus.errors import ModelError, PrunusError
from prunus.tables import look_up
from prunus.training import optimisers
from prunus.training.augmentation import AUGMENTATIONS, augmented
from prunus.training.checks import check_trainable
from prunus.training.constraints import Masked
from prunus.training.evaluate import Epoch
from prunus.training.job import Job
from prunus.training.layouts import Layout, layout_of
from prunus.training.learning_rates import DECAYS
from prunus.training.loop import finish_epoch, own_random_stream, steps_per_epoch
from prunus.training.modes import restored_modes
from prunus.training.penalties import PENALTIES
from prunus.training.stackable import check_together
from prunus.training.state import State, copies, optimiser_state, put_optimiser_state


class Member:
    """One replicate of a stack, as observers and `finish_epoch` see a training."""

    def __init__(self, stack: "Stack", place: int, job: Job) -> None:
        self.stack, self.place, self.job = stack, place, job
        self.model, self.recipe = job.model, job.recipe
        self.epochs: list[Epoch] = []
        self.best: dict[str, Tensor] = {}
        self.error: PrunusError | None = None
        """Why it is over for this one; the others go on."""

    def attempt(self, act: Callable[[], object]) -> None:
        """Do `act`, unless it is over; note where it fails."""
        if self.error is None:
            try:
                act()
            except PrunusError as error:
                self.error = error

    def finish_epoch(self, loss: float) -> None:
        """Evaluate, and report."""
        finish_epoch(self, loss, self.job.data)
        if self.job.report is not None:
            self.job.report(self.epochs[-1])

    @property
    def done(self) -> int:
        """How many steps are behind."""
        return self.stack.done

    def capture(self) -> State:
        """A copy of all that a step changes."""
        found = optimiser_state(self.stack.optimiser, self.stack.tensors)
        return State(
            self.done,
            copies(self.model.state_dict()),
            {key: self._mine(key, value) for key, value in found.items()},
        )

    def _mine(self, key: str, value: Tensor) -> Tensor:
        """This replicate's share of what the optimiser remembers; a count of steps is everybody's."""
        if value.dim() == 0:
            return value.clone()
        part = self.stack.layout.back(key.rpartition("/")[0], value[self.place])
        return part.clone(memory_format=torch.contiguous_format)


class Stack:
    """R networks of one shape and what trains them together."""

    def __init__(self, jobs: Sequence[Job], layout: Layout | None = None) -> None:
        self.jobs, self.recipe = jobs, jobs[0].recipe
        check_together(jobs)
        self.device = jobs[0].data.train.labels.device
        self.layout = layout or layout_of(jobs[0].model, str(self.device))
        self.tensors = {name: self._stacked(name).requires_grad_() for name in self.layout.names}
        self.weights = [
            self.tensors[name] for name in self.layout.names if jobs[0].model.get_parameter(name).dim() > 1
        ]
        self.optimiser = optimisers.make(list(self.tensors.values()), self.recipe)
        self.penalise = look_up("penalty", PENALTIES, self.recipe.penalty)
        self.decay = look_up("learning-rate decay", DECAYS, self.recipe.decay)
        self.augment = look_up("augmentation", AUGMENTATIONS, self.recipe.augmentation)
        self.done = 0
        self.members = [Member(self, place, job) for place, job in enumerate(jobs)]
        self.factors, self.values = self._constraints()
        self._put([job.start for job in jobs])
        self.hold()
        self.write_back()
        self._check_answer()

    def step(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """One step of every replicate on its own batch, [R, B, I] and [R, B]; returns the mean losses, [R]."""
        logits = self.layout.answer(self.tensors, inputs)
        losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)
        means = losses.mean(1)
        self.optimiser.zero_grad(set_to_none=True)
        means.sum().backward()  # type: ignore[no-untyped-call]
        self.penalise(self.weights, self.recipe.penalty_strength)
        for name, factor in self.factors.items():
            gradient = self.tensors[name].grad
            if gradient is not None:
                gradient.mul_(factor)
        self.optimiser.step()
        self.hold()
        self.done += 1
        return means.detach()

    @torch.no_grad()
    def hold(self) -> None:
        """Make the constraints true."""
        for name, factor in self.factors.items():
            self.tensors[name].mul_(factor)
            if name in self.values:
                self.tensors[name].add_(self.values[name])

    @torch.no_grad()
    def write_back(self) -> None:
        """Put every replicate's weights into its own model."""
        for name, tensor in self.tensors.items():
            for job, mine in zip(self.jobs, tensor, strict=True):
                job.model.get_parameter(name).copy_(self.layout.back(name, mine))

    def observe(self) -> None:
        """Show every replicate to its observer, where that is due."""
        if any(job.observer is not None and job.observer.due(self.done) for job in self.jobs):
            self.write_back()
            for job, member in zip(self.jobs, self.members, strict=True):
                if job.observer is not None and job.observer.due(self.done):
                    member.attempt(partial(job.observer.observe, member))

    def epoch(self) -> list[float]:
        """What is left of a pass over the data; returns each replicate's mean loss."""
        split, size = self.jobs[0].data.train, self.recipe.batch_size
        count = steps_per_epoch(self.recipe, split)
        number, first = divmod(self.done, count)
        orders = [order(len(split), size, job.seed, number)[first:] for job in self.jobs]
        total, seen = torch.zeros(len(self.jobs), device=self.device), 0
        for index, chosen in enumerate(zip(*orders, strict=True), start=first):
            for group in self.optimiser.param_groups:
                group["lr"] = self.recipe.learning_rate * self.decay(
                    (number + index / count) / self.recipe.epochs
                )
            places = torch.stack(chosen).to(self.device)
            inputs = torch.stack([
                self.layout.inputs(augmented(self.augment, split.inputs[mine], job.seed, number, index))
                for job, mine in zip(self.jobs, places, strict=True)
            ])  # fmt: skip
            total += self.step(inputs, split.labels[places]) * places.shape[1]
            seen += places.shape[1]
            self.observe()
        return [float(loss) / seen for loss in total]

    def _stacked(self, name: str) -> Tensor:
        return torch.stack([self.layout.laid(name, job.model.get_parameter(name)) for job in self.jobs])

    def _constraints(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The masks as factors, and what stands in pruned places where that is not zero everywhere."""
        held = [job.constraint for job in self.jobs if isinstance(job.constraint, Masked)]
        if not held:
            return {}, {}
        zeros = [one.values or [torch.zeros_like(factor) for factor in one.factors] for one in held]
        factors, values = {}, {}
        for place, name in enumerate(held[0].names):
            factors[name] = torch.stack([self.layout.laid(name, one.factors[place]) for one in held])
            values[name] = torch.stack([self.layout.laid(name, one[place]) for one in zeros])
        return factors, values if any(one.values for one in held) else {}

    def _put(self, states: Sequence[State | None]) -> None:
        """Start every replicate from its state: weights, and what the optimiser remembers."""
        found = [state for state in states if state is not None]
        if not found:
            return
        self.done = found[0].step
        for member, state in zip(self.members, found, strict=True):
            member.model.load_state_dict(state.model)
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                tensor.copy_(self._stacked(name))
        remembered = {
            key: self._together(key, [state.optimiser[key] for state in found]) for key in found[0].optimiser
        }
        put_optimiser_state(self.optimiser, self.tensors, remembered)

    def _together(self, key: str, values: Sequence[Tensor]) -> Tensor:
        """What R optimisers remember as one tensor; a count of steps, which all share, stays a number."""
        if values[0].dim() == 0:
            return values[0].clone()
        return torch.stack([self.layout.laid(key.rpartition("/")[0], value) for value in values])

    @torch.no_grad()
    def _check_answer(self) -> None:
        """The stack must answer as each of its networks does, in training too; else they are not just its layers."""
        inputs = self.jobs[0].data.train.inputs[:8]
        copies_of_it = self.layout.inputs(inputs).expand(len(self.jobs), *self.layout.inputs(inputs).shape)
        for training, member in product((False, True), self.members):
            with restored_modes(member.model), own_random_stream(0):
                member.model.train(training)
                alone, mine = (
                    member.model(inputs),
                    self.layout.answer(self.tensors, copies_of_it)[member.place],
                )
            if not torch.allclose(alone, mine, rtol=1e-4, atol=1e-5):
                raise ModelError(
                    f"{type(member.model).__name__} is more than its linear layers with ReLU between them (dropout, "
                    "say), and no more can be stacked; use the engine inline or processes."
                )


def train_stacked(jobs: Sequence[Job]) -> list[list[Epoch] | PrunusError]:
    """Carry out `jobs` as one training; returns what `train` would of each, or what it would raise.

    All have one architecture (linear layers with ReLU between), one data set, one recipe without patience, and
    start at one step. Raises ModelError or SpecError where they cannot go together.
    """
    check_dataset(jobs[0].data, ("train", "validation"))
    for job in jobs:
        check_trainable(job.model, jobs[0].data, job.recipe)
    with ExitStack() as restored:
        for job in jobs:
            restored.enter_context(restored_modes(job.model))
        stack = Stack(jobs)
        stack.observe()
        total = stack.recipe.epochs * steps_per_epoch(stack.recipe, jobs[0].data.train)
        while stack.done < total and any(member.error is None for member in stack.members):
            losses = stack.epoch()
            stack.write_back()
            for member, loss in zip(stack.members, losses, strict=True):
                member.attempt(partial(member.finish_epoch, loss))
        for job in jobs:
            job.constraint.finish()
    return [member.epochs if member.error is None else member.error for member in stack.members]

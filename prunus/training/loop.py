"""The training loop: one step that can be read at a glance, seeded batches, exact resume."""

import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunus.data.batches import iter_batches
from prunus.data.validation import check_dataset, count_labeled
from prunus.errors import DivergenceError, SpecError
from prunus.masks import Masks
from prunus.registry import lookup
from prunus.seeds import derive_seed
from prunus.training import optimizers
from prunus.training.augmentation import AUGMENTATIONS, augment_batch
from prunus.training.checkpoint import check_writable, identity_of, read, restore, save
from prunus.training.checks import check_dense_state, check_trainable
from prunus.training.constraint import Constraint, NoConstraint, all_trainable_tensors
from prunus.training.early_stopping import best_index, should_stop
from prunus.training.evaluate import EpochMetrics, evaluate
from prunus.training.lr_schedules import LR_SCHEDULES
from prunus.training.modes import restored_modes, set_modes, start_training
from prunus.training.penalties import PENALTIES
from prunus.training.recipes import Recipe
from prunus.training.state import (
    Observer,
    TrainingState,
    clone_tensors,
    load_optimizer_state,
    optimizer_state,
)
from prunus.types import IGNORE_INDEX, Dataset, Progress, Split

Report = Callable[[EpochMetrics], None]


class Trainer:
    """A model, its optimizer and its constraint between two steps."""

    def __init__(self, model: nn.Module, recipe: Recipe, constraint: Constraint) -> None:
        self.model = model
        self.recipe = recipe
        self.constraint = constraint
        self.trainable_tensors = all_trainable_tensors(model, constraint)
        self.optimizer = optimizers.make_optimizer(list(self.trainable_tensors.values()), recipe)
        self.weights = [p for name, p in model.named_parameters() if p.dim() > 1 and p.requires_grad]
        self.penalize = lookup("penalty", PENALTIES, recipe.penalty)
        self.lr_schedule = lookup("learning-rate decay", LR_SCHEDULES, recipe.lr_schedule)
        self.augment = lookup("augmentation", AUGMENTATIONS, recipe.augmentation)
        self.done = 0
        """How many steps are behind."""
        self.epochs: list[EpochMetrics] = []
        self.best: dict[str, Tensor] = {}
        """The model at its lowest validation loss, kept only where `recipe.patience` may go back to it."""

    def step(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """One step of gradient descent on a batch; returns the loss. The constraint holds afterwards."""
        loss = F.cross_entropy(self.model(inputs), labels, ignore_index=IGNORE_INDEX)
        self.model.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.penalize(self.weights, self.recipe.penalty_strength)
        self.constraint.before_optimizer_step()
        self.optimizer.step()
        self.constraint.apply()
        return loss.detach()

    def set_learning_rate(self, done: float) -> None:
        """The learning rate when a share `done` of training is behind."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate * self.lr_schedule(done)

    def epoch(
        self, split: Split, seed: int, observer: Observer | None = None, progress: Progress | None = None
    ) -> float:
        """What is left of this pass over `split`; returns the mean loss. The order depends on (seed, epoch) alone.

        The mean is over the examples that have a label; a batch in which none has one changes nothing.
        """
        size, count = self.recipe.batch_size, steps_per_epoch(self.recipe, split)
        number, first = divmod(self.done, count)
        total, seen = torch.zeros((), device=split.labels.device), 0
        is_labeled = bool((split.labels != IGNORE_INDEX).all())
        for index, (inputs, labels) in enumerate(iter_batches(split, size, seed, number, first), start=first):
            self.set_learning_rate((number + index / count) / self.recipe.epochs)
            inputs = augment_batch(self.augment, inputs, seed, number, index)
            n = len(labels) if is_labeled else count_labeled(labels)
            if n:
                total += self.step(inputs, labels) * n
                seen += n
            self.done += 1
            if progress is not None:
                progress(f"epoch {number + 1} of {self.recipe.epochs}", self.done, count * self.recipe.epochs)
            if observer is not None and observer.is_due(self.done):
                observer.observe(self)
        return float(total) / seen if seen else 0.0

    def capture(self) -> TrainingState:
        """A copy of all that a step changes."""
        return TrainingState(
            self.done,
            clone_tensors(self.model.state_dict()),
            clone_tensors(optimizer_state(self.optimizer, self.trainable_tensors)),
            torch.get_rng_state(),
        )

    def put(self, state: TrainingState) -> None:
        """Go back, or on, to `state`."""
        self.done = state.step
        self.model.load_state_dict(state.model)
        load_optimizer_state(self.optimizer, self.trainable_tensors, state.optimizer)
        if state.random is not None:
            torch.set_rng_state(state.random)


def check_recipe(recipe: Recipe) -> None:
    """Raise SpecError where a number of the recipe is out of range, UnknownNameError where a name is in no table."""
    for kind, table, name in (
        ("optimizer", optimizers.OPTIMIZERS, recipe.optimizer),
        ("learning-rate decay", LR_SCHEDULES, recipe.lr_schedule),
        ("penalty", PENALTIES, recipe.penalty),
        ("augmentation", AUGMENTATIONS, recipe.augmentation),
    ):
        lookup(kind, table, name)
    for field, low in (("epochs", 0), ("batch_size", 1), ("patience", 0)):
        value = getattr(recipe, field)
        is_absent = value is None and field == "patience"
        if not is_absent and (not isinstance(value, Integral) or int(value) < low):
            raise SpecError(
                f"Expected {field} to be an integer of at least {low}, got {value!r}; correct the recipe."
            )
    for field in ("learning_rate", "weight_decay", "penalty_strength", "momentum"):
        value = getattr(recipe, field)
        if not isinstance(value, Real) or not 0 <= float(value) < math.inf:
            raise SpecError(
                f"Expected {field} to be a finite number of at least 0, got {value!r}; correct the recipe."
            )
    if recipe.momentum >= 1 or (recipe.optimizer == "nesterov" and not recipe.momentum):
        allowed = "above 0" if recipe.optimizer == "nesterov" else "at least 0"
        raise SpecError(
            f"Expected the momentum of the optimizer {recipe.optimizer!r} to be {allowed} and below 1, got "
            f"{recipe.momentum!r}; set a value such as 0.9."
        )


def steps_per_epoch(recipe: Recipe, split: Split) -> int:
    """Batches in one pass; the last may be shorter."""
    return -(-len(split) // recipe.batch_size)


def train(
    model: nn.Module,
    data: Dataset,
    recipe: Recipe,
    *,
    masks: Mapping[str, Tensor] | None = None,
    constraint: Constraint | None = None,
    seed: int = 0,
    start: TrainingState | None = None,
    observer: Observer | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    report: Report | None = None,
    progress: Progress | None = None,
) -> list[EpochMetrics]:
    """Train `model` in place; returns one `Epoch` an epoch.

    Args:
        model: maps inputs [B, ...] to logits [B, C]. In training mode, it is trained with every module in the mode it
            has; in evaluation mode, everything is put into training mode but normalization layers whose parameters are
            all frozen. Afterwards every module is in the mode it had.
        data: the training split trains, the validation split is evaluated; the test split is not used. Examples whose
            label is `IGNORE_INDEX` (-100) count neither in a loss nor in an accuracy.
        constraint: must hold after every step, such as `Masked`; of `model` or of a submodule of it.
        start: go on from this state, in the middle of the schedule and of the order of examples where it was
            captured there; None: from the model as it is, at step 0.
        observer: is shown the training where it says it is due, at the start among others.
        checkpoint: the whole state is written there after every epoch, and a call with the same arguments
            goes on from it: a run killed at any moment and started again ends with the same bits (on CPU,
            with the same number of threads). The same arguments are the same recipe, seed, training and validation
            data, structure and function of the model, constraint, and initial weights: `model` must be given as it was
            at the first call.
        progress: called after every batch with the number of steps that are done, of all steps.

    Raises SpecError, DataError and ModelError before any work where recipe, data or model are out of range or cannot be
    trained, DivergenceError when the loss is no longer a number, CheckpointError when the file is damaged or belongs to
    another run.
    """
    check_recipe(recipe)
    check_dataset(data, ("train", "validation"))
    check_trainable(model, data, recipe)
    path = None if checkpoint is None else Path(checkpoint)
    if path is not None:
        check_writable(path)
    if recipe.patience is not None or any(part is not None for part in (path, observer, start)):
        check_dense_state(model)
    if masks is not None:
        constraint = _mask_constraint(model, masks, constraint)
    run = Trainer(model, recipe, NoConstraint(model) if constraint is None else constraint)
    with restored_modes(model), _own_random_stream(seed):
        modes = start_training(model)
        if start is not None:
            run.put(start)
        identity = None if path is None else identity_of(run, data, seed)
        saved = read(path, identity, observer) if path and identity and path.exists() else None
        run.constraint.apply()
        if saved is not None:
            restore(saved, run, observer)
        elif observer is not None and observer.is_due(run.done):
            observer.observe(run)
        if progress is not None:
            progress("training", run.done, recipe.epochs * steps_per_epoch(recipe, data.train))
        while not _finished(run, data.train):
            set_modes(modes)
            _finish_epoch(run, run.epoch(data.train, seed, observer, progress), data)
            if path and identity:
                save(path, run, identity, observer)
            if report is not None:
                report(run.epochs[-1])
        if run.best:
            model.load_state_dict(run.best)
        run.constraint.finalize()
    return run.epochs


def _mask_constraint(model: nn.Module, masks: Mapping[str, Tensor], constraint: Constraint | None) -> Masks:
    if constraint is not None:
        raise SpecError(
            f"Expected masks or a constraint, got masks and a {type(constraint).__name__}; pass one of them."
        )
    return masks if isinstance(masks, Masks) else Masks(model, masks)


def _finished(run: Trainer, split: Split) -> bool:
    losses = [epoch.validation_loss for epoch in run.epochs]
    over = run.done >= run.recipe.epochs * steps_per_epoch(run.recipe, split)
    return over or should_stop(losses, run.recipe.patience)


def _finish_epoch(run: Trainer, training_loss: float, data: Dataset) -> None:
    """Evaluate, and write down what the epoch gave. Raises DivergenceError."""
    result = evaluate(run.model, data.validation)
    number = -(-run.done // steps_per_epoch(run.recipe, data.train))
    if not torch.isfinite(torch.tensor([training_loss, result.loss])).all():
        raise DivergenceError(
            f"The loss is {training_loss} in training and {result.loss} in validation after epoch {number} of "
            f"{run.recipe.epochs} with learning rate {run.recipe.learning_rate}; a lower learning rate may help."
        )
    run.epochs.append(EpochMetrics(number, training_loss, result.loss, result.accuracy))
    if (
        run.recipe.patience is not None
        and best_index([e.validation_loss for e in run.epochs]) == len(run.epochs) - 1
    ):
        run.best = clone_tensors(run.model.state_dict())


@contextmanager
def _own_random_stream(seed: int) -> Iterator[None]:
    """Dropout draws from a stream of its own; the caller's is as it was afterwards."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(derive_seed(seed, "dropout"))
        yield

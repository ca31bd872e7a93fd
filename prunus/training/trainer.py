"""A model, its optimizer and its constraint while they are trained."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from prunus.data.batches import iter_batches
from prunus.data.image_folder import ImageFiles
from prunus.data.validation import count_labeled
from prunus.errors import DivergenceError
from prunus.registry import lookup
from prunus.seeds import derive_seed
from prunus.training.augmentation import AUGMENTATIONS, augment_batch
from prunus.training.constraint import Constraint, all_trainable_tensors
from prunus.training.evaluation import EpochMetrics, best_index, evaluate, evaluate_network, should_stop
from prunus.training.evaluation_totals import Evaluation
from prunus.training.gradients import Gradients
from prunus.training.losses import AnyLoss
from prunus.training.optimizers import OPTIMIZERS, PENALTIES
from prunus.training.outputs import Forward
from prunus.training.parallel import Fabric, average_buffers
from prunus.training.recipe import Recipe, learning_rate_at
from prunus.training.sparse.backend import Backend, choose_training_backend
from prunus.training.state import (
    Observer,
    TrainingState,
    add_prefix,
    clone_tensors,
    load_optimizer_state,
    optimizer_state,
    random_state,
    set_random_state,
    state_from_tensors,
    state_to_tensors,
    strip_prefix,
)
from prunus.types import Dataset, Progress, Split

if TYPE_CHECKING:
    from prunus.training.sparse.network import SparseNetwork


class Trainer:
    """A model, its optimizer and its constraint between two steps."""

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        constraint: Constraint,
        forward: Forward | None = None,
        loss: AnyLoss | None = None,
        fabric: Fabric | None = None,
    ) -> None:
        self.model, self.forward, self.loss, self.fabric = model, forward, loss, fabric
        self.recipe = recipe
        self.gradients = Gradients(model, recipe, forward, loss, fabric)
        self.constraint = constraint
        self.trainable_tensors = all_trainable_tensors(model, constraint)
        make_optimizer = lookup("optimizer", OPTIMIZERS, recipe.optimizer)
        self.optimizer = make_optimizer(list(self.trainable_tensors.values()), recipe)
        self.weights = [p for p in model.parameters() if p.dim() > 1 and p.requires_grad]
        self.add_penalty = lookup("penalty", PENALTIES, recipe.penalty)
        self.augment = lookup("augmentation", AUGMENTATIONS, recipe.augmentation)
        self.done = 0
        """The number of steps done."""
        self.epochs: list[EpochMetrics] = []
        self.backend = Backend("dense")
        self.network: SparseNetwork | None = None
        self.best: dict[str, Tensor] = {}
        """The `state_dict` with the lowest validation loss so far, kept only if `recipe.patience` may restore it."""
        self.best_constraint: dict[str, Tensor] = {}
        """The state of the constraint that belongs to `best`."""

    @property
    def processes(self) -> int:
        """The number of processes that share each batch."""
        return 1 if self.fabric is None else self.fabric.world_size

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return next(self.model.parameters()).device

    def step(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """One step of gradient descent on a batch, after which the constraint holds.

        Args:
            inputs: The batch [B, ...], on the device of the model.
            labels: The labels [B, ...]; those that are `IGNORE_INDEX` (-100) do not count. At least one must count.

        Returns:
            The mean loss before the step, a scalar without a gradient; the penalty is not part of it.
        """
        loss = self.gradients.compute(inputs, labels)
        self.add_penalty(self.weights, self.recipe.penalty_strength * self.gradients.scale)
        self.constraint.before_optimizer_step()
        self.gradients.step(self.optimizer)
        self.constraint.apply()
        return loss

    def choose_backend(self, backend: str, split: Split) -> None:
        """Choose what computes the training.

        Args:
            backend: "auto", "dense" or "sparse".
            split: The training examples.

        Raises:
            SpecError: The sparse backend is requested and cannot train the model.
        """
        reason = None
        if isinstance(split, ImageFiles):
            reason = "the images are read from files"
        elif self.processes > 1:
            reason = "several processes share each batch"
        elif self.forward is not None or self.loss is not None or split.labels.ndim != 1:
            reason = "the task is not the classification of examples"
        self.backend, self.network = choose_training_backend(
            backend, self.model, self.constraint, self.recipe, split, reason
        )

    def evaluate(self, split: Split) -> Evaluation:
        """Evaluate the model on a split, with the backend of the training."""
        if self.network is None:
            return evaluate(self.model, split, forward=self.forward, loss=self.loss, backend="dense")
        self.network.load()
        return evaluate_network(self.network, split)

    def epoch(
        self, split: Split, seed: int, observer: Observer | None = None, progress: Progress | None = None
    ) -> float:
        """Train until the end of the current pass over `split`, with the dense backend.

        Args:
            split: The training examples; their order depends on the seed and the number of the epoch only. A batch
                without a label changes nothing.
            seed: The seed of the training.
            observer: Called after each step for which it is due.
            progress: Called after every batch.

        Returns:
            The mean loss over the labels that count, or over the examples where labels are not classes.
        """
        size, count = self.recipe.batch_size, steps_per_epoch(self.recipe, split)
        number, first = divmod(self.done, count)
        rank = 0
        if self.fabric is not None:
            rank = self.fabric.global_rank
            torch.manual_seed(derive_seed(seed, "dropout", number, rank))
        total, num_labeled = torch.zeros((), device=split.labels.device), 0
        is_labeled = count_labeled(split.labels) == split.labels.numel()
        for index, (inputs, labels) in enumerate(
            iter_batches(split, size, seed, number, first, rank, self.processes), start=first
        ):
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate_at(self.recipe, (number + index / count) / self.recipe.epochs)
            part = rank if isinstance(split, ImageFiles) else 0  # only files are read in parts
            inputs = augment_batch(self.augment, inputs, seed, number, index, part)
            compared = self.gradients.compared_labels(inputs, labels)
            n = compared.numel() if is_labeled else count_labeled(compared)
            if n:
                total += self.step(inputs, labels) * n
                num_labeled += n
            self.done += 1
            if progress is not None:
                progress(f"epoch {number + 1} of {self.recipe.epochs}", self.done, count * self.recipe.epochs)
            if observer is not None and observer.is_due(self.done):
                observer.observe(self)
        if self.fabric is not None:
            average_buffers(self.model)
        return float(total) / num_labeled if num_labeled else 0.0

    def finish_epoch(self, training_loss: float, data: Dataset, *, is_evaluated: bool = True) -> None:
        """Evaluate the validation split and record the metrics, unless `is_evaluated` is False.

        Args:
            training_loss: The mean training loss of the epoch in nats, as `epoch` returned it.
            data: The data set; the validation split is evaluated, and the training split gives the number of the epoch.
            is_evaluated: Whether the validation split is evaluated; False: only the training loss is checked.

        Raises:
            DivergenceError: A loss is NaN or infinite.
        """
        result = self.evaluate(data.validation) if is_evaluated else None
        number = -(-self.done // steps_per_epoch(self.recipe, data.train))
        if not math.isfinite(training_loss) or (result is not None and not math.isfinite(result.loss)):
            validation = "" if result is None else f" and {result.loss} in validation"
            raise DivergenceError(
                f"The loss is {training_loss} in training{validation} after epoch {number} of {self.recipe.epochs} "
                f"with learning rate {self.recipe.learning_rate}; a lower learning rate may help."
            )
        if result is not None:
            metrics = EpochMetrics(number, training_loss, result.loss, result.accuracy, str(self.backend))
            self.epochs.append(metrics)
            losses = [epoch.validation_loss for epoch in self.epochs]
            if self.recipe.patience is not None and best_index(losses) == len(losses) - 1:
                self.best = clone_tensors(self.model.state_dict())
                self.best_constraint = clone_tensors(self.constraint.state_dict())

    def is_at_last_step(self, split: Split) -> bool:
        """Whether all steps of the recipe are done."""
        return self.done >= self.recipe.epochs * steps_per_epoch(self.recipe, split)

    def is_finished(self, split: Split) -> bool:
        """Whether all steps are done, or the validation loss has not become lower for `recipe.patience` epochs."""
        losses = [epoch.validation_loss for epoch in self.epochs]
        return self.is_at_last_step(split) or should_stop(losses, self.recipe.patience)

    def restore_best(self) -> None:
        """Set the model and the constraint to those of the lowest validation loss, if they were kept."""
        if self.best_constraint:
            self.constraint.load_state_dict(self.best_constraint)
        if self.best:
            self.model.load_state_dict(self.best)

    def capture(self) -> TrainingState:
        """A copy of everything that a step changes."""
        return TrainingState(
            self.done,
            clone_tensors(self.model.state_dict()),
            clone_tensors(optimizer_state(self.optimizer, self.trainable_tensors)),
            random_state(self.device),
            self.gradients.scaler_state(),
        )

    def restore(self, state: TrainingState) -> None:
        """Set everything that a step changes to `state`."""
        self.done = state.step
        self.model.load_state_dict(state.model)
        load_optimizer_state(self.optimizer, self.trainable_tensors, state.optimizer)
        if state.random is not None:
            set_random_state(state.random, self.device)
        self.gradients.load_scaler_state(state.loss_scale)

    def to_checkpoint(self, observer: Observer | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors and JSON values from which the training continues."""
        observed, observer_values = observer.state_dict() if observer is not None else ({}, None)
        tensors = {
            **state_to_tensors(self.capture()),
            **add_prefix("constraint/", self.constraint.state_dict()),
            **add_prefix("best/", self.best),
            **add_prefix("best_constraint/", self.best_constraint),
            **add_prefix("observer/", observed),
        }
        epochs = [asdict(epoch) for epoch in self.epochs]
        return tensors, {"step": self.done, "epochs": epochs, "observer": observer_values}

    def from_checkpoint(
        self, tensors: Mapping[str, Tensor], values: Mapping[str, Any], observer: Observer | None
    ) -> None:
        """Continue from what `to_checkpoint` returned.

        Args:
            tensors: The tensors of the checkpoint by name.
            values: The JSON values of the checkpoint: `step`, `epochs` and `observer`.
            observer: The observer of this training, which is restored too. None: the training has no observer.

        Raises:
            CheckpointError: The state is that of another constraint, or of an optimizer of other tensors.
        """
        self.constraint.load_state_dict(strip_prefix("constraint/", tensors))
        self.restore(state_from_tensors(values["step"], tensors))
        self.best = strip_prefix("best/", tensors)
        self.best_constraint = strip_prefix("best_constraint/", tensors)
        self.epochs = [EpochMetrics(**epoch) for epoch in values["epochs"]]
        if observer is not None:
            observer.load_state_dict(strip_prefix("observer/", tensors), values["observer"])


def steps_per_epoch(recipe: Recipe, split: Split) -> int:
    """The number of batches in one pass; the last batch may be smaller.

    Args:
        recipe: The recipe, of which `batch_size` is used.
        split: The training examples.

    Returns:
        The number of examples divided by the batch size, rounded up.
    """
    return -(-len(split) // recipe.batch_size)

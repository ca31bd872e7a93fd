"""The training loop: one step that can be read at a glance, seeded batches, exact resume."""

import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from prunus.data.batches import iter_batches
from prunus.data.validation import check_dataset, count_labeled
from prunus.errors import CheckpointError, DivergenceError, SpecError
from prunus.masks import Masks
from prunus.registry import lookup
from prunus.seeds import derive_seed
from prunus.training.augmentation import AUGMENTATIONS, augment_batch
from prunus.training.checkpoint import check_checkpoint_writable, load_checkpoint, save_checkpoint
from prunus.training.checks import check_dense_state, check_trainable
from prunus.training.constraint import Constraint, NoConstraint, all_trainable_tensors
from prunus.training.evaluate import (
    EpochMetrics,
    best_index,
    evaluate,
    evaluate_network,
    should_stop,
)
from prunus.training.evaluation import Evaluation
from prunus.training.identity import Identity, training_identity
from prunus.training.losses import Loss, LossFunction, find_loss, training_loss
from prunus.training.modes import restored_modes, set_modes, start_training
from prunus.training.outputs import Forward, call_model
from prunus.training.precision import single_precision
from prunus.training.recipe import LR_SCHEDULES, OPTIMIZERS, PENALTIES, Recipe, check_recipe
from prunus.training.sparse.backend import Backend, check_backend, choose_training_backend
from prunus.training.sparse.epoch import train_sparse_epoch
from prunus.training.state import (
    Observer,
    TrainingState,
    add_prefix,
    clone_tensors,
    load_optimizer_state,
    optimizer_state,
    state_from_tensors,
    state_to_tensors,
    strip_prefix,
)
from prunus.types import Dataset, Progress, Split

if TYPE_CHECKING:
    from prunus.training.sparse.network import SparseNetwork

Report = Callable[[EpochMetrics], None]


class Trainer:
    """A model, its optimizer and its constraint between two steps."""

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        constraint: Constraint,
        forward: Forward | None = None,
        loss: Loss | LossFunction | None = None,
    ) -> None:
        self.model, self.forward, self.loss = model, forward, loss
        self.recipe = recipe
        self.constraint = constraint
        self.trainable_tensors = all_trainable_tensors(model, constraint)
        make_optimizer = lookup("optimizer", OPTIMIZERS, recipe.optimizer)
        self.optimizer = make_optimizer(list(self.trainable_tensors.values()), recipe)
        self.weights = [p for p in model.parameters() if p.dim() > 1 and p.requires_grad]
        self.add_penalty = lookup("penalty", PENALTIES, recipe.penalty)
        self.lr_schedule = lookup("learning-rate decay", LR_SCHEDULES, recipe.lr_schedule)
        self.augment = lookup("augmentation", AUGMENTATIONS, recipe.augmentation)
        self.done = 0
        """The number of steps done."""
        self.epochs: list[EpochMetrics] = []
        self.backend = Backend("dense")
        self.network: SparseNetwork | None = None
        self.best: dict[str, Tensor] = {}
        """The `state_dict` with the lowest validation loss so far, kept only if `recipe.patience` may restore it."""

    def step(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """One step of gradient descent on a batch, after which the constraint holds.

        Args:
            inputs: The batch [B, ...], on the device of the model.
            labels: The labels [B, ...]; those that are `IGNORE_INDEX` (-100) do not count. At least one must count.

        Returns:
            The mean loss before the step, a scalar without a gradient; the penalty is not part of it.
        """
        batch = inputs, labels
        loss = training_loss(self.model, call_model(self.model, batch, self.forward), batch, self.loss)
        self.model.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.add_penalty(self.weights, self.recipe.penalty_strength)
        self.constraint.before_optimizer_step()
        self.optimizer.step()
        self.constraint.apply()
        return loss.detach()

    def choose_backend(self, backend: str, split: Split) -> None:
        """Choose what computes the training.

        Args:
            backend: "auto", "dense" or "sparse".
            split: The training examples.

        Raises:
            SpecError: The sparse backend is requested and cannot train the model.
        """
        other_task = self.forward is not None or self.loss is not None or split.labels.ndim != 1
        self.backend, self.network = choose_training_backend(
            backend, self.model, self.constraint, self.recipe, split.inputs, other_task=other_task
        )

    def learning_rate(self, fraction: float) -> float:
        """The learning rate of the step before which this fraction of the training is done, in [0, 1)."""
        return self.recipe.learning_rate * self.lr_schedule(fraction)

    def evaluate(self, split: Split) -> Evaluation:
        """Evaluate the model on a split, with the backend of the training."""
        if self.network is None:
            return evaluate(self.model, split, forward=self.forward, loss=self.loss, backend="dense")
        self.network.load()
        return evaluate_network(self.network, split)

    def epoch(
        self, split: Split, seed: int, observer: Observer | None = None, progress: Progress | None = None
    ) -> float:
        """Train until the end of the current pass over `split`.

        Args:
            split: The training examples; their order depends on the seed and the number of the epoch only. A batch
                without a label changes nothing.
            seed: The seed of the training.
            observer: Called after each step for which it is due.
            progress: Called after every batch.

        Returns:
            The mean loss over the labels that count, or over the examples where labels are no classes.
        """
        if self.network is not None:
            return train_sparse_epoch(self, self.network, split, seed, observer, progress)
        size, count = self.recipe.batch_size, steps_per_epoch(self.recipe, split)
        number, first = divmod(self.done, count)
        total, num_labeled = torch.zeros((), device=split.labels.device), 0
        is_labeled = count_labeled(split.labels) == split.labels.numel()
        for index, (inputs, labels) in enumerate(iter_batches(split, size, seed, number, first), start=first):
            for group in self.optimizer.param_groups:
                group["lr"] = self.learning_rate((number + index / count) / self.recipe.epochs)
            inputs = augment_batch(self.augment, inputs, seed, number, index)
            n = labels.numel() if is_labeled else count_labeled(labels)
            if n:
                total += self.step(inputs, labels) * n
                num_labeled += n
            self.done += 1
            if progress is not None:
                progress(f"epoch {number + 1} of {self.recipe.epochs}", self.done, count * self.recipe.epochs)
            if observer is not None and observer.is_due(self.done):
                observer.observe(self)
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

    def is_at_last_step(self, split: Split) -> bool:
        """Whether all steps of the recipe are done."""
        return self.done >= self.recipe.epochs * steps_per_epoch(self.recipe, split)

    def is_finished(self, split: Split) -> bool:
        """Whether all steps are done, or the validation loss has not become lower for `recipe.patience` epochs."""
        losses = [epoch.validation_loss for epoch in self.epochs]
        return self.is_at_last_step(split) or should_stop(losses, self.recipe.patience)

    def capture(self) -> TrainingState:
        """A copy of everything that a step changes."""
        return TrainingState(
            self.done,
            clone_tensors(self.model.state_dict()),
            clone_tensors(optimizer_state(self.optimizer, self.trainable_tensors)),
            torch.get_rng_state(),
        )

    def restore(self, state: TrainingState) -> None:
        """Set everything that a step changes to `state`."""
        self.done = state.step
        self.model.load_state_dict(state.model)
        load_optimizer_state(self.optimizer, self.trainable_tensors, state.optimizer)
        if state.random is not None:
            torch.set_rng_state(state.random)

    def to_checkpoint(self, observer: Observer | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors and JSON values from which the training continues."""
        observed, observer_values = observer.state_dict() if observer is not None else ({}, None)
        tensors = {
            **state_to_tensors(self.capture()),
            **add_prefix("constraint/", self.constraint.state_dict()),
            **add_prefix("best/", self.best),
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


def train(
    model: nn.Module,
    data: Dataset,
    recipe: Recipe,
    *,
    masks: Mapping[str, Tensor] | None = None,
    constraint: Constraint | None = None,
    forward: Forward | None = None,
    loss: str | Loss | LossFunction | None = None,
    seed: int = 0,
    start: TrainingState | None = None,
    observer: Observer | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    evaluate_every_epoch: bool = True,
    report: Report | None = None,
    progress: Progress | None = None,
    backend: str = "auto",
) -> list[EpochMetrics]:
    """Train `model` in place.

    Args:
        model: Any module; labels [B] are those of logits [B, C], labels [B, T] of [B, T, C], labels [B, H, W] of
            [B, C, H, W]. If it is in training mode, every module keeps its mode; if it is in evaluation mode, all
            modules are trained in training mode, except normalization layers whose parameters are all frozen.
            Afterwards every module is in the mode it had. A network in half precision is trained in float32, and
            rounded at the end.
        data: The training split trains, the validation split is evaluated; the test split is not used. Labels that are
            `IGNORE_INDEX` (-100) count neither in a loss nor in an accuracy. Without class names, labels may be
            targets of any dtype, which need a `loss`.
        recipe: The settings of the training.
        masks: `Masks` of the model or of a submodule, or boolean tensors by parameter name; pruned weights are zero
            after every step. None: all weights are kept.
        constraint: Any other constraint that must hold after every step, of `model` or of a submodule.
        forward: (model, (inputs, labels)) -> outputs; None: the model is called with the inputs.
        loss: A key of LOSSES, such as "squared_error", a Loss, or a function (outputs, (inputs, labels)) -> mean loss;
            None: the loss that the outputs contain, else cross-entropy.
        seed: Determines the order of the examples, augmentation and dropout.
        start: The state to continue from, in the middle of the learning-rate schedule and of the order of examples if
            it was captured there. None: the model as it is, at step 0.
        observer: Called at the start and after each step for which it is due.
        checkpoint: The file to which the whole state is written after every epoch. A call with the same arguments
            continues from it: a training that is killed at any moment and started again ends with the same bits (on
            CPU, with the same number of threads). `model` must be given as it was at the first call.
        evaluate_every_epoch: Whether the validation split is evaluated after every epoch; False: only after the last.
        report: Called with the metrics of each evaluated epoch.
        progress: Called after every batch (every 50 with the sparse backend) with the number of steps that are done,
            and of all steps.
        backend: "dense" computes with PyTorch, "sparse" with the kept weights only, so that the time falls with the
            density, and "auto" takes the faster of both by a fixed rule (see `prunus.training.sparse.backend`). The
            metrics say which one was used, and why not the sparse one.

    Returns:
        The metrics of each evaluated epoch; the accuracy is NaN where labels are no classes.

    Raises:
        SpecError: The recipe is out of range, both masks and a constraint are given, `recipe.patience` is set while
            only the last epoch is evaluated, or the sparse backend is requested and cannot train the model.
        DataError: The data cannot be trained on.
        StatisticsError: The loss does not fit the outputs and the labels, or returns no scalar.
        ModelError: The model cannot be trained on the data, or the masks or the constraint belong to another model.
        DivergenceError: The loss is NaN or infinite.
        CheckpointError: The checkpoint is damaged, or belongs to another training.
    """
    path = None if checkpoint is None else Path(checkpoint)
    copies_state = recipe.patience is not None or any(part is not None for part in (path, observer, start))
    check_backend(backend)
    loss_function = find_loss(loss)
    _check_training(model, recipe, path, evaluate_every_epoch, copies_state)
    check_dataset(data, ("train", "validation"))
    check_trainable(model, data, recipe, call=forward, loss=loss_function)
    with restored_modes(model), single_precision(model), _seeded_random_state(seed):
        run = Trainer(model, recipe, _make_constraint(model, masks, constraint), forward, loss_function)
        modes = start_training(model)
        if start is not None:
            run.restore(start)
        run.choose_backend(backend, data.train)
        identity = saved = None
        if path is not None:
            identity = training_identity(run, data, seed)
            saved = _load_checkpoint(path, identity, observer) if path.exists() else None
        run.constraint.apply()
        if saved is not None:
            run.from_checkpoint(*saved, observer)
        elif observer is not None and observer.is_due(run.done):
            observer.observe(run)
        if progress is not None:
            progress("training", run.done, recipe.epochs * steps_per_epoch(recipe, data.train))
        while not run.is_finished(data.train):
            set_modes(modes)
            mean_loss = run.epoch(data.train, seed, observer, progress)
            is_evaluated = evaluate_every_epoch or run.is_at_last_step(data.train)
            run.finish_epoch(mean_loss, data, is_evaluated=is_evaluated)
            if path is not None and identity is not None:
                save_checkpoint(path, identity, *run.to_checkpoint(observer))
            if report is not None and is_evaluated:
                report(run.epochs[-1])
        if run.best:
            model.load_state_dict(run.best)
        run.constraint.finalize()
    return run.epochs


def _check_training(
    model: nn.Module,
    recipe: Recipe,
    path: Path | None,
    evaluate_every_epoch: bool,
    copies_state: bool,
) -> None:
    """Raise what `train` raises for settings, and for a state that cannot be copied."""
    check_recipe(recipe)
    if recipe.patience is not None and not evaluate_every_epoch:
        raise SpecError(
            f"Expected an evaluation after every epoch for patience = {recipe.patience}, got "
            "evaluate_every_epoch = False; leave one of them out."
        )
    if path is not None:
        check_checkpoint_writable(path)
    if copies_state:
        check_dense_state(model)


def _make_constraint(
    model: nn.Module, masks: Mapping[str, Tensor] | None, constraint: Constraint | None
) -> Constraint:
    if masks is None:
        return NoConstraint(model) if constraint is None else constraint
    if constraint is not None:
        raise SpecError(
            f"Expected masks or a constraint, got masks and a {type(constraint).__name__}; pass one of them."
        )
    return masks if isinstance(masks, Masks) else Masks(model, masks)


def _load_checkpoint(
    path: Path, identity: Identity, observer: Observer | None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, values = load_checkpoint(path, identity)
    if (values["observer"] is None) != (observer is None):
        expected, got = ("no", "an") if observer is None else ("an", "no")
        raise CheckpointError(
            f"Expected the checkpoint {path} of a training with {expected} observer, got one with {got} observer; "
            "delete it to train from the start."
        )
    return tensors, values


@contextmanager
def _seeded_random_state(seed: int) -> Iterator[None]:
    """Seed the random generator that dropout uses; the caller's is restored afterwards."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(derive_seed(seed, "dropout"))
        yield

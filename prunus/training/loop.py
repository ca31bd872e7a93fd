"""The training loop: one step that can be read at a glance, seeded batches, exact resume."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunus.data.validation import check_dataset
from prunus.errors import CheckpointError, SpecError
from prunus.files import create_folder
from prunus.masks import Masks
from prunus.registry import check_callbacks
from prunus.seeds import derive_seed
from prunus.training.checkpoint import check_checkpoint_writable, load_checkpoint, save_checkpoint
from prunus.training.checks import check_dense_state, check_trainable
from prunus.training.constraint import Constraint, NoConstraint
from prunus.training.evaluation import EpochMetrics
from prunus.training.identity import Identity, training_identity
from prunus.training.losses import AnyLoss, find_loss
from prunus.training.modes import restored_modes, set_modes, start_training
from prunus.training.outputs import Forward
from prunus.training.parallel import Fabric, check_fabric, check_same
from prunus.training.precision import single_precision
from prunus.training.recipe import Recipe
from prunus.training.recipe_checks import check_recipe
from prunus.training.sparse.backend import check_backend
from prunus.training.sparse.epoch import train_sparse_epoch
from prunus.training.state import Observer, TrainingState
from prunus.training.trainer import Trainer, steps_per_epoch
from prunus.types import Dataset, Progress

Report = Callable[[EpochMetrics], None]


def train(
    model: nn.Module,
    data: Dataset,
    recipe: Recipe,
    *,
    masks: Mapping[str, Tensor] | None = None,
    constraint: Constraint | None = None,
    forward: Forward | None = None,
    loss: str | AnyLoss | None = None,
    seed: int = 0,
    start: TrainingState | None = None,
    observer: Observer | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    evaluate_every_epoch: bool = True,
    report: Report | None = None,
    progress: Progress | None = None,
    backend: str = "auto",
    fabric: Fabric | None = None,
) -> list[EpochMetrics]:
    """Train `model` in place.

    Args:
        model: Any module; labels [B] belong to logits [B, C], labels [B, T] to [B, T, C], labels [B, H, W] to
            [B, C, H, W]. If it is in training mode, every module keeps its mode; if it is in evaluation mode, all
            modules are trained in training mode, except normalization layers whose parameters are all frozen.
            Afterwards every module has its earlier mode. A network in half precision is trained in float32, and
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
        fabric: A `lightning.Fabric` after `launch()`, with which each of its processes calls this function with equal
            arguments: they share each batch, and all have the same weights after every step. The first process writes
            the checkpoint, which all must be able to read. None: this process alone.

    Returns:
        The metrics of each evaluated epoch; the accuracy is NaN where labels are not classes.

    Raises:
        SpecError: The recipe is out of range, both masks and a constraint are given, `recipe.patience` is set while
            only the last epoch is evaluated, the sparse backend is requested and cannot train the model, or the
            processes of `fabric` are not started or got different arguments.
        DataError: The data cannot be trained on.
        StatisticsError: The loss does not fit the outputs and the labels, or returns no scalar.
        ModelError: The model cannot be trained on the data, or the masks or the constraint belong to another model.
        DivergenceError: The loss is NaN or infinite.
        CheckpointError: The checkpoint is damaged, or belongs to another training.
    """
    path = None if checkpoint is None else Path(checkpoint)
    new_folder = None if path is None or path.parent.exists() else path.parent
    copies_state = any(part is not None for part in (path, observer, start))
    check_backend(backend)
    check_callbacks(report=report, progress=progress)
    loss_function = find_loss(loss)
    _check_training(model, recipe, path, evaluate_every_epoch, copies_state)
    check_dataset(data, ("train", "validation"))
    processes = 1
    if fabric is not None:
        check_fabric(fabric, data.train.labels.device)
        processes = fabric.world_size
    if getattr(constraint, "has_own_step", False) and (processes > 1 or recipe.autocast == "float16"):
        raise SpecError(
            f"Expected one process and no autocast='float16' with {type(constraint).__name__}, whose gradients are "
            "neither averaged nor unscaled; use autocast='bfloat16' or 'none', and one process."
        )
    check_trainable(model, data, recipe, forward=forward, loss=loss_function, processes=processes)
    with torch.enable_grad(), restored_modes(model), single_precision(model), _seeded_random_state(seed):
        constraint = _make_constraint(model, masks, constraint)
        run = Trainer(model, recipe, constraint, forward, loss_function, fabric)
        modes = start_training(model)
        if start is not None:
            run.restore(start)
        run.choose_backend(backend, data.train)
        identity = saved = None
        if path is not None or fabric is not None:
            identity = training_identity(run, data, seed)
        if path is not None and identity is not None and path.exists():
            saved = _load_checkpoint(path, identity, observer)
        if identity is not None and fabric is not None:
            check_same({**identity.values, "checkpoint": None if saved is None else saved[1]["step"]})
        run.constraint.apply()
        if saved is not None:
            run.from_checkpoint(*saved, observer)
        elif observer is not None and observer.is_due(run.done):
            observer.observe(run)
        if progress is not None:
            progress("training", run.done, recipe.epochs * steps_per_epoch(recipe, data.train))
        # Once, and not if it existed: a folder that vanishes during the training, with its disk, must not reappear.
        if new_folder is not None:
            create_folder(new_folder)
        while not run.is_finished(data.train):
            set_modes(modes)
            epoch = run.epoch if run.network is None else partial(train_sparse_epoch, run, run.network)
            mean_loss = epoch(data.train, seed, observer, progress)
            is_evaluated = evaluate_every_epoch or run.is_at_last_step(data.train)
            run.finish_epoch(mean_loss, data, is_evaluated=is_evaluated)
            if path is not None and identity is not None and (fabric is None or fabric.global_rank == 0):
                save_checkpoint(path, identity, *run.to_checkpoint(observer))
            if report is not None and is_evaluated:
                report(run.epochs[-1])
        run.restore_best()
        run.constraint.finalize()
    return run.epochs


def _check_training(
    model: nn.Module, recipe: Recipe, path: Path | None, evaluate_every_epoch: bool, copies_state: bool
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
    if copies_state or recipe.patience is not None:
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

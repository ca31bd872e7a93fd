"""Checks before any work that a model can be evaluated, or trained, on a data set."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from prunus.data.examples import Batch, iter_tensors
from prunus.data.validation import count_classes, count_not_finite, unusual_storage
from prunus.errors import DataError, ModelError, NonFiniteError, PrunusError, SpecError, describe_cause
from prunus.modules import check_initialized
from prunus.registry import lookup
from prunus.training.augmentation import AUGMENTATIONS, augment_batch
from prunus.training.evaluation_totals import Totals
from prunus.training.losses import AnyLoss, training_loss
from prunus.training.modes import eval_mode, restored_modes, start_training
from prunus.training.outputs import Forward, call_model
from prunus.training.precision import single_precision
from prunus.training.recipe import Recipe
from prunus.types import Dataset, Split


def check_model(
    model: nn.Module, data: Dataset, *, forward: Forward | None = None, loss: AnyLoss | None = None
) -> None:
    """Raise ModelError unless `model` can be evaluated on `data`; the model is not changed.

    The outputs for two training examples, in evaluation mode, must have a loss; where the labels are classes, they are
    logits of as many classes as the data have.

    Args:
        model: The model, in any mode.
        data: The data set.
        forward: (model, batch) -> outputs; None: the model is called with the inputs.
        loss: As for `mean_loss`.

    Raises:
        ModelError: The model has parameters without values, has tensors but none on the device of the examples,
            fails on them, or does not return such logits.
        StatisticsError: The loss does not fit the outputs and the labels.
    """
    check_initialized(model)
    _check_device(model, data.train.labels.device)
    with unchanged(model), torch.no_grad(), eval_mode(model):
        split = data.train.take(2)
        _checked_loss(model, (split.inputs, split.labels), count_classes(data), forward, loss)


def check_trainable(
    model: nn.Module,
    data: Dataset,
    recipe: Recipe,
    *,
    forward: Forward | None = None,
    loss: AnyLoss | None = None,
    processes: int = 1,
) -> None:
    """Raise ModelError unless `model` can be trained on `data` with `recipe`; the model is not changed.

    In addition to the checks of `check_model`, there must be a parameter to train, parameters must be real and finite
    (NonFiniteError), and the forward pass in training mode must take batches of every size that occurs and return
    outputs whose loss depends on the parameters.

    Args:
        model: The model, in any mode.
        data: The data set, of which two training examples, the number of them all and the classes are used.
        recipe: The recipe, of which `epochs`, `batch_size` and `augmentation` are used; with 0 epochs, the forward pass
            in training mode is not checked.
        forward, loss: As for `check_model`.
        processes: The number of processes that share each batch.

    Raises:
        SpecError: A batch has fewer examples than there are processes, or labels are smoothed for a loss that prunus
            does not compute.
        ModelError: A check of `check_model` fails, no parameter is to be trained, a parameter is complex, the forward
            pass fails in training mode, or no gradient reaches a parameter.
        NonFiniteError: A parameter has an entry that is NaN or infinite.
        DataError: The augmentation or the recipe's memory order does not take the inputs.
    """
    check_initialized(model)
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable:
        raise ModelError(
            f"Expected {type(model).__name__} to have a parameter to train, but none has requires_grad = True; "
            "unfreeze some with module.requires_grad_(True)."
        )
    for name, parameter in model.named_parameters():
        if parameter.is_complex():
            raise ModelError(
                f"Expected real parameters, but {name!r} is {parameter.dtype}; prunus trains real networks only."
            )
        bad = count_not_finite(parameter.detach())
        if bad:
            raise NonFiniteError(
                f"Expected finite parameters, but {bad} of {parameter.numel()} entries of {name!r} are NaN or infinite."
            )
    check_model(model, data, forward=forward, loss=loss)
    with unchanged(model), torch.enable_grad(), restored_modes(model), single_precision(model):
        start_training(model)
        sizes = _part_sizes(recipe, data.train, processes) if recipe.epochs else set()
        for n in sorted({min(2, size) for size in sizes}, reverse=True):
            try:
                batch = _first_batch(data.train, recipe, n)
                value = _checked_loss(
                    model, batch, count_classes(data), forward, loss, recipe.label_smoothing
                )
            except ModelError as error:
                if n > 1:
                    raise
                raise ModelError(
                    f"{len(data.train)} examples in batches of batch_size = {recipe.batch_size} leave a batch of one "
                    f"example, which {type(model).__name__} does not take in training mode "
                    f"({describe_cause(error.__cause__ or error)}); choose another batch_size."
                ) from error
            if not value.requires_grad:
                raise ModelError(
                    f"Expected the output of {type(model).__name__} to depend on its trainable parameters, but no "
                    "gradient reaches them; is the forward pass under torch.no_grad, or all that it uses frozen?"
                )


def check_tensor_state(model: nn.Module) -> None:
    """Raise ModelError if the `state_dict` holds anything but tensors, and cannot be copied or written."""
    check_initialized(model)
    other = [name for name, value in model.state_dict().items() if not isinstance(value, Tensor)]
    if other:
        raise ModelError(
            f"Expected a state_dict of tensors alone, but {other[0]!r} is the extra state of a module "
            "(get_extra_state), which prunus neither copies nor writes; make it a buffer, or return a tensor."
        )


def check_dense_state(model: nn.Module) -> None:
    """Raise ModelError if the `state_dict` holds anything but dense tensors, which a checkpoint cannot hold."""
    check_tensor_state(model)
    for name, tensor in model.state_dict().items():
        kind = unusual_storage(tensor)
        if kind is not None:
            raise ModelError(
                f"Expected a state_dict of dense tensors, but {name!r} is a {kind} tensor, which prunus does not "
                "write; make it dense, or a buffer with persistent=False."
            )


def checked_forward(model: nn.Module, batch: Batch, forward: Forward | None = None) -> object:
    """The output of `model` for a batch, as `call_model` computes it.

    Args:
        model: The model, in the mode in which it is to be called.
        batch: Inputs [B, ...] with or without labels, on the device of the model.
        forward: (model, batch) -> outputs; None: the model is called with the inputs.

    Returns:
        Whatever the model returned.

    Raises:
        ModelError: The forward pass failed. Errors of prunus and errors about lack of memory are raised as they are.
    """
    try:
        return call_model(model, batch, forward)
    except (torch.OutOfMemoryError, MemoryError, PrunusError):
        raise
    except (Exception, SystemExit) as error:  # a user's forward may fail in any way
        first = next(iter_tensors(batch))
        parameter = next(model.parameters(), first)
        hint = "; pass a model for inputs of this shape and type"
        if parameter.is_floating_point() and first.is_floating_point() and parameter.dtype != first.dtype:
            hint = f"; its parameters are {parameter.dtype}, convert them with model.to({first.dtype})"
        raise ModelError(
            f"{type(model).__name__} failed on a batch {list(first.shape)} of {first.dtype}: "
            f"{describe_cause(error)}{hint}."
        ) from error


def _part_sizes(recipe: Recipe, split: Split, processes: int) -> set[int]:
    """The numbers of examples that are computed at once in an epoch."""
    n, size = len(split), recipe.batch_size
    batches = {min(n, size), n % size or size}
    shares = [share for batch in batches for share in torch.arange(batch).tensor_split(processes)]
    parts = {len(part) for share in shares for part in torch.split(share, recipe.micro_batch_size or size)}
    if 0 in parts:
        raise SpecError(
            f"Expected at least one example of each batch for each of the {processes} processes, got {n} examples in "
            f"batches of {size}, which leave a batch of {min(batches)}; choose another batch_size."
        )
    return parts


def _first_batch(split: Split, recipe: Recipe, n: int) -> tuple[Tensor, Tensor]:
    augment: Callable[..., Tensor] = lookup("augmentation", AUGMENTATIONS, recipe.augmentation)
    split = split.take(n)
    inputs = split.inputs
    if recipe.channels_last and inputs.dim() != 4:
        raise DataError(
            f"Expected images [B, C, H, W] for channels_last, got inputs of shape {list(inputs.shape)}; leave it out "
            "of the recipe."
        )
    return augment_batch(augment, inputs, 0, 0, 0), split.labels


def _checked_loss(
    model: nn.Module,
    batch: Batch,
    num_classes: int,
    forward: Forward | None,
    loss: AnyLoss | None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """The loss of a batch, after a check that it and the outputs can be evaluated."""
    output = checked_forward(model, batch, forward)
    Totals(model, loss, None, num_classes).add(batch, output)
    return training_loss(model, output, batch, loss, label_smoothing)


def _check_device(model: nn.Module, device: torch.device) -> None:
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    if devices and device not in devices:
        raise ModelError(
            f"Expected {type(model).__name__} on the device of the data, {device}, got "
            f"{', '.join(sorted(map(str, devices)))}; move it with model.to({str(device)!r})."
        )


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Restore buffers (running statistics, for example) and the random streams on leaving."""
    # Sparse and quantized buffers cannot be compared and written everywhere; they are put back as objects only.
    saved = [
        (module, name, buffer, None if buffer is None or unusual_storage(buffer) else buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
    ]
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        with torch.no_grad():
            for module, name, buffer, value in saved:
                if buffer is not None and value is not None and not torch.equal(buffer, value):
                    buffer.copy_(value)
                if isinstance(module._buffers, dict) and module._buffers.get(name) is not buffer:
                    module._buffers[name] = buffer  # a forward pass may have put another tensor there

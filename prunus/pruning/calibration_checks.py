"""Checks of calibration examples and of what a model does with them, with one error for each fault.

inputs of a shape that the model does not take        StatisticsError    `run_forward`
a layer that the forward pass does not reach          ModelError         `check_reached`, `unreached_error`
a layer with zero derivatives on all examples         StatisticsError    `check_nonzero`, `uninformative_error`
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from prunus.data.validation import unusual_storage
from prunus.errors import ModelError, PrunusError, StatisticsError
from prunus.types import MaskDict, Params, Split

T = TypeVar("T")

BATCH_SIZE = 32
"""Examples at a time: the first few reach all layers, except where the forward depends on the data."""


def check_inputs(inputs: object) -> None:
    """Raise StatisticsError unless calibration inputs are one tensor with an example in it."""
    check_is_tensor(inputs)
    assert isinstance(inputs, Tensor)
    if not inputs.dim() or not inputs.numel():
        raise StatisticsError(
            f"Expected calibration inputs with at least one example, got shape {list(inputs.shape)}."
        )


def check_is_tensor(inputs: object, what: str = "calibration inputs") -> None:
    """Raise StatisticsError unless `inputs` are one dense tensor with values.

    Args:
        inputs: What to check.
        what: Its name in the error.

    Raises:
        StatisticsError: They are not.
    """
    if not isinstance(inputs, Tensor):
        raise StatisticsError(
            f"Expected {what} as a tensor [N, ...], got a {type(inputs).__name__}; pass the examples as "
            "one tensor, and wrap a model that takes several in a module that takes one."
        )
    kind = unusual_storage(inputs)
    if kind is not None:
        raise StatisticsError(
            f"Expected {what} as a dense tensor with values, got a {kind} tensor; convert it first, for example with "
            "tensor.to_dense()."
        )


def check_examples(split: Split) -> None:
    """Raise StatisticsError unless a split has dense inputs [N, ...] with one label [N] each."""
    check_is_tensor(split.inputs)
    check_is_tensor(split.labels, "calibration labels")
    if not split.inputs.dim() or not split.labels.dim():
        raise StatisticsError(
            f"Expected calibration inputs [N, ...] with labels [N], got {list(split.inputs.shape)} with "
            f"{list(split.labels.shape)}; add a dimension for the examples."
        )
    if len(split.inputs) != len(split.labels):
        raise StatisticsError(
            f"Expected one label for each calibration input, got {len(split.inputs)} inputs with {len(split.labels)} "
            "labels."
        )


def output_tensors(output: object) -> Iterator[Tensor]:
    """Yield the tensors in an output of a model, also those in mappings and sequences."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from output_tensors(value)
    elif isinstance(output, Sequence) and not isinstance(output, str):
        for value in output:
            yield from output_tensors(value)


def check_is_output(model: nn.Module, output: object) -> None:
    """Raise ModelError unless the output of `model` is one tensor.

    Args:
        model: Named in the error.
        output: What it returned.

    Raises:
        ModelError: It is not one tensor.
    """
    if not isinstance(output, Tensor):
        raise ModelError(
            f"Expected {type(model).__name__} to return logits [B, C], got a {type(output).__name__}; wrap it in a "
            "module whose forward returns the logits alone."
        )


def run_forward(model: nn.Module, inputs: Tensor, forward: Callable[[Tensor], T]) -> T:
    """Pass calibration inputs through a model.

    Args:
        model: Named in the error.
        inputs: A batch.
        forward: Passes a batch through the model.

    Returns:
        What `forward` returns.

    Raises:
        StatisticsError: The forward fails; the error has the shape of the inputs and the reason.
    """
    try:
        return forward(inputs)
    except (PrunusError, torch.OutOfMemoryError):
        raise
    except (Exception, SystemExit) as error:  # a user's forward may fail in any way
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise StatisticsError(
            f"{type(model).__name__} does not take calibration inputs of shape {tuple(inputs.shape)}: {why}"
        ) from error


@torch.enable_grad()
def check_reached(outputs: Callable[[Params, Tensor], Tensor], weights: Params, inputs: Tensor) -> None:
    """Raise ModelError naming the first weight on which no output depends.

    Args:
        outputs: (weights, batch) -> the outputs of the model.
        weights: The weights to check.
        inputs: Calibration inputs [N, ...].

    Raises:
        ModelError: No output depends on a weight.
    """
    leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
    missing = list(leaves)
    for batch in torch.split(inputs, BATCH_SIZE):
        output = outputs(leaves, batch)
        if output.requires_grad:
            gradients = torch.autograd.grad(
                output.sum(), [leaves[name] for name in missing], allow_unused=True
            )
            missing = [name for name, gradient in zip(missing, gradients, strict=True) if gradient is None]
        if not missing:
            return
    raise unreached_error(missing[0])


def unreached_error(name: str) -> ModelError:
    """The error for a weight on which no output depends."""
    return ModelError(
        f"The forward pass of the calibration examples never reached the layer of {name!r}; exclude {name!r}."
    )


def check_nonzero(derivatives: Mapping[str, Tensor], masks: MaskDict, what: str) -> None:
    """Raise StatisticsError naming the first layer with remaining weights whose derivatives are all exactly zero.

    Args:
        derivatives: By name of the weight, of any shape.
        masks: The remaining weights.
        what: The beginning of the sentence, as in "The gradient by".

    Raises:
        StatisticsError: All derivatives of a layer are zero.
    """
    for name, derivative in derivatives.items():
        if masks[name].any() and not derivative.any():
            raise uninformative_error(f"{what} {name!r} is zero on all calibration examples")


def uninformative_error(what: str) -> StatisticsError:
    """The error for a layer about which the examples contain no information, for the reason `what`."""
    return StatisticsError(
        f"{what}, so that its weights cannot be scored; pass other examples, or exclude that name."
    )

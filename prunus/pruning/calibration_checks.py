"""Checks of calibration examples and of what a model does with them, with one error for each fault.

inputs of a shape that the model does not take        StatisticsError    `run_forward`
a layer that the forward pass does not reach          ModelError         `check_reached`, `unreached_error`
a layer with zero derivatives on all examples         StatisticsError    `check_nonzero`, `uninformative_error`
"""

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from prunus.data.examples import Batch, Examples, describe_batch
from prunus.errors import ModelError, PrunusError, StatisticsError, reason_of
from prunus.pruning.masks import check_finite
from prunus.types import MaskDict, Params

T = TypeVar("T")

BATCH_SIZE = 32
"""Examples at a time: the first few reach all layers, except where the forward depends on the data."""


def check_finite_inputs(examples: Examples, name: str, what: str) -> None:
    """Raise NonFiniteError unless the inputs of examples are finite, where they are one tensor.

    Args:
        examples: The examples; floats in a dict may be masks, in which infinity has a meaning.
        name: Name in the error.
        what: The beginning of the sentence.

    Raises:
        NonFiniteError: They are not.
    """
    inputs = examples.batch[0] if isinstance(examples.batch, tuple | list) else examples.batch
    if isinstance(inputs, Tensor):
        check_finite({name: inputs}, what)


def run_forward(model: nn.Module, batch: Batch, forward: Callable[[Batch], T]) -> T:
    """Pass calibration inputs through a model.

    Args:
        model: Named in the error.
        batch: Some examples.
        forward: Passes a batch through the model.

    Returns:
        What `forward` returns.

    Raises:
        StatisticsError: The forward fails; the error has the shape of the inputs and the reason.
    """
    try:
        return forward(batch)
    except (PrunusError, torch.OutOfMemoryError):
        raise
    except (Exception, SystemExit) as error:  # a user's forward may fail in any way
        inputs = batch[0] if isinstance(batch, tuple | list) and len(batch) == 2 else batch
        raise StatisticsError(
            f"{type(model).__name__} does not take calibration inputs of shape {describe_batch(inputs)}: "
            f"{reason_of(error)}"
        ) from error


@torch.enable_grad()
def check_reached(outputs: Callable[[Params, Batch], Tensor], weights: Params, examples: Examples) -> None:
    """Raise an error where outputs depend on no weight, or not on all weights.

    Args:
        outputs: (weights, batch) -> the outputs of the model, or its loss.
        weights: The weights to check.
        examples: The calibration examples.

    Raises:
        StatisticsError: The outputs are constants.
        ModelError: The outputs cannot be differentiated, or no output depends on a weight, the first of which is named.
    """
    leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
    missing, is_constant = list(leaves), True
    for batch in examples.batches(BATCH_SIZE):
        output = outputs(leaves, batch)
        if output.requires_grad:
            is_constant = False
            tensors = [leaves[name] for name in missing]
            try:
                gradients = torch.autograd.grad(output.sum(), tensors, allow_unused=True)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                raise ModelError(
                    f"Expected outputs that can be differentiated by {missing[0]!r}, but that failed "
                    f"({reason_of(error)}); turn off activation checkpointing (torch.utils.checkpoint), which computes "
                    "activations again from other weights."
                ) from error
            missing = [name for name, gradient in zip(missing, gradients, strict=True) if gradient is None]
        if not missing:
            return
    if is_constant:
        raise StatisticsError(
            f"Expected outputs that depend on the weights {list(weights)}, got constants; the forward pass must use "
            "the weights and be differentiable."
        )
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

"""What every look at a network with examples refuses, whoever looks, and in the same words.

inputs of a shape that the network does not take        StatisticsError    `taken`
a layer that the forward pass does not reach            ModelError       `check_reached`, `never_reached`
a layer of which the examples say nothing               StatisticsError    `check_felt`, `says_nothing`
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from prunus.data.validation import unusual_storage
from prunus.errors import ModelError, PrunusError, StatisticsError
from prunus.types import MaskDict, Params

BATCH = 32
"""Examples at a time: the first few reach all layers, save where the data choose the way."""


def check_inputs(inputs: object) -> None:
    """Raise StatisticsError unless calibration inputs are one tensor with an example in it."""
    check_is_tensor(inputs)
    assert isinstance(inputs, Tensor)
    if not inputs.dim() or not inputs.numel():
        raise StatisticsError(f"Calibration inputs of shape {list(inputs.shape)} hold no example.")


def check_is_tensor(inputs: object, what: str = "calibration inputs") -> None:
    """Raise StatisticsError unless `inputs`, which `what` calls in the error, are one dense tensor, with values."""
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


def output_tensors(output: object) -> Iterator[Tensor]:
    """The tensors in what a model returns, in mappings and sequences too."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from output_tensors(value)
    elif isinstance(output, Sequence) and not isinstance(output, str):
        for value in output:
            yield from output_tensors(value)


def check_is_output(model: nn.Module, output: object) -> None:
    """Raise ModelError unless what `model` returned is one tensor."""
    if not isinstance(output, Tensor):
        raise ModelError(
            f"Expected {type(model).__name__} to return logits [B, C], got a {type(output).__name__}; wrap it in a "
            "module whose forward returns the logits alone."
        )


def run_forward(model: nn.Module, inputs: Tensor, forward: Callable[[Tensor], Tensor]) -> Tensor:
    """What `forward`, which passes `inputs` through `model`, answers; StatisticsError where they do not fit it."""
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
def check_reached(answer: Callable[[Params, Tensor], Tensor], weights: Params, inputs: Tensor) -> None:
    """Raise ModelError naming the first of `weights` on which no answer to `inputs` [N, ...] depends."""
    leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
    missing = list(leaves)
    for batch in torch.split(inputs, BATCH):
        answers = answer(leaves, batch)
        if answers.requires_grad:
            sought = [leaves[name] for name in missing]
            slopes = torch.autograd.grad(answers.sum(), sought, allow_unused=True)
            missing = [name for name, slope in zip(missing, slopes, strict=True) if slope is None]
        if not missing:
            return
    raise unreached_error(missing[0])


def unreached_error(name: str) -> ModelError:
    """The error for a weight that no answer depends on."""
    return ModelError(
        f"The forward pass of the calibration examples never reached the layer of {name!r}; exclude that name to "
        "leave it out."
    )


def check_nonzero(found: Mapping[str, Tensor], masks: MaskDict, what: str) -> None:
    """Raise StatisticsError naming the first layer with weights left for which all of `found` is exactly zero.

    `what` begins the sentence, as in "The gradient by".
    """
    for name, derivatives in found.items():
        if masks[name].any() and not derivatives.any():
            raise uninformative_error(f"{what} {name!r} is zero on all calibration examples")


def uninformative_error(what: str) -> StatisticsError:
    """The error for a layer that examples do not tell about, as `what` says."""
    return StatisticsError(
        f"{what}: nothing can be said of its weights; pass other examples, or exclude that name."
    )

"""Call a model of any kind on a batch, and read the outputs and the loss that it returns.

A model may return a tensor, or an object or mapping with `logits`, as those of Hugging Face transformers, whose `loss`
is used where the caller names none.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prunus.data.examples import Batch, inputs_of, labels_of, map_tensors
from prunus.errors import ModelError
from prunus.modules import unwrapped

HALVES = frozenset((torch.float16, torch.bfloat16))

Forward = Callable[[nn.Module, Any], Any]
"""(model, batch) -> outputs."""


def call_model(model: nn.Module, batch: Batch, forward: Forward | None = None) -> object:
    """The outputs of `model` on a batch.

    Without `forward` the model is called with the inputs of the batch (with the entries of a dict by name), and
    floating-point inputs are converted to the dtype of the parameters where these have one dtype. A `forward` receives
    float16 and bfloat16 inputs as float32 where no parameter is in half precision, as they are in training.

    Args:
        model: The model.
        batch: As `prunus.data.examples` describes it.
        forward: (model, batch) -> outputs; None: the model itself.

    Returns:
        Whatever the model returns.

    Raises:
        StatisticsError: A batch of this form needs a `forward`.

    >>> import torch
    >>> call_model(nn.Identity(), (3 * torch.ones(1), torch.zeros(1)))
    tensor([3.])
    """
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    if forward is not None:
        return forward(model, _inputs_in_single_precision(batch) if dtypes and not dtypes & HALVES else batch)
    inputs = inputs_of(batch)
    if len(dtypes) == 1:
        (dtype,) = dtypes
        inputs = map_tensors(lambda t: t.to(dtype) if t.is_floating_point() else t, inputs)
    if not isinstance(inputs, Mapping):
        return model(inputs)
    if "labels" in inputs and not _takes(model, "labels"):
        inputs = {name: value for name, value in inputs.items() if name != "labels"}
    return model(**inputs)


def _inputs_in_single_precision(batch: Batch) -> Batch:
    """A batch whose float16 and bfloat16 inputs are float32; labels stay as they are."""
    labels = labels_of(batch)
    return map_tensors(lambda t: t.float() if t.dtype in HALVES and t is not labels else t, batch)


def _takes(model: nn.Module, name: str) -> bool:
    parameters = inspect.signature(unwrapped(model).forward).parameters.values()
    return any(parameter.name == name or parameter.kind == parameter.VAR_KEYWORD for parameter in parameters)


def output_field(output: object, name: str) -> Tensor | None:
    """A tensor that an output contains.

    Args:
        output: An object with attributes, or a mapping.
        name: Name of the attribute or key.

    Returns:
        The tensor; None where there is none.
    """
    value = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
    return value if isinstance(value, Tensor) else None


def output_tensor(model: nn.Module, output: object) -> Tensor:
    """The one tensor that a model returns, or its `logits`.

    Args:
        model: Named in the error.
        output: What it returned.

    Returns:
        The tensor.

    Raises:
        ModelError: The output is not a tensor and has no logits.
    """
    tensor = output if isinstance(output, Tensor) else output_field(output, "logits")
    if tensor is None:
        raise ModelError(
            f"Expected {type(model).__name__} to return a tensor, or an object with `logits`, got a "
            f"{type(output).__name__}; pass forward=lambda model, batch: ... that returns the logits alone."
        )
    return tensor


def check_logits(model: nn.Module, logits: Tensor, batch_size: int, num_classes: int) -> Tensor:
    """`logits`, which `model` returned.

    Args:
        model: The model, which is named in errors.
        logits: What the forward pass returned.
        batch_size: The number of examples of the batch.
        num_classes: The least number of logits per example.

    Returns:
        The same tensor [B, C].

    Raises:
        ModelError: The output is not a floating-point tensor [B, C] with B equal to `batch_size` and C at least
            `num_classes`.
    """
    kind, expected = type(model).__name__, f"logits [{batch_size}, C] with C at least {num_classes}"
    if logits.ndim != 2 or len(logits) != batch_size or logits.shape[1] < num_classes:
        raise ModelError(
            f"Expected {kind} to return {expected}, one row per example, got {list(logits.shape)}."
        )
    if not logits.is_floating_point():
        raise ModelError(f"Expected {kind} to return floating-point logits, got {logits.dtype}.")
    return logits

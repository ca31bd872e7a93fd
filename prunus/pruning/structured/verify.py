"""Verification: the outputs of a model with channels set to zero are those of the model with the channels removed.

Both are computed in float64, in evaluation mode, on the user's example inputs, with a copy of the model. Random numbers
stand for inputs that are constant, such as zeros, on which few differences would show. All parameters of a channel are
set to zero; buffers are not. Outputs are compared for channels of exact groups; for other
groups they differ, and only their shapes are compared.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from math import isnan
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunus.errors import ModelError, reason_of
from prunus.modules import copied
from prunus.pruning.structured.graph import Inputs, exact_attention, require_tensor
from prunus.pruning.structured.removal import KeptIndices, remove_channels
from prunus.training.modes import eval_mode

Change = Callable[[nn.Module], object]
"""Changes a copy of the model."""
TOLERANCE = 1e-6
"""The tolerance of a difference, relative to the largest output. Some models compute parts in float32."""
LOW_PRECISION_TOLERANCE = 1e-3
"""The tolerance for models that cannot be computed in float64."""


def removal_error(
    model: nn.Module,
    inputs: Inputs,
    kept_indices: KeptIndices,
    attributes: Mapping[str, Mapping[str, Any]],
    edit: Change | None = None,
) -> tuple[float, float]:
    """How far the outputs with channels removed are from those with the channels set to zero.

    Args:
        model: The model; it is not changed.
        inputs: The arguments of its forward.
        kept_indices: The indices that are kept, by tensor and dimension.
        attributes: New values of attributes, by module name.
        edit: Changes the copy after the removal; None: nothing more is changed.

    Returns:
        The largest difference relative to the largest output, infinite where shapes differ, and the tolerance.

    Raises:
        ModelError: The model does not run without the channels.
    """

    def remove(copy: nn.Module) -> None:
        remove_channels(copy, kept_indices, attributes)
        if edit is not None:
            edit(copy)

    return difference_of_outputs(model, inputs, partial(_set_to_zero, kept_indices=kept_indices), remove)


def check_training_mode(
    model: nn.Module,
    inputs: Inputs,
    kept_indices: KeptIndices,
    attributes: Mapping[str, Mapping[str, Any]],
    unused: Sequence[str],
) -> None:
    """Raise ModelError where a model runs in training mode, but not without the channels.

    Args:
        model: The model; it is not changed.
        inputs: The arguments of its forward.
        kept_indices: The indices that are kept, by tensor and dimension.
        attributes: New values of attributes, by module name.
        unused: Names of the parameters that are not used in evaluation mode, for the error.

    Raises:
        ModelError: The model does not run without the channels.
    """
    copy = copied(model).train()
    with torch.no_grad(), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            outputs_of(copy, inputs)
        except Exception:  # it does not take the inputs in training mode, such as one example for BatchNorm
            return
        remove_channels(copy, kept_indices, attributes)
        try:
            outputs_of(copy, inputs)
        except Exception as error:
            raise ModelError(
                f"{type(model).__name__} does not run without the channels in training mode ({reason_of(error)}): "
                f"{unused[0]!r} is not used in evaluation mode, so that its coupling is unknown; name the layers whose "
                "outputs it reads in exclude=."
            ) from error


def difference_of_outputs(
    model: nn.Module, inputs: Inputs, set_to_zero: Change, remove: Change
) -> tuple[float, float]:
    """How far the outputs are from each other after two changes of a copy, one after the other.

    Args:
        model: The model; it is not changed.
        inputs: The arguments of its forward.
        set_to_zero: The first change.
        remove: The second change.

    Returns:
        The largest difference relative to the largest output, infinite where shapes differ, and the tolerance.

    Raises:
        ModelError: The model does not run after the second change.
    """
    copy, inputs = copied(model), _vary(inputs)
    try:
        return _compare(copy.double(), _to_double(inputs), set_to_zero, remove), TOLERANCE
    except RuntimeError:  # a part of the model needs its own dtype
        return _compare(copied(model), inputs, set_to_zero, remove), LOW_PRECISION_TOLERANCE


@torch.no_grad()
def _compare(model: nn.Module, inputs: Inputs, set_to_zero: Change, remove: Change) -> float:
    with eval_mode(model), exact_attention(), _default_dtype_of(model):
        set_to_zero(model)
        expected = outputs_of(model, inputs)
        remove(model)
        try:
            actual = outputs_of(model, inputs)
        except Exception as error:
            raise ModelError(
                f"{type(model).__name__} does not run without the channels ({reason_of(error)}); a size is written out "
                "in its code. Exclude these layers, or pass rewrite=True."
            ) from error
    return largest_difference(expected, actual)


def _set_to_zero(model: nn.Module, kept_indices: KeptIndices) -> None:
    for name, dims in kept_indices.items():
        tensor = require_tensor(model, name)
        if isinstance(tensor, nn.Parameter):
            for dim, indices in dims.items():
                is_removed = torch.ones(tensor.shape[dim], dtype=torch.bool)
                is_removed[indices] = False
                tensor.index_fill_(dim, is_removed.nonzero().flatten().to(tensor.device), 0.0)


def outputs_of(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Copies of the tensors that a model returns.

    Args:
        model: A module.
        inputs: The arguments of its forward.

    Returns:
        The tensors, in the order of the output.
    """
    return [t.clone() for t in pytree.tree_leaves(model(*inputs[0], **inputs[1])) if isinstance(t, Tensor)]


def largest_difference(expected: Sequence[Tensor], actual: Sequence[Tensor]) -> float:
    """The largest difference of outputs, relative to the largest output; infinite where shapes differ.

    Args:
        expected: Outputs of a model.
        actual: Outputs of another model.

    Returns:
        The difference.
    """
    if [t.shape for t in expected] != [t.shape for t in actual]:
        return float("inf")
    return max((_difference(a, b) for a, b in zip(expected, actual, strict=True)), default=0.0)


def _difference(expected: Tensor, actual: Tensor) -> float:
    """The largest difference relative to the largest output; infinite where only one is NaN or infinite."""
    differ = ~((expected == actual) | (expected.isnan() & actual.isnan()))
    if not differ.any():
        return 0.0
    if not (expected.is_floating_point() or expected.is_complex()):
        return float("inf")
    finite = expected[expected.isfinite()].abs()
    scale = max(float(finite.amax()) if len(finite) else 0.0, 1e-30)
    difference = float((expected - actual)[differ].abs().max()) / scale
    return float("inf") if isnan(difference) else difference


def _vary(inputs: Any) -> Any:
    """The inputs with random numbers in place of tensors of equal numbers, whose outputs may be equal by accident."""
    generator = torch.Generator().manual_seed(0)

    def vary(x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.numel() < 2:
            return x
        if (x != x.flatten()[0]).any():
            return x
        return torch.randn(x.shape, generator=generator, dtype=torch.float32).to(x)

    return pytree.tree_map(vary, inputs)


@contextmanager
def _default_dtype_of(model: nn.Module) -> Iterator[None]:
    """New tensors have the dtype of the model inside."""
    before = torch.get_default_dtype()
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), before)
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _to_double(value: Any) -> Any:
    return pytree.tree_map(
        lambda x: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x, value
    )

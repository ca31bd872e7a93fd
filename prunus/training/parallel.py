"""Training on several processes: each has the whole model and data, and computes a part of each batch.

The processes are started by Lightning Fabric. After the backward pass, the gradients are added up over all processes,
so that all optimizers take the same step; constraints then hold in each process as they do in one. Constraints, tied
parameters and unused parameters need nothing special, because the model is not wrapped.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn

from prunus.errors import SpecError

Fabric = Any
"""A `lightning.Fabric`, which only the caller imports."""


def check_fabric(fabric: Fabric, device: torch.device) -> None:
    """Raise SpecError unless the processes of a Fabric are started and can train.

    Args:
        fabric: The Fabric.
        device: Where the model and the data are.

    Raises:
        SpecError: It is no Fabric, its processes are not started, it has a precision of its own, or another device.
    """
    if not all(hasattr(fabric, name) for name in ("world_size", "global_rank", "device", "strategy")):
        raise SpecError(
            f"Expected fabric to be a lightning.Fabric, got a {type(fabric).__name__}; see docs/training.md."
        )
    if fabric.world_size > 1 and not distributed.is_initialized():
        raise SpecError(
            f"Expected a Fabric whose {fabric.world_size} processes are started, got one before fabric.launch(); call "
            "it first."
        )
    precision = fabric.strategy.precision.precision
    if precision != "32-true":
        raise SpecError(
            f"Expected a Fabric without a precision, got {precision!r}; set autocast='bfloat16' or 'float16' in the "
            "recipe."
        )
    if fabric.device != device:
        raise SpecError(
            f"Expected the model and the data on {fabric.device}, the device of this process, got {device}; move them "
            "with model.to(fabric.device) and data.to(fabric.device)."
        )


def check_same(values: Mapping[str, Any]) -> None:
    """Raise SpecError unless these JSON values are equal in all processes.

    Args:
        values: The identity of the training, by name.

    Raises:
        SpecError: The values of a name differ.
    """
    if not distributed.is_initialized():
        return
    texts: list[dict[str, str]] = [{}] * distributed.get_world_size()
    distributed.all_gather_object(texts, {name: json.dumps(value) for name, value in values.items()})
    different = [name for name in values if len({text[name] for text in texts}) > 1]
    if different:
        raise SpecError(
            f"Expected the same training in all {len(texts)} processes, got a different {' and '.join(different)} in "
            "some of them; use the same seeds in each."
        )


def sum_gradients(parameters: Sequence[Tensor], loss: Tensor) -> Tensor:
    """Replace each gradient by its sum over all processes.

    A gradient that is None in all processes stays None.

    Args:
        parameters: The parameters, of which all processes have the same.
        loss: A scalar.

    Returns:
        The sum of the scalars of all processes.
    """
    if not distributed.is_initialized():
        return loss
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    missing = [parameter.grad is None for parameter in trained]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
    count = loss.new_tensor([float(not is_missing) for is_missing in missing])
    flat = [*(gradient.reshape(-1) for gradient in gradients), count, loss.reshape(1)]
    summed = torch.cat(flat)
    distributed.all_reduce(summed)
    *sums, count, total = torch.split(summed, list(map(len, flat)))
    is_used = count.tolist() if any(missing) else [1.0] * len(trained)
    for parameter, gradient, values, used in zip(trained, gradients, sums, is_used, strict=True):
        parameter.grad = gradient.copy_(values.view_as(gradient)) if used else None
    return total.squeeze()


def average_buffers(model: nn.Module) -> None:
    """Replace each floating-point buffer by its mean over all processes.

    A running variance lacks the variance between the means of the processes.
    """
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point() and buffer.numel()]
    if not distributed.is_initialized() or not buffers:
        return
    mean = torch.cat([buffer.reshape(-1) for buffer in buffers])
    distributed.all_reduce(mean)
    mean /= distributed.get_world_size()
    for buffer, values in zip(buffers, torch.split(mean, [b.numel() for b in buffers]), strict=True):
        buffer.copy_(values.view_as(buffer))

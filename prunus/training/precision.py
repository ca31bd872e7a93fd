"""Networks in half precision are float32 while they are trained, and may compute in 16 bits."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

AUTOCAST_DTYPES: dict[str, torch.dtype | None] = {
    "none": None,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@contextmanager
def single_precision(model: nn.Module) -> Iterator[None]:
    """Hold float16 and bfloat16 parameters and buffers as float32 inside; on leaving they are rounded back.

    The updates of a step are too small for the 8 or 11 significant bits of these types.

    Source: Micikevicius et al. 2018, section 3.1.

    >>> layer = nn.Linear(1, 1).half()
    >>> with single_precision(layer):
    ...     layer.weight.dtype
    torch.float32
    >>> layer.weight.dtype
    torch.float16
    """
    halves = [
        t for t in (*model.parameters(), *model.buffers()) if t.dtype in (torch.float16, torch.bfloat16)
    ]
    dtypes = [tensor.dtype for tensor in halves]
    for tensor in halves:
        tensor.grad = None
    _convert(halves, [torch.float32] * len(halves))
    try:
        yield
    finally:
        for tensor in halves:
            tensor.grad = None
        _convert(halves, dtypes)


def _convert(tensors: Sequence[Tensor], dtypes: Sequence[torch.dtype]) -> None:
    """Give tensors other dtypes in place; those that share memory still do so afterwards."""
    groups: dict[tuple[torch.device, int, torch.dtype, torch.dtype], list[Tensor]] = {}
    for tensor, dtype in zip(tensors, dtypes, strict=True):
        address = tensor.untyped_storage().data_ptr() or id(tensor)  # some devices give no address
        groups.setdefault((tensor.device, address, tensor.dtype, dtype), []).append(tensor)
    for (_, _, _, target), group in groups.items():
        if len(group) == 1:
            group[0].data = group[0].data.to(target)
            continue
        storage_values = group[0].new_empty(0).detach().set_(group[0].untyped_storage()).to(target)
        for tensor in group:
            tensor.data = storage_values.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())

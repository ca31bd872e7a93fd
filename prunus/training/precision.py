"""Networks in half precision are float32 while they are trained, and may compute in 16 bits."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

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
        tensor.data = tensor.data.float()
    try:
        yield
    finally:
        for tensor, dtype in zip(halves, dtypes, strict=True):
            tensor.grad = None
            tensor.data = tensor.data.to(dtype)

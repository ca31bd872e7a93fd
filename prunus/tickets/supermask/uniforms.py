"""Uniform random numbers for masks, drawn fast on a CPU, and chunked passes over large tensors.

    u = (v + 1/2) / 2^16, with v the 16-bit integers of NumPy's SFC64, seeded by (seed, index)

Each 64-bit word gives four numbers. u < p holds with probability round(2^16 p) / 2^16, within 2^-17 of p. A draw
depends on (seed, index) only, so the stream has no state to save, and the numbers do not depend on the device.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

STEP = 2.0**-16
CHUNK, GPU_CHUNK = 1 << 17, 1 << 24
"""Entries processed at a time: on a CPU temporaries fit the cache, and counts up to 2^24 are exact in float32."""


class UniformStream:
    """The random numbers of one draw.

    Args:
        seed: Seed of the layer, at least 0.
        index: Index of the draw; may be negative.

    Example:
        >>> UniformStream(seed=0, index=1).fill(torch.empty(3))
        tensor([0.4685, 0.0620, 0.0819])
    """

    def __init__(self, seed: int, index: int) -> None:
        # The entropy of a seed sequence must not be negative.
        sequence = np.random.SeedSequence((seed, 2 * index if index >= 0 else -2 * index - 1))
        self.stream = np.random.SFC64(sequence)

    def fill(self, out: Tensor) -> Tensor:
        """Fill a flat float32 tensor with the next numbers, the midpoints of 2^16 equal intervals of [0, 1]."""
        words = self.stream.random_raw(-(-out.numel() // 4)).astype("<u8", copy=False)
        integers = words.view("<u2")[: out.numel()]
        if out.device.type == "cpu":
            np.multiply(integers, np.float32(STEP), out=out.numpy(), dtype=np.float32)
        else:
            out.copy_(torch.from_numpy(integers.astype(np.float32)) * STEP)
        return out.add_(STEP / 2)


def is_dense_in_memory(tensor: Tensor) -> bool:
    """Return whether the entries fill one contiguous range of memory, in any order, without overlaps.

    Example:
        >>> matrix = torch.ones(4, 6)
        >>> [is_dense_in_memory(tensor) for tensor in (matrix.T, matrix[:, ::2], matrix[:, :1].expand(4, 6))]
        [True, False, False]
    """
    filled = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != filled:
            return tensor.numel() == 0
        filled *= size
    return True


def flat_view(tensor: Tensor) -> Tensor:
    """Return a flat view of a tensor that is dense in memory, in the order of memory.

    Example:
        >>> flat_view(torch.arange(4).view(2, 2).T)
        tensor([0, 1, 2, 3])
    """
    return torch.as_strided(tensor.detach(), (tensor.numel(),), (1,))


def has_layout_of(tensor: Tensor, like: Tensor) -> bool:
    """Return whether two tensors have the same strides, dtype and device.

    Args:
        tensor: A tensor.
        like: The tensor that it is compared with.

    Returns:
        True if strides, dtype and device are equal; shapes are not compared.
    """
    return (tensor.stride(), tensor.dtype, tensor.device) == (like.stride(), like.dtype, like.device)


def laid_out_as(like: Tensor, tensor: Tensor) -> Tensor:
    """Return `tensor`, or a copy of it with the strides, dtype and device of `like`.

    Args:
        like: The tensor that gives the strides, dtype and device; its values are not used.
        tensor: A tensor of the same shape; not modified.

    Returns:
        The tensor itself if it has this layout already.
    """
    return tensor if has_layout_of(tensor, like) else torch.empty_like(like).copy_(tensor)


def aligned_chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield flat views of the same chunk of several tensors that have the same memory layout, chunk after chunk."""
    flat = [flat_view(tensor) for tensor in tensors]
    size = flat[0].numel()
    step = CHUNK if flat[0].device.type == "cpu" else GPU_CHUNK
    for start in range(0, size, step):
        yield tuple(view[start : start + step] for view in flat)

"""Uniform numbers for masks, as fast as a CPU can draw them, and passes over large tensors that stay in its cache.

    u = (v + 1/2) / 2^16,  v of 16 bits of NumPy's SFC64, seeded by (seed, place)

Four numbers a word of 64 bits. u < p holds with probability round(2^16 p) / 2^16: within 2^-17 of p. A draw is a
function of (seed, place), so that nothing need be remembered of the stream, and the same wherever the weights lie.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

STEP = 2.0**-16
PIECE, LARGE_PIECE = 1 << 17, 1 << 24
"""Entries worked on at a time: temporaries are small, and integers up to this many are exact in float32. The
large ones are for a GPU."""


class UniformStream:
    """The stream of one draw.

    >>> UniformStream(seed=0, place=1).fill(torch.empty(3))
    tensor([0.4685, 0.0620, 0.0819])
    """

    def __init__(self, seed: int, place: int) -> None:
        # The entropy of a seed sequence is any number that is not negative.
        sequence = np.random.SeedSequence((seed, 2 * place if place >= 0 else -2 * place - 1))
        self.stream = np.random.SFC64(sequence)

    def fill(self, out: Tensor) -> Tensor:
        """Fill a flat tensor with the next numbers, middles of 2^16 equal steps from 0 to 1; in whole words."""
        words = self.stream.random_raw(-(-out.numel() // 4)).astype("<u8", copy=False)
        drawn = words.view("<u2")[: out.numel()]
        if out.device.type == "cpu":
            np.multiply(drawn, np.float32(STEP), out=out.numpy(), dtype=np.float32)
        else:
            out.copy_(torch.from_numpy(drawn.astype(np.float32)) * STEP)
        return out.add_(STEP / 2)


def is_dense_in_memory(tensor: Tensor) -> bool:
    """Whether the entries fill one stretch of memory, each its own place: what `flat` may be asked for.

    >>> [is_dense_in_memory(tensor) for tensor in (torch.ones(4, 6).T, torch.ones(4, 6)[:, ::2], torch.ones(4, 1).expand(4, 6))]
    [True, False, False]
    """
    filled = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != filled:
            return tensor.numel() == 0
        filled *= size
    return True


def flat_view(tensor: Tensor) -> Tensor:
    """The entries of a tensor without gaps, in the order they lie in memory; shares the memory.

    >>> flat_view(torch.arange(4).view(2, 2).T)
    tensor([0, 1, 2, 3])
    """
    return torch.as_strided(tensor.detach(), (tensor.numel(),), (1,))


def laid_out_as(like: Tensor, tensor: Tensor) -> Tensor:
    """`tensor`, or a copy of it that lies in memory as `like` does."""
    return tensor if tensor.stride() == like.stride() else torch.empty_like(like).copy_(tensor)


def aligned_chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same piece of each of several tensors that lie in memory alike, piece after piece."""
    flats = [flat_view(tensor) for tensor in tensors]
    size = flats[0].numel()
    step = PIECE if flats[0].device.type == "cpu" else LARGE_PIECE
    for start in range(0, size, step):
        yield tuple(one[start : start + step] for one in flats)

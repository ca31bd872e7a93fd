"""From pictures in bytes to normalized inputs."""

from collections.abc import Sequence

import torch
from torch import Tensor


def normalize(pixels: Tensor, top: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(pixels / top - mean) / std, channel by channel.

    `pixels` is uint8 [N, C, H, W] with values 0..top; `mean` and `std` have C entries, in units of `top`.
    Gives float32 of the same shape; rounding (x · std + mean) · top gives the bytes back exactly.

    >>> normalize(torch.tensor([[[[0, 255]]]], dtype=torch.uint8), 255, [0.5], [0.5]).tolist()
    [[[[-1.0, 1.0]]]]
    """
    channels = (1, -1, 1, 1)
    inputs = pixels.to(torch.float32)
    inputs.div_(top)
    inputs.sub_(torch.tensor(mean, dtype=torch.float32).view(channels))
    return inputs.div_(torch.tensor(std, dtype=torch.float32).view(channels))

"""Turn the pixels of a data set into normalized inputs, and divide its training part into training and validation."""

from collections.abc import Sequence

import torch
from torch import Tensor

from prunus.errors import DataError
from prunus.seeds import make_generator
from prunus.types import Split


def normalize(pixels: Tensor, top: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Scale and center pixels channel by channel: (pixels / top - mean) / std.

    Args:
        pixels: uint8 [N, C, H, W] with values in 0..top.
        top: The value of a white pixel.
        mean: One number per channel, in units of `top`.
        std: One number per channel, in units of `top`.

    Returns:
        float32 [N, C, H, W]. Rounding (x · std + mean) · top gives the pixels again exactly.

    Example:
        >>> normalize(torch.tensor([[[[0, 255]]]], dtype=torch.uint8), 255, [0.5], [0.5]).tolist()
        [[[[-1.0, 1.0]]]]
    """
    channels = (1, -1, 1, 1)
    inputs = pixels.to(torch.float32)
    inputs.div_(top)
    inputs.sub_(torch.tensor(mean, dtype=torch.float32, device=pixels.device).view(channels))
    return inputs.div_(torch.tensor(std, dtype=torch.float32, device=pixels.device).view(channels))


def split_indices(num_examples: int, num_validation: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw which examples are for training and which for validation.

    Args:
        num_examples: Number of examples to divide.
        num_validation: Number of validation examples, above 0 and below `num_examples`.
        seed: Seed of the random choice, with the role "split".

    Returns:
        The indices of the training and of the validation examples, int64 and ascending; together each of
        0..num_examples-1 once.

    Raises:
        DataError: `num_validation` is out of range.

    Example:
        >>> train, validation = split_indices(10, 3, seed=0)
        >>> len(train), len(validation), sorted([*train.tolist(), *validation.tolist()]) == list(range(10))
        (7, 3, True)
    """
    if not 0 < num_validation < num_examples:
        raise DataError(
            f"Expected a validation split of 1 to {num_examples - 1} of {num_examples} examples, got {num_validation}."
        )
    order = torch.randperm(num_examples, generator=make_generator(seed, "split"))
    return order[num_validation:].sort().values, order[:num_validation].sort().values


def divide(inputs: Tensor, labels: Tensor, num_validation: int, seed: int) -> tuple[Split, Split]:
    """The training and the validation split of an official training part.

    Args:
        inputs: [N, ...].
        labels: [N].
        num_validation: Number of validation examples.
        seed: As in `split_indices`.

    Returns:
        Two splits that together have each example once.
    """
    train, validation = split_indices(len(labels), num_validation, seed)
    return Split(inputs[train], labels[train]), Split(inputs[validation], labels[validation])

"""Augmentation: random changes of the images of each training batch.

The random numbers of a batch are a function of (seed, epoch, index of the batch), so that no state is kept and a
training that is resumed sees the images that it would have seen. Evaluation uses no augmentation.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from prunus.errors import DataError
from prunus.seeds import make_generator

SHIFT, PAD = 2, 4
"""Pixels: how far `shift` moves an image, and the width of the border that `flip_crop` adds."""

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""(images [B, C, H, W], generator) -> images of the same shape."""


def no_augmentation(images: Tensor, generator: torch.Generator) -> Tensor:
    """The images unchanged.

    Args:
        images: Inputs [B, ...] of any shape.
        generator: Not used.

    Returns:
        `images` itself.
    """
    return images


def shift(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image moved by up to 2 pixels in both directions, with its edge repeated (Simard et al. 2003).

    Args:
        images: The batch [B, C, H, W], on any device; not modified.
        generator: A generator of the CPU, which draws both distances of each image.

    Returns:
        The moved images [B, C, H, W].

    Raises:
        DataError: The inputs do not have four dimensions.
    """
    _check(images)
    return _crop(F.pad(images, (SHIFT,) * 4, mode="replicate"), images.shape, generator)


def flip_crop(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image mirrored with probability 1/2, padded by 4 zeros and cropped (He et al. 2016, section 4.2).

    Args:
        images: The batch [B, C, H, W], on any device; not modified.
        generator: A generator of the CPU, which draws whether each image is mirrored, and where it is cropped.

    Returns:
        The changed images [B, C, H, W].

    Raises:
        DataError: The inputs do not have four dimensions.
    """
    _check(images)
    is_mirrored = torch.rand(len(images), generator=generator) < 0.5
    return _crop(F.pad(images, (PAD,) * 4), images.shape, generator, is_mirrored)


AUGMENTATIONS: dict[str, Augment] = {"none": no_augmentation, "shift": shift, "flip_crop": flip_crop}


def augment_batch(
    augment: Augment, images: Tensor, seed: int, epoch: int, index: int, part: int = 0
) -> Tensor:
    """Augment a batch with the random numbers of its index in the epoch.

    Args:
        augment: A value of `AUGMENTATIONS`.
        images: The batch [B, C, H, W].
        seed: The seed of the training.
        epoch: The number of the epoch, from 0.
        index: The index of the batch in the epoch.
        part: The index of the part of the batch that the images are; 0 for the whole batch.

    Returns:
        The augmented batch.
    """
    if augment is no_augmentation:
        return images
    parts = [part] if part else []
    return augment(images, make_generator(seed, "augmentation", epoch, index, *parts))


def _crop(
    padded: Tensor, shape: torch.Size, generator: torch.Generator, is_mirrored: Tensor | None = None
) -> Tensor:
    """A window of `shape` [B, C, H, W] of each image, or of its mirror image, at a position of its own.

    What is drawn is copied to the device of the images in one transfer, for which the device is not waited for.
    """
    n, channels, height, width = shape
    num_positions = torch.tensor([padded.shape[2] - height + 1, padded.shape[3] - width + 1])
    corner = (torch.rand(n, 2, generator=generator) * num_positions).long()
    first, step = corner[:, 1], torch.ones(n, dtype=torch.int64)
    if is_mirrored is not None:
        first = torch.where(is_mirrored, padded.shape[3] - 1 - first, first)
        step = 1 - 2 * is_mirrored.long()
    positions = torch.stack([corner[:, 0], first, step]).to(padded.device, non_blocking=True)
    upper, first, step = positions[:, :, None]
    rows = upper + torch.arange(height, device=padded.device)
    columns = first + step * torch.arange(width, device=padded.device)
    image, channel = torch.arange(n, device=padded.device), torch.arange(channels, device=padded.device)
    return padded[
        image[:, None, None, None], channel[:, None, None], rows[:, None, :, None], columns[:, None, None, :]
    ]


def _check(images: Tensor) -> None:
    if images.dim() != 4:
        raise DataError(
            f"Expected images [B, C, H, W] to augment, got inputs of shape {list(images.shape)}; choose the "
            "augmentation none."
        )

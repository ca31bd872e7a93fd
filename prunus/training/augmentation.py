"""Augmentation: other pictures of the same things, drawn anew for every batch.

The draws of a batch are a function of (seed, epoch, place in the epoch), so that no state need be kept, and a training
that is resumed sees the pictures it would have seen. Nothing is drawn while evaluating.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from prunus.errors import DataError
from prunus.seeds import make_generator

SHIFT, PAD = 2, 4
"""Pixels: how far `shift` moves a picture, and how wide a border `flip_crop` crops from."""

Augment = Callable[[Tensor, torch.Generator], Tensor]


def no_augmentation(pictures: Tensor, draw: torch.Generator) -> Tensor:
    """The pictures as they are."""
    return pictures


def shift(pictures: Tensor, draw: torch.Generator) -> Tensor:
    """Each picture moved by up to 2 pixels both ways, its edge repeated where it comes in (Simard et al. 2003)."""
    _check(pictures)
    return _crop(F.pad(pictures, (SHIFT,) * 4, mode="replicate"), pictures.shape, draw)


def flip_crop(pictures: Tensor, draw: torch.Generator) -> Tensor:
    """Each picture mirrored or not, and cropped from a border of 4 zeros (He et al. 2016, section 4.2)."""
    _check(pictures)
    mirrored = torch.rand(len(pictures), generator=draw).to(pictures.device) < 0.5
    flipped = torch.where(mirrored[:, None, None, None], pictures.flip(3), pictures)
    return _crop(F.pad(flipped, (PAD,) * 4), pictures.shape, draw)


AUGMENTATIONS: dict[str, Augment] = {"none": no_augmentation, "shift": shift, "flip_crop": flip_crop}


def augment_batch(augment: Augment, pictures: Tensor, seed: int, epoch: int, place: int) -> Tensor:
    """A batch after `augment`, with the draws of its place in the epoch."""
    return pictures if augment is no_augmentation else augment(pictures, stream(seed, epoch, place))


def stream(seed: int, epoch: int, place: int) -> torch.Generator:
    """What a batch draws from."""
    return make_generator(seed, "augmentation", epoch, place)


def _crop(wide: Tensor, shape: torch.Size, draw: torch.Generator) -> Tensor:
    """A window of `shape` [B, C, H, W] out of every picture, at a place of its own."""
    n, channels, height, width = shape
    room = torch.tensor([wide.shape[2] - height + 1, wide.shape[3] - width + 1])
    corner = (torch.rand(n, 2, generator=draw) * room).long().to(wide.device)
    rows = corner[:, 0, None] + torch.arange(height, device=wide.device)
    columns = corner[:, 1, None] + torch.arange(width, device=wide.device)
    picture, channel = torch.arange(n, device=wide.device), torch.arange(channels, device=wide.device)
    return wide[
        picture[:, None, None, None],
        channel[:, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]


def _check(pictures: Tensor) -> None:
    if pictures.dim() != 4:
        raise DataError(
            f"Augmentation is for pictures [B, C, H, W]; these inputs have the shape {tuple(pictures.shape)}."
        )

"""Which examples are in which batch: a function of (seed, epoch), so that no state has to be stored.

batches(n, b, seed, epoch) = randperm(n; seed, "order", epoch) cut into pieces of b
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from prunus.data.image_folder import ImageFiles
from prunus.errors import DataError
from prunus.seeds import make_generator
from prunus.types import Split


def batch_indices(n: int, batch_size: int, seed: int, epoch: int) -> tuple[Tensor, ...]:
    """The batches of an epoch as indices of examples.

    Args:
        n: Number of examples, at least 1.
        batch_size: Examples per batch, at least 1; the last batch may be smaller.
        seed: Seed of the order, with the role "order".
        epoch: Each epoch has another order.

    Returns:
        int64 tensors that together are a permutation of 0..n-1.

    Raises:
        DataError: `n` or `batch_size` is below 1.

    Example:
        >>> [len(batch) for batch in batch_indices(10, 4, seed=0, epoch=0)]
        [4, 4, 2]
    """
    if n < 1 or batch_size < 1:
        raise DataError(
            f"Expected at least 1 example and a batch_size of at least 1, got {n} examples and batch_size={batch_size}."
        )
    return torch.split(torch.randperm(n, generator=make_generator(seed, "order", epoch)), batch_size)


def iter_batches(
    split: Split, batch_size: int, seed: int, epoch: int, skip: int = 0, rank: int = 0, processes: int = 1
) -> Iterator[tuple[Tensor, Tensor]]:
    """Iterate over the batches of an epoch.

    Args:
        split: The examples.
        batch_size: Examples per batch.
        seed: As in `batch_indices`.
        epoch: As in `batch_indices`.
        skip: How many batches to leave out at the beginning.
        rank, processes: Of images that are read from files, only this part of the inputs of a batch, of several.

    Yields:
        Inputs [B, ...] and labels [B] int64 on the device of the split. They are copies: changing them does not change
        the split.

    Raises:
        DataError: A file cannot be read as an image.
    """
    if isinstance(split, ImageFiles):
        batches = batch_indices(len(split), batch_size, seed, epoch)[skip:]
        crops = (make_generator(seed, "crop", epoch, i) for i in range(skip, skip + len(batches)))
        yield from split.batches(batches, crops, rank, processes)
        return
    order = torch.cat(batch_indices(len(split), batch_size, seed, epoch)).to(split.labels.device)
    for indices in torch.split(order, batch_size)[skip:]:
        yield split.inputs.index_select(0, indices), split.labels.index_select(0, indices)

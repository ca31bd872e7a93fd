"""Which examples make which batch: a function of (seed, epoch), so that no state need be kept.

order(n, b, seed, epoch) = randperm(n; seed, "order", epoch) cut into pieces of b
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from prunus.errors import DataError
from prunus.seeds import make_generator
from prunus.types import Split


def batch_indices(n: int, batch_size: int, seed: int, epoch: int) -> tuple[Tensor, ...]:
    """The batches of an epoch: int64 index tensors of `batch_size`, the last one shorter where it must be.

    Together they are a permutation of 0..n-1, another one each epoch. Raises DataError for n or batch_size
    below 1.

    >>> [len(batch) for batch in batch_indices(10, 4, seed=0, epoch=0)]
    [4, 4, 2]
    """
    if n < 1 or batch_size < 1:
        raise DataError(f"Batches of {batch_size} were asked from {n} examples; both must be at least 1.")
    return torch.split(torch.randperm(n, generator=make_generator(seed, "order", epoch)), batch_size)


def iter_batches(
    split: Split, batch_size: int, seed: int, epoch: int, skip: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """The (inputs, labels) of an epoch's batches from `skip` on, in the order of `order`, on the split's device.

    inputs [b, ...] float32 and labels [b] int64 are copies: changing them leaves the split as it is.
    """
    for chosen in batch_indices(len(split), batch_size, seed, epoch)[skip:]:
        index = chosen.to(split.labels.device)
        yield split.inputs.index_select(0, index), split.labels.index_select(0, index)

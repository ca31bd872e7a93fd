"""Divide an official training part into training and validation."""

import torch
from torch import Tensor

from prunus.errors import DataError
from prunus.seeds import make_generator


def split_indices(n: int, validation: int, seed: int) -> tuple[Tensor, Tensor]:
    """Which of `n` examples train and which validate: two int64 index tensors, each ascending.

    Together they are 0..n-1, each once; `validation` of them, drawn by (seed, "split"), validate.
    Raises DataError unless 0 < validation < n.

    >>> train, validation = split_indices(10, 3, seed=0)
    >>> len(train), len(validation), sorted([*train.tolist(), *validation.tolist()]) == list(range(10))
    (7, 3, True)
    """
    if not 0 < validation < n:
        raise DataError(f"A validation split of {validation} was asked from {n} examples.")
    order = torch.randperm(n, generator=make_generator(seed, "split"))
    return order[validation:].sort().values, order[:validation].sort().values

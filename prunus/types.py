"""The types that packages exchange: tensors by name, data sets, progress.

Names are those of `state_dict`; inputs are never mutated. Density is the fraction of prunable weights that is kept,
0..1; sparsity is 1 - density.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

Params = dict[str, Tensor]
"""Weights by name: float tensors of any shape."""

Scores = dict[str, Tensor]
"""One score per weight, in the shape of the weight tensor; the highest are kept."""

MaskDict = dict[str, Tensor]
"""Boolean tensors in the shape of the weight tensors, True where the weight is kept."""

Density = float | Mapping[str, float]
"""One density for all weights, or one per tensor, by name."""

Progress = Callable[[str, int, int], None]
"""(what, done, total) -> None: called during work that may take long, with how much of it is done."""


IGNORE_INDEX = -100
"""The label of examples that count neither in a loss nor in an accuracy (`ignore_index` of PyTorch)."""


@dataclass(frozen=True)
class Split:
    """One part of a data set, resident as two tensors.

    `inputs` is [N, ...], usually float32 (or integer tokens), `labels` is [N] int64, both on one device. A label is the
    index of a class, or `IGNORE_INDEX`.
    """

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, n: int) -> "Split":
        """The first `n` examples; a view."""
        return Split(self.inputs[:n], self.labels[:n])

    def to(self, device: str) -> "Split":
        """The same split on another device."""
        return Split(self.inputs.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Dataset:
    """A data set in three splits.

    The validation split is for choices, such as when to stop; the test split is evaluated once, at the end.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    class_names: tuple[str, ...]
    provenance: str = ""
    """The source of the data and whether it was verified, for reports."""

    def take(self, train: int, rest: int) -> "Dataset":
        """Take the first examples of each split, for small experiments.

        Args:
            train: Number of training examples.
            rest: Number of examples of each of the other splits.

        Returns:
            A data set of views.
        """
        splits = self.train.take(train), self.validation.take(rest), self.test.take(rest)
        provenance = f"{self.provenance}; the first {train} + {rest} + {rest}"
        return Dataset(self.name, *splits, self.class_names, provenance)

    def to(self, device: str) -> "Dataset":
        """The same data set on another device."""
        splits = (self.train.to(device), self.validation.to(device), self.test.to(device))
        return Dataset(self.name, *splits, self.class_names, self.provenance)


def numel_by_name(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """The number of entries of each tensor, by name."""
    return {name: tensor.numel() for name, tensor in tensors.items()}

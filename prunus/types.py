"""The nouns of prunus. Everything else is a plain function over these.

Names are those of `state_dict`; inputs are never mutated. Density is the share of prunable weights kept,
0..1; sparsity is 1 - density.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

Params = dict[str, Tensor]
"""Weights by name: float tensors of any shape."""

Scores = dict[str, Tensor]
"""A score a weight, of the weight's shape; the highest are kept."""

MaskDict = dict[str, Tensor]
"""Boolean tensors of the weight's shape, True where the weight is kept."""

Density = float | Mapping[str, float]
"""One density for everything that is ranked, or one a tensor, by name."""

Progress = Callable[[str, int, int], None]
"""(what, done, total) -> None: called again and again by work that may take long, with how much of it is done."""


@dataclass(frozen=True)
class ScoringBatch:
    """A network and a batch, to ask how it would answer with other weights."""

    answer: Callable[[Params, Tensor], Tensor]
    """(prunable weights, inputs [B, ...]) -> logits [B, C]; differentiable, in the dtype of the weights."""
    inputs: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Statistics:
    """What a criterion may look at. What it needs and is not given is an StatisticsError."""

    weights: Params
    """The prunable weights as they are now: the final ones, where they have been trained."""
    seed: int = 0
    """For criteria that draw at random."""
    initial: Params | None = None
    """The same weights as the training that made `weights` started from them."""
    masks: MaskDict | None = None
    """What earlier rounds left; None: everything. A criterion that ranks within a layer ranks these alone."""
    probe: ScoringBatch | None = None
    """The network as it was when its prunable weights were `initial`."""
    curvature: Params | None = None
    """The diagonal of the Hessian of the error at `weights`, d²E/dw² of each."""


IGNORE_INDEX = -100
"""The label of examples that count neither in a loss nor in an accuracy (PyTorch's `ignore_index`)."""


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

    The validation split serves every choice; the test split is for one look, at the end.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    class_names: tuple[str, ...]
    provenance: str = ""
    """Where the bytes came from and whether they are the official ones, for reports."""

    def take(self, train: int, rest: int) -> "Dataset":
        """The first `train` training examples and the first `rest` of the other splits, for small experiments."""
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

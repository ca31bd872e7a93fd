"""What every data set must be."""

import torch

from prunus.errors import DataError
from prunus.nouns import Dataset, Split


def checked(dataset: Dataset) -> Dataset:
    """`dataset` itself. Raises DataError if a split is empty, of the wrong types, uneven, or mislabelled."""
    for part in ("train", "validation", "test"):
        fault = _fault(getattr(dataset, part), len(dataset.classes))
        if fault:
            raise DataError(f"The {part} split of {dataset.name} {fault}.")
    shapes = {tuple(split.inputs.shape[1:]) for split in (dataset.train, dataset.validation, dataset.test)}
    if len(shapes) > 1:
        raise DataError(f"The splits of {dataset.name} have inputs of unlike shapes: {sorted(shapes)}.")
    return dataset


def _fault(split: Split, classes: int) -> str:
    """What is wrong with `split`, as the end of a sentence; empty if nothing is."""
    inputs, labels = split.inputs, split.labels
    if inputs.dtype != torch.float32 or labels.dtype != torch.int64:
        return f"is {inputs.dtype} with labels {labels.dtype}, not torch.float32 with torch.int64"
    if labels.ndim != 1 or inputs.ndim < 2 or len(inputs) != len(labels):
        return f"has inputs {tuple(inputs.shape)} with labels {tuple(labels.shape)}, not [N, ...] with [N]"
    if len(labels) == 0:
        return "is empty"
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        return f"has labels {low}..{high}, outside 0..{classes - 1}"
    return ""

"""A pass over the training examples with the sparse backend."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from prunus.data.batches import batch_indices
from prunus.seeds import derive_seed
from prunus.training.augmentation import Augment, augment_batch, no_augmentation
from prunus.training.recipe import learning_rate_at
from prunus.training.state import Observer
from prunus.training.trainer import Trainer, steps_per_epoch
from prunus.types import Progress, Split

if TYPE_CHECKING:
    from prunus.training.sparse.network import SparseNetwork

STEPS_PER_CALL = 50
"""The most steps of one call of the compiled function, after which progress is reported."""
AUGMENTED_BYTES = 4_000_000
"""The most bytes of augmented images that are made at once."""


def train_sparse_epoch(
    training: Trainer,
    network: "SparseNetwork",
    split: Split,
    seed: int,
    observer: Observer | None = None,
    progress: Progress | None = None,
) -> float:
    """Train until the end of the current pass over `split`, as `Trainer.epoch` does with dense tensors.

    The model and its optimizer are up to date whenever the observer is called, and at the end.

    Args:
        training: The training, whose number of steps that are done is advanced.
        network: The network of its model.
        split: The training examples.
        seed: The seed of the training.
        observer: Called after each step for which it is due.
        progress: Called after every `STEPS_PER_CALL` steps, and whenever the observer is called.

    Returns:
        The mean loss over the examples that have a label.
    """
    recipe, size = training.recipe, training.recipe.batch_size
    count = steps_per_epoch(recipe, split)
    number, first = divmod(training.done, count)
    order = torch.cat(batch_indices(len(split), size, seed, number))
    loss, num_labeled = 0.0, 0
    training.constraint.apply()  # between two epochs, a report may have written to the model
    network.load()
    network.load_optimizer(training.optimizer)
    try:
        while first < count:
            last = _last_step(training, split, observer, first, count)
            indices = range(first, last)
            rates = [learning_rate_at(recipe, (number + index / count) / recipe.epochs) for index in indices]
            keys = [
                derive_seed(seed, "dropout", number, index) if network.has_dropout else 0 for index in indices
            ]
            batches = order[first * size : last * size]
            examples = split
            if training.augment is not no_augmentation:
                examples = _augmented(training.augment, split, batches, size, (seed, number, first))
                batches = torch.arange(len(batches))
            sums = network.train(
                recipe, examples.inputs, examples.labels, batches, np.array(rates), np.array(keys, np.uint64)
            )
            loss, num_labeled = loss + sums[0], num_labeled + sums[1]
            training.done += last - first
            first = last
            if observer is not None and observer.is_due(training.done):
                network.store(training.optimizer)
                observer.observe(training)
            if progress is not None:
                progress(f"epoch {number + 1} of {recipe.epochs}", training.done, count * recipe.epochs)
    finally:
        network.store(training.optimizer)
    return loss / num_labeled if num_labeled else 0.0


def _last_step(training: Trainer, split: Split, observer: Observer | None, first: int, count: int) -> int:
    """The step of the epoch before which the next call of the compiled function ends."""
    limit = STEPS_PER_CALL
    if training.augment is not no_augmentation:
        bytes_per_batch = training.recipe.batch_size * split.inputs[0].numel() * 4
        limit = min(limit, max(1, AUGMENTED_BYTES // bytes_per_batch))
    for last in range(first + 1, min(first + limit, count)):
        if observer is not None and observer.is_due(training.done + last - first):
            return last
    return min(first + limit, count)


def _augmented(
    augment: Augment, split: Split, order: Tensor, size: int, start: tuple[int, int, int]
) -> Split:
    """The examples `order` of a split, each batch augmented as in a dense training."""
    seed, epoch, first = start
    inputs = [
        augment_batch(augment, split.inputs.index_select(0, batch), seed, epoch, first + i)
        for i, batch in enumerate(torch.split(order, size))
    ]
    return Split(torch.cat(inputs), split.labels.index_select(0, order))

"""Loss and accuracy of a model on a split, and early stopping from validation losses."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from prunus.data.validation import check_split, count_labeled
from prunus.modules import check_initialized
from prunus.training.checks import check_logits, forward
from prunus.training.modes import eval_mode
from prunus.training.sparse.backend import choose_evaluation_backend
from prunus.types import IGNORE_INDEX, Progress, Split

if TYPE_CHECKING:
    from prunus.training.sparse.network import SparseNetwork


@dataclass(frozen=True)
class Evaluation:
    """Mean cross-entropy in nats, and accuracy in percent, over the `n` examples that have a label."""

    loss: float
    accuracy: float
    n: int

    @property
    def error(self) -> float:
        """100 - accuracy, in percent, without the rounding error of the subtraction: 1.68, not 1.6800000000000068."""
        return round(100.0 - self.accuracy, 10)


@dataclass(frozen=True)
class EpochMetrics:
    """Metrics of one pass over the training split and of the model after it; losses in nats, accuracy in percent."""

    epoch: int
    training_loss: float
    validation_loss: float
    validation_accuracy: float
    backend: str = "dense"
    """What trained: "sparse", "dense", or "dense (REASON)" if the sparse backend was not chosen for that reason."""


@torch.no_grad()
def evaluate(
    model: nn.Module,
    split: Split,
    batch_size: int | None = None,
    *,
    progress: Progress | None = None,
    backend: str = "auto",
) -> Evaluation:
    """Evaluate `model` in evaluation mode; the modes of its modules are restored afterwards.

    Args:
        model: Maps inputs [B, ...] to logits [B, C].
        split: Examples whose label is `IGNORE_INDEX` (-100) count neither in the loss nor in the accuracy nor in `n`.
        batch_size: Examples per forward pass. None: 100 on a CPU, so that the outputs of convolutions stay in its
            caches; 1,000 on other devices.
        progress: Called after every batch with the number of examples that are done.
        backend: "dense" computes with PyTorch, "sparse" with the weights that are not zero, and "auto" takes the faster
            of both by a fixed rule (see `prunus.training.sparse.backend`).

    Returns:
        The mean loss, the accuracy and the number of labeled examples.

    Raises:
        DataError: The split is empty, a label is no class index, or an input is not finite.
        ModelError: The model does not take the inputs, or does not return logits of these classes.
        SpecError: The sparse backend is requested and cannot compute the model.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]])
        >>> evaluate(nn.Identity(), Split(logits, torch.tensor([0, 0, -100]))).accuracy
        50.0
    """
    check_split(split)
    check_initialized(model)
    _, network = choose_evaluation_backend(backend, model, split.inputs)
    if network is not None and int(split.labels.max()) < network.num_classes:
        return evaluate_network(network, split, progress)
    if batch_size is None:
        batch_size = 100 if split.inputs.device.type == "cpu" else 1000
    loss = torch.zeros((), dtype=torch.float64, device=split.labels.device)
    correct = torch.zeros((), dtype=torch.int64, device=split.labels.device)
    num_classes = int(split.labels.max()) + 1
    done = 0
    batches = zip(torch.split(split.inputs, batch_size), torch.split(split.labels, batch_size), strict=True)
    with eval_mode(model):
        for inputs, labels in batches:
            logits = check_logits(model, forward(model, inputs), len(inputs), num_classes)
            loss += F.cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORE_INDEX)
            correct += (logits.argmax(1) == labels).sum()
            done += len(labels)
            if progress is not None:
                progress("evaluation", done, len(split))
    n = count_labeled(split.labels)
    return Evaluation(loss=float(loss) / n, accuracy=100 * int(correct) / n, n=n)


def evaluate_network(network: "SparseNetwork", split: Split, progress: Progress | None = None) -> Evaluation:
    """Evaluate a network of the sparse backend.

    Args:
        network: The network, with its values loaded; it has a logit for each label of the split.
        split: The examples.
        progress: Called once, after all examples.

    Returns:
        The mean loss, the accuracy and the number of labeled examples.
    """
    loss, correct = network.evaluate(split.inputs, split.labels)
    if progress is not None:
        progress("evaluation", len(split), len(split))
    n = count_labeled(split.labels)
    return Evaluation(loss=loss / n, accuracy=100 * correct / n, n=n)


def best_index(losses: Sequence[float]) -> int:
    """The index of the lowest loss, the first of equals.

    >>> best_index([0.3, 0.1, 0.1, 0.2])
    1
    """
    return min(range(len(losses)), key=losses.__getitem__)


def should_stop(losses: Sequence[float], patience: int | None) -> bool:
    """Whether none of the last `patience` losses is below the best loss before them; False if `patience` is None.

    Args:
        losses: The validation loss after each epoch, in the order of the epochs; may be empty.
        patience: The number of epochs without a lower loss, at least 0. None: training never stops early.

    Returns:
        Whether to stop; False for an empty list.

    >>> should_stop([0.3, 0.1, 0.2, 0.1], patience=2), should_stop([0.3, 0.1, 0.2], patience=2)
    (True, False)
    """
    return patience is not None and len(losses) > 0 and len(losses) - 1 - best_index(losses) >= patience

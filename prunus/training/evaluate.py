"""Loss and accuracy of a model on a split."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from prunus.data.validation import check_split, count_labeled
from prunus.modules import check_initialized
from prunus.training.checks import check_logits, forward
from prunus.training.modes import eval_mode
from prunus.types import IGNORE_INDEX, Progress, Split

__all__ = ["EpochMetrics", "Evaluation", "eval_mode", "evaluate"]


@dataclass(frozen=True)
class Evaluation:
    """Mean cross-entropy in nats, and accuracy in percent, over the `n` examples that have a label."""

    loss: float
    accuracy: float
    n: int

    @property
    def error(self) -> float:
        """100 - accuracy, in percent, without the subtraction's noise: 1.68, not 1.6800000000000068."""
        return round(100.0 - self.accuracy, 10)


@dataclass(frozen=True)
class EpochMetrics:
    """What one pass over the training split gave; losses in nats, accuracy in percent."""

    epoch: int
    training_loss: float
    validation_loss: float
    validation_accuracy: float


@torch.no_grad()
def evaluate(
    model: nn.Module, split: Split, batch_size: int | None = None, *, progress: Progress | None = None
) -> Evaluation:
    """Evaluate `model` in evaluation mode; the modes of its modules are restored afterwards.

    Args:
        model: maps inputs [B, ...] to logits [B, C].
        split: examples whose label is `IGNORE_INDEX` (-100) count neither in the loss nor in the accuracy nor in `n`.
        batch_size: examples a forward pass; None: 100 on a CPU, so that what convolutions answer stays in its
            caches; 1,000 on other devices.
        progress: called after every batch with the number of examples that are done.

    Raises DataError (an empty split, labels that are no class indices, inputs that are not finite), ModelError (the
    model does not take the inputs, or does not return logits of these classes).

    >>> logits = torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]])
    >>> evaluate(nn.Identity(), Split(logits, torch.tensor([0, 0, -100]))).accuracy
    50.0
    """
    check_split(split)
    check_initialized(model)
    if batch_size is None:
        batch_size = 100 if split.inputs.device.type == "cpu" else 1000
    loss = torch.zeros((), dtype=torch.float64, device=split.labels.device)
    right = torch.zeros((), dtype=torch.int64, device=split.labels.device)
    num_classes = int(split.labels.max()) + 1
    parts = torch.split(split.inputs, batch_size), torch.split(split.labels, batch_size)
    done = 0
    with eval_mode(model):
        for inputs, labels in zip(*parts, strict=True):
            outputs = check_logits(model, forward(model, inputs), len(inputs), num_classes)
            loss += F.cross_entropy(outputs, labels, reduction="sum", ignore_index=IGNORE_INDEX)
            right += (outputs.argmax(1) == labels).sum()
            done += len(labels)
            if progress is not None:
                progress("evaluation", done, len(split))
    n = count_labeled(split.labels)
    return Evaluation(loss=float(loss) / n, accuracy=100 * int(right) / n, n=n)

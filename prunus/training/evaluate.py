"""Loss and accuracy of a model on a split."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunus.nouns import Progress, Split


@dataclass(frozen=True)
class Evaluation:
    """Mean cross-entropy in nats, and accuracy in percent, over `n` examples."""

    loss: float
    accuracy: float
    n: int

    @property
    def error(self) -> float:
        """100 - accuracy, in percent, without the subtraction's noise: 1.68, not 1.6800000000000068."""
        return round(100.0 - self.accuracy, 10)


@dataclass(frozen=True)
class Epoch:
    """What one pass over the training split gave; losses in nats, accuracy in percent."""

    epoch: int
    training_loss: float
    validation_loss: float
    validation_accuracy: float


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every module is in the mode it had, a frozen BatchNorm too.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2).eval())
    >>> with evaluating(model):
    ...     model.training
    False
    >>> model.training, model[1].training
    (True, False)
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@torch.no_grad()
def evaluate(
    model: nn.Module, split: Split, batch_size: int | None = None, *, progress: Progress | None = None
) -> Evaluation:
    """Evaluate `model` in eval mode; the modes of its modules are restored afterwards.

    Args:
        batch_size: examples a forward pass; None: 100 on a CPU, so that what convolutions answer stays in its
            caches; 1,000 on other devices.
        progress: is told after every batch how many of the examples are done.
    """
    if batch_size is None:
        batch_size = 100 if split.inputs.device.type == "cpu" else 1000
    loss = torch.zeros((), dtype=torch.float64, device=split.labels.device)
    right = torch.zeros((), dtype=torch.int64, device=split.labels.device)
    parts = torch.split(split.inputs, batch_size), torch.split(split.labels, batch_size)
    done, n = 0, len(split)
    with evaluating(model):
        for inputs, labels in zip(*parts, strict=True):
            outputs: Tensor = model(inputs)
            loss += F.cross_entropy(outputs, labels, reduction="sum")
            right += (outputs.argmax(1) == labels).sum()
            done += len(labels)
            if progress is not None:
                progress("evaluation", done, n)
    return Evaluation(loss=float(loss) / n, accuracy=100 * int(right) / n, n=n)

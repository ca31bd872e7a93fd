"""What `evaluate` returns, and the sums over batches that it is made of."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunus.data.examples import Batch, Examples, describe_batch, labels_of
from prunus.data.validation import count_labeled
from prunus.errors import DataError, ModelError, StatisticsError, describe_cause
from prunus.training.losses import LOSSES, AnyLoss, loss_rows, mean_loss
from prunus.training.outputs import check_logits, output_field, output_tensor
from prunus.types import IGNORE_INDEX

MetricFunction = Callable[[Any, Any], Any]
"""(outputs, batch) -> the mean of a metric over the batch; higher is better."""


@dataclass(frozen=True)
class Evaluation:
    """Mean loss, accuracy in percent, and the mean of a metric.

    `n` is the number of labels that count: one per example of a classifier, one per position of a language model or
    a segmentation; where labels are not classes, the accuracy is NaN and `n` the number of examples.
    """

    loss: float
    accuracy: float
    n: int
    metric: float | None = None

    @property
    def error(self) -> float:
        """100 - accuracy, in percent, without the rounding error of the subtraction: 1.68, not 1.6800000000000068."""
        return round(100.0 - self.accuracy, 10)


def score_drop(before: float, after: float) -> float:
    """The decrease of an accuracy or a metric, without the rounding error of the subtraction.

    Args:
        before: The score that is compared with.
        after: The score.

    Returns:
        The difference to 10 decimal places; negative where the score has increased.

    >>> score_drop(98.2, 98.1)  # 98.2 - 98.1 is 0.10000000000000853
    0.1
    """
    return round(before - after, 10)


class Totals:
    """The sums over batches that `evaluate` divides at the end.

    Args:
        model: Named in errors.
        loss: As for `mean_loss`.
        metric: As for `evaluate`.
        num_classes: The least number of logits; 0: the labels of each batch decide.
    """

    def __init__(
        self, model: nn.Module, loss: AnyLoss | None, metric: MetricFunction | None, num_classes: int
    ) -> None:
        self.model, self.loss_function, self.metric, self.num_classes = model, loss, metric, num_classes
        self.loss: float | Tensor = 0.0
        self.correct: int | Tensor = 0
        self.total_metric = 0.0
        self.num_labels = self.num_examples = 0
        self.has_classes = True

    def add(self, batch: Batch, output: object) -> None:
        """Add a batch.

        Args:
            batch: The batch.
            output: What the model returned for it.

        Raises:
            ModelError: The output contains no logits of the labels.
            StatisticsError: The loss does not fit the output.
            DataError: The metric fails.
        """
        size = len(Examples(batch))
        self.num_examples += size
        if self.metric is not None:
            self.total_metric += size * self._metric(batch, output)
        rows = self._class_rows(batch, output)
        weight, total = size, torch.tensor(math.nan)
        if rows is None:
            self.has_classes = False
        else:
            logits, labels = rows
            self.correct = self.correct + (logits.argmax(1) == labels).sum()
            weight = count_labeled(labels)
        self.num_labels += weight
        if self.loss_function is not None or output_field(output, "loss") is not None:
            total = torch.zeros(())
            if weight:
                total = weight * mean_loss(self.model, output, batch, self.loss_function)
        elif rows is not None:
            total = F.cross_entropy(*rows, reduction="sum", ignore_index=IGNORE_INDEX)
        elif self.metric is None:  # raises the error of the labels
            loss_rows(output_tensor(self.model, output), labels_of(batch), LOSSES["cross_entropy"])
        self.loss = self.loss + total.double()

    def _class_rows(self, batch: Batch, output: object) -> tuple[Tensor, Tensor] | None:
        """Logits [M, C] and labels [M]; None where the labels are not classes, or their logits are not known."""
        labels, model_loss = labels_of(batch), output_field(output, "loss")
        if labels is None or labels.dtype != torch.int64:
            return None
        try:
            logits = output_tensor(self.model, output)
            num_classes = self.num_classes or int(labels.max()) + 1
            if labels.ndim == 1:
                check_logits(self.model, logits, len(labels), num_classes)  # its error says more
            rows, flat_labels = loss_rows(logits, labels, LOSSES["cross_entropy"])
            if labels.ndim == 1:
                return rows, labels
            check_logits(self.model, rows, len(flat_labels), num_classes)
        except (ModelError, StatisticsError) as error:
            if not (self.loss_function is None and self.metric is None and model_loss is None):
                return None
            raise error if isinstance(error, ModelError) else ModelError(str(error)) from error
        counted = labels_of_loss(rows, labels, model_loss)
        return None if counted is None else (rows, counted)

    def _metric(self, batch: Batch, output: object) -> float:
        assert self.metric is not None
        try:
            return float(torch.as_tensor(self.metric(output, batch)).double().mean())
        except Exception as error:  # a user's function may fail in any way
            raise DataError(
                f"metric(outputs, batch) failed or returned no number for a batch {describe_batch(batch)}: "
                f"{describe_cause(error)}"
            ) from error

    def evaluation(self) -> Evaluation:
        """The means. Raises DataError where all labels are ignored."""
        if not self.num_labels:
            raise DataError(f"Expected at least one label that is not {IGNORE_INDEX}, got none.")
        accuracy = 100 * int(self.correct) / self.num_labels if self.has_classes else math.nan
        metric = None if self.metric is None else self.total_metric / self.num_examples
        return Evaluation(float(self.loss) / self.num_labels, accuracy, self.num_labels, metric)


def labels_of_loss(rows: Tensor, labels: Tensor, model_loss: Tensor | None) -> Tensor | None:
    """The labels whose cross-entropy is the loss that a model returns.

    A causal language model of Hugging Face transformers compares the logits of a position with the next label.

    Args:
        rows: Logits [M, C] of the M labels.
        labels: Labels of any shape.
        model_loss: The loss that the model returns, a scalar; None: it returns none.

    Returns:
        A label [M] of each row, `IGNORE_INDEX` where none counts; None where the loss is another one.
    """
    candidates = [labels.flatten()]
    if model_loss is None:
        return candidates[0]
    if labels.ndim == 2:
        candidates.append(F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX).flatten())
    tolerance = 1e-2 if model_loss.dtype.itemsize < 4 else 1e-4
    for candidate in candidates:
        loss = F.cross_entropy(rows, candidate, ignore_index=IGNORE_INDEX).double()
        # Both are NaN where all labels are ignored.
        if torch.isclose(loss, model_loss.double(), rtol=tolerance, equal_nan=True):
            return candidate
    return None

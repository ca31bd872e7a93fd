"""Loss, accuracy and other metrics of a model on examples, and early stopping from validation losses."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from prunus.data.examples import Batch, Examples, as_examples, iter_tensors
from prunus.data.image_folder import ImageFiles
from prunus.data.validation import check_split, count_labeled
from prunus.errors import DataError, SpecError, StatisticsError
from prunus.modules import check_initialized
from prunus.registry import check_callbacks
from prunus.training.checks import checked_forward
from prunus.training.evaluation_totals import Evaluation, MetricFunction, Totals
from prunus.training.losses import AnyLoss, find_loss
from prunus.training.modes import eval_mode
from prunus.training.outputs import Forward
from prunus.training.sparse.backend import choose_evaluation_backend
from prunus.types import Dataset, Progress, Split

if TYPE_CHECKING:
    from prunus.training.sparse.network import SparseNetwork


@dataclass(frozen=True)
class EpochMetrics:
    """Metrics of one pass over the training split and of the model after it; losses in nats, accuracy in percent.

    The accuracy is NaN where labels are not classes.
    """

    epoch: int
    training_loss: float
    validation_loss: float
    validation_accuracy: float
    backend: str = "dense"
    """What trained: "sparse", "dense", or "dense (REASON)" if the sparse backend was not chosen for that reason."""


@torch.no_grad()
def evaluate(
    model: nn.Module,
    data: Split | Examples | tuple[Any, ...] | Iterable[Batch],
    batch_size: int | None = None,
    *,
    forward: Forward | None = None,
    loss: str | AnyLoss | None = None,
    metric: MetricFunction | None = None,
    progress: Progress | None = None,
    backend: str = "auto",
) -> Evaluation:
    """Evaluate `model` in evaluation mode; the modes of its modules are restored afterwards.

    Args:
        model: Any module. Labels [B] are compared with logits [B, C], labels [B, T] with [B, T, C], labels [B, H, W]
            with [B, C, H, W].
        data: A Split, a tuple or dict of tensors, or a DataLoader or another iterable of batches, which may differ in
            shape. Labels that are `IGNORE_INDEX` (-100) count neither in the loss nor in the accuracy nor in `n`.
        batch_size: Examples per forward pass, except for an iterable. None: 100 on a CPU, so that the outputs of
            convolutions stay in its caches; 1,000 on other devices; 250 for images that are read from files.
        forward: (model, batch) -> outputs, with a batch (inputs, labels), or as the iterable yields it; None: the model
            is called with the inputs.
        loss: A key of LOSSES, a Loss, or a function (outputs, batch) -> mean loss; None: the loss that the outputs
            contain, else cross-entropy.
        metric: (outputs, batch) -> the mean of a metric over the batch, for tasks without classes.
        progress: Called after every batch with the number of examples that are done.
        backend: "dense" computes with PyTorch, "sparse" with the weights that are not zero, and "auto" takes the faster
            of both by a fixed rule (see `prunus.training.sparse.backend`).

    Returns:
        The mean loss, the accuracy, the number of labels, and the mean of the metric over the examples.

    Raises:
        DataError: There is no example, a label is not a class index, or an input is not finite.
        ModelError: The model does not take the inputs, or does not return logits of these classes.
        StatisticsError: The loss does not fit the outputs or returns no scalar.
        SpecError: `backend` is "sparse", which cannot compute the model or this task.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]])
        >>> evaluate(nn.Identity(), Split(logits, torch.tensor([0, 0, -100]))).accuracy
        50.0
    """
    check_callbacks(progress=progress)
    loss_function = find_loss(loss)
    batches, total, num_classes = _evaluated_batches(
        data, batch_size, loss_function is not None or metric is not None
    )
    check_initialized(model, is_changed=False)
    in_memory = data if isinstance(data, Split) and not isinstance(data, ImageFiles) else None
    if in_memory is not None and in_memory.labels.ndim == 1 and forward is loss_function is metric is None:
        _, network = choose_evaluation_backend(backend, model, in_memory.inputs)
        if network is not None and num_classes <= network.num_classes:
            return evaluate_network(network, in_memory, progress)
    elif backend not in ("auto", "dense"):
        raise SpecError(
            f"Expected backend='dense' with other data than a Split of labels [N], or with forward, loss or metric, "
            f"got {backend!r}."
        )
    totals = Totals(model, loss_function, metric, num_classes)
    with eval_mode(model):
        for batch in batches:
            totals.add(batch, checked_forward(model, batch, forward))
            if progress is not None:
                progress("evaluation", totals.num_examples, total or totals.num_examples)
    return totals.evaluation()


def _evaluated_batches(data: Any, batch_size: int | None, any_task: bool) -> tuple[Iterable[Batch], int, int]:
    """The batches, the number of examples where it is known, and the least number of classes (0: by batch)."""
    if isinstance(data, Dataset):
        check_split(data)  # type: ignore[arg-type]  # it raises an error that names the splits
    if isinstance(data, Split):
        check_split(data, any_labels=any_task)
    if isinstance(data, ImageFiles):
        order = torch.arange(len(data))
        return data.batches(torch.split(order, batch_size or 250)), len(data), int(data.labels.max()) + 1
    if not isinstance(data, Split | Examples | Tensor | tuple | dict):
        return _checked_batches(data), 0, 0
    examples = _as_examples(data)
    targets = examples.labels
    if batch_size is None:
        batch_size = 100 if next(iter_tensors(examples.batch)).device.type == "cpu" else 1000
    num_classes = int(targets.max()) + 1 if targets is not None and targets.dtype == torch.int64 else 0
    return examples.batches(batch_size), len(examples), num_classes


def _checked_batches(data: Iterable[Batch]) -> Iterator[Batch]:
    """The batches of an iterable; DataError where it yields none, or one without examples."""
    empty = True
    for batch in data:
        yield _as_examples(tuple(batch) if isinstance(batch, list) else batch).batch
        empty = False
    if empty:
        raise DataError(
            f"Expected at least one batch to evaluate on, but the {type(data).__name__} yields none; an iterator can "
            "be read only once."
        )


def _as_examples(data: Any) -> Examples:
    try:
        return as_examples(data)
    except StatisticsError as error:
        raise DataError(str(error)) from error


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

"""The mean loss of outputs on a batch, and losses with their derivatives by the outputs.

    squared_error    E = ½ Σ_c (o_c - d_c)²      gradient o - d    Hessian I
    cross_entropy    E = -log p_label            gradient p - d    Hessian diag(p) - p pᵀ,  p = softmax(o)

o outputs, d targets of one row; the loss is the mean over the rows. A row is an example, or, where cross-entropy has
labels [B, T] for outputs [B, T, C] (language models) or [B, H, W] for [B, C, H, W] (segmentation), a label; labels
`IGNORE_INDEX` do not count. A root of the Hessian is a matrix R with R Rᵀ = Hessian; for cross-entropy
R = diag(√p) - p √pᵀ.

Source: LeCun et al. 1990, eq. 8, whose E = Σ (d - x)² is twice ours: saliencies and errors halve together.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunus.data.examples import Batch, labels_of
from prunus.errors import PrunusError, SpecError, StatisticsError, reason_of
from prunus.registry import lookup
from prunus.training.outputs import output_field, output_tensor
from prunus.types import IGNORE_INDEX

LossFunction = Callable[..., Tensor]
"""(outputs, batch) -> the mean loss of the batch, a scalar."""

Derivative = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Loss:
    """A loss with its first and second derivatives by the outputs [B, C]."""

    name: str
    value: Derivative
    """(outputs, targets) -> [B], the error of each row; 0 for an ignored label."""
    gradient: Derivative
    """(outputs, targets) -> [B, C], dE/do."""
    hessian_diagonal: Derivative
    """(outputs, targets) -> [B, C], the diagonal of d²E/do²."""
    hessian_root: Derivative
    """(outputs, targets) -> [B, C, C], R with R Rᵀ = d²E/do²."""
    takes_labels: bool
    """Whether targets are labels, int64 [B]; otherwise they are numbers [B, C]."""


AnyLoss = Loss | LossFunction
"""A loss that prunus computes with its derivatives, or a function of the user."""


def _softmax_gradient(outputs: Tensor, labels: Tensor) -> Tensor:
    return outputs.softmax(1) - F.one_hot(labels, outputs.shape[1]).to(outputs.dtype)


def _softmax_hessian_diagonal(outputs: Tensor, labels: Tensor) -> Tensor:
    p = outputs.softmax(1)
    return p * (1 - p)


def _softmax_hessian_root(outputs: Tensor, labels: Tensor) -> Tensor:
    p = outputs.softmax(1)
    return torch.diag_embed(p.sqrt()) - p.unsqueeze(2) * p.sqrt().unsqueeze(1)


LOSSES: dict[str, Loss] = {
    "squared_error": Loss(
        "squared_error",
        value=lambda outputs, targets: (outputs - targets).square().sum(1) / 2,
        gradient=lambda outputs, targets: outputs - targets,
        hessian_diagonal=lambda outputs, targets: torch.ones_like(outputs),
        hessian_root=lambda outputs, targets: torch.diag_embed(torch.ones_like(outputs)),
        takes_labels=False,
    ),
    "cross_entropy": Loss(
        "cross_entropy",
        value=lambda outputs, labels: F.cross_entropy(outputs, labels, reduction="none"),
        gradient=_softmax_gradient,
        hessian_diagonal=_softmax_hessian_diagonal,
        hessian_root=_softmax_hessian_root,
        takes_labels=True,
    ),
}


def find_loss(loss: str | AnyLoss | None) -> AnyLoss | None:
    """The loss of a name in LOSSES; other values as they are. Raises UnknownNameError where there is none."""
    return lookup("loss", LOSSES, loss) if isinstance(loss, str) else loss


def mean_loss(model: nn.Module, output: object, batch: Batch, loss: AnyLoss | None = None) -> Tensor:
    """The mean loss of what `model` returned for a batch.

    Args:
        model: Named in errors.
        output: What it returned.
        batch: What it was called on.
        loss: A Loss, applied to the outputs and the labels of the batch; a function of the output and the batch; None:
            the loss that the output contains, as those of Hugging Face transformers do, else cross-entropy.

    Returns:
        A scalar.

    Raises:
        StatisticsError: The batch has no labels, they do not fit the outputs, or the function returns no scalar.
        ModelError: The output contains no outputs.

    >>> logits = torch.tensor([[[2.0, 0.0], [0.0, 2.0]]])
    >>> mean_loss(nn.Identity(), logits, (logits, torch.tensor([[0, -100]])))
    tensor(0.1269)
    """
    if loss is None:
        model_loss = output_field(output, "loss")
        if model_loss is not None:
            return model_loss
        loss = LOSSES["cross_entropy"]
    if not isinstance(loss, Loss):
        try:
            value = loss(output, batch)
        except (PrunusError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # a user's function may fail in any way
            raise StatisticsError(
                f"loss(outputs, batch) failed: {type(error).__name__}: {reason_of(error)}"
            ) from error
        if not isinstance(value, Tensor) or value.numel() != 1:
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise StatisticsError(
                f"Expected loss(outputs, batch) to return a scalar tensor, the mean over the batch, got {got}."
            )
        return value.squeeze()
    outputs, targets = loss_rows(output_tensor(model, output), labels_of(batch), loss)
    errors = loss.value(outputs, targets)
    if not loss.takes_labels:
        return errors.mean()
    return errors.sum() / (targets != IGNORE_INDEX).sum().clamp(min=1)


def training_loss(
    model: nn.Module, output: object, batch: Batch, loss: AnyLoss | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """The loss that a step of training makes smaller; NaN where all labels are ignored.

    Args:
        model, output, batch, loss: As for `mean_loss`.
        label_smoothing: The part ε of the target probability that is spread over all C classes: the targets of
            cross-entropy are 1 - ε + ε/C and ε/C (Szegedy et al. 2016, section 7).

    Returns:
        A scalar: without label smoothing that of `mean_loss`, up to rounding.

    Raises:
        StatisticsError, ModelError: As `mean_loss`.
        SpecError: Labels are to be smoothed for another loss than the cross-entropy that prunus computes.
    """
    if loss is not None or output_field(output, "loss") is not None:
        if label_smoothing:
            raise SpecError(
                f"Expected label_smoothing = 0 with a loss of your own, or of the model, got {label_smoothing}; smooth "
                "the labels in that loss."
            )
        return mean_loss(model, output, batch, loss)
    logits, labels = loss_rows(output_tensor(model, output), labels_of(batch), LOSSES["cross_entropy"])
    return F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, label_smoothing=label_smoothing)


def loss_rows(outputs: Tensor, targets: Tensor | None, loss: Loss) -> tuple[Tensor, Tensor]:
    """Outputs [B, C] with targets that a loss compares row by row.

    Labels of three-dimensional outputs belong to [B, T, C] where that fits, else to [B, C, T]; of more dimensions to
    [B, C, H, W] where that fits, else to [B, H, W, C].

    Args:
        outputs: [B, C], or more dimensions.
        targets: Labels, or numbers of the shape of the outputs.
        loss: The loss.

    Returns:
        Outputs [M, C] in float32 or wider, as sums over rows need it, and labels [M], or numbers [M, C].

    Raises:
        StatisticsError: There are no targets, or they do not fit the outputs.

    >>> outputs, labels = loss_rows(torch.zeros(2, 10, 4, 4), torch.zeros(2, 4, 4).long(), LOSSES["cross_entropy"])
    >>> outputs.shape, labels.shape
    (torch.Size([32, 10]), torch.Size([32]))
    """
    if targets is None:
        raise StatisticsError(
            f"Expected labels for the loss {loss.name!r}, got a batch without; pass pairs of inputs and labels, dicts "
            "with 'labels', or loss=lambda output, batch: ..."
        )
    if outputs.dtype.itemsize < 4:  # of a network in half precision, or autocast
        outputs = outputs.float()
    if not loss.takes_labels:
        if outputs.shape == targets.shape and targets.is_floating_point() and outputs.dim():
            return outputs.reshape(len(outputs), -1), targets.reshape(len(targets), -1)
    elif targets.dtype == torch.int64 and targets.dim():
        is_last = outputs.dim() > 1 and outputs.shape[:-1] == targets.shape
        is_second = outputs.dim() > 2 and outputs.shape[:1] + outputs.shape[2:] == targets.shape
        if is_second and (outputs.dim() > 3 or not is_last):
            outputs = outputs.movedim(1, -1)
        if is_last or is_second:
            return outputs.reshape(-1, outputs.shape[-1]), targets.reshape(-1)
    labels = "int64 labels [B], [B, T] or [B, H, W]"
    kind = labels if loss.takes_labels else "numbers of the shape of the outputs"
    raise StatisticsError(
        f"Expected {kind} for the loss {loss.name!r}, got outputs {list(outputs.shape)} and labels "
        f"{list(targets.shape)} of {targets.dtype}; pass others, or loss=lambda output, batch: ..."
    )


def check_labels(outputs: Tensor, labels: Tensor) -> None:
    """Raise StatisticsError unless labels [M] are classes of outputs [M, C] or ignored, and one is not.

    Args:
        outputs: Only the number of classes is used.
        labels: The labels.

    Raises:
        StatisticsError: A label is out of range, or all are ignored.
    """
    classes = labels[labels != IGNORE_INDEX]
    if not len(classes) or int(classes.min()) < 0 or int(classes.max()) >= outputs.shape[1]:
        span = f"from {int(classes.min())} to {int(classes.max())}" if len(classes) else f"all {IGNORE_INDEX}"
        raise StatisticsError(
            f"Expected labels from 0 to {outputs.shape[1] - 1} for outputs of {outputs.shape[1]} classes, or "
            f"{IGNORE_INDEX} where they do not count, got labels {span}."
        )

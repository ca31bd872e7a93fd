"""Distillation: a network is trained on the outputs of another one."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunus.data.examples import Batch, labels_of
from prunus.errors import SpecError, StatisticsError
from prunus.modules import check_module, copied
from prunus.training.evaluation_totals import labels_of_loss
from prunus.training.losses import LOSSES, LossFunction, loss_rows
from prunus.training.outputs import Forward, call_model, output_field, output_tensor
from prunus.types import IGNORE_INDEX


def distillation_loss(
    teacher: nn.Module,
    *,
    temperature: float = 4.0,
    soft_fraction: float = 0.9,
    forward: Forward | None = None,
) -> LossFunction:
    """The loss (1 - a) CE(labels) + a T² CE(softmax(teacher / T)) against labels and the outputs of a trained network.

    Args:
        teacher: The trained network. The loss holds a copy of it in evaluation mode, so that the network itself may be
            the one that is pruned and trained. It must be on the device of the batches.
        temperature: T, by which the logits of both networks are divided in the second term; above 0.
        soft_fraction: a, the weight of the second term, from 0 to 1.
        forward: (model, batch) -> outputs of the teacher, as for `train`.

    Returns:
        A loss (outputs, batch) -> scalar, as `prunus.train`, `prunus.compress` and `prunus.evaluate` take it. Outputs
        are logits [B, C], or [B, T, C] and [B, C, H, W] with a label each; ignored labels do not count. Where the
        outputs contain a loss, as those of Hugging Face transformers do, it is the first term: such a model shifts the
        labels of a language model itself, and the second term is that of the positions that count in the first one.

    Raises:
        SpecError: The temperature or the fraction is out of range.
        ModelError: The teacher is no module, or cannot be copied.

    Example:
        >>> import prunus
        >>> data, model = prunus.load_data("digits"), nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> loss = prunus.distillation_loss(model)
        >>> pruned = prunus.prune(model, 0.2)
        >>> recipe = prunus.Recipe(epochs=1, learning_rate=1e-3, batch_size=128)
        >>> history = prunus.train(model, data, recipe, masks=pruned.masks, loss=loss)

    Source: Hinton, Vinyals & Dean 2015, section 2.
    """
    if not 0 < temperature < float("inf"):
        raise SpecError(f"Expected a temperature above 0, got {temperature}.")
    if not 0 <= soft_fraction <= 1:
        raise SpecError(f"Expected a soft_fraction from 0 to 1, got {soft_fraction}.")
    check_module(teacher)
    teacher = copied(teacher).eval().requires_grad_(requires_grad=False)

    def loss(outputs: object, batch: Batch) -> Tensor:
        with torch.no_grad():
            of_teacher = output_tensor(teacher, call_model(teacher, batch, forward))
        logits, labels = _rows(output_tensor(teacher, outputs), batch)
        targets, _ = _rows(of_teacher, batch)
        own_loss, batch_labels = output_field(outputs, "loss"), labels_of(batch)
        if own_loss is not None and batch_labels is not None:
            counted = labels_of_loss(logits.detach(), batch_labels, own_loss.detach())
            labels = labels if counted is None else counted
        if logits.shape != targets.shape:
            raise StatisticsError(
                f"Expected a teacher with the classes of the network, {logits.shape[1]}, got {targets.shape[1]}; pass "
                "another teacher, or a forward that returns these classes."
            )
        is_counted = labels != IGNORE_INDEX
        if not is_counted.all():
            logits, targets, labels = logits[is_counted], targets[is_counted], labels[is_counted]
        soft = F.cross_entropy(logits / temperature, (targets / temperature).softmax(1))
        hard = F.cross_entropy(logits, labels) if own_loss is None else own_loss
        return (1 - soft_fraction) * hard + soft_fraction * temperature**2 * soft

    return loss


def _rows(outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """The logits [M, C] and the labels [M]."""
    return loss_rows(outputs, labels_of(batch), LOSSES["cross_entropy"])

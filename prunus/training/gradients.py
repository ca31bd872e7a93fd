"""The gradients of a batch as a recipe computes them: in parts, in 16 bits, compiled, on several processes."""

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from prunus.data.validation import count_labeled
from prunus.errors import ModelError, StatisticsError
from prunus.training.checks import checked_forward, unchanged
from prunus.training.evaluation_totals import labels_of_loss
from prunus.training.losses import LOSSES, AnyLoss, loss_rows, training_loss
from prunus.training.modes import eval_mode
from prunus.training.outputs import Forward, call_model, output_field, output_tensor
from prunus.training.parallel import Fabric, sum_gradients
from prunus.training.precision import AUTOCAST_DTYPES
from prunus.training.recipe import Recipe


class Gradients:
    """Computes the gradients of a model on batches, and steps an optimizer with them."""

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        forward: Forward | None = None,
        loss: AnyLoss | None = None,
        fabric: Fabric | None = None,
    ) -> None:
        """Store the settings; nothing is compiled until the first batch.

        Args:
            model: The model.
            recipe: The recipe, of which `label_smoothing`, `micro_batch_size`, `autocast`, `channels_last` and
                `compile` are used.
            forward, loss, fabric: As for `prunus.train`.
        """
        self.model, self.recipe, self.forward, self.loss, self.fabric = model, recipe, forward, loss, fabric
        self.network: nn.Module = torch.compile(model) if recipe.compile else model  # type: ignore[assignment]
        self.device = next(model.parameters()).device.type
        self._shifts_labels: bool | None = None
        self.dtype = AUTOCAST_DTYPES[recipe.autocast]
        self.scaler: torch.amp.GradScaler | None = None
        """Scales the loss in float16, so that small gradients do not become zero (Micikevicius et al. 2018)."""
        if self.dtype == torch.float16:
            self.scaler = torch.amp.GradScaler(self.device)

    @property
    def scale(self) -> float:
        """The factor of the loss in the gradients."""
        return 1.0 if self.scaler is None else self.scaler.get_scale()

    def compute(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Compute the gradients of the mean loss of a batch, times `scale`.

        Args:
            inputs: The batch [B, ...], the same in all processes, each of which computes a part of it; or this part.
            labels: The labels [B, ...], at least one of which counts.

        Returns:
            The mean loss, a scalar without a gradient.
        """
        self.model.zero_grad()
        parts = self._parts(inputs, labels)
        if len(parts) == 1 and self.fabric is None:
            return self._add_gradients(inputs, labels, 1.0)
        num_labels = count_labeled(self.compared_labels(inputs, labels))
        total = torch.zeros((), device=labels.device)
        for part in parts:
            fraction = count_labeled(self.compared_labels(*part)) / num_labels
            if fraction:
                total += self._add_gradients(*part, fraction)
        return total if self.fabric is None else sum_gradients(list(self.model.parameters()), total)

    def compared_labels(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """The labels that count in the loss, unless they are `IGNORE_INDEX`.

        Args:
            inputs: The batch [B, ...].
            labels: Its labels [B, ...].

        Returns:
            `labels`, without the first of each sequence where the model shifts them (see `labels_of_loss`).
        """
        if self.loss is not None or labels.ndim != 2:
            return labels
        if self._shifts_labels is None:
            self._shifts_labels = _shifts_labels(self.model, (inputs[:2], labels[:2]), self.forward)
        return labels[:, 1:] if self._shifts_labels else labels

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Step the optimizer, unless scaled gradients are not finite; then the next scale is lower."""
        if self.scaler is None:
            optimizer.step()
        else:
            self.scaler.step(optimizer)
            self.scaler.update()

    def scaler_state(self) -> Tensor | None:
        """The scale and the number of steps since it was changed [2]; None without scaling."""
        if self.scaler is None:
            return None
        state = self.scaler.state_dict()
        return torch.tensor([state["scale"], state["_growth_tracker"]], dtype=torch.float64)

    def load_scaler_state(self, state: Tensor | None) -> None:
        """Restore what `scaler_state` returned; None changes nothing."""
        if self.scaler is not None and state is not None:
            scale, growth_tracker = state.tolist()
            settings = self.scaler.state_dict()
            self.scaler.load_state_dict({**settings, "scale": scale, "_growth_tracker": int(growth_tracker)})

    def _parts(self, inputs: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The parts of the batch that this process computes, one after another."""
        if self.fabric is not None:
            rank, processes = self.fabric.global_rank, self.fabric.world_size
            if len(inputs) == len(labels):  # otherwise only the part of this process was read
                inputs = inputs.tensor_split(processes)[rank]
            labels = labels.tensor_split(processes)[rank]
        size = self.recipe.micro_batch_size or len(labels)
        return list(zip(torch.split(inputs, size), torch.split(labels, size), strict=True))

    def _add_gradients(self, inputs: Tensor, labels: Tensor, fraction: float) -> Tensor:
        """Add the gradients of the mean loss of a part times its fraction of the labels; returns this product."""
        if self.recipe.channels_last:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        batch = inputs, labels
        with nullcontext() if self.dtype is None else torch.autocast(self.device, self.dtype):
            # A compiled model may fail at a shape that it has not seen; other models were checked before the training.
            call = checked_forward if self.recipe.compile else call_model
            output = call(self.network, batch, self.forward)
            loss = training_loss(self.model, output, batch, self.loss, self.recipe.label_smoothing)
        if fraction != 1:
            loss = loss * fraction
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()  # type: ignore[no-untyped-call]
        return loss.detach()


@torch.no_grad()
def _shifts_labels(model: nn.Module, batch: tuple[Tensor, Tensor], forward: Forward | None) -> bool | None:
    """Whether the loss of a model compares logits with the label of the next position; None: no label counts."""
    labels = batch[1]
    if not count_labeled(labels):
        return None
    with unchanged(model), eval_mode(model):
        output = call_model(model, batch, forward)
    try:
        rows, flat_labels = loss_rows(output_tensor(model, output), labels, LOSSES["cross_entropy"])
    except (ModelError, StatisticsError):
        return False
    compared = labels_of_loss(rows, labels, output_field(output, "loss"))
    return compared is not None and not torch.equal(compared, flat_labels)

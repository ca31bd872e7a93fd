"""Recalibration: set the statistics of BatchNorm to those of weights that were changed without training.

    μ = mean of the layer's inputs,  σ² = Σ (x - μ)² / (n - 1),  over all n = examples × positions of a channel

Batches are merged by count, mean and sum of squares (Chan et al. 1983), so that μ and σ² are those of all examples
together, whatever the batches. PyTorch's cumulative average (momentum None) has the same mean where batches are equal,
and a variance without the part between the batches.

A layer after another BatchNorm receives the outputs that the other has in training, normalized by the statistics of the
batch; in evaluation it receives the same up to the difference between a batch and all examples. With one batch of
all examples there is none. Batches differ in size by one example at most, and none is dropped: a short last batch would
normalize by statistics of few examples.

Source: Wu & Johnson 2021, "Rethinking 'Batch' in BatchNorm", section 3 ("PreciseBN"); of pruned networks Li et al.
2020, "EagleEye", section 3.
Also called: PreciseBN, BatchNorm re-estimation, adaptive batch normalization.
"""

import warnings
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn

from prunus.data.examples import Calibration, Examples, as_examples
from prunus.errors import NoEffectWarning, StatisticsError
from prunus.modules import check_initialized
from prunus.pruning.calibration_checks import check_finite_inputs, run_forward
from prunus.pruning.masks import check_finite
from prunus.pruning.progress import tracked
from prunus.training.modes import eval_mode
from prunus.training.outputs import Forward, call_model
from prunus.types import Progress

BatchNorm = nn.modules.batchnorm._BatchNorm
"""BatchNorm of every dimension, and SyncBatchNorm."""


@torch.no_grad()
def recalibrate_batchnorm(
    model: nn.Module,
    inputs: Calibration,
    batch_size: int = 500,
    *,
    forward: Forward | None = None,
    progress: Progress | None = None,
) -> int:
    """Set the running statistics of every BatchNorm of `model` to those of `inputs`, in place.

    A BatchNorm that the forward pass does not reach is not changed. Warns with NoEffectWarning where none is set.

    Args:
        model: Any module; nothing else of it changes.
        inputs: Examples in any form, on the device of the model, such as those of the training split.
        batch_size: Examples per forward pass, at most.
        forward: (model, batch) -> outputs; None: the model is called with the inputs.
        progress: Called after each batch.

    Returns:
        The number of layers that were set.

    Raises:
        ModelError: Not a module, or a tensor of it has no values.
        StatisticsError: No example, one alone where a layer needs two, a batch size below 1, or a shape that the model
            does not take. The model is not changed.
        NonFiniteError: Inputs of the model or of a layer are not finite. The model is not changed.

    >>> norm = nn.BatchNorm1d(1)
    >>> recalibrate_batchnorm(norm, torch.tensor([[1.0], [2.0], [6.0]])), norm.running_mean, norm.running_var
    (1, tensor([3.]), tensor([7.]))
    """
    check_initialized(model)
    examples = as_examples(inputs)
    if batch_size < 1:
        raise StatisticsError(
            f"Expected a batch size of at least 1 for {len(examples)} examples, got {batch_size}."
        )
    check_finite_inputs(examples, "recalibration", "The inputs for")
    all_moments, num_batches = _collect_moments(model, examples, batch_size, forward, progress)
    check_finite(
        {name: moments.squares for name, moments in all_moments.items()}, "The variance of BatchNorm"
    )
    for name, moments in all_moments.items():
        statistics = dict(model.get_submodule(name).named_buffers())
        statistics["running_mean"].copy_(moments.mean)
        statistics["running_var"].copy_(moments.squares / (moments.n - 1))
        statistics["num_batches_tracked"].fill_(num_batches)
    if not all_moments:
        warnings.warn(
            f"Expected a BatchNorm with running statistics that the forward pass of {type(model).__name__} reaches, "
            "got none, so that nothing is recalibrated.",
            NoEffectWarning,
            stacklevel=3,  # there is a decorator in between
        )
    return len(all_moments)


def _collect_moments(
    model: nn.Module, examples: Examples, batch_size: int, forward: Forward | None, progress: Progress | None
) -> tuple[dict[str, "_Moments"], int]:
    """The moments of the inputs of every BatchNorm that the forward pass reaches, and the number of batches.

    Meanwhile `model` is in evaluation mode, except that BatchNorm normalizes by the batch without tracking it.
    """
    all_moments: dict[str, _Moments] = {}
    batches = examples.equal_batches(batch_size)
    with ExitStack() as stack:
        stack.enter_context(eval_mode(model))
        for name, norm in model.named_modules():
            if isinstance(norm, BatchNorm) and norm.running_mean is not None:
                all_moments[name] = _Moments(name)
                stack.callback(setattr, norm, "track_running_stats", norm.track_running_stats)
                norm.training, norm.track_running_stats = True, False
                hook = all_moments[name].pre_hook
                stack.enter_context(norm.register_forward_pre_hook(hook, with_kwargs=True))
        for batch in tracked(batches if all_moments else [], "batches of the BatchNorm statistics", progress):
            run_forward(model, batch, partial(call_model, model, forward=forward))
    return {name: moments for name, moments in all_moments.items() if moments.n}, len(batches)


class _Moments:
    """Count, mean and sum of squared deviations of each channel of the inputs of one layer, in float64."""

    def __init__(self, name: str) -> None:
        self.name, self.n = name, 0
        self.mean, self.squares = torch.zeros(()), torch.zeros(())

    def pre_hook(self, module: nn.Module, arguments: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        """Add the inputs of a call."""
        self.add(arguments[0] if arguments else named["input"])

    def add(self, inputs: Tensor) -> None:
        """Merge the moments of a batch, [B, C, ...]."""
        n = inputs.numel() // inputs.shape[1]
        if n < 2:
            raise StatisticsError(
                f"Expected more than one value per channel for BatchNorm {self.name!r}, got inputs "
                f"{list(inputs.shape)}, which have no variance; pass more examples, or larger batches."
            )
        dims = [dim for dim in range(inputs.dim()) if dim != 1]
        inputs = inputs if inputs.dtype == torch.float64 else inputs.float()
        variance, mean = (moment.double() for moment in torch.var_mean(inputs, dims, correction=0))
        total, difference = self.n + n, mean - self.mean
        self.squares = self.squares + variance * n + difference**2 * (self.n * n / total)
        self.mean, self.n = self.mean + difference * (n / total), total

"""Recalibration: BatchNorm's statistics, estimated anew for weights that have changed without training.

    μ = mean of what a layer is given,  σ² = Σ (x - μ)² / (n - 1),  over all n = examples × places of a channel

Batches are merged by count, mean and sum of squares (Chan et al. 1983), so that μ and σ² are those of all examples
together, and equal batches, unequal ones and one batch of everything say the same. PyTorch's cumulative average
(momentum None) has the same mean where batches are equal, and a variance without what lies between the batches.

A layer behind another BatchNorm is given what that one answers in training, normalized by the statistics of the batch;
that is what it will be given in evaluation up to the difference between a batch and all examples. With one batch of
everything there is none. Batches differ in size by one example at most, and none is dropped: a short last batch would
normalize by statistics of few.

Source: Wu & Johnson 2021, "Rethinking 'Batch' in BatchNorm", section 3 ("PreciseBN"); of pruned networks Li et al.
2020, "EagleEye", section 3.
Also called: PreciseBN, BatchNorm re-estimation, adaptive batch normalization.
"""

import math
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from prunus.errors import NoEffectWarning, StatisticsError
from prunus.modules import check_module
from prunus.pruning.calibration_checks import check_inputs, run_forward
from prunus.pruning.masks import check_finite
from prunus.types import Progress

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


@torch.no_grad()
def recalibrate_batchnorm(
    model: nn.Module, inputs: Tensor, batch_size: int = 500, *, progress: Progress | None = None
) -> int:
    """Set the running statistics of every BatchNorm of `model` to those of `inputs`, in place; how many were set.

    Args:
        model: any module. All but BatchNorm is in evaluation mode meanwhile; parameters and modes stay as they are.
        inputs: examples [N, ...], on the device of the model, as the training split has them.
        batch_size: examples a forward pass, at most.
        progress: called after each batch.

    A BatchNorm that the forward pass does not reach stays as it is. Warns with NoEffectWarning where none is set.
    Raises ModelError (no module), StatisticsError (no example, one alone where a layer needs two, batches below 1, a
    shape that the model does not take), NonFiniteError (inputs, or what a layer is given); the model is then as it was.

    >>> norm = nn.BatchNorm1d(1)
    >>> recalibrate_batchnorm(norm, torch.tensor([[1.0], [2.0], [6.0]])), norm.running_mean, norm.running_var
    (1, tensor([3.]), tensor([7.]))
    """
    check_module(model)
    check_inputs(inputs)
    if batch_size < 1:
        raise StatisticsError(
            f"Batches of {batch_size} of inputs of shape {list(inputs.shape)} were to be looked at; there must be an "
            "example, and batches of at least one."
        )
    check_finite({"recalibration": inputs}, "The inputs for")
    norms = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, BatchNorm) and module.running_mean is not None
    }
    seen = {name: _Moments(name) for name in norms}
    batches = inputs.tensor_split(math.ceil(len(inputs) / batch_size))
    if norms:
        with _normalizing_by_batch(model, norms.values()):
            handles = [
                m.register_forward_pre_hook(partial(_look, seen[name]), with_kwargs=True)
                for name, m in norms.items()
            ]
            try:
                for number, batch in enumerate(batches, start=1):
                    run_forward(model, batch, model)
                    if progress:
                        progress("batches of the BatchNorm statistics", number, len(batches))
            finally:
                for handle in handles:
                    handle.remove()
    seen = {name: moments for name, moments in seen.items() if moments.n}
    check_finite({name: moments.squares for name, moments in seen.items()}, "The variance of BatchNorm")
    for name, moments in seen.items():
        statistics = dict(norms[name].named_buffers())
        statistics["running_mean"].copy_(moments.mean)
        statistics["running_var"].copy_(moments.squares / (moments.n - 1))
        statistics["num_batches_tracked"].fill_(len(batches))
    if not seen:
        warnings.warn(
            f"{type(model).__name__} has no BatchNorm with running statistics that a forward pass reaches: there is "
            "nothing to recalibrate.",
            NoEffectWarning,
            stacklevel=3,  # a decorator stands between
        )
    return len(seen)


class _Moments:
    """Count, mean and sum of squared deviations of each channel of what one layer was given, in float64."""

    def __init__(self, name: str) -> None:
        self.name, self.n = name, 0
        self.mean, self.squares = torch.zeros(()), torch.zeros(())

    def add(self, given: Tensor) -> None:
        """Merge those of a batch, [B, C, ...]."""
        n = given.numel() // given.shape[1]
        if n < 2:
            raise StatisticsError(
                f"BatchNorm {self.name!r} was given a single value a channel, {list(given.shape)}, which has no "
                "variance; pass more examples, or larger batches."
            )
        dims = [dim for dim in range(given.dim()) if dim != 1]
        given = given if given.dtype == torch.float64 else given.float()
        variance, mean = (found.double() for found in torch.var_mean(given, dims, correction=0))
        total, off = self.n + n, mean - self.mean
        self.squares = self.squares + variance * n + off**2 * (self.n * n / total)
        self.mean, self.n = self.mean + off * (n / total), total


def _look(
    moments: _Moments, module: nn.Module, arguments: tuple[Tensor, ...], named: dict[str, Tensor]
) -> None:
    moments.add(arguments[0] if arguments else named["input"])


@contextmanager
def _normalizing_by_batch(model: nn.Module, norms: Iterable[BatchNorm]) -> Iterator[None]:
    """Evaluation mode but for `norms`, which normalize by the batch and keep nothing of it; then all as it was."""
    modes = {module: module.training for module in model.modules()}
    tracks = {module: module.track_running_stats for module in norms}
    try:
        for module in modes:
            module.training = False
        for norm in tracks:
            norm.training, norm.track_running_stats = True, False
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for norm, track in tracks.items():
            norm.track_running_stats = track

"""`prunus.prune`: prune any module in place, in one call, and report what it costs layer by layer."""

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, Unpack

import torch
from torch import nn

from prunus.data.examples import Calibration, Examples, as_examples, map_tensors, sample_examples
from prunus.errors import DensityError, NoEffectWarning, StatisticsError
from prunus.masks import Masks, all_kept, apply_masks, mask_density
from prunus.modules import check_initialized, uncompiled
from prunus.pruning.methods import CriterionMethod, pruning_method
from prunus.pruning.obs.blocks import hessians_by_block
from prunus.pruning.obs.densities import allocate_densities, error_curves, relative_error_curves
from prunus.pruning.obs.exact_obs import ExactObs
from prunus.pruning.obs.layer_inputs import PassOptions
from prunus.pruning.obs.layer_method import LayerMethod
from prunus.pruning.obs.method import LossMethod, PruningMethod
from prunus.pruning.obs.refit import refit as fit_kept_weights
from prunus.pruning.prune_report import PruneReport, make_report
from prunus.pruning.recalibrate import recalibrate_batchnorm
from prunus.pruning.scopes import Global, Layer, Scope, parse_scope, shapes_of
from prunus.pruning.selection import PruneSelection, select_weights
from prunus.pruning.statistics import DERIVATIVES, Criterion, Statistics
from prunus.pruning.views import layer_view, why_no_layer_inputs
from prunus.pruning.weights import set_weights, with_weights
from prunus.registry import check_callbacks
from prunus.seeds import derive_seed
from prunus.training.losses import Loss, LossFunction, find_loss
from prunus.training.outputs import Forward
from prunus.types import Dataset, Density, MaskDict, Params, Progress, Scores, numel_by_name


@dataclass(frozen=True)
class Pruned:
    """What `prune` returns. `print` shows the report."""

    masks: Masks
    report: PruneReport
    skipped: dict[str, str]
    """{parameter name: why it was not pruned}."""

    @property
    def density(self) -> float:
        """The fraction of the pruned layers' weights that is kept."""
        return self.report.density

    def __str__(self) -> str:
        return str(self.report)

    def __repr__(self) -> str:
        return f"Pruned(density={self.density:.4g}, tensors={len(self.masks)})"


def prune(
    model: nn.Module,
    density: Density,
    *,
    criterion: str | PruningMethod | Criterion | Callable[[Statistics], Scores] | Scores = "magnitude",
    scope: str | Scope | Callable[..., MaskDict] = "layer",
    densities: Literal["error_curves"] | None = None,
    calibration: Calibration | None = None,
    forward: Forward | None = None,
    loss: str | Loss | LossFunction | None = None,
    within: MaskDict | None = None,
    refit: bool = False,
    recalibrate: bool = False,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    strict: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Pruned:
    """Prune `model` in place, without retraining. If an error is raised, nothing is changed.

    Args:
        model: Any module.
        density: The fraction of weights to keep, in (0, 1]: one number, or one per name under a scope that ranks each
            layer alone.
        criterion: A name in `CRITERIA` or `METHODS`, a pruning method or criterion, a function of statistics, or scores
            by name.
        scope: Which weights are ranked together, and the pattern: "layer", "global", "2:4", "1x4", a scope, or a
            function (scores, density, within, seed) -> masks.
        densities: "error_curves" chooses the densities of the layers that minimize the sum of their predicted output
            errors, while all layers together keep `density`; None: the densities follow from `scope` and `density`.
        calibration: Examples, needed by methods that use some: a Dataset, of which the training split is used and the
            validation split to measure the errors of the report; a Split, a tensor, a tuple or a dict of tensors; or
            a DataLoader or another iterable of batches, of which the first examples are used. The selected examples
            are moved to the device of the model.
        forward: (model, batch) -> outputs, with a batch as the loader yields it, or a pair (inputs, labels) of a
            Dataset or Split; None: the model is called with the inputs, or with the entries of a dict by name.
        loss: The loss that methods differentiate: a key of LOSSES, a Loss, or a function (outputs, batch) -> mean
            loss; None: the loss that the outputs contain, as those of Hugging Face transformers, else cross-entropy.
        within: Earlier masks, of all or some of the weights; what they prune stays pruned. Masks of
            torch.nn.utils.prune are earlier masks too.
        refit: Whether to fit the remaining weights of each layer to its outputs before pruning, on the calibration
            examples; layers whose output error is not known keep their weights.
        recalibrate: Whether to estimate the statistics of BatchNorm layers again, on the calibration examples.
        include: Shell patterns of the names of weights to prune. A pattern other than "*" also selects matrices of
            other layers, such as an embedding, and an exact name any parameter; see `prunable_weights`.
        exclude: Shell patterns of the names of weights not to prune.
        strict: Whether a weight that the scope or the method cannot prune is an error: a pattern such as 2:4 that does
            not fit it, or a layer whose output error is not known. Otherwise it is left out, with a warning.
        seed: Seed of the choice of examples, random criteria and ties.
        progress: Called after each step of long work.

    Returns:
        The masks, the report, and why the other parameters were not pruned.

    Raises:
        DensityError: The scope cannot reach the density, or a layer would keep no weight.
        StatisticsError: Examples are missing or do not fit, or an option has no effect on this method.
        ModelError: The model has no prunable weights of this selection, the method cannot prune it, or an earlier mask
            prunes a parameter that is not selected.
        NonFiniteError: Scores or updated weights are not finite.
        SpecError: `progress` is not a function.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> pruned = prune(model, 0.25)
    >>> pruned.report.density, int(sum((layer.weight != 0).sum() for layer in (model[0], model[2])))
    (0.25, 12)
    """
    check_callbacks(progress=progress)
    model = uncompiled(model)
    method, scope = pruning_method(criterion), parse_scope(scope)
    selection = select_weights(model, method, scope, include, exclude, within=within, strict=strict)
    check_prune(method, selection, density, scope, densities)
    check_initialized(model)
    weights, within = selection.weights, selection.within
    check_prune_options(
        method, calibration=calibration, loss=loss, densities=densities, refit=refit, recalibrate=recalibrate,
        forward=forward,
    )  # fmt: skip
    seeds = derive_seed(seed, "prune"), derive_seed(seed, "ties")
    examples, measured = _select_examples(model, calibration, method.num_examples, seeds[0])
    before = {name: weight.detach() for name, weight in weights.items()}
    if not isinstance(method, LayerMethod):  # a function or a method of the user may write over them
        before = {name: weight.clone() for name, weight in before.items()}
    passing: PassOptions = {"forward": forward, "progress": progress}
    start = time.perf_counter()
    if densities == "error_curves" and examples is not None:
        density = densities_from_error_curves(model, before, density, examples, within=within, **passing)
    result = method.prune(
        model, before, density, scope, examples,
        within=within, seeds=seeds, forward=forward, loss=loss, progress=progress,
    )  # fmt: skip
    if refit and examples is not None:
        unknown = why_no_layer_inputs(model, before)
        known = {name: weight for name, weight in before.items() if name not in unknown}
        if known:
            result = fit_kept_weights(model, known, result, examples, **passing)
    seconds = time.perf_counter() - start
    if mask_density(result.masks) == 1.0:
        warnings.warn("Every weight is kept, so nothing is pruned.", NoEffectWarning, stacklevel=2)
    elif not any(before[name][~mask].any() for name, mask in result.masks.items()):
        warnings.warn(
            f"Every pruned weight was zero before, so nothing is pruned: the density {mask_density(result.masks):.3g} "
            "is not below that of the weights; pass a smaller one.",
            NoEffectWarning,
            stacklevel=2,
        )
    recalibrated, num_recalibrated = None, 0
    if recalibrate and examples is not None:
        recalibrated = with_weights(model, result.weights)
        num_recalibrated = recalibrate_batchnorm(recalibrated, examples, forward=forward, progress=progress)
    collect = None if measured is None else partial(hessians_by_block, inputs=measured, **passing)
    report = make_report(
        model, before, result, selection.skipped, collect, num_recalibrated=num_recalibrated, seconds=seconds
    )
    masks = Masks(model, result.masks)  # what it refuses is refused before the model is changed
    set_weights(model, result.weights)
    if recalibrated is not None:
        _copy_buffers(recalibrated, model)
    return Pruned(masks, report, selection.skipped)


def check_prune(
    method: PruningMethod,
    selection: PruneSelection,
    density: Density,
    scope: Scope,
    densities: str | None = None,
) -> None:
    """Raise, before any work, what sizes and densities will raise.

    Args:
        method: The pruning method.
        selection: The weights to prune; only their shapes are used.
        density: The density to reach.
        scope: Which weights are ranked together.
        densities: As for `prune`.

    Raises:
        DensityError: The density cannot be reached, or keeps no weight.
        ModelError: The method cannot prune this many weights together.
    """
    if densities not in (None, "error_curves"):
        raise DensityError(f"Expected densities='error_curves' or None, got {densities!r}.")
    if densities and scope != Layer():
        raise DensityError(
            f"Expected the scope 'layer' with densities='error_curves', which are densities of layers, got "
            f"{scope.name!r}; leave out one of them."
        )
    (Global() if densities else scope).check_not_empty(shapes_of(selection.weights), density)
    selection.check(method, density, scope)


def densities_from_error_curves(
    model: nn.Module,
    weights: Params,
    density: Density,
    calibration: Calibration,
    *,
    within: MaskDict | None = None,
    **options: Unpack[PassOptions],
) -> dict[str, float]:
    """The density of each layer for which the output errors that ExactOBS predicts add up to as little as possible.

    Source: the dynamic program of SPDY (Frantar & Alistarh 2022), with errors relative to the outputs.

    Args:
        model: The network.
        weights: Its weights to prune, by name.
        density: Of all layers together; one number.
        calibration: Examples in any form.
        within: Earlier masks.
        options: See `PassOptions`; progress is reported while rows are scored too.

    Returns:
        {name: density}; all layers together keep at most `density`.

    Raises:
        DensityError: `density` is not one number, or too low.
        StatisticsError, ModelError, NonFiniteError: The layers cannot be examined.
    """
    if isinstance(density, Mapping):
        raise DensityError(
            f"Expected one density for all layers together with densities='error_curves', got {dict(density)}."
        )
    view = layer_view(model, weights)
    viewed, masks = view.weights(weights), view.to_view(within or all_kept(weights))
    state = ExactObs().examiner(view.model, calibration, **options)(apply_masks(viewed, masks), masks)
    curves = relative_error_curves(error_curves(state.scores(), state.masks), state.hessians, viewed)
    allocated = allocate_densities(curves, numel_by_name(viewed), density)
    return {view.model_names[name]: value for name, value in allocated.items()}


def _select_examples(
    model: nn.Module, calibration: Calibration | None, num_examples: int, seed: int
) -> tuple[Examples | None, Examples | None]:
    """Some calibration examples, and those that the errors of the report are measured on, on the model's device."""
    if calibration is None:
        return None, None
    examples = _on_device_of(model, sample_examples(calibration, num_examples, seed))
    if isinstance(calibration, Dataset):
        return examples, _on_device_of(model, as_examples(calibration.validation.take(num_examples)))
    return examples, examples


def _on_device_of(model: nn.Module, examples: Examples) -> Examples:
    """The examples on the device of the model; as they are if its tensors are on several devices."""
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    if len(devices) != 1:
        return examples
    (device,) = devices
    return Examples(map_tensors(lambda tensor: tensor.to(device), examples.batch))


def check_prune_options(
    method: PruningMethod,
    *,
    calibration: Calibration | None = None,
    loss: str | Loss | LossFunction | None = None,
    densities: str | None = None,
    refit: bool = False,
    recalibrate: bool = False,
    forward: Forward | None = None,
) -> None:
    """Raise, before any work, where an option lacks calibration examples, or a loss would have no effect.

    Args:
        method: The pruning method.
        calibration: As for `prune`; only whether there are examples counts.
        loss: As for `prune`.
        densities: As for `prune`.
        refit: As for `prune`.
        recalibrate: As for `prune`.
        forward: As for `prune`.

    Raises:
        StatisticsError: The method or an option needs examples and there are none, or no loss is differentiated.
        UnknownNameError: LOSSES has no loss of that name.
    """
    needing = {
        "densities='error_curves'": densities, "refit=True": refit, "recalibrate=True": recalibrate,
        "forward": forward,
    }  # fmt: skip
    if method.needs_examples and calibration is None:
        raise StatisticsError(
            f"Expected calibration examples for this method ({method.summary.rstrip('.')}), got none; pass "
            "calibration=..."
        )
    for option, is_used in needing.items():
        if is_used and calibration is None:
            raise StatisticsError(
                f"Expected calibration examples for {option}, got none; pass calibration=..."
            )
    if loss is not None and not uses_loss(method):
        raise StatisticsError(
            f"Expected no loss with this method ({method.summary.rstrip('.')}), which differentiates none, got "
            f"{loss!r}; leave it out."
        )
    find_loss(loss)


def uses_loss(method: PruningMethod) -> bool:
    """Whether a method differentiates a loss."""
    if isinstance(method, CriterionMethod):
        return bool(method.criterion.requires & DERIVATIVES.keys())
    return isinstance(method, LossMethod)


@torch.no_grad()
def _copy_buffers(source: nn.Module, target: nn.Module) -> None:
    buffers = dict(source.named_buffers())
    for name, buffer in target.named_buffers():
        if buffer.layout == torch.strided and not torch.equal(buffer, buffers[name]):
            buffer.copy_(buffers[name])

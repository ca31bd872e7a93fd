"""Which weights one call prunes: the prunable ones of the patterns, without those that the method or scope cannot."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from prunus.errors import DensityError, ModelError, NotPrunedWarning
from prunus.masks import all_kept, check_boolean, check_masks
from prunus.pruning.obs.method import PruningMethod
from prunus.pruning.prunable import grouped_by_reason, prunable_weights, skipped_parameters
from prunus.pruning.scopes import Scope
from prunus.pruning.views import LayerView, why_no_layer_inputs
from prunus.pruning.weight_layers import masks_of_torch
from prunus.types import Density, MaskDict, Params


@dataclass(frozen=True)
class PruneSelection:
    """The weights that one call prunes."""

    weights: Params
    """The parameters by name; not copies."""
    skipped: dict[str, str]
    """Why each other parameter is not pruned."""
    within: MaskDict | None
    """The masks of the caller and those of torch.nn.utils.prune; what they prune stays pruned."""
    view: LayerView
    """The view that the method prunes."""

    def check(self, method: PruningMethod, density: Density, scope: Scope) -> None:
        """Raise, before any work, what the sizes of the weights will raise.

        Args:
            method: The pruning method.
            density: The density to reach.
            scope: Which weights are ranked together.

        Raises:
            DensityError: The density cannot be reached.
            ModelError: The method cannot prune this many weights together.
        """
        with self.view.names_of_model():
            method.check(self.view.to_view(self.weights), self.view.density(density), scope)


def select_weights(
    model: nn.Module,
    method: PruningMethod,
    scope: Scope,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    *,
    within: MaskDict | None = None,
    strict: bool = False,
) -> PruneSelection:
    """The weights of `model` that `method` prunes under `scope`.

    Args:
        model: Any module.
        method: The pruning method. One that uses the inputs of layers cannot prune an embedding, for example.
        scope: A pattern such as 2:4 does not fit every layer.
        include: As for `prunable_weights`.
        exclude: As for `prunable_weights`.
        within: Earlier masks; a weight without one is kept as a whole.
        strict: Whether a weight that the method or the scope cannot prune is an error. Otherwise it is left out, with
            a NotPrunedWarning and a reason in `skipped`.

    Returns:
        The weights, and why the others are not pruned.

    Raises:
        NoPrunableWeightsError, TiedWeightsError: As `prunable_weights`.
        ModelError: As `prunable_weights`; the method cannot prune any weight, or, with `strict`, one; an earlier mask
            prunes a parameter that is none of these weights.
        DensityError: The pattern does not fit any of those weights.

    >>> from prunus.pruning.methods import pruning_method
    >>> from prunus.pruning.scopes import NByM
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    >>> select_weights(model, pruning_method("magnitude"), NByM(2, 4), exclude=["1.*"])
    Traceback (most recent call last):
    prunus.errors.DensityError: Expected a weight of Sequential ... (the pattern 2:4 does not fit 3 inputs); ...
    """
    weights = prunable_weights(model, include, exclude)
    if within is not None:
        check_boolean(within)
        within = _by_first_name(model, within)
    unknown: dict[str, str] = {}
    unfit: dict[str, str] = {}
    summary = method.summary.rstrip(".")
    if method.uses_layer_inputs:
        unknown = {name: f"{why} to this method" for name, why in why_no_layer_inputs(model, weights).items()}
        if strict and unknown:
            raise ModelError(
                f"Expected layers whose output errors are known for this method ({summary}), got "
                f"{grouped_by_reason(unknown)}; leave out strict, exclude them, or choose a method that uses weights "
                "or gradients alone, such as magnitude."
            )
    weights = {name: weight for name, weight in weights.items() if name not in unknown}
    view = method.view(model, weights, scope)
    if not strict:
        for name, weight in view.to_view(weights).items():
            if why := scope.why_unfit(tuple(weight.shape)):
                unfit[view.model_names[name]] = why
        weights = {name: weight for name, weight in weights.items() if name not in unfit}
        view = method.view(model, weights, scope)
    reasons = unknown | unfit
    if reasons and not weights:
        raise (DensityError if unfit else ModelError)(
            f"Expected a weight of {type(model).__name__} that this method ({summary}) can prune under the scope "
            f"{scope.name!r}, got {grouped_by_reason(reasons)}; choose another scope, or a method that uses weights or "
            "gradients alone, such as magnitude."
        )
    if reasons:
        warnings.warn(
            f"{type(model).__name__} has weights that are not pruned: {grouped_by_reason(reasons)}; another scope, or "
            "a method that uses weights or gradients alone, such as magnitude, can prune them; exclude them to leave "
            "out this warning.",
            NotPrunedWarning,
            stacklevel=3,
        )
    skipped = skipped_parameters(model, include, exclude) | reasons
    skipped = {name: skipped[name] for name, _ in model.named_parameters() if name in skipped}
    earlier = masks_of_torch(model, weights)
    if within is not None:
        for name, mask in within.items():
            if name not in weights and not mask.all():
                raise ModelError(
                    f"Expected earlier masks of the weights to prune, {list(weights)}, got one of {name!r}, which the "
                    "result would leave out; leave out that mask and keep it yourself, or prune that weight too."
                )
        earlier = {
            name: mask & within[name].to(mask.device) if name in within else mask
            for name, mask in (earlier or all_kept(weights)).items()
        }
    return PruneSelection(weights, skipped, earlier, view)


def _by_first_name(model: nn.Module, masks: MaskDict) -> MaskDict:
    """The masks by the first name of each parameter. Raises ModelError where a mask has no parameter."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    check_masks(parameters, masks)
    first_names = {id(parameter): name for name, parameter in model.named_parameters()}
    by_first_name: MaskDict = {}
    for name, mask in masks.items():
        first = first_names[id(parameters[name])]
        by_first_name[first] = mask & by_first_name.get(first, mask)
    return by_first_name

"""The densities of the pruning rounds of Deep Compression, and the masks of a model that is sparse already."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

from prunus.compression.presets import CompressionRecipe
from prunus.errors import DensityError, NoEffectWarning
from prunus.masks import mask_density
from prunus.pruning.density import densities_by_name
from prunus.pruning.schedules import densities_of
from prunus.pruning.scopes import Scope, parse_scope, shapes_of
from prunus.types import Density, MaskDict, Params


@dataclass(frozen=True)
class DensityPlan:
    """The density of each pruning round, and the masks that those of the first round must be nested in."""

    densities: list[Density]
    within: MaskDict | None = None


def planned_densities(recipe: CompressionRecipe, weights: Params) -> list[Density]:
    """Return the density of each round of `recipe`, before any work and from the shapes of `weights` alone.

    Args:
        recipe: The recipe, of which the scope, the density, the schedule and the number of rounds are used.
        weights: The weights to prune, by name; only their names and shapes are used.

    Returns:
        The density of each round, one number or one per name; the last is that of the recipe.

    Raises:
        DensityError: The scope cannot reach one of the densities, or the last one keeps no weight of a tensor.
        UnknownNameError: The scope or the schedule is unknown.
    """
    scope, shapes = parse_scope(recipe.scope), shapes_of(weights)
    scope.check_not_empty(shapes, recipe.density)
    densities = densities_of(recipe.schedule, recipe.density, recipe.rounds)
    scope.check(shapes, densities)
    return densities


def plan_densities(recipe: CompressionRecipe, weights: Params) -> DensityPlan:
    """Plan the rounds for trained weights, of which those that are zero count as pruned and stay zero.

    Densities above that of the nonzero weights are lowered to it, with a NoEffectWarning for the last round.

    Args:
        recipe: The recipe, of which the scope, the density, the schedule and the number of rounds are used.
        weights: The weights to prune, by name, with their trained values.

    Returns:
        The density of each round, and the masks of the nonzero weights; `within` is None where no weight is zero.

    Raises:
        DensityError: The scope cannot prune within the nonzero weights: a pattern N:M or blocks must fit into them; or
            as `planned_densities`.
        UnknownNameError: The scope or the schedule is unknown.
    """
    densities = planned_densities(recipe, weights)
    masks = {name: weight.detach() != 0 for name, weight in weights.items()}
    if all(bool(mask.all()) for mask in masks.values()):
        return DensityPlan(densities)
    scope, lowered = parse_scope(recipe.scope), densities
    if not scope.has_fixed_density:
        lowered = [_lowered(density, scope, masks) for density in densities]
    try:
        scope.check(shapes_of(weights), lowered, masks)
    except DensityError as error:
        raise DensityError(
            f"{error} Weights that are zero at the start count as pruned: exclude these layers, or prune with scope "
            "'layer'."
        ) from error
    names = [name for name, mask in masks.items() if mask.any()]  # the scope warns of layers without weights
    requested, least = (
        [d[name] if isinstance(d, Mapping) else d for name in names] for d in (densities[-1], lowered[-1])
    )
    if requested != least:
        warnings.warn(
            f"Zeros of the model stay zero and leave density {lowered[-1]}, which is below the requested "
            f"{densities[-1]}: no further weight is pruned there.",
            NoEffectWarning,
            stacklevel=2,
        )
    return DensityPlan(lowered, masks)


def _lowered(density: Density, scope: Scope, masks: MaskDict) -> Density:
    """`density`, or that of the masks where it is smaller."""
    if scope.ranks_layers_together and not isinstance(density, Mapping):
        return min(density, mask_density(masks))
    requested = densities_by_name(density, list(masks))
    # A density is above 0, and a quarter of a weight rounds to none.
    lowered = {
        name: min(requested[name], mask_density({name: mask}) or 0.25 / mask.numel())
        for name, mask in masks.items()
    }
    return density if lowered == requested else lowered

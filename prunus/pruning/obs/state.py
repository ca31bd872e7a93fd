"""Pruning in steps: scores at some weights, masks from a scope, then the update of the remaining weights.

    state = examine(weights, masks)                     compute the curvature at these weights
    masks = scope.select(state.scores(), density, masks)       the highest scores are kept, under any scope
    state = state.prune_to(masks)                       prune the others and update the remaining weights

`prune_in_steps` is the only loop over these three lines. A method without an update is a state whose `prune_to` sets
weights to zero and changes nothing else.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Self

from prunus.errors import DensityError
from prunus.masks import all_kept, apply_masks, are_nested, mask_density
from prunus.pruning.density import densities_by_name, num_to_keep
from prunus.pruning.scopes import Scope
from prunus.seeds import derive_seed
from prunus.types import Density, MaskDict, Params, Scores, numel_by_name


@dataclass(frozen=True)
class PruneResult:
    """Pruned weights, and what the method predicted and took."""

    weights: Params
    """Exactly +0.0 where pruned."""
    masks: MaskDict
    """True where a weight remains."""
    predicted_increase: float = 0.0
    """The predicted increase of the error for all weights pruned so far; NaN where a method predicts none."""
    damping: float = 0.0
    """The largest number that was added to the diagonal of a Hessian so that it can be inverted; 0 where none was."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Seconds per layer, for methods that prune the layers one by one."""
    dampings: Mapping[str, float] = field(default_factory=dict)
    """The last damping of each layer, for methods that have a Hessian of each layer."""


@dataclass(frozen=True, kw_only=True)
class PruningState(PruneResult, ABC):
    """A result that can be pruned further: what a method knows of a network at these weights; a value."""

    @abstractmethod
    def scores(self) -> Scores:
        """One finite score per weight; of the remaining weights the lowest is pruned first."""

    def prune_to(self, masks: MaskDict) -> Self:
        """Prune the weights that `masks` do not keep, and update the others.

        Args:
            masks: Nested in the masks of this state.

        Raises:
            DensityError: `masks` keep a weight that was pruned before.
            NonFiniteError: The update cannot be computed, or leaves the range of the dtype.
        """
        if not are_nested(masks, self.masks):
            raise DensityError(
                "Expected masks nested in those of the state, but they keep a weight that was pruned before; a pruned "
                "weight cannot be restored."
            )
        return self._prune_to({name: masks[name] for name in self.weights})

    @abstractmethod
    def _prune_to(self, masks: MaskDict) -> Self:
        """As `prune_to`, with nested masks in the order of the weights."""


Examine = Callable[[Params, MaskDict], PruningState]
"""(weights, masks) -> the state of a pruning method at these weights."""


def prune_in_steps(
    examine: Examine,
    weights: Params,
    density: Density,
    scope: Scope,
    *,
    within: MaskDict | None = None,
    seed: int = 0,
    num_steps: int | None = 1,
    num_recomputations: int = 1,
) -> PruneResult:
    """Prune `weights` to `density` under `scope`, in steps of equal size.

    Args:
        examine: Computes the state of a pruning method, as `FullObs().examiner(objective)`.
        weights: The weights to prune, by name.
        density: The fraction of all weights to keep; one number, or one per name.
        scope: Which weights are ranked together.
        within: Earlier masks; what they pruned stays pruned. Weights that they prune count as zero.
        seed: Seed of ties.
        num_steps: Number of steps; scores are recomputed before each. None prunes one weight per step (under a scope
            that ranks each layer alone, one weight of each layer as its part falls due).
        num_recomputations: Before how many of the steps, evenly spread, the curvature is computed again.

    Returns:
        The pruned weights with their masks.

    Raises:
        DensityError: A number of steps or recomputations below 1, more steps than weights to prune, or a density that
            the scope cannot reach.
    """
    masks = within or all_kept(weights)
    if num_recomputations < 1 or (num_steps is not None and num_steps < 1):
        raise DensityError(
            f"Expected at least 1 step and 1 recomputation, got {num_steps} steps and {num_recomputations} "
            "recomputations."
        )
    weights = apply_masks(weights, masks)
    densities = intermediate_densities(density, scope, masks, num_steps)
    num_recomputations = min(num_recomputations, len(densities))
    recompute_at = {len(densities) * index // num_recomputations for index in range(num_recomputations)}
    state: PruningState | None = None
    predicted_increase, damping = 0.0, 0.0
    seconds: Counter[str] = Counter()
    for step, target in enumerate(densities):
        if state is None or step in recompute_at:
            state = examine(state.weights if state else weights, masks)
            damping = max(damping, state.damping)
        masks = scope.select(state.scores(), target, masks, derive_seed(seed, "cut", step))
        state = state.prune_to(masks)
        if step + 1 == len(densities) or step + 1 in recompute_at:
            predicted_increase += state.predicted_increase
            seconds.update(state.seconds)
    assert state is not None
    return PruneResult(
        apply_masks(state.weights, masks), masks, predicted_increase, damping, seconds, state.dampings
    )


def intermediate_densities(
    density: Density, scope: Scope, masks: MaskDict, num_steps: int | None
) -> list[Density]:
    """Densities from that of `masks` to `density` in equal steps, the last exactly as given.

    Tensors that differ in density at the start have densities by name, except under the global scope.

    Args:
        density: The last density.
        scope: Under which the densities are selected.
        masks: The masks at the start.
        num_steps: Number of densities; None: as many as weights are pruned.

    Returns:
        One density per step.

    Raises:
        DensityError: More steps than weights to prune, or a density out of range.

    >>> import torch
    >>> from prunus.pruning.scopes import Global
    >>> intermediate_densities(0.5, Global(), {"fc": torch.ones(10, dtype=torch.bool)}, 2)
    [0.75, 0.5]
    """
    targets = densities_by_name(density, list(masks))
    starts = {name: mask_density({name: mask}) for name, mask in masks.items()}
    sizes = numel_by_name(masks)
    uneven = not scope.ranks_layers_together and len(set(starts.values())) > 1
    is_one_number = False
    if not uneven and not isinstance(density, Mapping):
        is_one_number = True
        targets, starts, sizes = {"all": density}, {"all": mask_density(masks)}, {"all": sum(sizes.values())}
    remaining = sum(int(mask.sum()) for mask in masks.values())
    if num_steps is None:
        num_steps = max(1, remaining - sum(num_to_keep(targets[name], size) for name, size in sizes.items()))
    elif num_steps > remaining:
        raise DensityError(f"Expected at most {remaining} steps, one per remaining weight, got {num_steps}.")
    between: list[Density] = []
    for step in range(1, num_steps):
        by_name = {name: start + (targets[name] - start) * step / num_steps for name, start in starts.items()}
        between.append(by_name["all"] if is_one_number else by_name)
    return [*between, density]

"""Surgeons: scores with an optional update of the weights that stay, at the joints where a criterion stands.

    examine(weights, masks)               -> a surgeon            looks at the curvature there
    surgeon.scores()                      -> scores               as a criterion: the highest are kept
    scope(scores, density, within, seed)  -> masks                any scope
    surgeon.keep(masks)                   -> the next surgeon     the rest deleted, what stays moved

A criterion without an update is the surgeon that deletes and moves nothing (`criterion_surgeon`).
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from prunus.errors import DensityError
from prunus.masks import all_kept, apply_masks, mask_density
from prunus.pruning.criteria import Criterion
from prunus.pruning.masks import check_density, densities_by_name, num_to_keep
from prunus.pruning.scopes import Scope, global_
from prunus.seeds import derive_seed
from prunus.types import Density, MaskDict, Params, Scores, Statistics, numel_by_name


class PruningState(Protocol):
    """What is known of a network at some weights; a value, which deleting does not change."""

    @property
    def weights(self) -> Params:
        """The weights as they are now, zero where they are deleted."""

    @property
    def masks(self) -> MaskDict:
        """Which are left."""

    @property
    def predicted(self) -> float:
        """The increase of the error that was foretold for all that this surgeon deleted; NaN: it foretells none."""

    @property
    def damping(self) -> float:
        """What was added to the diagonal of the Hessian so that it can be inverted; 0: it is not inverted."""

    @property
    def seconds(self) -> Mapping[str, float]:
        """What each layer has taken since the look, where layers are pruned one by one; else nothing."""

    def scores(self) -> Scores:
        """A score a weight, finite everywhere; the lowest of those left goes first."""

    def keep(self, masks: MaskDict) -> "PruningState":
        """Delete what `masks`, which lie within its own, do not keep."""


PruningMethod = Callable[[Params, MaskDict], PruningState]
"""(weights, masks) -> a surgeon that has looked at the network with these weights."""


@dataclass(frozen=True)
class PruneResult:
    """What pruning with a surgeon gave."""

    weights: Params
    masks: MaskDict
    predicted: float
    """The increase of the error that was foretold, all cuts together."""
    damping: float
    """The largest that was used."""
    cuts: int
    looks: int
    seconds: Mapping[str, float] = field(default_factory=dict)
    """What each layer took, where layers are pruned one by one."""


class PruneFn(Protocol):
    """Pruning with an update of what stays, at one go: `operate` with a surgeon, or a schedule of its own."""

    def __call__(
        self,
        weights: Params,
        density: Density,
        scope: Scope,
        *,
        within: MaskDict | None = None,
        seed: int = 0,
    ) -> PruneResult:
        """Prune `weights` to `density` under `scope`, which ranks what `within` has left."""


def prune_weights(
    examine: PruningMethod,
    weights: Params,
    density: Density,
    scope: Scope,
    *,
    within: MaskDict | None = None,
    seed: int = 0,
    cuts: int | None = 1,
    looks: int = 1,
) -> PruneResult:
    """Prune `weights` to `density` with a surgeon, under any scope, in some cuts and after some looks.

    Args:
        examine: what to prune with, as `obs(objective)`.
        density, scope, within, seed: as for a scope.
        cuts: in how many steps of equal size the weights are deleted, scores anew before each; None: one weight
            at a time (under a scope that ranks layers alone, one of each layer's as its share falls due).
        looks: before how many of the cuts, evenly spread, the curvature is looked at anew.

    Raises what the surgeon and the scope raise, DensityError for cuts or looks below 1.
    """
    masks = within or all_kept(weights)
    if looks < 1 or (cuts is not None and cuts < 1):
        raise DensityError(f"{cuts} cuts and {looks} looks were asked for; both must be at least 1.")
    weights = apply_masks(weights, masks)
    path = intermediate_densities(density, scope, masks, cuts)
    looks = min(looks, len(path))
    at = {len(path) * look // looks for look in range(looks)}
    surgeon, predicted, damping = None, 0.0, 0.0
    seconds: Counter[str] = Counter()
    for place, target in enumerate(path):
        if surgeon is None or place in at:
            if surgeon:
                predicted += surgeon.predicted
                seconds.update(surgeon.seconds)
            surgeon = examine(surgeon.weights if surgeon else weights, masks)
            damping = max(damping, surgeon.damping)
        masks = scope(surgeon.scores(), target, masks, derive_seed(seed, "cut", place))
        surgeon = surgeon.keep(masks)
    assert surgeon is not None
    seconds.update(surgeon.seconds)
    foretold = predicted + surgeon.predicted
    # Exactly +0.0 where pruned, whatever the surgeon left there.
    return PruneResult(
        apply_masks(surgeon.weights, masks), masks, foretold, damping, len(path), looks, seconds
    )


def intermediate_densities(
    density: Density, scope: Scope, masks: MaskDict, cuts: int | None
) -> list[Density]:
    """The densities that `operate` passes through from `masks`, by equal steps, the last exactly as asked.

    Where tensors have not the same density to begin with, each goes its own way, by name; not under the global scope.
    """
    starts = {name: mask_density({name: mask}) for name, mask in masks.items()}
    uneven = scope is not global_ and len(set(starts.values())) > 1
    if uneven or isinstance(density, Mapping):
        targets = densities_by_name(density, list(masks))
        cuts = _cuts(cuts, masks, sum(num_to_keep(targets[n], mask.numel()) for n, mask in masks.items()))
        return [
            *({n: _between(starts[n], targets[n], cut, cuts) for n in masks} for cut in range(1, cuts)),
            density,
        ]
    check_density(density)
    cuts = _cuts(cuts, masks, num_to_keep(density, sum(numel_by_name(masks).values())))
    return [*(_between(mask_density(masks), density, cut, cuts) for cut in range(1, cuts)), density]


def _cuts(cuts: int | None, masks: MaskDict, kept: int) -> int:
    """As many as asked for; None: as many as weights are to go."""
    left = sum(int(mask.sum()) for mask in masks.values())
    if cuts is None:
        return max(1, left - kept)
    if cuts > left:
        raise DensityError(
            f"Expected at most {left} cuts, as there are so many weights to prune, got {cuts}."
        )
    return cuts


def _between(start: float, end: float, cut: int, cuts: int) -> float:
    return start + (end - start) * cut / cuts


@dataclass(frozen=True)
class CriterionState:
    """A criterion's scores; deletes and moves nothing else."""

    criterion: Criterion
    evidence: Statistics
    masks: MaskDict
    predicted: float = float("nan")
    damping: float = 0.0
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def weights(self) -> Params:
        """The weights, zero where they are deleted."""
        return apply_masks(self.evidence.weights, self.masks)

    def scores(self) -> Scores:
        """The criterion's."""
        return self.criterion(self.evidence)

    def keep(self, masks: MaskDict) -> "CriterionState":
        """Set the rest to zero."""
        return CriterionState(self.criterion, self.evidence, masks, self.predicted)


def criterion_method(criterion: Criterion, seed: int = 0) -> PruningMethod:
    """A criterion that looks at nothing but the weights as a surgeon that updates nothing.

    >>> import torch
    >>> from prunus.pruning.criteria import magnitude
    >>> from prunus.pruning.scopes import layer
    >>> prune_weights(criterion_method(magnitude), {"fc": torch.tensor([3.0, -1.0])}, 0.5, layer).weights
    {'fc': tensor([3., 0.])}
    """
    return lambda weights, masks: CriterionState(criterion, Statistics(weights, seed, masks=masks), masks)

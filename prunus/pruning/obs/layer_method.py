"""Methods that prune each layer by the error of its output."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch

from prunus.errors import StatisticsError
from prunus.masks import all_kept, apply_masks
from prunus.pruning.obs.blocks import hessians_by_block
from prunus.pruning.obs.hessian import DAMPING, LayerHessian
from prunus.pruning.obs.method import PruneTask, PruningMethod, check_damping
from prunus.pruning.obs.state import PruneResult
from prunus.pruning.scopes import FunctionScope, Scope, shapes_of
from prunus.types import Density, MaskDict, Params, Progress


@dataclass(frozen=True)
class LayerTask:
    """Layers to prune together, with the Hessians of their inputs."""

    hessians: Mapping[str, LayerHessian]
    weights: Params
    """Without gradients, and zero where an earlier mask has pruned them."""
    density: Density
    scope: Scope
    within: MaskDict | None
    seed: int
    progress: Progress | None
    num_before: int = 0
    """Layers that were updated before these."""
    num_layers: int = 0
    """All layers of the network to update; 0: those of this task."""

    def __post_init__(self) -> None:
        detached = {name: weight.detach() for name, weight in self.weights.items()}
        object.__setattr__(self, "weights", apply_masks(detached, self.within or {}))

    @property
    def masks(self) -> MaskDict:
        """The earlier masks, or masks that keep all."""
        return self.within or all_kept(self.weights)

    def report(self, number: int) -> None:
        """Report how many layers of this task are updated."""
        if self.progress:
            self.progress("layers updated", self.num_before + number, self.num_layers or len(self.weights))

    def part(self, names: Sequence[str]) -> "LayerTask":
        """The same for some of the layers."""
        density, within = self.density, self.within
        return replace(
            self,
            weights={name: self.weights[name] for name in names},
            density={name: density[name] for name in names} if isinstance(density, Mapping) else density,
            within=within and {name: within[name] for name in names},
        )


@dataclass(frozen=True, kw_only=True)
class LayerMethod(PruningMethod):
    """A method that prunes layers whose Hessians are known, in a single step.

    Args:
        damping: λ as a fraction of the mean curvature of a layer; may be 0.
        batch_size: Examples per forward pass.
        num_examples: Calibration examples.

    Raises:
        StatisticsError: A number out of range, or more than one step.
    """

    uses_layer_inputs: ClassVar[bool] = True
    damping: float = DAMPING
    batch_size: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        check_damping(self.damping, self.summary, may_be_zero=True)
        if self.num_steps != 1:
            raise StatisticsError(
                f"Expected 1 step, as masks are selected in a single pass, got {self.num_steps}: {self.summary}"
            )

    def _prune(self, task: PruneTask) -> PruneResult:
        return prune_by_block(task, self._prune_layers, self.damping, self.batch_size)

    def prune_layers(
        self,
        hessians: Mapping[str, LayerHessian],
        weights: Params,
        density: Density,
        scope: Scope,
        *,
        within: MaskDict | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> PruneResult:
        """`prune` where the Hessians are known, from one `layer_hessians` for many densities.

        Args:
            hessians: Of the layers of `weights`, with their damping.
            weights: The weights to prune.
            density: The fraction of all weights to keep.
            scope: Which weights are ranked together.
            within: Earlier masks; what they pruned stays pruned.
            seed: Seed of ties.
            progress: Called after each layer.

        Returns:
            Pruned and updated weights with their masks.

        Raises:
            DensityError: The scope cannot reach the density.
            NonFiniteError: H is singular with this damping.
        """
        return self._prune_layers(LayerTask(hessians, weights, density, scope, within, seed, progress))

    @abstractmethod
    def _prune_layers(self, task: LayerTask) -> PruneResult:
        """As `prune_layers`."""


def prune_by_block(
    task: PruneTask, prune_layers: Callable[[LayerTask], PruneResult], damping: float, batch_size: int
) -> PruneResult:
    """Prune one block of the network after another; all layers together where the scope ranks layers together.

    Args:
        task: What to prune.
        prune_layers: Prunes the layers of a block.
        damping: λ as a fraction of the mean curvature of a layer.
        batch_size: Examples per forward pass.

    Returns:
        Pruned weights and masks.
    """
    weights, within, scope = task.weights, task.within, task.scope
    layers = LayerTask({}, weights, task.density, scope, within, task.seeds[1], task.progress)
    scope.check(shapes_of(weights), [task.density], within)
    together = scope.ranks_layers_together or isinstance(scope, FunctionScope)
    collect = partial(
        hessians_by_block, task.model, layers.weights, task.examples,
        damping=damping, batch_size=batch_size, forward=task.forward, progress=task.progress,
    )  # fmt: skip
    groups: Iterable[dict[str, LayerHessian]] = (
        [{n: h for part in collect() for n, h in part.items()}] if together else collect()
    )
    # Results are stored in memory of their own, so that what a block needs is free again after it.
    pruned = {n: torch.empty_like(w, memory_format=torch.contiguous_format) for n, w in weights.items()}
    masks = {n: torch.empty_like(w, dtype=torch.bool) for n, w in pruned.items()}
    increase, largest_damping = 0.0, 0.0
    seconds: dict[str, float] = {}
    dampings: dict[str, float] = {}
    for group in groups:
        while group:
            names = list(group) if together else list(group)[:1]
            hessians = {name: group.pop(name) for name in names}
            part = replace(
                layers.part(names), hessians=hessians, num_before=len(dampings), num_layers=len(weights)
            )
            result = prune_layers(part)
            for name in names:
                pruned[name].copy_(result.weights[name])
                masks[name].copy_(result.masks[name])
            increase += result.predicted_increase
            largest_damping = max(largest_damping, result.damping)
            seconds |= result.seconds
            dampings |= {name: hessian.damping for name, hessian in hessians.items()}
            del hessians, part, result
    return PruneResult(pruned, masks, increase, largest_damping, seconds, dampings)

"""Methods that prune each layer by the error of its output."""

import time
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
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
    """Layers that are pruned together: a single one, or all of them where the scope ranks layers together."""

    hessians: Mapping[str, LayerHessian]
    weights: Params
    """Without gradients, and zero where an earlier mask has pruned them."""
    density: Density
    scope: Scope
    within: MaskDict | None
    seed: int
    progress: Progress | None

    @property
    def masks(self) -> MaskDict:
        """The earlier masks, or masks that keep all."""
        return self.within or all_kept(self.weights)

    def part(self, hessians: Mapping[str, LayerHessian]) -> "LayerTask":
        """The same for the layers of these Hessians."""
        density, within = self.density, self.within
        return replace(
            self,
            hessians=hessians,
            weights={name: self.weights[name] for name in hessians},
            density={name: density[name] for name in hessians} if isinstance(density, Mapping) else density,
            within=within and {name: within[name] for name in hessians},
        )


@dataclass(frozen=True, kw_only=True)
class LayerMethod(PruningMethod):
    """A method that prunes layers whose Hessians are known.

    Args:
        damping: λ as a fraction of the mean curvature of a layer; may be 0.
        batch_size: Examples per forward pass.
        num_examples: Calibration examples.

    Raises:
        StatisticsError: A number out of range, or more than one step.
    """

    uses_layer_inputs: ClassVar[bool] = True
    allows_steps: ClassVar[bool] = False
    """Whether `num_steps` may be larger than 1."""
    damping: float = DAMPING
    batch_size: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        check_damping(self.damping, self.summary, may_be_zero=True)
        if self.num_steps != 1 and not self.allows_steps:
            raise StatisticsError(
                f"Expected 1 step, as masks are selected in a single pass, got {self.num_steps}: {self.summary}"
            )

    def _prune(self, task: PruneTask) -> PruneResult:
        weights = _masked(task.weights, task.within)
        hessians = hessians_by_block(
            task.model, weights, task.examples,
            damping=self.damping, batch_size=self.batch_size, forward=task.forward, progress=task.progress,
        )  # fmt: skip
        seed = task.seeds[1]
        layers = LayerTask({}, weights, task.density, task.scope, task.within, seed, task.progress)
        return self._prune_by_block(layers, hessians)

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
        layers = LayerTask({}, _masked(weights, within), density, scope, within, seed, progress)
        return self._prune_by_block(layers, [{name: hessians[name] for name in weights}])

    def _prune_by_block(self, layers: LayerTask, blocks: Iterable[dict[str, LayerHessian]]) -> PruneResult:
        """Prune one layer after another as the Hessians of each block come, or all layers together."""
        layers.scope.check(shapes_of(layers.weights), [layers.density], layers.within)
        together = layers.scope.ranks_layers_together or isinstance(layers.scope, FunctionScope)
        if together:
            blocks = [{name: hessian for block in blocks for name, hessian in block.items()}]
        # Results are stored in memory of their own, so that what a block needs is free again after it.
        weights = {
            name: torch.empty_like(weight, memory_format=torch.contiguous_format)
            for name, weight in layers.weights.items()
        }
        masks = {name: torch.empty_like(weight, dtype=torch.bool) for name, weight in weights.items()}
        increase = 0.0
        seconds: dict[str, float] = {}
        dampings: dict[str, float] = {}
        for block in blocks:
            while block:
                hessians = {name: block.pop(name) for name in (list(block) if together else list(block)[:1])}
                start = time.perf_counter()
                result = self._prune_layers(layers.part(hessians))
                elapsed = time.perf_counter() - start
                for name, hessian in hessians.items():
                    weights[name].copy_(result.weights[name])
                    masks[name].copy_(result.masks[name])
                    seconds[name] = result.seconds.get(name, elapsed / len(hessians))
                    dampings[name] = hessian.damping
                increase += result.predicted_increase
                if layers.progress:
                    layers.progress("layers updated", len(dampings), len(weights))
                del hessian, hessians, result
        return PruneResult(weights, masks, increase, max(dampings.values()), seconds, dampings)

    @abstractmethod
    def _prune_layers(self, task: LayerTask) -> PruneResult:
        """Prune layers together; the caller adds the time, where it is missing, and the dampings."""


def _masked(weights: Params, within: MaskDict | None) -> Params:
    """The weights without gradients, and zero where an earlier mask has pruned them."""
    return apply_masks({name: weight.detach() for name, weight in weights.items()}, within or {})

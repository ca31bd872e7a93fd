"""Methods that prune each layer by the error of its output."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from prunus.errors import StatisticsError
from prunus.masks import apply_masks
from prunus.pruning.obs.hessian import DAMPING, LayerHessian, layer_hessians
from prunus.pruning.obs.method import PruneTask, PruningMethod, check_damping
from prunus.pruning.obs.state import PruneResult
from prunus.pruning.scopes import Scope
from prunus.types import Density, MaskDict, Params, Progress


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
        weights, within, progress = task.weights, task.within, task.progress
        hessians = layer_hessians(
            task.model, weights if within is None else apply_masks(weights, within), task.examples,
            damping=self.damping, batch_size=self.batch_size, forward=task.forward, progress=progress,
        )  # fmt: skip
        return self.prune_layers(
            hessians, weights, task.density, task.scope, within=within, seed=task.seeds[1], progress=progress
        )

    @abstractmethod
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
            DensityError: The scope cannot give the density.
            NonFiniteError: H is singular with this damping.
        """

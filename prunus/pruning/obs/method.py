"""What every pruning method has in common, and the methods that use derivatives of a loss."""

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import nn

from prunus.data.examples import Calibration, Examples, as_examples
from prunus.errors import DensityError, StatisticsError
from prunus.masks import all_kept
from prunus.pruning.obs.fallback import limit_update_by_loss
from prunus.pruning.obs.objective import Objective, make_objective
from prunus.pruning.obs.state import Examine, PruneResult, intermediate_densities, prune_in_steps
from prunus.pruning.scopes import Scope, parse_scope, shapes_of
from prunus.pruning.views import LayerView, layer_view
from prunus.seeds import derive_seed
from prunus.training.losses import Loss, LossFunction
from prunus.training.outputs import Forward
from prunus.types import Density, MaskDict, Params, Progress

MAX_DAMPING = 1e9
"""Far above any curvature an update is rounding alone, and products of the damping overflow."""


@dataclass(frozen=True, kw_only=True)
class PruningMethod(ABC):
    """How to prune a network: a value; `prune` does the work, and the model is not changed.

    Args:
        num_examples: Number of calibration examples that the method uses.
        num_steps: Number of steps of equal size; the curvature is computed again before each.

    Raises:
        StatisticsError: A number below 1.
    """

    summary: ClassVar[str]
    """One line for lists."""
    needs_examples: ClassVar[bool] = True
    """Whether `prune` needs calibration examples."""
    updates_weights: ClassVar[bool] = True
    """Whether the remaining weights are updated."""
    uses_layer_inputs: ClassVar[bool] = False
    """Whether the method examines the inputs of each layer, so that it can prune layers with a matrix only."""
    num_examples: int = 1024
    num_steps: int = 1

    def __post_init__(self) -> None:
        if self.num_examples < 1 or self.num_steps < 1:
            raise StatisticsError(
                f"Expected at least 1 calibration example and at least one step, got {self.num_examples} examples and "
                f"{self.num_steps} steps: {self.summary}"
            )

    def check(self, weights: Params, density: Density, scope: Scope) -> None:
        """Raise, before any work, what the sizes of the weights and the densities of the steps will raise.

        Args:
            weights: The weights to prune.
            density: The density to reach.
            scope: Which weights are ranked together.

        Raises:
            ModelError: The method cannot prune this many weights together.
            DensityError: The scope cannot reach the density, or one of those that the steps pass through.
        """
        shapes = shapes_of(weights)
        scope.check(shapes, [density])
        *between, _ = intermediate_densities(density, scope, all_kept(weights), self.num_steps)
        try:
            scope.check(shapes, between)
        except DensityError as error:
            raise DensityError(
                f"{self.num_steps} steps pass through other densities on the way to {density}: {error}"
            ) from None

    def prune(
        self,
        model: nn.Module,
        weights: Params,
        density: Density,
        scope: Scope | str,
        calibration: Calibration | None = None,
        *,
        initial: Params | None = None,
        within: MaskDict | None = None,
        seeds: tuple[int, int] = (0, 0),
        forward: Forward | None = None,
        loss: str | Loss | LossFunction | None = None,
        progress: Progress | None = None,
    ) -> PruneResult:
        """Prune `weights` to `density` under `scope`.

        Args:
            model: The network; it is not changed.
            weights: Its weights to prune, by name.
            density: The fraction of all weights to keep.
            scope: Which weights are ranked together, and the sparsity pattern.
            calibration: The examples to use, all of them, in any form.
            initial: The weights that training started from, for criteria that need them.
            within: Earlier masks; what they pruned stays pruned.
            seeds: Of random choices of the method, and of ties.
            forward: (model, batch) -> outputs; None: the model is called with the inputs.
            loss: A key of LOSSES, a Loss or a function (outputs, batch) -> mean loss, for methods that differentiate
                one; None: the loss that the outputs contain, else cross-entropy.
            progress: Called after each step of long work.

        Returns:
            Pruned weights and masks.

        Raises:
            StatisticsError: The examples do not fit the model or the method, or contain no information on a layer.
            ModelError: The model does not fit the method.
            DensityError: The scope cannot reach the density.
            NonFiniteError: Inputs, curvature or updated weights are not finite.
        """
        scope = parse_scope(scope)
        view = self.view(model, weights, scope)
        with view.names_of_model():
            task = PruneTask(
                self.summary, view.model, view.weights(weights), view.density(density), scope, calibration,
                initial and view.to_view(initial), within and view.to_view(within), seeds,
                forward, loss, progress,
            )  # fmt: skip
            result = self.in_view(view, weights)._prune(task)
        return view.from_view(result)

    def view(self, model: nn.Module, names: Collection[str], scope: Scope) -> LayerView:
        """The view of a network that this method prunes.

        Args:
            model: The network.
            names: The names of its weights to prune.
            scope: Which weights are ranked together.

        Returns:
            The view; other layers are replaced only where the method or the scope needs rows and columns.
        """
        return layer_view(model, names, only_computed=not (self.uses_layer_inputs or scope.is_pattern))

    def in_view(self, view: LayerView, weights: Params) -> "PruningMethod":
        """This method for a view of the network: the method itself, where it holds no tensors of the network.

        Args:
            view: The view.
            weights: The weights to prune, by name in the network.

        Returns:
            The method.
        """
        return self

    @abstractmethod
    def _prune(self, task: "PruneTask") -> PruneResult:
        """As `prune`."""


@dataclass(frozen=True)
class PruneTask:
    """The arguments of `PruningMethod.prune`."""

    summary: str
    """Of the method, for errors."""
    model: nn.Module
    weights: Params
    density: Density
    scope: Scope
    calibration: Calibration | None
    initial: Params | None
    within: MaskDict | None
    seeds: tuple[int, int]
    forward: Forward | None
    loss: str | Loss | LossFunction | None
    progress: Progress | None

    @property
    def examples(self) -> Examples:
        """The calibration examples. Raises StatisticsError where there are none."""
        if self.calibration is None:
            raise StatisticsError(
                f"Expected calibration examples for this method ({self.summary.rstrip('.')}), got none; pass "
                "calibration=..."
            )
        return as_examples(self.calibration)

    def prune_in_steps(self, examine: Examine, num_steps: int) -> PruneResult:
        """Prune in steps of equal size, with an examination before each.

        Args:
            examine: Computes the state of the method.
            num_steps: The number of steps.

        Returns:
            Pruned weights and masks.
        """
        return prune_in_steps(
            examine, self.weights, self.density, self.scope,
            within=self.within, seed=self.seeds[1], num_steps=num_steps, num_recomputations=num_steps,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class LossMethod(PruningMethod):
    """A method that uses derivatives of the loss by all weights together.

    An update that gives a higher loss than zeroing alone is reduced, with a warning.
    """

    @abstractmethod
    def examiner(self, objective: Objective, *, seed: int = 0, progress: Progress | None = None) -> Examine:
        """The function (weights, masks) -> state of this method for `objective`.

        Args:
            objective: The network, its weights and the examples.
            seed: Seed of random choices of the method.
            progress: Called after each step of long work.

        Returns:
            The function.
        """

    def _prune(self, task: PruneTask) -> PruneResult:
        objective = make_objective(
            task.model, task.weights, task.examples, loss=task.loss, forward=task.forward
        )
        examine = self.examiner(objective, seed=derive_seed(task.seeds[0], "pruner"), progress=task.progress)
        promoted = replace(task, weights=objective.weights)
        result = promoted.prune_in_steps(examine, self.num_steps)
        if self.updates_weights:
            result = limit_update_by_loss(objective, objective.weights, result)
        weights = {name: weight.to(task.weights[name].dtype) for name, weight in result.weights.items()}
        return replace(result, weights=weights)


def check_damping(damping: float, summary: str, *, may_be_zero: bool = False) -> None:
    """Raise StatisticsError unless 0 < damping <= MAX_DAMPING, or 0 where it may be zero.

    Args:
        damping: As the method means it.
        summary: Of the method, for the error.
        may_be_zero: Whether the method can prune without damping.

    Raises:
        StatisticsError: It is out of range.
    """
    is_in_range = 0 <= damping <= MAX_DAMPING
    if not is_in_range or (damping == 0 and not may_be_zero):
        least = "at least" if may_be_zero else "above"
        raise StatisticsError(
            f"Expected a damping {least} 0 and at most {MAX_DAMPING:g}, such as 0.01, got {damping:g}: {summary}"
        )

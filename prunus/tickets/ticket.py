"""A ticket as data: which baseline, which masks, what weights start from, and how many rounds.

Source: Frankle & Carbin 2019, section 2 (iterative and one-shot pruning); Zhou et al. 2019, section 2 (criterion,
mask-1 action, mask-0 action); Frankle et al. 2020, Algorithm 1 (rewinding to step k); Renda et al. 2020, section 2.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, ClassVar, TypeVar

from torch import nn

from prunus.errors import DensityError, NoEffectWarning, SpecError
from prunus.masks import mask_density
from prunus.models.safetensors_file import tied_names
from prunus.pruning.methods import CriterionMethod, pruning_method
from prunus.pruning.obs.method import PruningMethod
from prunus.pruning.prunable import prunable_weights
from prunus.pruning.scopes import Global, Scope, Shapes, parse_scope, shapes_of
from prunus.pruning.statistics import Criterion, Statistics
from prunus.pruning.weight_layers import layer_kinds
from prunus.registry import import_object, lookup
from prunus.tickets.actions import Mask0Action, Mask1Action
from prunus.tickets.baseline import BaselineRun, BaselineSpec, references
from prunus.tickets.mask0_actions import MASK0_ACTIONS
from prunus.tickets.mask1_actions import MASK1_ACTIONS
from prunus.tickets.supermask.learned_supermask import LearnedSupermaskSpec
from prunus.training import Recipe
from prunus.training.recipe import learning_rate_at
from prunus.types import Density, MaskDict, Params, Scores

A = TypeVar("A", Mask1Action, Mask0Action)

REWINDING = ("rewind", "finetune", "rewind_learning_rate")
"""The mask-1 actions that use weights of the baseline, which may be those of another step than 0."""


@dataclass(frozen=True)
class PruningRates:
    """The fraction of the remaining weights that a round prunes, by kind of layer; under the global scope `linear`."""

    linear: float = 0.2
    conv: float = 0.1
    output: float = 0.1
    """Of the last layer: half the rate of the others (Frankle & Carbin 2019, Figure 2)."""


@dataclass(frozen=True)
class TicketSpec(BaselineRun):
    """All levels of one replicate's ticket: the baseline is pruned and trained again, round after round."""

    kind: ClassVar[str] = "ticket"
    procedure: ClassVar[str] = "prunus.tickets.procedure:run_ticket"

    baseline: BaselineSpec = field(default_factory=BaselineSpec)
    criterion: str | PruningMethod | Criterion | Callable[[Statistics], Scores] = "large_final"
    """A name, or "package.module:function"; or the criterion itself, as for all names here (see `BaselineSpec`)."""
    scope: str | Scope = "layer"
    pruning_rates: PruningRates = field(default_factory=PruningRates)
    exclude: tuple[str, ...] = ()
    """Shell patterns of the names of weights that are not pruned and, like biases, never drawn again."""
    rounds: int = 24
    """Level r is pruned r times; its density is (1 - rate)^r."""
    schedule: str = "iterative"
    """"iterative": each level is pruned from the previous one; "one_shot": each level from the baseline."""
    levels: tuple[int, ...] = ()
    """The levels to train, where they do not depend on each other; empty: all. Kept in order, without repetitions."""
    mask1: str | Mask1Action = "rewind"
    """A key of MASK1_ACTIONS, or "package.module:name" of a `Mask1Action`."""
    mask0: str | Mask0Action = "zero"
    """A key of MASK0_ACTIONS, or "package.module:name" of a `Mask0Action`."""
    rewind_step: int = 0
    """A step of the baseline's `checkpoint_steps`, or 0."""
    masks_from: "TicketSpec | LearnedSupermaskSpec | None" = None
    """Use the masks of this other ticket (the control of Frankle & Carbin), or a learned mask, not a criterion."""
    densities_from: LearnedSupermaskSpec | None = None
    """Keep as many weights of each layer as this learned mask does, instead of the number given by `pruning_rates`."""
    score_at: str = ""
    """Which weights the criterion scores: "initialization", those that the last training started from, or "trained",
    those it ended with; empty: as the criterion is defined."""
    num_scoring_examples: int = 100
    """Number of training examples for criteria that use gradients."""
    redraw: int = 0
    """Index of the repetition of random actions, for example of reinitializing the same ticket again."""

    def __post_init__(self) -> None:
        if not isinstance(self.rounds, int) or self.rounds < 1:
            raise SpecError(f"Expected rounds as a whole number of at least 1, got {self.rounds!r}.")
        levels = tuple(sorted(set(self.levels)))
        object.__setattr__(self, "levels", () if levels == self._all_levels else levels)

    def __getstate__(self) -> dict[str, Any]:  # the values that names are resolved to need not be picklable
        return {
            name: value
            for name, value in vars(self).items()
            if not isinstance(getattr(type(self), name, None), cached_property)
        }

    def dependencies(self) -> dict[str, Any]:
        """Return the specs of the runs that this run reads: the baseline, and where the masks or densities are from."""
        others = {"masks": self.masks_from, "densities": self.densities_from}
        return super().dependencies() | {role: spec for role, spec in others.items() if spec is not None}

    def code_references(self) -> tuple[str, ...]:
        """Return the references to the user's functions that a ticket calls; the baseline has its own."""
        return references(self.criterion, self.mask1, self.mask0)

    def cost(self) -> tuple[str, float]:
        """Return the unit, and the number of training steps of all levels. Raises as `check` does."""
        unit, steps = self.baseline.cost()
        return unit, (steps - self.rewind_step) * len(self.trained_levels)

    @property
    def is_iterative(self) -> bool:
        """Whether each level depends on the previous one."""
        return self.schedule == "iterative" and self.masks_from is None

    @property
    def learned_masks(self) -> LearnedSupermaskSpec | None:
        """The learned supermask whose masks are used."""
        return self.masks_from if isinstance(self.masks_from, LearnedSupermaskSpec) else None

    @property
    def mask_source(self) -> "TicketSpec | None":
        """The ticket whose criterion, rates and scope made the masks; None if they are learned."""
        if self.masks_from is None:
            return self
        return None if isinstance(self.masks_from, LearnedSupermaskSpec) else self.masks_from.mask_source

    @property
    def _all_levels(self) -> tuple[int, ...]:
        return tuple(range(1, self.rounds + 1))

    # The values that the names stand for; each is resolved once.

    @cached_property
    def method(self) -> PruningMethod:
        """The pruning method that selects masks: a criterion, or one of the OBS family. Raises UnknownNameError."""
        return pruning_method(self.criterion)

    @property
    def scored_weights(self) -> str:
        """Which weights are scored, "initialization" or "trained"."""
        default = self.method.criterion.defined_at if isinstance(self.method, CriterionMethod) else "trained"
        return self.score_at or default

    @cached_property
    def scope_value(self) -> Scope:
        """The scope. Raises UnknownNameError."""
        return parse_scope(self.scope)

    @property
    def ranks_globally(self) -> bool:
        """Whether all layers are ranked together, at one density."""
        return isinstance(self.scope_value, Global)

    @cached_property
    def mask1_action(self) -> Mask1Action:
        """The mask-1 action. Raises UnknownNameError, or SpecError if the reference is not an action."""
        return resolve_action("mask-1 action", MASK1_ACTIONS, self.mask1, Mask1Action)

    @cached_property
    def mask0_action(self) -> Mask0Action:
        """The mask-0 action. Raises UnknownNameError, or SpecError if the reference is not an action."""
        return resolve_action("mask-0 action", MASK0_ACTIONS, self.mask0, Mask0Action)

    @property
    def recipe(self) -> Recipe:
        """The recipe that tickets are trained with: the baseline's, or its last learning rate throughout."""
        if self.mask1_action.learning_rate == "schedule":
            return self.baseline.recipe
        return with_final_learning_rate(self.baseline.recipe, self.baseline.total_steps())

    @property
    def _mask1_name(self) -> str:
        """The built-in mask-1 action before rescaling; empty for a user's."""
        name = self.mask1 if isinstance(self.mask1, str) else ":"
        return "" if ":" in name else name.removesuffix("_rescaled")

    # Validation. It needs no data and no training, and runs once for each spec.

    @property
    def trained_levels(self) -> tuple[int, ...]:
        """The levels that this run trains, in order. Raises as `check` does."""
        self.check()
        return self.levels or self._all_levels

    def check(self) -> None:
        """Validate the settings, once.

        Raises:
            SpecError: If settings contradict each other.
            UnknownNameError: If a name is not known.
            DensityError: If the scope cannot reach the density of a level, or a layer would keep no weight.
            ModelError: If the network is too large for the criterion.
        """
        if "_is_valid" in vars(self):
            return
        # Each of the four names is resolved, and raises if it is not known.
        _ = self.method, self.scope_value, self.mask1_action, self.mask0_action
        self._check_method()
        self._check_rounds()
        self._check_rewinding()
        self._check_learned_masks()
        levels = self.levels or self._all_levels
        if self.masks_from is not None and not set(levels) <= set(self.masks_from.trained_levels):
            raise SpecError(
                f"Expected levels that the source of the masks has, {self.masks_from.trained_levels}, got {levels}."
            )
        excluded_there = getattr(self.masks_from or self.densities_from or self, "exclude", ())
        if self.exclude != excluded_there:
            raise SpecError(
                f"Expected the source of the masks to exclude the same weights, {self.exclude}, got {excluded_there}."
            )
        if self.masks_from is None and self.densities_from is None:
            self._check_densities(levels)
        vars(self)["_is_valid"] = True

    def _check_method(self) -> None:
        method = self.method
        if isinstance(method, CriterionMethod) and method != CriterionMethod(method.criterion):
            raise SpecError(
                f"Expected {method.summary} without num_examples and num_steps in a ticket, got {method.num_examples} "
                f"examples and {method.num_steps} steps; set num_scoring_examples and rounds of the ticket."
            )

    def _check_rounds(self) -> None:
        if not isinstance(self.pruning_rates, PruningRates):
            raise SpecError(
                f"Expected pruning_rates as prunus.tickets.ticket.PruningRates(linear, conv, output), got "
                f"{self.pruning_rates!r}."
            )
        for name, rate in vars(self.pruning_rates).items():
            if not 0 <= rate < 1:
                raise SpecError(f"Expected pruning_rates.{name} of at least 0 and below 1, got {rate}.")
        if self.schedule not in ("iterative", "one_shot"):
            raise SpecError(f"Expected schedule to be iterative or one_shot, got {self.schedule!r}.")
        if self.score_at not in ("", "initialization", "trained"):
            raise SpecError(f"Expected score_at to be initialization or trained, got {self.score_at!r}.")
        if self.num_scoring_examples < 1:
            raise SpecError(f"Expected num_scoring_examples of at least 1, got {self.num_scoring_examples}.")
        if self.levels and self.is_iterative:
            raise SpecError(
                f"Expected no levels for an iterative ticket, got {self.levels}; it trains every level. Use "
                "schedule='one_shot' or masks_from."
            )
        if invalid := [level for level in self.levels if level not in self._all_levels]:
            raise SpecError(
                f"Expected levels from 1 to the number of rounds, got levels {invalid} of {self.rounds} rounds."
            )

    def _check_rewinding(self) -> None:
        if self.rewind_step and self._mask1_name and self._mask1_name not in REWINDING:
            raise SpecError(
                f"Expected rewind_step = 0 for {self.mask1}, which makes new initial values, got {self.rewind_step}."
            )
        self.baseline.check_has_state("rewind_step", self.rewind_step)

    def _check_learned_masks(self) -> None:
        if self.mask1 == "supermask" and self.learned_masks is None:
            raise SpecError("Expected a learned supermask in masks_from for mask1='supermask', got none.")
        keeps_signs = self._mask1_name in REWINDING or self._mask1_name.startswith("signed")
        if self.learned_masks is not None and keeps_signs and self.learned_masks.changes_signs:
            raise SpecError(
                f"Expected mask1='supermask', got {self.mask1!r}, which starts from the baseline's initialization; the "
                f"{self.learned_masks.mask.kind} mask was learned over weights with other signs, "
                f"{self.learned_masks.weights}."
            )
        for source in (self.masks_from, self.densities_from):
            if source is not None:
                check_same_weights(self.baseline, source.baseline)
        if self.densities_from is not None and (self.rounds != 1 or self.masks_from or self.ranks_globally):
            masks_from = "masks_from" if self.masks_from else "no masks_from"
            raise SpecError(
                "Expected one round, a criterion and densities by layer for densities_from, got "
                f"rounds = {self.rounds}, {masks_from} and scope {self.scope!r}."
            )

    def _check_densities(self, levels: tuple[int, ...]) -> None:
        weights, densities = self._weights, [self.density_at(level) for level in levels]
        self.scope_value.check(self._shapes, densities)
        for level, density in zip(levels, densities, strict=True):
            self.method.check(weights, density, self.scope_value)
            try:
                self.scope_value.check_not_empty(self._shapes, density)
            except DensityError as error:
                raise DensityError(
                    f"Level {level} of the ticket is too sparse; use fewer rounds or lower pruning rates. {error}"
                ) from error

    # Densities

    def weights_of(self, model: nn.Module) -> Params:
        """The weights of a network that are pruned, by name, not copied. Raises ModelError as `prunable_weights`."""
        return prunable_weights(model, exclude=self.exclude)

    @cached_property
    def tied_names(self) -> dict[str, str]:
        """The first name of each tensor of the network that has several, by its other names."""
        return tied_names(make_outline(self.baseline.model).state_dict())

    @property
    def _weights(self) -> Params:
        return self.weights_of(make_outline(self.baseline.model))

    @property
    def _shapes(self) -> Shapes:
        return shapes_of(self._weights)

    def density_at(self, level: int, learned: MaskDict | None = None) -> Density:
        """Return the densities of a level.

        Args:
            level: The number of rounds of pruning.
            learned: The masks of `densities_from`, if that is set.

        Returns:
            One density for each layer, or one number under the global scope.

        Example:
            >>> densities = TicketSpec(BaselineSpec("lenet-300-100")).density_at(2)
            >>> {name: round(density, 4) for name, density in densities.items()}
            {'fc1.weight': 0.64, 'fc2.weight': 0.64, 'fc3.weight': 0.81}
        """
        if learned is not None:
            return {name: mask_density({name: mask}) for name, mask in learned.items()}
        rates, outline = self.pruning_rates, make_outline(self.baseline.model)
        if self.ranks_globally:
            return float((1 - rates.linear) ** level)
        prunable = prunable_weights(outline)
        layers = [(self.tied_names.get(name, name), kind) for name, kind in layer_kinds(outline).items()]
        kinds, last = dict(layers), [name for name, _ in layers if name in prunable][-1]
        names = list(self._weights)
        rate = {name: rates.output if name == last else getattr(rates, kinds[name]) for name in names}
        return {name: (1 - rate[name]) ** level for name in names}

    def counts_at(self, level: int, learned: MaskDict | None = None) -> dict[str, int]:
        """Return how many weights each layer keeps at a level; one entry "all" under the global scope.

        Args:
            level: The number of rounds of pruning.
            learned: The masks of `densities_from`, if that is set; None: the pruning rates give the densities.

        Returns:
            The number of weights by name of the layer, or under "all".

        Raises:
            DensityError: The scope cannot reach the density.
        """
        return self.scope_value.counts(self._shapes, self.density_at(level, learned))


def check_same_weights(baseline: BaselineSpec, source: BaselineSpec) -> None:
    """Check that masks of one network can be used on another.

    Args:
        baseline: The baseline of the network that the masks are used on.
        source: The baseline of the network that they were made of.

    Raises:
        SpecError: The prunable weights of the two networks have different names or shapes.
    """
    expected, got = (shapes_of(prunable_weights(make_outline(each.model))) for each in (baseline, source))
    if got != expected:
        raise SpecError(
            f"Expected masks of a network with the weights of {baseline.model}, got masks of {source.model}, whose "
            "weights have other names or shapes."
        )


@lru_cache(maxsize=8)
def make_outline(model: str | Callable[..., nn.Module]) -> nn.Module:
    """Return a network for the shapes and kinds of its layers."""
    return BaselineSpec(model).make_network()


def resolve_action(kind: str, table: Mapping[str, A], name: str | A, expected: type[A]) -> A:
    """Return a built-in action, or the user's that "package.module:name" refers to, or the action that is given.

    Args:
        kind: What the table holds, for the error.
        table: The built-in actions by name.
        name: A key of the table, a reference, or an action.
        expected: The type of the action.

    Returns:
        The action.

    Raises:
        UnknownNameError: If there is no such name.
        SpecError: If the reference is not to an action of this type.
    """
    action: object = name
    if isinstance(name, str):
        action = import_object(name, value_type=object) if ":" in name else lookup(kind, table, name)
    if not isinstance(action, expected):
        raise SpecError(
            f"Expected {name} to be a {expected.__name__}, with values and invariants, got a {type(action).__name__}."
        )
    return action


def with_final_learning_rate(recipe: Recipe, steps: int) -> Recipe:
    """Return the recipe with the learning rate of its last step throughout (Renda et al. 2020, section 2).

    Args:
        recipe: The recipe of the baseline.
        steps: Number of its training steps.

    Returns:
        A recipe with a constant learning rate.

    Example:
        >>> with_final_learning_rate(Recipe(1, 0.1, 60, lr_schedule="steps"), 10).learning_rate
        0.001
    """
    last = learning_rate_at(recipe, (steps - 1) / steps)
    return recipe.replace(learning_rate=last, lr_schedule="constant", milestones=None, warmup_epochs=0.0)


def warn_if_learning_rate_vanishes(ticket: TicketSpec) -> None:
    """Warn with NoEffectWarning if a ticket is fine-tuned at a learning rate that changes hardly anything."""
    recipe, last = ticket.baseline.recipe, ticket.recipe.learning_rate
    if ticket.mask1_action.learning_rate == "last" and last < recipe.learning_rate / 1000:
        warnings.warn(
            f"Fine-tuning uses the last learning rate of the schedule {recipe.lr_schedule!r}, which is {last:.1e}: "
            "weights hardly move; use another schedule.",
            NoEffectWarning,
            stacklevel=3,
        )

"""Training by a function of the user, in the place of `prunus.train`."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from prunus.errors import SpecError, TrainingError
from prunus.training.constraint import Constraint
from prunus.training.modes import restored_modes
from prunus.training.recipe import Recipe


class Attachable(Constraint, Protocol):
    """A constraint that holds in any training loop: `prunus.Masks` or `prunus.CodebookConstraint`."""

    def attach(self, optimizer: torch.optim.Optimizer) -> Any:
        """Make the constraint hold after every step of `optimizer`."""

    def detach(self) -> None:
        """Remove every hook."""

    def verify(self) -> int:
        """The number of weights for which it is not true."""


Fit = Callable[[nn.Module, Any], object]
"""fit(model, masks): train the model in place, after `masks.attach(optimizer)`. When centroids are trained, `masks` are
the shared weights, which are attached in the same way."""


def check_recipes(densities: Sequence[Any], recipes: Sequence[Recipe], fit: object) -> None:
    """Raise SpecError unless there is a recipe for each round, or `fit` and no recipe.

    Args:
        densities: One per round.
        recipes: The recipes.
        fit: The function that trains in their place, or None.

    Raises:
        SpecError: There are more or fewer recipes, or one of the arguments is no sequence.
    """
    if not (hasattr(densities, "__len__") and isinstance(recipes, Sequence)):
        raise SpecError(
            f"Expected a list of densities and a list of recipes, one of each per round, got {densities!r} and "
            f"{recipes!r}."
        )
    if len(recipes) != (0 if fit is not None else len(densities)):
        raise SpecError(
            f"Expected one recipe for each of {len(densities)} rounds, or fit and no recipe, got {len(recipes)} recipes"
            f"{'' if fit is None else ' and fit'}."
        )


def check_fit(fit: object, arguments: str = "(model, masks)", **without_effect: object) -> None:
    """Raise SpecError where `fit` cannot be used; None means that there is no such function, and is always valid.

    Args:
        fit: The function.
        arguments: What it is called with, for the error.
        without_effect: Arguments, by name, that only trainings by recipes use; None: not given.

    Raises:
        SpecError: `fit` cannot be called, or an argument would have no effect.
    """
    if fit is None:
        return
    if not callable(fit):
        raise SpecError(
            f"Expected fit to be a function {arguments} that trains the model, got {type(fit).__name__}."
        )
    if unused := [name for name, value in without_effect.items() if value is not None]:
        raise SpecError(
            f"Expected either fit or {' and '.join(unused)}, got both; a training by fit does not use "
            f"{'it' if len(unused) == 1 else 'them'}, so leave out one of them."
        )


def train_with(fit: Fit, model: nn.Module, constraint: Attachable) -> None:
    """Train a model by a function of the user, and check that the constraint holds afterwards.

    Args:
        fit: The function; it is called with `model` and `constraint`.
        model: Trained in place; every module is in the mode that it had afterwards.
        constraint: The masks, or the shared weights.

    Raises:
        TrainingError: The constraint does not hold after the training.
    """
    constraint.apply()
    try:
        with restored_modes(model):
            fit(model, constraint)
    finally:
        constraint.detach()
    wrong = constraint.verify()
    if wrong:
        raise TrainingError(
            f"Expected fit to train the model under the constraint that it is given, got {wrong} weights that are not "
            "what they should be; call masks.attach(optimizer) before the first step."
        )
    constraint.finalize()

"""Checks of the settings of a recipe."""

import math
from dataclasses import fields
from itertools import pairwise
from numbers import Integral, Real
from typing import Any

from prunus.errors import SpecError
from prunus.registry import lookup
from prunus.training.augmentation import AUGMENTATIONS
from prunus.training.optimizers import OPTIMIZERS, PENALTIES
from prunus.training.precision import AUTOCAST_DTYPES
from prunus.training.recipe import LR_SCHEDULES, Recipe


def check_recipe(recipe: Recipe) -> None:
    """Raise SpecError if a setting of the recipe is out of range, UnknownNameError if a name is in no table."""
    if not isinstance(recipe, Recipe):
        raise SpecError(
            f"Expected a prunus.Recipe, got {recipe!r}; RECIPES has those of the built-in networks, for example "
            'RECIPES["lenet-300-100"].'
        )
    for kind, table, name in (
        ("optimizer", OPTIMIZERS, recipe.optimizer),
        ("learning-rate schedule", LR_SCHEDULES, recipe.lr_schedule),
        ("penalty", PENALTIES, recipe.penalty),
        ("augmentation", AUGMENTATIONS, recipe.augmentation),
        ("dtype of autocast", AUTOCAST_DTYPES, recipe.autocast),
    ):
        lookup(kind, table, name)
    for name, low in (("epochs", 0), ("batch_size", 1), ("patience", 1), ("micro_batch_size", 1)):
        value = getattr(recipe, name)
        is_absent = value is None and name in ("patience", "micro_batch_size")
        if not is_absent and (not isinstance(value, Integral) or int(value) < low):
            raise SpecError(
                f"Expected {name} to be an integer of at least {low}, got {value!r}; correct the recipe."
            )
    for name in (field.name for field in fields(Recipe) if field.type is float):
        value = getattr(recipe, name)
        if not isinstance(value, Real) or not 0 <= float(value) < math.inf:
            raise SpecError(
                f"Expected {name} to be a finite number of at least 0, got {value!r}; correct the recipe."
            )
    if recipe.momentum >= 1 or (recipe.optimizer == "nesterov" and not recipe.momentum):
        allowed = "above 0" if recipe.optimizer == "nesterov" else "at least 0"
        raise SpecError(
            f"Expected the momentum of the optimizer {recipe.optimizer!r} to be {allowed} and below 1, got "
            f"{recipe.momentum!r}; set a value such as 0.9."
        )
    if recipe.penalty != "none" and not recipe.penalty_strength:
        raise SpecError(
            f"Expected penalty_strength above 0 with the penalty {recipe.penalty!r}, got {recipe.penalty_strength!r}; "
            "set a value such as 1e-4, or penalty='none'."
        )
    _check_schedule(recipe)
    if recipe.label_smoothing >= 1:
        raise SpecError(
            f"Expected label_smoothing to be below 1, got {recipe.label_smoothing!r}; set a value such as 0.1."
        )
    for name in (field.name for field in fields(Recipe) if field.type is bool):
        if not isinstance(getattr(recipe, name), bool):
            raise SpecError(f"Expected {name} to be True or False, got {getattr(recipe, name)!r}.")


def _check_schedule(recipe: Recipe) -> None:
    """Raise SpecError for milestones or a warm-up that the schedule cannot have."""
    milestones: Any = recipe.milestones
    if milestones is not None:
        is_tuple = isinstance(milestones, tuple) and all(isinstance(value, Real) for value in milestones)
        if not is_tuple or not all(a < b for a, b in pairwise((0, *milestones, 1))):
            raise SpecError(
                f"Expected milestones to be a tuple of ascending fractions of the training, above 0 and below 1, got "
                f"{milestones!r}; for epochs 80 and 120 of 160, set (0.5, 0.75)."
            )
        if recipe.lr_schedule != "steps":
            raise SpecError(
                f"Expected milestones with the schedule 'steps' only, got them with {recipe.lr_schedule!r}; leave out "
                "the milestones, or set lr_schedule='steps'."
            )
    if recipe.epochs and recipe.warmup_epochs >= recipe.epochs:
        raise SpecError(
            f"Expected warmup_epochs to be below the {recipe.epochs} epochs of the recipe, got "
            f"{recipe.warmup_epochs!r}; the learning rate would never be reached."
        )

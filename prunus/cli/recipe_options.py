"""The recipe that a command line asks for."""

from collections.abc import Sequence

import typer

from prunus.compression.presets import COMPRESSION_RECIPES
from prunus.compression.recipes import CompressionRecipe
from prunus.registry import lookup
from prunus.training.recipe import Recipe


def resolve_recipe(
    model: str,
    name: str | None,
    density: float | None,
    bits: int | None,
    rounds: int | None,
    epochs: Sequence[str],
    scope: str | None = None,
) -> CompressionRecipe:
    """The recipe called `name`, else the model's own, else "default"; changed as asked.

    `epochs` are of the form "settle=5". Raises UnknownNameError, and typer.BadParameter for what is not.
    """
    own = model if model in COMPRESSION_RECIPES else "default"
    recipe = lookup("recipe", COMPRESSION_RECIPES, own if name is None else name)
    asked = {"density": density, "bits": bits, "rounds": rounds, "scope": scope}
    recipe = recipe.replace(**{key: value for key, value in asked.items() if value is not None})
    for text in epochs:
        stage, equals, number = text.partition("=")
        if not (equals and number.isdecimal() and len(number) <= 9):
            raise typer.BadParameter(f"{text!r} is not of the form STAGE=N.", param_hint="--epochs")
        training: dict[str, Recipe] = {
            "dense": recipe.dense,
            "retrain": recipe.retrain,
            "settle": recipe.settle,
            "finetune": recipe.finetune,
        }
        recipe = recipe.replace(**{stage: lookup("stage", training, stage).replace(epochs=int(number))})
    return recipe

"""The compression recipe of a command line."""

from collections.abc import Sequence

import typer

from prunus.compression.presets import COMPRESSION_RECIPES, CompressionRecipe
from prunus.registry import lookup
from prunus.training.recipe import Recipe


def resolve_recipe(
    model: str,
    name: str | None = None,
    density: float | None = None,
    bits: int | None = None,
    rounds: int | None = None,
    epochs: Sequence[str] = (),
    scope: str | None = None,
) -> CompressionRecipe:
    """Return the compression preset called `name`, with the given settings changed.

    Args:
        model: Name of the model. Without `name`, the preset of this name is used if there is one, else "default".
        name: Key of `COMPRESSION_RECIPES`.
        density, bits, rounds, scope: Settings of the recipe; None leaves them unchanged.
        epochs: Texts of the form "final_retrain=5".

    Returns:
        The recipe.

    Raises:
        UnknownNameError: The preset or a stage is unknown.
        typer.BadParameter: A text in `epochs` is not of the form STAGE=N.
    """
    default = model if model in COMPRESSION_RECIPES else "default"
    recipe = lookup("compression preset", COMPRESSION_RECIPES, default if name is None else name)
    changes = {"density": density, "bits": bits, "rounds": rounds, "scope": scope}
    recipe = recipe.replace(**{key: value for key, value in changes.items() if value is not None})
    for text in epochs:
        stage, equals, number = text.partition("=")
        if not (equals and number.isdecimal() and len(number) <= 9):
            raise typer.BadParameter(
                f"Expected STAGE=N, such as final_retrain=5, got {text!r}.", param_hint="--epochs"
            )
        names = ("dense", "retrain", "final_retrain", "finetune")
        training: Recipe = lookup("stage", {name: getattr(recipe, name) for name in names}, stage)
        recipe = recipe.replace(**{stage: training.replace(epochs=int(number))})
    return recipe

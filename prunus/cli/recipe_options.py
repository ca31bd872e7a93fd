"""The compression recipe of a command line."""

from collections.abc import Sequence

import typer

from prunus.compression.presets import COMPRESSION_RECIPES


def default_preset(model: str, *, train: bool = True) -> str:
    """The compression preset of a model: that of its name if there is one, else "default"; or "without-training".

    Args:
        model: Name of the model.
        train: Whether anything is trained.

    Returns:
        A key of `COMPRESSION_RECIPES`.

    >>> default_preset("lenet-5"), default_preset("nets:mine"), default_preset("lenet-5", train=False)
    ('lenet-5', 'default', 'without-training')
    """
    if not train:
        return "without-training"
    return model if model in COMPRESSION_RECIPES else "default"


def parse_epochs(texts: Sequence[str]) -> dict[str, int]:
    """The number of epochs by stage.

    Args:
        texts: Texts of the form "final_retrain=5".

    Returns:
        The numbers; `change_recipe` checks the names of the stages.

    Raises:
        typer.BadParameter: A text is not of the form STAGE=N.

    >>> parse_epochs(["final_retrain=5"])
    {'final_retrain': 5}
    """
    epochs = {}
    for text in texts:
        stage, equals, number = text.partition("=")
        if not (equals and number.isdecimal() and len(number) <= 9):
            raise typer.BadParameter(
                f"Expected STAGE=N, such as final_retrain=5, got {text!r}.", param_hint="--epochs"
            )
        epochs[stage] = int(number)
    return epochs

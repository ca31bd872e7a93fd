"""The network that a command reads, trains if need be, and writes."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def load_network(name: str, weights: Path | None, device: str, seed: int) -> tuple["nn.Module", bool]:
    """The network on `device`, and whether it is trained.

    Args:
        name: A built-in model, "package.module:function", or a .prunus file of a built-in model.
        weights: A file of trained weights.
        device: The device of the network.
        seed: Seed of the initial weights.

    Returns:
        The network, and whether it is trained.

    Raises:
        ModelError: Weights for a file that has its own, or a file of a model that is not built in.
    """
    from prunus.compression.container import load, read_header
    from prunus.compression.container.reading import named_model
    from prunus.errors import ModelError
    from prunus.models.loading import make_model

    path = Path(name)
    if path.suffix == ".prunus":
        if weights is not None:
            raise ModelError(
                f"Expected no --weights with {path}, which contains weights, got {weights}; leave out --weights."
            )
        if named_model(read_header(path)) is None:
            raise ModelError(
                f"Expected a file of a built-in model, got {path}, which names none; pass package.module:function of "
                "its model, and the file with --weights."
            )
        return load(path).to(device), True
    model = make_model(name, seed)
    if weights is not None:
        load_weights_file(model, weights)
    return model.to(device), weights is not None


def load_weights_file(model: "nn.Module", path: Path) -> None:
    """Copy the weights in a .prunus, .safetensors or torch file into `model`, and log what was done to fit it.

    Args:
        model: The network.
        path: The file.
    """
    from prunus.cli.output import log
    from prunus.compression.container import load
    from prunus.models.loading import load_weights

    if path.suffix == ".prunus":
        load(path, into=model)
    elif done := load_weights(model, path):
        log(f"{path}: {done}")


def default_data(name: str, model: "nn.Module") -> str:
    """The data set of the papers for a built-in model; DataError for another model.

    Args:
        name: The name of the model, for the error.
        model: The network.

    Returns:
        The name of a data set.

    Raises:
        DataError: The model is not built in, or is one for ImageNet, which is not built in.
    """
    from prunus.errors import DataError
    from prunus.models import input_shape

    built_in: Any = getattr(model, "built_in", None)
    if built_in is None:
        raise DataError(
            f"Expected a data set for {name}, which is not built in, got none; name one with --data."
        )
    shape = input_shape(built_in["name"])
    if shape[1] > 32:
        raise DataError(
            f"Expected a data set of ImageNet's shape for {name}, got none; name one with --data."
        )
    return "mnist" if shape[0] == 1 else "cifar-10"


def load_calibration(
    name: str, model: "nn.Module", data: str | None, needs_data: bool, *, device: str, seed: int
) -> Any:
    """The data set or the examples of a command.

    Args:
        name: The name of the model, for the error.
        model: The network.
        data: The name of the data; None: that of the papers for a built-in model, if there must be some.
        needs_data: Whether there must be some.
        device: Where the tensors of a data set are put.
        seed: Seed of the validation split.

    Returns:
        A Dataset, examples in another form, or None.

    Raises:
        DataError: There are none although they are needed, or they cannot be used.
    """
    from prunus.cli.progress import report
    from prunus.data import load_examples

    if data is None and needs_data:
        data = default_data(name, model)
    return None if data is None else load_examples(data, device=device, seed=seed, progress=report)


def check_format(model: "nn.Module", path: Path) -> None:
    """Raise, before any work, what writing `model` to `path` would raise; one entry of each tensor is encoded.

    Args:
        model: The network.
        path: The file to write.

    Raises:
        OutputError: The name has another ending.
        ModelError: The file cannot contain a tensor of the network.
    """
    import torch

    from prunus.cli.output import check_ending
    from prunus.compression.container import pack
    from prunus.models.safetensors_file import safetensors_bytes

    check_ending(path, ".safetensors", ".prunus")
    state = model.state_dict()
    # A tensor that is not dense has no first entry, and is refused as a whole.
    dense = {n: t for n, t in state.items() if getattr(t, "layout", None) is torch.strided}
    encode = pack if path.suffix == ".prunus" else safetensors_bytes
    encode(state | {n: t.detach().flatten()[:1].clone() for n, t in dense.items()})


def train_with_its_recipe(
    name: str, model: "nn.Module", data: Any, seed: int, task: Mapping[str, Any]
) -> None:
    """Train the model, in place, with the recipe of its name.

    Args:
        name: The name of the model, and of its recipe.
        model: The network.
        data: The data set to train on.
        seed: Seed of the training.
        task: The "forward" and the "loss" of the training, from `import_task`.

    Raises:
        DataError: The data are not a data set.
        ModelError: The model cannot be trained on them.
    """
    from prunus.cli.output import log
    from prunus.cli.progress import epoch_lines, report
    from prunus.cli.recipe_options import default_preset
    from prunus.compression.presets import COMPRESSION_RECIPES
    from prunus.errors import DataError
    from prunus.seeds import derive_seed
    from prunus.text_tables import pluralize
    from prunus.training import train
    from prunus.training.checks import check_model
    from prunus.types import Dataset

    if not isinstance(data, Dataset):
        raise DataError(
            f"Expected a prunus.Dataset to train {name} on, got a {type(data).__name__}; pass --weights FILE, or "
            "--no-train if your function returns trained weights."
        )
    forward, loss = task["forward"], task["loss"]
    check_model(model, data, forward=forward, loss=loss)
    recipe = COMPRESSION_RECIPES[default_preset(model)].dense
    epochs = pluralize(recipe.epochs, "epoch")
    log(f"{name} is trained first, {epochs}; pass trained weights with --weights FILE to skip this")
    epoch_line = epoch_lines(recipe.epochs)
    train(
        model, data, recipe, forward=forward, loss=loss,
        seed=derive_seed(seed, "dense"), report=lambda epoch: epoch_line("dense", epoch), progress=report,
    )  # fmt: skip


def write_network(model: "nn.Module", path: Path, made: dict[str, Any]) -> None:
    """Write the model as .prunus, or as .safetensors.

    Args:
        model: The network.
        path: A file that ends in .prunus or .safetensors.
        made: How the network was pruned; stored in the header of a .prunus file.
    """
    from prunus.compression.save import save
    from prunus.files import write_atomic
    from prunus.models.safetensors_file import safetensors_bytes

    if path.suffix == ".prunus":
        save(model, path, metadata=made)
    else:
        write_atomic(path, safetensors_bytes(model.state_dict()))

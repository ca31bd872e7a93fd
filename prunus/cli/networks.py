"""Models and data sets as the command line names them, weights as it is given them, and whether they fit."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from prunus.data import load
from prunus.errors import DataError, MismatchError, ModelError, PrunusError
from prunus.models import MODELS
from prunus.nouns import Dataset
from prunus.resolve import resolve
from prunus.seeds import derive
from prunus.tables import look_up

COUNTER = "num_batches_tracked"


def network(name: str, seed: int = 0) -> nn.Module:
    """A built-in model, or what "package.module:function" returns; its initial weights drawn from `seed`.

    Raises UnknownNameError, or ModelError where a user's function fails or returns anything else.
    """
    if ":" not in name:
        return look_up("model", MODELS, name)(seed=seed)
    function = resolve(name)
    with torch.random.fork_rng():
        torch.manual_seed(derive(seed, "init"))
        try:
            model = function()
        except (Exception, SystemExit) as error:  # a user's function may fail in any way at all
            raise ModelError(
                f"{name} was called without arguments and failed: {type(error).__name__}: {error}"
            ) from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"{name} was to return a torch.nn.Module and returned a {type(model).__name__}.")
    return model


def data_set(name: str, device: str, seed: int = 0) -> Dataset:
    """A built-in data set, or what "package.module:function" returns, on `device`.

    Raises what `prunus.data.load` raises, and DataError where a user's function fails.
    """
    try:
        return load(name, device=device, seed=seed)
    except (Exception, SystemExit) as error:
        if isinstance(error, PrunusError) or ":" not in name:
            raise
        raise DataError(
            f"{name} was called without arguments and gave no data set: {type(error).__name__}: {error}"
        ) from error


def put_weights(model: nn.Module, path: Path) -> None:
    """Copy the weights in a .safetensors or torch file into `model`.

    A torch file is opened with `weights_only`, so that no code of its runs; it holds a state_dict, or a
    mapping with one under "state_dict". The counters of BatchNorm's batches may be missing, as they are in files of
    other libraries: they stay as they are. Raises ModelError where the file holds anything else, MismatchError
    where the weights are of another model.
    """
    found = _read(path)
    wanted = model.state_dict()
    # A tied weight may be in the file under one of its names, as safetensors writes it.
    there = {(tensor.data_ptr(), tensor.shape) for name, tensor in wanted.items() if name in found}
    missing = [
        name
        for name, tensor in wanted.items()
        if name not in found and not (tensor.numel() and (tensor.data_ptr(), tensor.shape) in there)
    ]
    wrong = [
        *(f"{name} is missing" for name in missing if not name.endswith(COUNTER)),
        *(f"{name} is unknown" for name in found if name not in wanted),
        *(
            f"{name} is {list(found[name].shape)}, not {list(tensor.shape)}"
            for name, tensor in wanted.items()
            if name in found and found[name].shape != tensor.shape
        ),
    ]
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise MismatchError(
            f"{path} is for another model than {type(model).__name__}: {'; '.join(wrong[:3])}{more}."
        )
    model.load_state_dict({**wanted, **found})


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ModelError(f"{path}, where the weights were to be, is not a file.")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path} is no torch file of tensors alone; anything else is refused, since opening it could run "
            "code. Save model.state_dict()."
        ) from error
    except (
        OSError,
        SafetensorError,
        RuntimeError,
        ValueError,
        EOFError,
        LookupError,
        zipfile.BadZipFile,
    ) as error:
        raise ModelError(f"{path} cannot be read as weights: {error}") from error
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    if not isinstance(found, Mapping) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in found.items()
    ):
        raise ModelError(f"{path} holds no state_dict, that is tensors by name. Save model.state_dict().")
    return dict(found)


@torch.no_grad()
def check_fit(model: nn.Module, data: Dataset) -> None:
    """Raise ModelError unless `model` takes a batch of `data` and returns [B, C] logits, one a class."""
    batch = data.train.inputs[:2]
    asked = f"{type(model).__name__} was given a batch of {data.name}, {list(batch.shape)},"
    mode = model.training
    try:
        logits = model.eval()(batch)
    except Exception as error:  # a user's forward may fail in any way at all
        raise ModelError(f"{asked} and failed: {type(error).__name__}: {error}") from error
    finally:
        model.train(mode)
    classes = len(data.classes)
    if not (isinstance(logits, Tensor) and logits.dim() == 2 and logits.shape[1] >= classes):
        got = list(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise ModelError(f"{asked} and returned {got}; [{len(batch)}, {classes}] logits were expected.")

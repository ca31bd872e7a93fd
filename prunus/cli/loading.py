"""Models and data sets as the command line names them, weights as it is given them, and whether they fit."""

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from prunus.cli.progress import report
from prunus.cli.tensors import missing_names
from prunus.data import load
from prunus.data.download import progress as downloads
from prunus.errors import DataError, EmptyLayerWarning, ModelError, ModelMismatchError, PrunusError
from prunus.models import MODELS
from prunus.modules import check_initialized
from prunus.pruning.masks import check_finite
from prunus.registry import import_object, lookup
from prunus.seeds import derive_seed
from prunus.training.checks import check_model
from prunus.types import Dataset

COUNTER = "num_batches_tracked"


def create_model(name: str, seed: int = 0) -> nn.Module:
    """A built-in model, or what "package.module:function" returns; its initial weights drawn from `seed`.

    Raises UnknownNameError, or ModelError where a user's function fails or returns anything else.
    """
    if ":" not in name:
        return lookup("model", MODELS, name)(seed=seed)
    function = import_object(name)
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, "init"))
        try:
            model = function()
        except (Exception, SystemExit) as error:  # a user's function may fail in any way at all
            raise ModelError(
                f"{name} was called without arguments and failed: {type(error).__name__}: {error}"
            ) from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"{name} was to return a torch.nn.Module and returned a {type(model).__name__}.")
    check_initialized(model)
    return model


def load_dataset(name: str, device: str, seed: int = 0) -> Dataset:
    """A built-in data set, or what "package.module:function" returns, on `device`.

    Raises what `prunus.data.load` raises, and DataError where a user's function fails.
    """
    report(f"loading {name}", 0, 0)
    downloads.set(report)
    try:
        return load(name, device=device, seed=seed)
    except (Exception, SystemExit) as error:
        if isinstance(error, PrunusError) or ":" not in name:
            raise
        raise DataError(
            f"{name} was called without arguments and gave no data set: {type(error).__name__}: {error}"
        ) from error


def load_weights_into(model: nn.Module, path: Path) -> None:
    """Copy the weights in a .safetensors or torch file into `model`.

    A torch file is opened with `weights_only`, so that no code of its runs; it holds a state_dict, or a
    mapping with one under "state_dict". The counters of BatchNorm's batches may be missing, as they are in files of
    other libraries: they stay as they are. Of tied weights one name is enough.

    Raises ModelError where the file holds anything else or every parameter in it is zero, ModelMismatchError where the
    weights are of another model or no floating-point numbers, NonFiniteError where one is NaN or infinite.
    """
    found = _read(path)
    wanted = model.state_dict()
    other = [name for name, tensor in found.items() if not _is_dense(tensor)]
    if other:
        raise ModelError(
            f"Expected dense tensors with values in {path}, but {other[0]!r} is sparse, nested, quantized or on the "
            "meta device; convert it, as with tensor.to_dense() or tensor.dequantize(), before it is saved."
        )
    wrong = [
        *(f"{name} is missing" for name in missing_names(wanted, found) if not name.endswith(COUNTER)),
        *(f"{name} is unknown" for name in found if name not in wanted),
        *(
            f"{name} is {list(found[name].shape)}, not {list(tensor.shape)}"
            for name, tensor in wanted.items()
            if name in found and found[name].shape != tensor.shape
        ),
        *(
            f"{name} is {found[name].dtype}, not {tensor.dtype}"
            for name, tensor in wanted.items()
            if name in found and _kind(found[name]) != _kind(tensor)
        ),
    ]
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ModelMismatchError(
            f"{path} is for another model than {type(model).__name__}: {'; '.join(wrong[:3])}{more}."
        )
    parameters = [found[name] for name, _ in model.named_parameters() if name in found]
    if parameters and not any(bool(tensor.any()) for tensor in parameters):
        raise ModelError(
            f"Expected trained weights in {path}, but every parameter there is zero; save the weights after training."
        )
    check_finite(
        {name: found[name] for name, _ in model.named_parameters() if name in found}, f"In {path}, the tensor"
    )
    try:
        model.load_state_dict({**wanted, **found})
    except RuntimeError as error:  # a tensor of the model cannot be written to, for example an expanded one
        raise ModelError(
            f"The weights in {path} cannot be copied into {type(model).__name__}: {' '.join(str(error).split())}"
        ) from error
    for name, weight in found.items():
        if weight.dim() > 1 and not weight.any():
            warnings.warn(
                f"All of {name!r} in {path} is zero: no signal passes it.", EmptyLayerWarning, stacklevel=2
            )


def _is_dense(tensor: Tensor) -> bool:
    return not (tensor.layout != torch.strided or tensor.is_nested or tensor.is_quantized or tensor.is_meta)


def _kind(tensor: Tensor) -> str:
    """What kind of numbers a tensor holds; within a kind they can be converted."""
    if tensor.is_complex():
        return "complex"
    return "floating point" if tensor.is_floating_point() else "integer"


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


def check_fit(model: nn.Module, data: Dataset) -> None:
    """Raise ModelError unless `model` takes a batch of `data` and returns [B, C] logits, one a class."""
    check_model(model, data.train, len(data.class_names))

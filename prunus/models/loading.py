"""Make a model from a name or a function, and copy weights from a file into a model."""

import inspect
import pickle
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from prunus.data.validation import count_not_finite, unusual_storage
from prunus.errors import EmptyLayerWarning, ModelError, ModelMismatchError, NonFiniteError, PrunusError
from prunus.models import MODELS
from prunus.models.safetensors_file import missing_names
from prunus.modules import check_initialized
from prunus.registry import import_object, lookup
from prunus.seeds import derive_seed

BATCH_COUNTER = "num_batches_tracked"
"""How the names of BatchNorm's counters end; files of other libraries may lack them."""


def make_model(model: str | Callable[..., nn.Module], seed: int = 0) -> nn.Module:
    """Make a model with initial weights that depend only on `seed`.

    A function that has a parameter called `seed` is called with it, any other function without arguments. Both are
    called while torch's global random stream is seeded with a value derived from `seed`; the stream is restored.

    Args:
        model: The name of a built-in model, "package.module:function", or a function that returns a module.
        seed: Seed of the initial weights.

    Returns:
        The model, on the device where the function made it.

    Raises:
        UnknownNameError: There is no such model or function.
        ModelError: The function fails, or returns anything but an initialized module.

    Example:
        >>> make_model(lambda: nn.Linear(2, 1), seed=3).weight.shape
        torch.Size([1, 2])
    """
    name = model if isinstance(model, str) else getattr(model, "__qualname__", type(model).__name__)
    function: Callable[..., Any] = model if callable(model) else _find(model)
    arguments = _seed_argument(function, seed)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(derive_seed(seed, "init"))
        try:
            made = function(**arguments)
        except (Exception, SystemExit) as error:  # a user's function may fail in any way
            if isinstance(error, PrunusError):
                raise
            call = f"with seed={seed}" if arguments else "without arguments"
            raise ModelError(
                f"{name} was called {call} and failed: {type(error).__name__}: {error}"
            ) from error
    if not isinstance(made, nn.Module):
        raise ModelError(f"Expected {name} to return a torch.nn.Module, got a {type(made).__name__}.")
    check_initialized(made)
    return made


def _find(name: str) -> Callable[..., Any]:
    return import_object(name) if ":" in name else lookup("model", MODELS, name)


def _seed_argument(function: Callable[..., Any], seed: int) -> dict[str, int]:
    """The keyword argument for a function that has a parameter called `seed`; empty for any other function."""
    try:
        parameter = inspect.signature(function).parameters.get("seed")
    except (TypeError, ValueError):  # a built-in function without a signature
        return {}
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {"seed": seed} if parameter is not None and parameter.kind in by_name else {}


def load_weights(model: nn.Module, path: Path) -> None:
    """Copy the weights in a .safetensors or torch file into `model`, in place.

    A torch file is opened with `weights_only`, so that none of its code runs; it contains a state_dict, or a mapping
    with one under "state_dict". BatchNorm's batch counters may be missing, as in files of other libraries; they are
    not changed then. One name of several tied weights is enough.

    Args:
        model: A model whose `state_dict` has the names and shapes of the file.
        path: The file; a name that ends in .safetensors selects that format.

    Raises:
        ModelError: The file contains anything but dense tensors by name, or every parameter in it is zero.
        ModelMismatchError: The weights have other names, shapes or kinds of numbers than those of the model.
        NonFiniteError: A weight is NaN or infinite.
    """
    tensors, state = _read_tensors(path), model.state_dict()
    _check_storage(tensors, path)
    differences = _differences(state, tensors)
    if differences:
        more = f"; and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise ModelMismatchError(
            f"Expected weights of {type(model).__name__}, but {path} is for another model: "
            f"{'; '.join(differences[:3])}{more}."
        )
    _check_values({name: tensors[name] for name, _ in model.named_parameters() if name in tensors}, path)
    try:
        model.load_state_dict({**state, **tensors})
    except RuntimeError as error:  # a tensor of the model cannot be written to, for example an expanded one
        raise ModelError(
            f"The weights in {path} cannot be copied into {type(model).__name__}: {' '.join(str(error).split())}"
        ) from error
    for name, weight in tensors.items():
        if weight.dim() > 1 and not weight.any():
            message = f"All weights of {name!r} in {path} are zero: no signal passes this layer."
            warnings.warn(message, EmptyLayerWarning, stacklevel=2)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ModelError(f"Expected a weights file, but {path} is not a file; check the path.")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"Expected a torch file of tensors alone, but {path} contains other objects, which are refused because "
            "reading them could run code; save model.state_dict()."
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
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    ):
        raise ModelError(f"Expected a state_dict, tensors by name, in {path}; save model.state_dict().")
    return dict(content)


def _check_storage(tensors: Mapping[str, Tensor], path: Path) -> None:
    unusual = [name for name, tensor in tensors.items() if unusual_storage(tensor)]
    if unusual:
        raise ModelError(
            f"Expected dense tensors with values in {path}, but {unusual[0]!r} is sparse, nested, quantized or on the "
            "meta device; convert it, for example with tensor.to_dense() or tensor.dequantize(), before saving it."
        )


def _differences(state: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> list[str]:
    """How the tensors of a file differ from the `state_dict` of a model: names, shapes, kinds of numbers."""
    common = [name for name in state if name in tensors]
    return [
        *(f"{name} is missing" for name in missing_names(state, tensors) if not name.endswith(BATCH_COUNTER)),
        *(f"{name} is unknown" for name in tensors if name not in state),
        *(
            f"{name} is {list(tensors[name].shape)}, not {list(state[name].shape)}"
            for name in common
            if tensors[name].shape != state[name].shape
        ),
        *(
            f"{name} is {tensors[name].dtype}, not {state[name].dtype}"
            for name in common
            if _number_kind(tensors[name]) != _number_kind(state[name])
        ),
    ]


def _number_kind(tensor: Tensor) -> str:
    """The kind of numbers that a tensor contains; within a kind they can be converted."""
    if tensor.is_complex():
        return "complex"
    return "floating point" if tensor.is_floating_point() else "integer"


def _check_values(parameters: Mapping[str, Tensor], path: Path) -> None:
    if parameters and not any(bool(tensor.any()) for tensor in parameters.values()):
        raise ModelError(
            f"Expected trained weights in {path}, but every parameter there is zero; save the weights after training."
        )
    for name, tensor in parameters.items():
        bad = count_not_finite(tensor)
        if bad:
            raise NonFiniteError(
                f"Expected finite weights in {path}, but {bad} of {tensor.numel()} entries of {name!r} are NaN or "
                "infinite; save weights from before the training diverged."
            )

"""Make a model from a name or a function, and copy weights from a file into a model."""

import inspect
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunus.data.validation import count_not_finite, unusual_storage
from prunus.errors import EmptyLayerWarning, ModelError, ModelMismatchError, NonFiniteError, UnknownNameError
from prunus.models import MODELS
from prunus.models.checkpoints import match_names, read_checkpoint
from prunus.models.safetensors_file import missing_names, tied_pairs
from prunus.modules import check_initialized, unwrapped
from prunus.registry import call_user_function, import_object, lookup
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
    if isinstance(function, nn.Module):
        raise ModelError(
            f"Expected a function that returns a model, got a {type(function).__name__}; pass lambda: model."
        )
    arguments = _seed_argument(function, seed)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(derive_seed(seed, "init"))
        made = call_user_function("The function of the model", ModelError, function, **arguments)
    if not isinstance(made, nn.Module):
        raise ModelError(f"Expected {name} to return a torch.nn.Module, got a {type(made).__name__}.")
    check_initialized(made)
    return made


def _find(name: str) -> Callable[..., Any]:
    if ":" in name:
        function: Callable[..., Any] = import_object(name)
        return function
    # resnet20 and ResNet_20 mean resnet-20
    by_letters = {_letters(key): key for key in MODELS}
    key = name if name in MODELS else by_letters.get(_letters(name), name)
    if key not in MODELS and "." in name:
        raise UnknownNameError(
            f"Expected a built-in model or package.module:function, got {name!r}; a file of weights is passed as the "
            "weights of such a model."
        )
    return lookup("model", MODELS, key)


def _letters(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


def _seed_argument(function: Callable[..., Any], seed: int) -> dict[str, int]:
    """The keyword argument for a function that has a parameter called `seed`; empty for any other function."""
    try:
        parameter = inspect.signature(function).parameters.get("seed")
    except (TypeError, ValueError):  # a built-in function without a signature
        return {}
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {"seed": seed} if parameter is not None and parameter.kind in by_name else {}


def load_weights(model: nn.Module, path: Path) -> str:
    """Copy the weights in a .safetensors or torch file into `model`, in place.

    The state_dict may be in a training checkpoint (`read_checkpoint`), and its names may have the prefixes of wrapped
    modules (`match_names`). BatchNorm's batch counters may be missing, as in files of other libraries; they are not
    changed then. One name of several tied weights is enough. Integer tensors that the model does not have, such as the
    positions that old transformers stored, are not used.

    Args:
        model: A model whose `state_dict` has the names and shapes of the file; or such a model in a DataParallel or
            compiled module.
        path: The file; a name that ends in .safetensors selects that format.

    Returns:
        What was done to fit the file to the model, and which of its tensors are not used; empty: nothing.

    Raises:
        ModelError: The file contains anything but dense tensors by name, or every parameter in it is zero.
        ModelMismatchError: The weights have other names, shapes or kinds of numbers than those of the model.
        NonFiniteError: A weight is NaN or infinite.
    """
    model = unwrapped(model)
    checkpoint, state = read_checkpoint(path), model.state_dict()
    match = match_names(list(checkpoint.state), list(state))
    tensors = {match.names[name]: value for name, value in checkpoint.state.items()}
    _check_storage(tensors, path)
    unknown = [n for n, tensor in tensors.items() if n not in state and isinstance(tensor, Tensor)]
    unused = [name for name in unknown if _number_kind(tensors[name]) == "integer"]
    tensors = {name: value for name, value in tensors.items() if name not in unused}
    differences = _differences(state, tensors)
    if any(differences.values()):
        raise ModelMismatchError(
            f"Expected weights of {type(model).__name__}, but {path} is for another model: {_summarize(differences)}"
            f"{f' ({match.change})' if match.change else ''}."
        )
    names = [name for name, _ in model.named_parameters(remove_duplicate=False) if name in tensors]
    _check_values({name: tensors[name] for name in names}, path)
    for first, name in tied_pairs(state, names):
        values = [tensors[each].to(state[each].dtype) for each in (first, name)]
        if not torch.equal(*values):
            raise ModelMismatchError(
                f"Expected the same values for {first} and {name}, which are one tensor in {type(model).__name__}, got "
                f"different ones in {path}; load it into a module in which they are two."
            )
    try:
        model.load_state_dict({**state, **tensors})
    except RuntimeError as error:  # a tensor of the model cannot be written to, for example an expanded one
        raise ModelError(
            f"The weights in {path} cannot be copied into {type(model).__name__}: {' '.join(str(error).split())}"
        ) from error
    for name in names:  # a buffer may be zero
        if tensors[name].dim() > 1 and not tensors[name].any():
            message = f"All weights of {name!r} in {path} are zero: no signal passes this layer."
            warnings.warn(message, EmptyLayerWarning, stacklevel=2)
    not_used = f"not in the model, and not used: {', '.join(unused)}" if unused else ""
    return "; ".join(filter(None, (checkpoint.describe(), match.change, not_used)))


def _check_storage(tensors: Mapping[str, Any], path: Path) -> None:
    unusual = [n for n, tensor in tensors.items() if isinstance(tensor, Tensor) and unusual_storage(tensor)]
    if unusual:
        raise ModelError(
            f"Expected dense tensors with values in {path}, but {unusual[0]!r} is sparse, nested, quantized or on the "
            "meta device; convert it, for example with tensor.to_dense() or tensor.dequantize(), before saving it."
        )


def _differences(state: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, list[str]]:
    """How the tensors of a file differ from the `state_dict` of a model: names, shapes, kinds of numbers."""
    missing = missing_names(state, tensors)
    shapes, kinds = list[str](), list[str]()
    for name, expected in state.items():
        tensor = tensors.get(name)
        if isinstance(expected, Tensor) and isinstance(tensor, Tensor):
            if tensor.shape != expected.shape:
                shapes.append(f"{name} is {list(tensor.shape)}, not {list(expected.shape)}")
            if _number_kind(tensor) != _number_kind(expected):
                kinds.append(f"{name} is {tensor.dtype}, not {expected.dtype}")
    return {
        "missing": [f"{name} is missing" for name in missing if not name.endswith(BATCH_COUNTER)],
        "unknown": [f"{name} is unknown" for name in tensors if name not in state],
        "shapes": shapes,
        "kinds": kinds,
    }


def _summarize(differences: Mapping[str, list[str]]) -> str:
    """At most three differences of each kind, and the number of the others."""
    return "; ".join(
        f"{'; '.join(texts[:3])}{f', and {len(texts) - 3} more' if len(texts) > 3 else ''}"
        for texts in differences.values()
        if texts
    )


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

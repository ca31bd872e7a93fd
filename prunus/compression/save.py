"""Write a compressed network, or any module, into one file."""

import os
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel

from prunus.compression.container import EncodingConfig, pack, write
from prunus.compression.container.file_format import INTEGERS, SIGNED_ZERO_DTYPES
from prunus.compression.presets import CompressionRecipe
from prunus.compression.result import Compressed
from prunus.data.validation import unusual_storage
from prunus.errors import ContainerError, ModelError
from prunus.models.safetensors_file import tied_names
from prunus.modules import unwrapped
from prunus.pruning.masks import check_finite
from prunus.pruning.scopes import parse_scope
from prunus.seeded_tensors import SeededTensor
from prunus.version import __version__


def save(
    network: Compressed | nn.Module,
    path: str | os.PathLike[str],
    *,
    encoding: EncodingConfig | None = None,
    metadata: Mapping[str, Any] | None = None,
    generated: Mapping[str, SeededTensor] | None = None,
    factors: Mapping[str, float] | None = None,
) -> int:
    """Write `network` to `path` and return the size of the file in bytes.

    The file holds every parameter, buffer and extra state bit for bit, and tied tensors once, except that -0.0 of
    floats is written as the 0.0 that it equals: a weight times a mask is -0.0 at about half of the pruned positions,
    and their signs would take more bytes than the positions of all other weights. Their number is in the header, as
    "negative_zeros_cleared"; `container.write` keeps them. Zeros and repeated values make a file small, so any module
    may be saved. `load(path)` returns a built-in model, `load(path, into=module)` any other. If channels were
    removed from the model, the attributes that changed are stored as well, so that `load` makes the original module as
    small. An existing file is replaced once the new one is complete.

    Args:
        network: A module, or the result of `compress`, whose recipe is then stored as well. Of a module that
            torch.compile or DataParallel has wrapped, the wrapped module is written, with its own names; of an
            AveragedModel, the average, which is loaded into the plain model.
        path: The file to write.
        encoding: How positions and values become bytes; by default that of the recipe.
        metadata: A JSON object to store in the header, without the keys `edits` and `negative_zeros_cleared`.
        generated, factors: Weights to store as a seed and a mask; see `pack`. A supermask takes few more bytes than
            its mask.

    Returns:
        The size of the file in bytes.

    Raises:
        ModelError: `network` is not a module.
        NonFiniteError: A parameter holds NaN or infinity; buffers may, and `pack` writes anything.
        ContainerError: A tensor or the metadata cannot be stored.
        OutputError: The file cannot be written (a full disk; a path that is a folder or a device).
    """
    state, options = _contents(network, encoding, metadata)
    return write(path, state, **options, generated=generated, factors=factors)


def saved_size(
    network: Compressed | nn.Module,
    *,
    encoding: EncodingConfig | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> int:
    """The size in bytes of the file that `save` writes, as a budget of `slim` or to compare encodings.

    Args:
        network: A module, or the result of `compress`.
        encoding: How positions and values become bytes; by default that of the recipe.
        metadata: A JSON object in the header.

    Returns:
        The number of bytes; no file is written.

    Raises:
        ModelError, NonFiniteError, ContainerError: See `save`.

    >>> model = nn.Linear(100, 10)
    >>> saved_size(model) > 4040  # 1,010 parameters, and the header
    True
    """
    state, options = _contents(network, encoding, metadata)
    return len(pack(state, **options))


def _contents(
    network: Compressed | nn.Module, encoding: EncodingConfig | None, metadata: Mapping[str, Any] | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The state_dict that a file holds, and the arguments of `pack` that follow from the network."""
    model, about = network, {}
    if isinstance(network, Compressed):
        model, about = network.model, recipe_metadata(network.recipe, network.seed)
        encoding = encoding or network.recipe.encoding
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"Expected a torch.nn.Module or a prunus.Compressed, got a {type(model).__name__}; pass the network itself."
        )
    metadata = metadata or {}
    if not isinstance(metadata, Mapping) or {"edits", "negative_zeros_cleared"} & metadata.keys():
        raise ContainerError(
            f"Expected metadata as a dict without the keys 'edits' and 'negative_zeros_cleared', which prunus writes, "
            f"got {metadata!r}; rename the keys."
        )
    model = unwrapped(model)
    while isinstance(model, AveragedModel):
        model = unwrapped(model.module)
    floats = {n: p for n, p in model.named_parameters() if p.dtype in SIGNED_ZERO_DTYPES}
    check_finite(
        {n: p for n, p in floats.items() if not is_lazy(p) and not unusual_storage(p)}, "The parameter"
    )
    state, num_cleared = clear_negative_zeros(model.state_dict())
    return state, {
        "model": getattr(model, "built_in", None),
        "metadata": {**file_metadata(num_cleared, model), **about, **metadata},
        "encoding": encoding or EncodingConfig(),
    }


def file_metadata(num_cleared: int, model: nn.Module | None = None) -> dict[str, Any]:
    """The metadata of every file.

    Args:
        num_cleared: How many negative zeros were cleared.
        model: The model; if channels were removed from it, the attributes that have changed are stored.

    Returns:
        The versions of the libraries, and `negative_zeros_cleared` and `edits` where there are any.
    """
    libraries = {"prunus": __version__} | {name: version(name) for name in ("torch", "numpy", "constriction")}
    cleared = {"negative_zeros_cleared": num_cleared} if num_cleared else {}
    edits = getattr(model, "edited_attributes", None)
    return {**libraries, **cleared, **({} if edits is None else {"edits": edits})}


def recipe_metadata(recipe: CompressionRecipe, seed: int) -> dict[str, Any]:
    """The recipe without its training details, and the seed, with the keys of the file format.

    Args:
        recipe: The recipe of the compression.
        seed: The seed of the compression.

    Returns:
        A JSON object with the keys `recipe` and `seed`, for the metadata of a file. A criterion or a schedule that is
        not built in is stored as its name.
    """
    settings = {name: _to_builtin(getattr(recipe, name)) for name in ("rounds", "density", "bits")}
    for name in ("criterion", "schedule"):
        value = getattr(recipe, name)
        settings[name] = value if isinstance(value, str) else getattr(value, "__name__", type(value).__name__)
    settings |= {"scope": parse_scope(recipe.scope).name, "start": recipe.kmeans_init}
    return {"recipe": settings, "seed": _to_builtin(seed)}


def clear_negative_zeros(state: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """Return the state with 0.0 instead of every -0.0, and the number of them. No tensor is changed in place.

    >>> clear_negative_zeros({"w": torch.tensor([-0.0, 1.0])})
    ({'w': tensor([0., 1.])}, 1)
    """
    cleared, total = dict(state), 0
    dense = {
        name: tensor
        for name, tensor in state.items()
        if isinstance(tensor, Tensor) and not is_lazy(tensor) and not unusual_storage(tensor)
    }
    tied = tied_names(dense)
    for name, tensor in dense.items():
        if tensor.dtype not in SIGNED_ZERO_DTYPES:
            continue
        if name in tied:
            cleared[name] = cleared[tied[name]]
            continue
        bits = tensor.detach().resolve_neg().view(INTEGERS[tensor.dtype.itemsize])
        is_negative_zero = bits == torch.iinfo(bits.dtype).min  # the sign bit alone
        if count := int(is_negative_zero.sum()):
            cleared[name] = torch.where(is_negative_zero, 0, bits).view(tensor.dtype)
            total += count
    return cleared, total


def _to_builtin(value: Any) -> Any:
    """`value` with built-in numbers and dicts, which JSON can represent."""
    if isinstance(value, Mapping):
        return {key: _to_builtin(item) for key, item in value.items()}
    return value.item() if hasattr(value, "item") else value

"""Weights put into the places that a model has for them."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from prunus.errors import ModelError
from prunus.modules import copied
from prunus.pruning.computed_weights import refresh_computed_weights
from prunus.types import Params


@torch.no_grad()
def set_weights(model: nn.Module, weights: Params) -> None:
    """Set the parameters of these names, in place; the values are copied.

    Args:
        model: The module to change.
        weights: Tensors by parameter name.

    Raises:
        ModelError: The model has no parameter of this name and shape.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> set_weights(model, {"weight": torch.tensor([[3.0]])})
    >>> model.weight.tolist()
    [[3.0]]
    """
    for name, parameter in _parameters_to_set(model, weights).items():
        parameter.copy_(weights[name])
    _refresh(model, weights)


def _parameters_to_set(model: nn.Module, weights: Params) -> dict[str, nn.Parameter]:
    """The parameters of the names of `weights`. Raises ModelError where there is none of this name and shape."""
    parameters = dict(model.named_parameters())
    for name, weight in weights.items():
        if name not in parameters:
            raise ModelError(
                f"Expected a parameter {name!r} to set, but {type(model).__name__} has none of that name; a weight "
                "that a parametrization computes cannot be set."
            )
        if parameters[name].shape != weight.shape:
            raise ModelError(
                f"Expected {name!r} to have the shape {tuple(parameters[name].shape)} that it has in "
                f"{type(model).__name__}, got {tuple(weight.shape)}; pass weights of this model."
            )
    return {name: parameters[name] for name in weights}


def _refresh(model: nn.Module, weights: Params) -> None:
    """Compute again what layers compute from the parameters of these names."""
    for path in {name.rpartition(".")[0] for name in weights}:
        refresh_computed_weights(model.get_submodule(path))


def attribute_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Tensors that are attributes of modules, or in lists that are, and neither parameters nor buffers."""
    for module in model.modules():
        for value in vars(module).values():
            values = value if isinstance(value, list) else [value]
            yield from (tensor for tensor in values if isinstance(tensor, Tensor))


@torch.no_grad()
def with_weights(model: nn.Module, weights: Params) -> nn.Module:
    """A copy of `model` with the parameters of these names replaced, to be run and not to be trained.

    Its parameters share the memory of those of `model`, and of `weights`; everything else is copied.

    Args:
        model: Any module; it is not changed.
        weights: Tensors by parameter name.

    Returns:
        The copy.

    Raises:
        ModelError: As `set_weights`, or the model cannot be copied.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> with_weights(model, {"weight": torch.tensor([[3.0]])})(torch.ones(1, 1)).item()
    3.0
    """
    # The forward pass of an embedding with max_norm changes its weight in place.
    embeddings = [m for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)]
    changed = {id(embedding.weight) for embedding in embeddings if embedding.max_norm is not None}
    plain = [
        p for p in model.parameters()
        if type(p) is nn.Parameter and not p.is_inference() and id(p) not in changed
    ]  # fmt: skip
    replaced: dict[Tensor, Tensor] = {p: nn.Parameter(p.detach(), p.requires_grad) for p in plain}
    for name, parameter in _parameters_to_set(model, weights).items():
        value = weights[name].detach().to(parameter)
        if value.stride() != parameter.stride():
            value = torch.empty_like(parameter).copy_(value)
        replaced[parameter] = nn.Parameter(value, parameter.requires_grad)
    made = copied(model, replaced)
    _refresh(made, weights)
    return made

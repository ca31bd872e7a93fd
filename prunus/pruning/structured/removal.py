"""Remove channels from a model: from parameters, buffers, gradients, optimizer state, masks and module attributes.

Every parameter stays the same object with smaller data, so that optimizers, tied names and references of the user
stay valid.
Nothing is changed before all smaller tensors are computed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunus.errors import ModelError
from prunus.masks import Masks
from prunus.pruning.structured.attention import attention_sizes, can_lose_heads
from prunus.pruning.structured.edits import select_indices, set_attributes, set_data
from prunus.pruning.structured.graph import require_tensor
from prunus.pruning.structured.rules import removes_whole_groups

KeptIndices = Mapping[str, Mapping[int, Tensor]]
"""The indices that are kept, by name of the tensor and dimension."""


def remove_channels(
    model: nn.Module,
    kept_indices: KeptIndices,
    attributes: Mapping[str, Mapping[str, Any]],
    optimizer: torch.optim.Optimizer | None = None,
    masks: Masks | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> dict[str, dict[str, Any]]:
    """Keep only some indices of dimensions of tensors, in place.

    Args:
        model: The model.
        kept_indices: The indices that are kept; other tensors and dimensions are unchanged.
        attributes: New values of attributes of the user's modules, by module name; those of torch's modules follow
            from the shapes.
        optimizer: Its state of these parameters is reduced likewise.
        masks: Masks of the model, which are reduced likewise.
        weights: New values of some of these tensors, of the shapes before.

    Returns:
        The attributes that have changed, by module name and attribute: the value (an integer or a list), or the indices
        that are kept, by dimension, of a tensor that is not in the state_dict.

    Raises:
        ModelError: A state of the optimizer has neither one entry nor one per weight; nothing is changed.
    """
    tensors = {name: require_tensor(model, name) for name in kept_indices}
    values = {name: (weights or {}).get(name, tensor.data) for name, tensor in tensors.items()}
    smaller = {name: select_indices(value, kept_indices[name]) for name, value in values.items()}
    gradients = {
        name: select_indices(tensor.grad, kept_indices[name])
        for name, tensor in tensors.items()
        if tensor.grad is not None
    }
    states = [] if optimizer is None else _smaller_states(optimizer, tensors, kept_indices)
    shapes = _shapes_by_all_names(model, tensors)
    for name, tensor in tensors.items():
        tensor.grad = None
        set_data(tensor, smaller[name])
        tensor.grad = gradients.get(name)
    for state, key, value in states:
        state[key] = value
    if masks is not None:
        masks.select(kept_indices)
    edits = update_attributes(model, shapes, attributes)
    stored = model.state_dict().keys()
    for name in (
        kept_indices.keys() - stored
    ):  # not in a file: `load` reduces the tensor of the original module
        path, _, last = name.rpartition(".")
        edits.setdefault(path, {})[last] = {str(dim): i.tolist() for dim, i in kept_indices[name].items()}
    return edits


def _shapes_by_all_names(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shapes of tensors by each of their names: every module that has a tied parameter has sizes of it."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    ids = {id(tensor) for tensor in tensors.values()}
    for named in (model.named_parameters, model.named_buffers):
        shapes |= {n: tuple(t.shape) for n, t in named(remove_duplicate=False) if id(t) in ids}
    return shapes


def check_optimizer(model: nn.Module, optimizer: object) -> None:
    """Raise ModelError unless an optimizer steps parameters of a model, and its state can be reduced with them.

    Args:
        model: The model.
        optimizer: The optimizer.

    Raises:
        ModelError: It is not an optimizer, steps no parameter of the model, or its state is not that of single
            parameters.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ModelError(f"Expected a torch.optim.Optimizer, got a {type(optimizer).__name__}.")
    stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not any(id(p) in stepped for p in model.parameters()):
        raise ModelError(
            f"Expected an optimizer of this {type(model).__name__}, got one that steps none of its parameters; make a "
            "new optimizer of model.parameters()."
        )
    if any(isinstance(value, list) for state in optimizer.state.values() for value in state.values()):
        raise ModelError(
            "Expected an optimizer with a state for each parameter, which can be reduced, got "
            f"{type(optimizer).__name__}; apply the plan without the optimizer, and make a new one."
        )


def _smaller_states(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], kept_indices: KeptIndices
) -> list[tuple[dict[str, Any], str, Tensor]]:
    """The reduced tensors of an optimizer's state, with the dict and the key that they belong to."""
    result = []
    for name, tensor in tensors.items():
        state = optimizer.state.get(tensor, {})
        for key, value in state.items():
            if not isinstance(value, Tensor) or value.numel() == 1:
                continue
            full = value.dim() == tensor.dim() and all(
                length in (1, size) for length, size in zip(value.shape, tensor.shape, strict=True)
            )
            if not full:
                raise ModelError(
                    f"Expected the state {key!r} of {type(optimizer).__name__} to have the shape "
                    f"{tuple(tensor.shape)} of {name!r}, got {tuple(value.shape)}; apply the plan without the "
                    "optimizer, and make a new one."
                )
            dims = {dim: indices for dim, indices in kept_indices[name].items() if value.shape[dim] > 1}
            result.append((state, key, select_indices(value, dims)))
    return result


# --- attributes -------------------------------------------------------------------------------------------------


def update_attributes(
    model: nn.Module, shapes: Mapping[str, tuple[int, ...]], attributes: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Set the attributes of torch's modules that follow from the shapes of their tensors, and those given.

    Args:
        model: The model, whose tensors are smaller already.
        shapes: The shapes of the tensors before.
        attributes: Further values, by module name and attribute.

    Returns:
        The attributes that have changed, by module name and attribute: the value (an integer or a list), or the indices
        that are kept, by dimension, of a tensor that is not in the state_dict.
    """
    changed = {path: dict(values) for path, values in attributes.items()}
    for path in dict.fromkeys(name.rpartition(".")[0] for name in shapes):
        prefix = f"{path}." if path else ""
        before = {
            name.removeprefix(prefix): shape
            for name, shape in shapes.items()
            if name.rpartition(".")[0] == path
        }
        module = model.get_submodule(path)
        for name, value in _sizes(module, before).items():
            if getattr(module, name, None) != value:
                changed.setdefault(path, {}).setdefault(name, value)
    set_attributes(model, changed)
    return {path: {k: _plain(v) for k, v in values.items()} for path, values in changed.items() if values}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


HANDLED_MODULES = (
    nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm,
    nn.Embedding, nn.PReLU, nn.RNNBase, nn.RNNCellBase,
)  # fmt: skip
"""Modules of torch whose attributes follow from the shapes of their tensors."""


def follows_shapes(module: nn.Module) -> bool:
    """Whether the attributes of a module follow from the shapes of its tensors, so that a removal updates them."""
    return isinstance(module, HANDLED_MODULES) or can_lose_heads(module)


def _sizes(module: nn.Module, before: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """The attributes of a module of torch that are sizes of its tensors, with the values that they should have."""
    name = "weight_orig" if hasattr(module, "weight_orig") else "weight"  # of torch.nn.utils.prune
    weight = getattr(module, name, None)
    shape = tuple(weight.shape) if isinstance(weight, Tensor) else ()
    old_shape = tuple(before.get(name, shape))
    if isinstance(module, nn.modules.conv._ConvNd):
        return _convolution_sizes(module, shape, old_shape)
    if isinstance(module, nn.Linear):
        return {"out_features": shape[0], "in_features": shape[1]}
    if isinstance(module, nn.modules.batchnorm._NormBase):
        tensors = (module.weight, module.running_mean)
        return {"num_features": next((len(t) for t in tensors if t is not None), module.num_features)}
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return {"normalized_shape": shape} if shape else {}
    if isinstance(module, nn.GroupNorm) and shape:
        groups = module.num_groups if module.num_groups == 1 else shape[0] * module.num_groups // old_shape[0]
        return {"num_channels": shape[0], "num_groups": groups}
    if isinstance(module, nn.Embedding):
        return {"embedding_dim": shape[1]}
    if isinstance(module, nn.PReLU):
        return {"num_parameters": shape[0]}
    if isinstance(module, nn.MultiheadAttention):
        return attention_sizes(module)
    if isinstance(module, nn.RNNBase):
        gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
        first = module.get_parameter("weight_ih_l0")
        return {"input_size": first.shape[1], "hidden_size": len(first) // gates}
    if isinstance(module, nn.RNNCellBase):
        weights = (module.get_parameter("weight_ih"), module.get_parameter("weight_hh"))
        return {"input_size": weights[0].shape[1], "hidden_size": weights[1].shape[1]}
    return {}


def _convolution_sizes(module: Any, shape: Sequence[int], old_shape: Sequence[int]) -> dict[str, Any]:
    groups = module.groups
    if groups > 1 and removes_whole_groups(groups, module.in_channels):
        groups = shape[0] * groups // old_shape[0]
    inputs, outputs = shape[0], shape[1] * groups
    if not module.transposed:
        inputs, outputs = outputs, inputs
    return {"out_channels": outputs, "in_channels": inputs, "groups": groups}

"""A model in which every weight to prune is that of a Linear or a convolution, for methods that use layer inputs.

A view computes the outputs of the model in evaluation mode, on the same tensors, with other layers in place of

    Conv1D of transformers       Linear             the transposed weight
    a transposed convolution     a convolution      the flipped weight, of inputs with zeros between them
    MultiheadAttention           Conv1d, Linear     a convolution of three groups projects queries, keys and values
    LSTM, GRU, RNN, cells        Linear             one for the inputs and one for the previous outputs of a layer
    a computed weight            the same layer     the weight is a parameter

so that the rows of a matrix are outputs and its columns inputs, which patterns such as 2:4 run along, and a hook of a
layer sees the inputs that the matrix is multiplied with. Each weight of a view has the entries of one parameter in
another order; `LayerView.from_view` puts a result back.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from prunus.errors import ModelError, PrunusError
from prunus.modules import computed_attribute, copied
from prunus.pruning.computed_weights import computed_weights
from prunus.pruning.obs.state import PruneResult
from prunus.pruning.views.attention import AttentionView
from prunus.pruning.views.linear import linear_of
from prunus.pruning.views.recurrent import CellView, RecurrentView
from prunus.pruning.views.transposed import TRANSPOSED, convolution_of_transposed, flip
from prunus.pruning.weight_layers import WeightLayer, is_transformers_conv1d, weight_layers
from prunus.pruning.weights import attribute_tensors
from prunus.types import Density, MaskDict, Params

PLAIN_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Layers that are the same in a view."""

Reorder = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ViewedWeight:
    """The weight of a view that holds the entries of a parameter."""

    name: str
    """In the view."""
    layer: WeightLayer | None
    to_view: Reorder = torch.detach
    """The entries of a tensor of the parameter's shape, in the order of the view."""
    from_view: Reorder = torch.detach
    """The inverse."""


@dataclass(frozen=True)
class LayerView:
    """A view of a model; made by `layer_view`."""

    model: nn.Module
    viewed: dict[str, ViewedWeight]
    """By name of the parameter in the model."""

    @property
    def model_names(self) -> dict[str, str]:
        """The name in the model by the name in the view."""
        return {viewed.name: name for name, viewed in self.viewed.items()}

    def to_view(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Masks or scores of parameters as those of the weights of the view.

        Args:
            tensors: Of the shapes of the parameters, by name in the model.

        Returns:
            The same entries in the order of the view, by name in the view.
        """
        return {
            self.viewed[n].name: self.viewed[n].to_view(tensor)
            for n, tensor in tensors.items()
            if n in self.viewed
        }

    def weights(self, parameters: Params) -> Params:
        """The weights of the view: those that the layers multiply with.

        Args:
            parameters: By name in the model; of a computed weight, the parameter in the model is used.

        Returns:
            The weights by name in the view.
        """
        values = {}
        for name, parameter in parameters.items():
            layer = self.viewed[name].layer
            values[name] = layer.computed.compute() if layer and layer.computed else parameter
        return self.to_view(values)

    def from_view(self, result: PruneResult) -> PruneResult:
        """A result for the weights of the view as one for the parameters of the model.

        Args:
            result: Of a pruning method for the view.

        Returns:
            The result with names, shapes and values of parameters; of a computed weight, all parameters of it.

        Raises:
            ModelError: A weight_norm would divide by zero, the norm of a row without weights.
        """
        weights: Params = {}
        masks: MaskDict = {}
        for name, viewed in self.viewed.items():
            masks[name] = viewed.from_view(result.masks[viewed.name]).contiguous()
            weight = viewed.from_view(result.weights[viewed.name]).contiguous()
            weights |= _parameters_of(name, weight, viewed.layer)
        seconds = {self.model_names[name]: time for name, time in result.seconds.items()}
        dampings = {self.model_names[name]: damping for name, damping in result.dampings.items()}
        return replace(result, weights=weights, masks=masks, seconds=seconds, dampings=dampings)

    def density(self, density: Density) -> Density:
        """A density by name in the model as one by name in the view; a number as it is."""
        if not isinstance(density, Mapping):
            return density
        return {self.viewed[n].name if n in self.viewed else n: value for n, value in density.items()}

    @contextmanager
    def names_of_model(self) -> Iterator[None]:
        """Inside, errors about the view are raised with the names of the parameters of the model."""
        try:
            yield
        except PrunusError as error:
            message = str(error)
            for name, viewed in self.viewed.items():
                message = message.replace(repr(viewed.name), repr(name))
            raise type(error)(message) from error


def layer_view(model: nn.Module, names: Collection[str], *, only_computed: bool = False) -> LayerView:
    """The view of `model` for the parameters of these names.

    Args:
        model: Any module; it is not changed. Where no layer has to be replaced, it is the model of the view.
        names: Names of parameters to prune.
        only_computed: Whether to replace only layers that compute their weight, for methods that use neither the inputs
            of layers nor the rows and columns of a matrix.

    Returns:
        The view.

    >>> view = layer_view(nn.ConvTranspose1d(2, 6, 3), ["weight"])
    >>> {name: tuple(p.shape) for name, p in view.model.named_parameters()}
    {'weight': (6, 2, 3), 'bias': (6,)}
    """
    layers = weight_layers(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    viewed, replaced = {}, {}
    for name in names:
        layer = layers.get(name)
        if layer is None:
            viewed[name] = ViewedWeight(name, None)
            continue
        parameter = layer.computed.parameter if layer.computed else layer.attribute
        path = name[: len(name) - len(parameter)].rstrip(".")
        if layer.computed or (_maker(layer.module) and not only_computed):
            replaced[path] = layer.module
        parent = path.rpartition(".")[0]
        if path and isinstance(modules.get(parent), nn.MultiheadAttention) and not only_computed:
            # Its forward reads the weight of out_proj without calling out_proj.
            replaced[parent] = modules[parent]
        viewed[name] = _viewed_weight(path, layer, only_computed)
    make = _with_plain_weights if only_computed else _layer_in_view
    return LayerView(_replace_layers(model, modules, replaced, make), viewed)


def why_no_layer_inputs(model: nn.Module, names: Collection[str]) -> dict[str, str]:
    """Why methods that use the inputs of layers cannot prune some of these parameters.

    Args:
        model: Any module.
        names: Names of parameters to prune.

    Returns:
        {name: reason} of those that they cannot prune.

    >>> why_no_layer_inputs(nn.Sequential(nn.Bilinear(2, 2, 2), nn.Linear(2, 2)), ["0.weight", "1.weight"])
    {'0.weight': 'the output error of Bilinear is not known'}
    """
    layers, reasons = weight_layers(model), {}
    num_owners = Counter(
        id(p) for module in model.modules() for p in module._parameters.values() if p is not None
    )
    for name in names:
        layer = layers.get(name)
        owner = layer.module if layer else model.get_submodule(name.rpartition(".")[0])
        is_known = isinstance(owner, PLAIN_LAYERS) or _maker(owner) is not None
        if num_owners[id(model.get_parameter(name))] > 1:
            reasons[name] = "its tensor is used by several layers, whose output errors differ"
        elif layer is None or not is_known:
            reasons[name] = f"the output error of {type(owner).__name__} is not known"
        elif layer.computed is not None and not layer.computed.keeps_values:
            reasons[name] = f"{layer.computed.function} scales the weight after the update"
    return reasons


def _maker(module: nn.Module) -> Callable[[Any], nn.Module] | None:
    """What makes the module that takes the place of a layer; None: the layer stays as it is."""
    if isinstance(module, TRANSPOSED):
        return convolution_of_transposed
    if is_transformers_conv1d(module):
        return _linear_of_conv1d
    if isinstance(module, nn.MultiheadAttention):
        return AttentionView
    if isinstance(module, nn.RNNBase):
        # `why_no_layer_inputs` names those with projections.
        return None if module.proj_size else RecurrentView
    return CellView if isinstance(module, nn.RNNCellBase) else None


def _linear_of_conv1d(layer: nn.Module) -> nn.Module:
    return linear_of(layer.get_parameter("weight").T, layer.get_parameter("bias"))


def _viewed_weight(path: str, layer: WeightLayer, only_computed: bool) -> ViewedWeight:
    name, make = f"{path}.{layer.attribute}".lstrip("."), _maker(layer.module)
    if only_computed or make is None:
        return ViewedWeight(name, layer)
    if isinstance(layer.module, TRANSPOSED):
        swap = partial(flip, groups=layer.module.groups)
        return ViewedWeight(name, layer, swap, swap)
    if make is _linear_of_conv1d:
        return ViewedWeight(name, layer, torch.t, torch.t)
    if layer.attribute == "in_proj_weight":
        unsqueeze, squeeze = partial(torch.unsqueeze, dim=-1), partial(torch.squeeze, dim=-1)
        return ViewedWeight(f"{name}.weight", layer, unsqueeze, squeeze)
    return ViewedWeight(f"{name}.weight", layer)


def _replace_layers(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    replaced: Mapping[str, nn.Module],
    make: Callable[[nn.Module], nn.Module],
) -> nn.Module:
    """A copy of `model` that shares its tensors, with what `make` returns at the paths of `replaced`."""
    if not replaced:
        return model
    tensors = [*model.parameters(), *model.buffers(), *attribute_tensors(model)]
    viewed = copied(model, {tensor: tensor for tensor in tensors})
    made = {id(module): make(module) for module in replaced.values()}
    for path in sorted((p for p, m in modules.items() if id(m) in made), key=lambda path: path.count(".")):
        layer = made[id(modules[path])]
        parent, _, last = path.rpartition(".")
        if not path:
            viewed = layer
        else:
            viewed.get_submodule(parent)._modules[last] = layer
    for module in viewed.modules():
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False  # nested tensors would not reach the layers of the view
    return viewed


def _layer_in_view(module: nn.Module) -> nn.Module:
    layer = plain = _with_plain_weights(module)
    if make := _maker(plain):
        layer = make(plain)
        for hooks in ("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"):
            getattr(layer, hooks).update(getattr(plain, hooks))
        for hooks in ("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"):
            layer_hooks: Any = getattr(layer, hooks)
            setattr(layer, hooks, type(layer_hooks)({**getattr(plain, hooks), **layer_hooks}))
    return layer.train(module.training)


def _with_plain_weights(module: nn.Module) -> nn.Module:
    """The layer with its computed weights as parameters; it shares all other tensors and submodules."""
    computed = computed_weights(module)
    if not computed:
        return module
    plain = nn.Module()
    plain.__class__ = parametrize.type_before_parametrizations(module)
    plain.__dict__.update({**vars(module), "_parameters": dict(module._parameters)})
    plain._modules = {n: m for n, m in module._modules.items() if n != "parametrizations"}
    attributes = {weight.attribute for weight in computed}
    if parametrize.is_parametrized(module):
        attributes |= set(module.parametrizations.keys())  # type: ignore[union-attr, operator]
    values = {weight.attribute: weight.compute() for weight in computed}
    for attribute in attributes:
        vars(plain).pop(attribute, None)
        value = values[attribute] if attribute in values else getattr(module, attribute).detach()
        plain._parameters[attribute] = nn.Parameter(value)
    hooks = module._forward_pre_hooks
    others = {key: hook for key, hook in hooks.items() if computed_attribute(hook) not in attributes}
    plain._forward_pre_hooks = type(hooks)(others)
    return plain


def _parameters_of(name: str, weight: Tensor, layer: WeightLayer | None) -> Params:
    """The parameters of a layer, by name in the model, from which its weight is computed."""
    if layer is None or layer.computed is None:
        return {name: weight}
    computed = layer.computed
    original = layer.module.get_parameter(computed.parameter).detach()
    if not computed.keeps_values and original.shape == weight.shape:
        return {name: original * (weight != 0)}  # the function is applied to the parameter once more
    path = name[: len(name) - len(computed.parameter)]
    parameters = {path + parameter: value for parameter, value in computed.invert(weight).items()}
    if computed.function in ("weight_norm", "the parametrization WeightNorm"):
        num_empty = sum(int((norm == 0).sum()) for parameter, norm in parameters.items() if parameter != name)
        if num_empty:
            raise ModelError(
                f"Expected a kept weight in every row of {path + computed.attribute!r}, as {computed.function} divides "
                f"by the norm of each row, got {num_empty} rows without one; raise the density, or make the weight a "
                "parameter first (torch.nn.utils.parametrize.remove_parametrizations, or remove_weight_norm)."
            )
    return parameters

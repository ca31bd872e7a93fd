"""Dead neurons: channels whose incoming weights, or whose outgoing weights, are all pruned.

    no outputs   its value is not used: it is removed.
    no inputs    its value is a constant, f(bias): it is removed after the constant is added to the next biases.

The channels are those of the groups of `prunus.slim`: outputs of layers may be added or concatenated.
Source: Han et al. 2015, section 3.5 ("pruning neurons"), where gradient and decay remove such neurons; here they are
removed exactly, so that the function is the same up to the rounding of a sum. This is checked on the example inputs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunus.errors import ModelError
from prunus.masks import apply_masks, check_masks
from prunus.modules import copied, unwrapped
from prunus.pruning.structured.analysis import analyze
from prunus.pruning.structured.edits import select_indices, set_data
from prunus.pruning.structured.flows import ChannelFlow, channel_flows
from prunus.pruning.structured.graph import Inputs, module_paths
from prunus.pruning.structured.groups import Analysis, kept_indices
from prunus.pruning.structured.plan import SlimPlan
from prunus.pruning.structured.verify import largest_difference, outputs_of
from prunus.training.modes import eval_mode
from prunus.types import MaskDict

TOLERANCE = 1e-4
"""How far outputs may differ after a removal, relative to the largest: sums of float32 in another order."""


@dataclass(frozen=True)
class DeadNeurons:
    """The dead neurons of one layer, or of several layers whose neurons are removed together, by index."""

    layer: str
    """The first of the layers."""
    num_neurons: int
    no_inputs: tuple[int, ...]
    no_outputs: tuple[int, ...]


def dead_neurons(model: nn.Module, masks: MaskDict, example_inputs: object) -> list[DeadNeurons]:
    """The dead neurons of every layer whose outputs are read by other layers only.

    Args:
        model: Any module that `torch.export` can export.
        masks: By parameter name; a layer without a mask keeps all weights.
        example_inputs: What its forward takes: one tensor, a tuple of arguments, or a dict of named arguments.

    Returns:
        One report per layer, or group of layers; a neuron may be in both of its lists.

    Raises:
        ModelError: The model cannot be exported, does not take the inputs, or has no parameter of the name and shape of
            a mask.
    """
    model = unwrapped(model)
    check_masks(dict(model.named_parameters(remove_duplicate=False)), masks)
    flows = _checked_flows(analyze(model, example_inputs), model)
    remaining = _remaining_weights(model, flows, masks)
    return [_report(flow, ~_is_connected(flow, remaining)) for flow in flows]


def unchecked_layers(model: nn.Module, example_inputs: object) -> dict[str, str]:
    """Why `dead_neurons` does not report a layer, and `remove_dead_neurons` does not change its outputs.

    Args:
        model: Any module that `torch.export` can export.
        example_inputs: What its forward takes.

    Returns:
        The reason by name of the layer.

    Raises:
        ModelError: The model cannot be exported, or does not take the inputs.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    >>> unchecked_layers(model, torch.ones(1, 2))
    {'2': 'output (output): the tensor is an output of the model'}
    """
    model = unwrapped(model)
    analysis = analyze(model, example_inputs)
    refused = {
        name: str(refused_part.refusal)
        for refused_part in analysis.refused
        for name, dim in refused_part.dimensions
        if dim == 0
    }
    followed = {name: flow.obstacle for flow in channel_flows(analysis, model) for name in flow.producers}
    called = {path for node in analysis.traced.graph.nodes for path in module_paths(node)}
    reasons = {}
    for path, module in model.named_modules():
        name = f"{path}.weight".removeprefix(".")
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            default = (
                "it has groups, or its weight is computed or that of another layer"
                if path in called
                else "the forward does not call it"
            )
            reasons[path] = followed.get(name, refused.get(name, default))
    return {path: reason for path, reason in reasons.items() if reason is not None}


def remove_dead_neurons(
    model: nn.Module, masks: MaskDict, example_inputs: object
) -> tuple[nn.Module, MaskDict, list[DeadNeurons]]:
    """Remove the dead neurons of a copy of `model`; the function is the same.

    Removing a neuron can leave those before it without outputs, so this is repeated until no neuron is dead. A neuron
    without inputs is not removed where its constant cannot be a bias: before a padded convolution, unless the constant
    is zero. The last neuron of a layer is not removed either. `unchecked_layers` names the layers that are not checked.

    Args:
        model: Any module that `torch.export` can export; its pruned weights count as zero. Evaluation mode is assumed;
            the copy has the modes, and its parameters the requires_grad, that `model` and its parameters have.
        masks: By parameter name.
        example_inputs: What its forward takes, to trace the model and to compare outputs on.

    Returns:
        The smaller copy, its masks, and the neurons that were removed.

    Raises:
        ModelError: The model cannot be exported, does not take the inputs, or the smaller model does not return the
            same for them.
    """
    model = unwrapped(model)
    smaller = copied(model)
    smaller.load_state_dict(apply_masks(dict(smaller.state_dict()), masks))
    smaller.__dict__.pop("built_in", None)  # its shapes are its own now
    analysis = analyze(smaller, example_inputs)
    flows = _checked_flows(analysis, smaller)
    inputs = analysis.traced.inputs
    names_before = smaller.state_dict().keys()
    with eval_mode(smaller), torch.no_grad():
        before = outputs_of(smaller, inputs)
        dead = _find_removable(smaller, flows, masks, inputs)
        removed = {flow.group.name: _indices(dead[flow].any(0)) for flow in flows}
        SlimPlan(smaller, analysis, removed, verify=False).apply()
        indices = kept_indices(analysis, removed)
        for name, parameter in smaller.named_parameters():
            rows = indices.get(f"{name.removesuffix('bias')}weight", {}).get(0)
            if name not in names_before and rows is not None:  # a bias that was made for the constants
                set_data(parameter, select_indices(parameter, {0: rows}))
        _check_same(model, before, outputs_of(smaller, inputs))
    masks = {name: select_indices(mask, indices.get(name, {})) for name, mask in masks.items()}
    return smaller, masks, [_report(flow, dead[flow]) for flow in flows if dead[flow].any()]


def _checked_flows(analysis: Analysis, model: nn.Module) -> list[ChannelFlow]:
    """The flows through weights alone."""
    flows = channel_flows(analysis, model)
    return [flow for flow in flows if flow.obstacle is None and flow.producers and flow.consumers]


def _remaining_weights(model: nn.Module, flows: Sequence[ChannelFlow], masks: MaskDict) -> MaskDict:
    """A mask for every weight that channels pass through."""
    names = {name for flow in flows for name in (*flow.producers, *flow.consumers)}
    all_true = {name: torch.ones_like(model.get_parameter(name), dtype=torch.bool) for name in names}
    return {name: masks.get(name, mask).clone() for name, mask in all_true.items()}


def _is_connected(flow: ChannelFlow, remaining: MaskDict) -> Tensor:
    """Which channels have an input, and which have an output: booleans [2, channels]."""
    sides = [
        [flow.group.member_values(member, remaining[name]).any(1).cpu() for name, member in members.items()]
        for members in (flow.producers, flow.consumers)
    ]
    return torch.stack([torch.stack(side).any(0) for side in sides])


def _indices(mask: Tensor) -> list[int]:
    indices: list[int] = mask.nonzero().flatten().tolist()
    return indices


def _report(flow: ChannelFlow, dead: Tensor) -> DeadNeurons:
    """The report of booleans [2, channels]: without inputs, and without outputs."""
    layer = next(iter(flow.producers)).rpartition(".")[0]
    return DeadNeurons(layer, flow.group.channels, *(tuple(_indices(is_dead)) for is_dead in dead))


def _find_removable(
    model: nn.Module, flows: Sequence[ChannelFlow], masks: MaskDict, inputs: Inputs
) -> dict[ChannelFlow, Tensor]:
    """The neurons to remove, [2, channels]: without inputs, and without outputs.

    Constants are added to biases of the model in place, and the weights that read them become zero.
    """
    remaining = _remaining_weights(model, flows, masks)
    dead = {flow: torch.zeros(2, flow.group.channels, dtype=torch.bool) for flow in flows}
    is_changed = True
    while is_changed:
        is_changed, layer_inputs = False, _inputs_of_consumers(model, flows, inputs)
        for flow in flows:
            connected, is_kept = _is_connected(flow, remaining), ~dead[flow].any(0)
            is_constant, is_unused = is_kept & ~connected[0] & connected[1], is_kept & ~connected[1]
            if torch.equal(is_constant | is_unused, is_kept):  # a layer keeps its last neuron, as it is
                last = is_kept.nonzero()[0]
                is_constant[last] = is_unused[last] = False
            if is_constant.any() and _add_constants_to_biases(model, flow, is_constant, layer_inputs):
                is_unused |= is_constant
            if is_unused.any():
                is_changed = True
                dead[flow] |= is_unused & ~connected
                for dim, weights in enumerate((flow.producers, flow.consumers)):
                    for name, member in weights.items():
                        indices = member.indices[is_unused].flatten().to(remaining[name].device)
                        remaining[name].index_fill_(dim, indices, False)
    return dead


def _inputs_of_consumers(
    model: nn.Module, flows: Sequence[ChannelFlow], inputs: Inputs
) -> dict[nn.Module, Tensor]:
    """What reaches the layers that read channels, after hooks of the user."""
    values: dict[nn.Module, Tensor] = {}

    def store(layer: nn.Module, args: Any, kwargs: Any) -> None:
        values[layer] = next(iter([*args, *kwargs.values()]))

    layers = {_layer(model, name) for flow in flows for name in flow.consumers if flow.has_constants}
    hooks = [layer.register_forward_pre_hook(store, with_kwargs=True) for layer in layers]
    model(*inputs[0], **inputs[1])
    for hook in hooks:
        hook.remove()
    return values


def _layer(model: nn.Module, weight: str) -> Any:
    return model.get_submodule(weight.rpartition(".")[0])


def _add_constants_to_biases(
    model: nn.Module, flow: ChannelFlow, is_constant: Tensor, layer_inputs: Mapping[nn.Module, Tensor]
) -> bool:
    """Add the values of constant neurons to the next biases; False, and no change, where they cannot be biases."""
    changes = []
    for name, member in flow.consumers.items() if flow.has_constants else ():
        layer = _layer(model, name)
        num_dims, x = layer.weight.dim(), layer_inputs[layer]
        x = x[:1] if x.dim() >= num_dims else x  # one example is enough
        axis, indices = x.dim() - num_dims + 1, member.indices[is_constant].flatten().to(x.device)
        constants = torch.zeros_like(x).index_copy(axis, indices, x.index_select(axis, indices))
        effect = layer.forward(constants) - layer.forward(torch.zeros_like(x))
        effect = effect.movedim(axis, 0).flatten(1)
        if not torch.equal(effect, effect[:, :1].expand_as(effect)):
            return False  # at a padded border the constant contributes less, which no bias does
        changes.append((layer, indices, effect[:, 0]))
    for layer, indices, effect in changes:
        if layer.bias is None:
            layer.bias = nn.Parameter(torch.zeros_like(effect), requires_grad=layer.weight.requires_grad)
        layer.bias.add_(effect)
        layer.weight.index_fill_(1, indices, 0)
    return flow.has_constants


def _check_same(model: nn.Module, before: Sequence[Tensor], after: Sequence[Tensor]) -> None:
    """Raise ModelError where outputs differ by more than the rounding of a sum."""
    precision = max((torch.finfo(t.dtype).eps for t in before if t.is_floating_point()), default=0.0)
    difference = largest_difference(before, after)
    if not difference <= max(TOLERANCE, 8 * precision):
        raise ModelError(
            f"Expected the same function of {type(model).__name__} without its dead neurons, but an output differs by "
            f"{difference:.3g}, relative to the largest; a forward or a hook that reads attributes of a layer depends "
            "on them, so that they cannot be removed."
        )

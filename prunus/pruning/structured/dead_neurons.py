"""Dead neurons: a neuron (or filter) whose inputs, or whose outputs, are all pruned.

    no outputs   its value is not used: it is removed.
    no inputs    its value is a constant, f(bias): it is removed after the constant is added to the next bias.

Source: Han et al. 2015, section 3.5 ("pruning neurons"), where gradient and decay remove such neurons; here they are
removed exactly, so that the function is the same up to the rounding of a sum. This is checked on the example inputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from prunus.data.examples import as_examples, iter_tensors
from prunus.errors import ModelError
from prunus.masks import apply_masks
from prunus.pruning.calibration_checks import run_forward
from prunus.pruning.graph import LayerPair, layer_pairs, weight_of
from prunus.pruning.structured.edits import select_indices
from prunus.pruning.structured.removal import remove_channels
from prunus.pruning.weights import copied
from prunus.training.modes import eval_mode
from prunus.types import MaskDict

TOLERANCE = 1e-4
"""How far outputs may differ after a removal, relative to their norm: sums of float32 in another order."""
_BY_NEURON = ("weight", "bias", "running_mean", "running_var")
"""The tensors of a layer or a norm with one entry, or row, for each neuron."""


@dataclass(frozen=True)
class DeadNeurons:
    """The dead neurons of one layer, by index."""

    layer: str
    num_neurons: int
    no_inputs: tuple[int, ...]
    no_outputs: tuple[int, ...]


def dead_neurons(model: nn.Module, masks: MaskDict) -> list[DeadNeurons]:
    """The dead neurons of every layer whose outputs are followed to a next layer (`layer_pairs`).

    Args:
        model: Any module that can be traced.
        masks: By parameter name; a layer without a mask keeps all weights.

    Returns:
        One report per layer; a neuron may be in both of its lists.

    Raises:
        ModelError: The model cannot be traced.
    """
    reports = []
    for pair in layer_pairs(model):
        has_inputs, has_outputs = _connected(pair, model, masks)
        reports.append(
            DeadNeurons(pair.first, len(has_inputs), _indices(~has_inputs), _indices(~has_outputs))
        )
    return reports


def remove_dead_neurons(
    model: nn.Module, masks: MaskDict, example: Tensor
) -> tuple[nn.Module, MaskDict, list[DeadNeurons]]:
    """Remove the dead neurons of a copy of `model`; the function is the same.

    Removing a neuron can leave those before it without outputs, so this is repeated until no neuron is dead. A neuron
    without inputs is not removed where its constant cannot be a bias: before a padded convolution, unless the constant
    is zero. The last neuron of a layer is not removed either. `unpaired_layers` names the layers that are not checked.

    Args:
        model: Any module; its pruned weights count as zero. Evaluation mode is assumed; the copy has the modes, and its
            parameters the requires_grad, that `model` and its parameters have.
        masks: By parameter name.
        example: An input batch [B, ...], to run the operations between two layers on, and to compare outputs on.

    Returns:
        The smaller copy, its masks, and the neurons that were removed.

    Raises:
        ModelError: The model cannot be traced, or the smaller model does not return the same for `example`.
        StatisticsError: The model does not take `example`.
    """
    as_examples(example)
    smaller = copied(model)
    smaller.load_state_dict(apply_masks(dict(smaller.state_dict()), masks))
    masks, removed = dict(masks), []
    smaller.__dict__.pop("built_in", None)  # its shapes are its own now
    with eval_mode(smaller), torch.no_grad():
        before = _outputs(smaller, example)
        while reports := [
            report for pair in layer_pairs(smaller) if (report := _shrink(smaller, pair, masks, example))
        ]:
            removed += reports
        _check_same(model, before, _outputs(smaller, example))
    return smaller, masks, removed


def _outputs(model: nn.Module, example: Tensor) -> list[Tensor]:
    """Copies of the floating-point tensors that `model` returns."""
    return [t.clone() for t in iter_tensors(run_forward(model, example, model)) if t.is_floating_point()]


def _check_same(model: nn.Module, before: Sequence[Tensor], after: Sequence[Tensor]) -> None:
    """Raise ModelError where outputs differ by more than the rounding of a sum."""
    for output, smaller in zip(before, after, strict=True):
        tolerance = max(TOLERANCE, 8 * torch.finfo(output.dtype).eps)
        norm = float(output.double().norm())
        difference = (
            float((output - smaller).double().norm()) if output.shape == smaller.shape else float("inf")
        )
        if not difference <= tolerance * norm:
            raise ModelError(
                f"Expected the same function of {type(model).__name__} without its dead neurons, but an output of norm "
                f"{norm:.3g} differs by {difference:.3g}; a hook, or a forward that reads another layer's attributes, "
                "depends on them, so that they cannot be removed."
            )


def _connected(pair: LayerPair, model: nn.Module, masks: MaskDict) -> tuple[Tensor, Tensor]:
    """Two boolean tensors [neurons]: which have an input, and which have an output."""
    incoming, outgoing = _mask_of(pair.first, model, masks), _mask_of(pair.second, model, masks)
    num_neurons = len(incoming)
    has_outputs = outgoing.reshape(len(outgoing), num_neurons, -1).any(2).any(0)
    return incoming.reshape(num_neurons, -1).any(1), has_outputs


def _mask_of(layer: str, model: nn.Module, masks: MaskDict) -> Tensor:
    all_true = torch.ones_like(weight_of(model.get_submodule(layer)), dtype=torch.bool)
    return masks.get(f"{layer}.weight", all_true)


def _indices(mask: Tensor) -> tuple[int, ...]:
    return tuple(mask.nonzero().flatten().tolist())


@torch.no_grad()
def _shrink(model: nn.Module, pair: LayerPair, masks: MaskDict, example: Tensor) -> DeadNeurons | None:
    """Remove the dead neurons between two layers, in place; None where there is none."""
    has_inputs, has_outputs = _connected(pair, model, masks)
    first = model.get_submodule(pair.first)
    shape = _output_shape(model, first, example)
    channels_are_last = isinstance(first, nn.Linear) and len(shape) > 2
    if channels_are_last and pair.norms(dict(model.named_modules())):
        return None  # of [B, T, C] BatchNorm treats T as the channels
    is_constant = has_outputs & ~has_inputs
    if channels_are_last:
        is_constant[:] = False  # constants are followed along dimension 1 only
    if (~has_outputs | is_constant).all():
        has_outputs[0], is_constant[0] = True, False  # a layer keeps its last neuron, as it is
    if is_constant.any() and not _add_constants_to_bias(model, pair, is_constant, shape):
        is_constant[:] = False
    removed = ~has_outputs | is_constant
    if not removed.any():
        return None
    _keep_neurons(model, pair, ~removed, masks)
    return DeadNeurons(
        pair.first, len(removed), _indices(removed & ~has_inputs), _indices(removed & ~has_outputs)
    )


def _add_constants_to_bias(model: nn.Module, pair: LayerPair, is_constant: Tensor, shape: torch.Size) -> bool:
    """Add the outputs of constant neurons to the next bias; False, and no change, where they cannot be one."""
    first, second = model.get_submodule(pair.first), model.get_submodule(pair.second)
    bias = first.bias if isinstance(first.bias, Tensor) else weight_of(first).new_zeros(len(is_constant))
    constants = _expand_channels(bias, shape).where(_expand_channels(is_constant, shape), 0.0)
    inputs = _run_between(model, pair, constants)[:1]
    inputs = inputs.where(_expand_channels(is_constant, inputs.shape), 0.0)
    effect = (second(inputs) - second(torch.zeros_like(inputs))).transpose(0, 1).flatten(1)
    if not torch.equal(effect, effect[:, :1].expand_as(effect)):
        return False  # at a padded border the constant contributes less, which no bias does
    if not isinstance(second.bias, Tensor):
        requires_grad = weight_of(second).requires_grad
        second.bias = nn.Parameter(torch.zeros_like(effect[:, 0]), requires_grad)
    second.bias.add_(effect[:, 0])
    return True


def _output_shape(model: nn.Module, module: nn.Module, example: Tensor) -> torch.Size:
    """The shape [B, ...] of the output of `module` for two examples: one alone has no statistics of a batch."""
    shapes: list[torch.Size] = []
    hook = module.register_forward_hook(lambda module, inputs, output: shapes.append(output.shape))
    model(example[:2])
    hook.remove()
    return shapes[0]


def _expand_channels(values: Tensor, shape: Sequence[int]) -> Tensor:
    """[channels] expanded to [B, channels x positions] or [B, channels, ...]."""
    positions = shape[1] // len(values)
    return values.repeat_interleave(positions).reshape(1, -1, *[1] * (len(shape) - 2)).expand(*shape)


def _run_between(model: nn.Module, pair: LayerPair, value: Tensor) -> Tensor:
    """`value` after the operations between the two layers."""
    modules = dict(model.named_modules())
    for node in pair.between:
        rest = fx.map_arg(node.args[1:], lambda n: n)
        if node.op == "call_module":
            value = modules[str(node.target)](value)
        elif node.op == "call_method":
            value = getattr(value, str(node.target))(*rest, **node.kwargs)
        else:
            value = node.target(value, *rest, **node.kwargs)  # type: ignore[operator]
    return value


def _keep_neurons(model: nn.Module, pair: LayerPair, is_kept: Tensor, masks: MaskDict) -> None:
    """Keep only these neurons in the two layers, the norms between them, and the masks."""
    norms, weight = pair.norms(dict(model.named_modules())), f"{pair.second}.weight"
    columns = is_kept.repeat_interleave(model.get_parameter(weight).shape[1] // len(is_kept))
    names = {f"{owner}.{key}" for owner in (pair.first, *norms) for key in _BY_NEURON}
    kept = {name: {0: is_kept.nonzero().flatten()} for name in names & model.state_dict().keys()}
    kept[weight] = {1: columns.nonzero().flatten()}
    remove_channels(model, kept, {name: {"num_features": int(is_kept.sum())} for name in norms})
    masks |= {name: select_indices(masks[name], kept[name]) for name in masks.keys() & kept.keys()}

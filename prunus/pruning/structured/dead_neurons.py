"""Dead neurons: a neuron (or filter) whose inputs, or whose outputs, are all pruned.

    no outputs   what it computes is read by nobody: it can go.
    no inputs    it computes a constant, f(bias): it can go when the constant moves into the next bias.

Source: Han et al. 2015, section 3.5 ("pruning neurons"), where gradient and decay remove what is left of them;
here they are taken out exactly, so that the function is the same up to the rounding of a sum. That it is so is checked
on the example inputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from prunus.errors import ModelError
from prunus.masks import apply_masks
from prunus.pruning.calibration_checks import check_inputs, output_tensors, run_forward
from prunus.pruning.structured.tracing import LayerPair, layer_pairs, weight_of
from prunus.pruning.weights import copied
from prunus.training.modes import eval_mode
from prunus.types import MaskDict

TOLERANCE = 1e-4
"""How far outputs may differ after a removal, relative to their norm: sums of float32 in another order."""


@dataclass(frozen=True)
class DeadNeurons:
    """The dead neurons of one layer, by index."""

    layer: str
    neurons: int
    no_inputs: tuple[int, ...]
    no_outputs: tuple[int, ...]


def dead_neurons(model: nn.Module, masks: MaskDict) -> list[DeadNeurons]:
    """The dead neurons of every layer whose outputs are followed to a next layer (`links`).

    A neuron may be in both lists. Masks are by parameter name; a layer without a mask keeps everything.
    """
    report = []
    for link in layer_pairs(model):
        inputs, outputs = _alive(link, model, masks)
        report.append(
            DeadNeurons(link.first, len(inputs), _places(~inputs), _places(~outputs)),
        )
    return report


def remove_dead_neurons(
    model: nn.Module, masks: MaskDict, example: Tensor
) -> tuple[nn.Module, MaskDict, list[DeadNeurons]]:
    """A copy of `model` without its dead neurons, its masks, and what was removed; the function is the same.

    Removing a neuron can leave those before it without outputs, so this goes on until nothing is dead. A
    neuron without inputs stays where its constant cannot be a bias: before a padded convolution, unless the
    constant is zero. The last neuron of a layer stays, too.

    Args:
        model: any module; its pruned weights count as zero. Evaluation mode is assumed; the copy has the modes, and its
            parameters the requires_grad, that `model` and its parameters have.
        masks: by parameter name.
        example: an input batch [B, ...], to run the operations between two layers on, and to compare outputs on.

    Raises ModelError where the model cannot be traced, or the smaller model does not return the same for `example`;
    StatisticsError where the model does not take it. `layers_without_link` names the layers that were not looked at.
    """
    check_inputs(example)
    smaller = copied(model)
    smaller.load_state_dict(apply_masks(dict(smaller.state_dict()), masks))
    masks, removed = dict(masks), []
    smaller.__dict__.pop("built_in", None)  # its shapes are its own now
    with eval_mode(smaller), torch.no_grad():
        before = _outputs(smaller, example)
        while found := [
            report for link in layer_pairs(smaller) if (report := _shrink(smaller, link, masks, example))
        ]:
            removed += found
        _check_same(model, before, _outputs(smaller, example))
    return smaller, masks, removed


def _outputs(model: nn.Module, example: Tensor) -> list[Tensor]:
    """The floating-point tensors that `model` returns, copied."""
    return [t.clone() for t in output_tensors(run_forward(model, example, model)) if t.is_floating_point()]


def _check_same(model: nn.Module, before: Sequence[Tensor], after: Sequence[Tensor]) -> None:
    """Raise ModelError where outputs differ by more than the rounding of a sum."""
    for one, other in zip(before, after, strict=True):
        tolerance = max(TOLERANCE, 8 * torch.finfo(one.dtype).eps)
        off = float((one - other).double().norm()) if one.shape == other.shape else float("inf")
        if not off <= tolerance * float(one.double().norm()):
            raise ModelError(
                f"Without its dead neurons {type(model).__name__} does not compute the same function: an output of "
                f"norm {float(one.double().norm()):.3g} differs by {off:.3g}; a hook, or a forward that reads another "
                "layer's attributes, depends on them, so that they cannot be removed."
            )


def _alive(link: LayerPair, model: nn.Module, masks: MaskDict) -> tuple[Tensor, Tensor]:
    """Two boolean [neurons]: has an input left, has an output left."""
    incoming = _mask_of(link.first, model, masks)
    outgoing = _mask_of(link.second, model, masks)
    neurons = incoming.shape[0]
    by_neuron = outgoing.reshape(outgoing.shape[0], neurons, -1)
    return incoming.reshape(neurons, -1).any(1), by_neuron.any(2).any(0)


def _mask_of(layer: str, model: nn.Module, masks: MaskDict) -> Tensor:
    whole = torch.ones_like(weight_of(model.get_submodule(layer)), dtype=torch.bool)
    return masks.get(f"{layer}.weight", whole)


def _places(mask: Tensor) -> tuple[int, ...]:
    return tuple(mask.nonzero().flatten().tolist())


@torch.no_grad()
def _shrink(model: nn.Module, link: LayerPair, masks: MaskDict, example: Tensor) -> DeadNeurons | None:
    inputs, outputs = _alive(link, model, masks)
    shape = _output_shape(model, model.get_submodule(link.first), example)
    last = isinstance(model.get_submodule(link.first), nn.Linear) and len(shape) > 2
    if last and link.norms(dict(model.named_modules())):
        return None  # of [B, T, C] BatchNorm treats T as the channels
    silent = outputs & ~inputs
    if last:
        silent[:] = False  # constants are followed along dimension 1 only
    if (~outputs | silent).all():
        outputs[0], silent[0] = True, False  # a layer keeps its last neuron, as it is
    if silent.any() and not _fold(model, link, silent, shape):
        silent[:] = False
    gone = ~outputs | silent
    if not gone.any():
        return None
    _keep(model, link, ~gone, masks)
    return DeadNeurons(link.first, len(gone), _places(gone & ~inputs), _places(gone & ~outputs))


def _fold(model: nn.Module, link: LayerPair, silent: Tensor, shape: torch.Size) -> bool:
    """Move the constants of the `silent` neurons into the next bias; False where they cannot be one."""
    first, second = model.get_submodule(link.first), model.get_submodule(link.second)
    bias = first.bias if isinstance(first.bias, Tensor) else weight_of(first).new_zeros(len(silent))
    signal = _by_channel(bias, shape).where(_by_channel(silent, shape), 0.0)
    block = _through(model, link, signal)[:1]
    block = block.where(_by_channel(silent, block.shape), 0.0)
    effect = (second(block) - second(torch.zeros_like(block))).transpose(0, 1).flatten(1)
    if not torch.equal(effect, effect[:, :1].expand_as(effect)):
        return False  # at a padded border the constant counts less: no bias does that
    if not isinstance(second.bias, Tensor):
        requires_grad = weight_of(second).requires_grad
        second.bias = nn.Parameter(torch.zeros_like(effect[:, 0]), requires_grad)
    second.bias.add_(effect[:, 0])
    return True


def _output_shape(model: nn.Module, module: nn.Module, example: Tensor) -> torch.Size:
    """The shape [B, ...] of what `module` puts out for two examples: one alone has no statistics of a batch."""
    seen: list[torch.Size] = []
    hook = module.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    model(example[:2])
    hook.remove()
    return seen[0]


def _by_channel(values: Tensor, shape: Sequence[int]) -> Tensor:
    """[channels] spread over [B, channels x places] or [B, channels, ...]."""
    places = shape[1] // len(values)
    return values.repeat_interleave(places).reshape(1, -1, *[1] * (len(shape) - 2)).expand(*shape)


def _through(model: nn.Module, link: LayerPair, signal: Tensor) -> Tensor:
    """`signal` after the operations between the two layers."""
    modules, value = dict(model.named_modules()), signal
    for node in link.between:
        rest = fx.map_arg(node.args[1:], lambda n: n)
        if node.op == "call_module":
            value = modules[str(node.target)](value)
        elif node.op == "call_method":
            value = getattr(value, str(node.target))(*rest, **node.kwargs)
        else:
            value = node.target(value, *rest, **node.kwargs)  # type: ignore[operator]
    return value


def _keep(model: nn.Module, link: LayerPair, alive: Tensor, masks: MaskDict) -> None:
    """Leave only the `alive` neurons in the two layers, the norms between them, and the masks."""
    second = model.get_submodule(link.second)
    factor = weight_of(second).shape[1] // len(alive)
    columns = alive.repeat_interleave(factor)
    for owner in (link.first, *link.norms(dict(model.named_modules()))):
        for key in ("weight", "bias", "running_mean", "running_var"):
            _cut(model.get_submodule(owner), key, 0, alive, masks, owner)
        _restate(model.get_submodule(owner), ("out_features", "out_channels", "num_features"), alive)
    _cut(second, "weight", 1, columns, masks, link.second)
    _restate(second, ("in_features", "in_channels"), columns)


def _cut(module: nn.Module, key: str, dim: int, alive: Tensor, masks: MaskDict, owner: str) -> None:
    tensor = getattr(module, key, None)
    if tensor is None:
        return
    places = alive.nonzero().flatten()
    shorter = tensor.detach().index_select(dim, places)
    if isinstance(tensor, nn.Parameter):
        setattr(module, key, nn.Parameter(shorter, tensor.requires_grad))
    else:
        setattr(module, key, shorter)
    if f"{owner}.{key}" in masks:
        masks[f"{owner}.{key}"] = masks[f"{owner}.{key}"].index_select(dim, places)


def _restate(module: nn.Module, names: Sequence[str], alive: Tensor) -> None:
    """Let a module's own number, which has one of these names, say how many are left."""
    for name in names:
        if hasattr(module, name):
            setattr(module, name, int(alive.sum()))

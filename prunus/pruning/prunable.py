"""Which weights of a model may be pruned, and why the others are not.

The weights of linear, convolutional, recurrent and attention layers may be pruned (see `weight_layers`). Any other
parameter, such as an embedding or a parameter of your own, is pruned where `include` asks for it. Biases and
normalization layers are not, unless their exact name is included. A tensor with several names is pruned once, under its
first name. A parameter that is frozen (requires_grad=False) may be pruned like any other: exclude it to keep it.
"""

import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from prunus.errors import ModelError, NoPrunableWeightsError, NotPrunedWarning, TiedWeightsError
from prunus.modules import check_module, uncompiled
from prunus.pruning.layer_checks import why_zeros_may_not_hold
from prunus.pruning.shared_memory import names_by_tensor, overlaps_itself
from prunus.pruning.weight_layers import CONVOLUTIONS, LINEAR, WeightLayer, weight_layers
from prunus.types import Params

NORMS = (
    nn.modules.batchnorm._NormBase,  # BatchNorm and InstanceNorm of every dimension
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def prunable_weights(
    model: nn.Module, include: Sequence[str] = ("*",), exclude: Sequence[str] = ()
) -> Params:
    """The weights that may be pruned, by name, in the order of the model; not copies.

    Args:
        model: Any module.
        include: Shell patterns of the names of weights to prune. A pattern other than "*" also selects matrices of
            other layers (an embedding, a parameter of your own), and an exact name any parameter of floating point.
        exclude: Shell patterns of the names of weights not to prune; a tensor with several names is excluded by any.

    Returns:
        The parameters by their first name; of a compiled module, by that in the original. Where matrices that "*" does
        not select are left out (an embedding, a weight whose zeros would not be zeros of the function), a
        NotPrunedWarning names them; `skipped_parameters` has all reasons.

    Raises:
        NoPrunableWeightsError: There is none.
        TiedWeightsError: A weight shares memory with a tensor that is another parameter or a buffer.
        ModelError: A pattern matches nothing, the model is a ScriptModule, or a layer has no values: it is lazy, or on
            the meta device.

    >>> list(prunable_weights(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), exclude=["2.*"]))
    ['0.weight']
    >>> list(prunable_weights(nn.Sequential(nn.Embedding(2, 3), nn.Linear(3, 1)), include=["*", "0.weight"]))
    ['0.weight', '1.weight']
    """
    model = uncompiled(model)
    selection = _select(model, include, exclude)
    if not selection.weights:
        raise _nothing_to_prune(model, selection)
    _check_not_tied(model, selection)
    if selection.matrices:
        reasons = {name: selection.skipped[name] for name in selection.matrices}
        total, left_out, _ = coverage(model, reasons).values()
        warnings.warn(
            f"{type(model).__name__} has weights that are not pruned, {100 * left_out / total:.1f} % of its "
            f"{total:,} parameters: {grouped_by_reason(reasons)}; exclude them by name to leave them out without "
            "this warning.",
            NotPrunedWarning,
            stacklevel=1,  # so that a command that asks several times warns once
        )
    return selection.weights


def skipped_parameters(
    model: nn.Module,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    *,
    pruned: Collection[str] | None = None,
) -> dict[str, str]:
    """Why each parameter that `prunable_weights` leaves out is left out.

    Args:
        model: Any module.
        include: As for `prunable_weights`.
        exclude: As for `prunable_weights`.
        pruned: The names that were pruned, where they are not all of those of `prunable_weights`.

    Returns:
        {name: reason}

    Raises:
        ModelError: As `prunable_weights`.

    >>> skipped_parameters(nn.Sequential(nn.Linear(2, 3), nn.Embedding(3, 1)))
    {'0.bias': 'bias', '1.weight': 'weight of Embedding, pruned only where its name is included'}
    """
    selection = _select(uncompiled(model), include, exclude)
    left_out = {
        name: "left out" if weight.requires_grad else "frozen: requires_grad=False"
        for name, weight in selection.weights.items()
        if pruned is not None and name not in pruned
    }
    reasons = selection.skipped | left_out
    return {name: reasons[name] for name in selection.parameters if name in reasons}


def describe_skipped(model: nn.Module, skipped: Mapping[str, str]) -> str:
    """One sentence for reports: which fraction of all parameters was not pruned, and why.

    Args:
        model: Any module.
        skipped: `skipped_parameters(model)`.

    Returns:
        The sentence.

    >>> model = nn.Linear(4, 2)
    >>> describe_skipped(model, skipped_parameters(model))
    '20.0 % of all parameters (2 of 10) were not pruned: bias (bias).'
    """
    total, left_out, _ = coverage(model, skipped).values()
    if not left_out:
        return f"All {total:,} parameters are prunable."
    return (
        f"{100 * left_out / total:.1f} % of all parameters ({left_out:,} of {total:,}) were not pruned: "
        f"{grouped_by_reason(skipped)}."
    )


def coverage(model: nn.Module, skipped: Mapping[str, str]) -> dict[str, Any]:
    """The content of `describe_skipped` for JSON: the parameters of `model`, how many were not pruned, and why.

    Args:
        model: Any module.
        skipped: `skipped_parameters(model)`.

    Returns:
        An object for JSON.

    >>> model = nn.Linear(4, 2)
    >>> coverage(model, skipped_parameters(model))
    {'parameters': 10, 'not_pruned': 2, 'reasons': {'bias': 'bias'}}
    """
    sizes = {name: 0 if is_lazy(tensor) else tensor.numel() for name, tensor in model.named_parameters()}
    left_out = sum(sizes.get(name, 0) for name in skipped)
    return {"parameters": sum(sizes.values()), "not_pruned": left_out, "reasons": dict(skipped)}


def grouped_by_reason(skipped: Mapping[str, str]) -> str:
    """The names with their reasons, at most three names for each reason.

    >>> grouped_by_reason({"a": "bias", "b": "bias", "c": "weight of LSTM"})
    'a, b (bias); c (weight of LSTM)'
    """
    names: dict[str, list[str]] = {}
    for name, reason in skipped.items():
        names.setdefault(reason, []).append(name)
    parts = []
    for reason, group in names.items():
        shown = ", ".join(group if len(group) <= 3 else group[:2])
        more = "" if len(group) <= 3 else f" and {len(group) - 2} more"
        parts.append(f"{shown}{more} ({reason})")
    return "; ".join(parts)


@dataclass(frozen=True)
class _Selection:
    """What the layer types and the patterns make of the parameters of a model."""

    weights: Params
    skipped: dict[str, str]
    """The reason of every other parameter; a tensor with several names has an entry for its first name only."""
    matrices: list[str]
    """Those of the skipped that are weight matrices and that the patterns choose."""
    parameters: Params


def _select(model: nn.Module, include: Sequence[str], exclude: Sequence[str]) -> _Selection:
    check_module(model)
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(
            f"Expected a module of Python, got a {type(model).__name__}, whose code is compiled; prune the module that "
            "it was made from, and script or trace it afterwards."
        )
    parameters: Params = dict(model.named_parameters(remove_duplicate=False))
    weights: Params = {}
    layers = weight_layers(model)
    owners = dict(model.named_modules(remove_duplicate=False))
    _check_patterns(include, exclude, parameters, layers, owners)
    shared_names = names_by_tensor(parameters)
    skipped, matrices = {}, []
    for name, parameter in model.named_parameters():
        names = [twin for twin in shared_names[id(parameter)] if parameters[twin] is parameter]
        excluded = _why_excluded(name, shared_names[id(parameter)], exclude)
        layer = next((layers[twin] for twin in names if twin in layers), None)
        included = any(_selects(pattern, twin, parameter, layers) for pattern in include for twin in names)
        reason = _why_not_prunable(parameter)
        if reason is None and included and not excluded:
            _check_initialized(name, parameter)
            reason = _why_zeros_are_lost(layer) if layer else None
            if reason is None:
                weights[name] = parameter
                continue
        default, is_matrix = _describe(name, parameter, owners, layer is not None)
        if layer is None and not (is_matrix and excluded):
            skipped[name] = reason or default
        else:
            skipped[name] = excluded or reason or "not included"
        if is_matrix and not excluded and any(_matches(twin, include) for twin in names):
            matrices.append(name)
    return _Selection(weights, skipped, matrices, parameters)


def _selects(pattern: str, name: str, parameter: Tensor, layers: Mapping[str, WeightLayer]) -> bool:
    """Whether a pattern to include selects a parameter."""
    if not _matches(name, [pattern]):
        return False
    if name in layers or pattern == name:
        return True
    return pattern != "*" and _is_matrix(parameter) and "bias" not in name.rpartition(".")[2]


def _check_patterns(
    include: Sequence[str],
    exclude: Sequence[str],
    parameters: Params,
    layers: Mapping[str, WeightLayer],
    owners: Mapping[str, nn.Module],
) -> None:
    """Raise ModelError where a pattern to include selects no parameter, or one to exclude matches none."""
    for name, patterns in (("include", include), ("exclude", exclude)):
        is_list = isinstance(patterns, Iterable) and not isinstance(patterns, str)
        if not is_list or not all(isinstance(pattern, str) for pattern in patterns):
            raise ModelError(
                f"Expected {name} to be a list of names or patterns, got {patterns!r}; pass a list such as "
                "['fc1.weight', 'conv*']."
            )
    for pattern in (*include, *exclude):
        others = {name: p for name, p in parameters.items() if _matches(name, [pattern])}
        is_used = pattern in exclude or any(_selects(pattern, n, p, layers) for n, p in others.items())
        if pattern == "*" or (others and is_used):
            continue
        reasons = {name: _describe(name, p, owners, name in layers)[0] for name, p in others.items()}
        matches = f"; it matches {grouped_by_reason(reasons)}" if others else ""
        raise ModelError(
            f"The pattern {pattern!r} matches none of the prunable weights {list(layers)}{matches}; an exact name "
            "selects any parameter."
        )


def _why_excluded(name: str, twins: Sequence[str], exclude: Sequence[str]) -> str | None:
    for twin in (name, *twins):
        if _matches(twin, exclude):
            return "excluded" if twin == name else f"same tensor as {twin!r}, which is excluded"
    return None


def _computed_weight(name: str) -> str:
    """The name of the weight that is computed from the parameter `name`, else `name` itself.

    >>> _computed_weight("0.parametrizations.weight.original0"), _computed_weight("0.weight_v")
    ('0.weight', '0.weight')
    """
    for ending in ("_orig", "_g", "_v"):
        if name.endswith(f"weight{ending}"):
            return name.removesuffix(ending)
    layer, parametrized, rest = f".{name}".rpartition(".parametrizations.")
    return f"{layer}.{rest.split('.')[0]}".lstrip(".") if parametrized else name


def _matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a pattern matches the parameter's name or that of the weight that is computed from it."""
    return any(fnmatchcase(key, pattern) for key in (name, _computed_weight(name)) for pattern in patterns)


def _is_matrix(parameter: Tensor) -> bool:
    return not is_lazy(parameter) and sum(size > 1 for size in parameter.shape) > 1


def _why_not_prunable(parameter: Tensor) -> str | None:
    """Why a tensor can be pruned in no layer; None: it can."""
    if parameter.dtype not in DTYPES:
        return f"weight of type {parameter.dtype}, not supported".replace("torch.", "")
    if is_lazy(parameter):
        return None
    if parameter.layout != torch.strided:
        return f"weight of layout {parameter.layout}, not supported".replace("torch.", "")
    if not parameter.numel():
        return "weight without an entry"
    return "several of its entries share one place in memory" if overlaps_itself(parameter) else None


def _why_zeros_are_lost(layer: WeightLayer) -> str | None:
    """Why a zero of the parameter may be no zero in the forward pass of its layer; None: it is one."""
    if layer.computed is not None:
        if layer.computed.keeps_zeros:
            return None
        return f"{layer.attribute!r} is computed by {layer.computed.function}, which does not keep zeros"
    return why_zeros_may_not_hold(layer.module) if isinstance(layer.module, LINEAR + CONVOLUTIONS) else None


def _describe(
    name: str, parameter: Tensor, owners: Mapping[str, nn.Module], is_prunable: bool
) -> tuple[str, bool]:
    """The reason why "*" does not select a parameter, and whether it is a weight matrix."""
    path, _, last = name.rpartition(".")
    owner, computed = owners[path], _computed_weight(name).rpartition(".")[2]
    if is_prunable:
        return "weight", True
    if computed != last or ".parametrizations." in f".{name}":
        return f"a part of {computed!r}, which is computed from it", False
    if isinstance(owner, NORMS):
        return f"{'scale' if last == 'weight' else last} of {type(owner).__name__}", False
    if "bias" in last:
        return "bias", False
    what = "weight" if last.startswith("weight") or last.endswith("_weight") else "parameter"
    return (
        f"{what} of {type(owner).__name__}, pruned only where its name is included",
        _is_matrix(parameter),
    )


def _check_initialized(name: str, parameter: Tensor) -> None:
    if is_lazy(parameter):
        raise ModelError(
            f"Expected {name!r} to have values, got a lazy parameter; pass one batch through the model first, or "
            f"exclude {name!r}."
        )
    if parameter.is_meta:
        raise ModelError(
            f"Expected {name!r} to have values, got a tensor on the meta device; load the weights first, with "
            f"model.to_empty(device=...) and load_state_dict, or exclude {name!r}."
        )


def _nothing_to_prune(model: nn.Module, selection: _Selection) -> NoPrunableWeightsError:
    quantized = [
        n for n, m in model.named_modules() if type(m).__module__.startswith("torch.ao.nn.quantized")
    ]
    if quantized:
        return NoPrunableWeightsError(
            f"{type(model).__name__} has no weight to prune, as {quantized[0]!r} and its other layers are quantized, "
            "and their weights are packed integers; prune the model first, and quantize it afterwards."
        )
    why = [f"{name}: {reason}" for name, reason in selection.skipped.items()]
    more = f"; and {len(why) - 6} more" if len(why) > 6 else ""
    return NoPrunableWeightsError(
        f"{type(model).__name__} has no weight to prune ({'; '.join(why[:6]) or 'it has no parameters'}{more}); pass "
        "another model, or other patterns of names."
    )


def _check_not_tied(model: nn.Module, selection: _Selection) -> None:
    """Raise TiedWeightsError where pruning a weight would change a tensor that is another parameter or a buffer."""
    tensors = selection.parameters | dict(model.named_buffers())
    names = names_by_tensor(tensors)
    for name, weight in selection.weights.items():
        others = [other for other in names[id(weight)] if tensors[other] is not weight]
        if others:
            raise TiedWeightsError(
                f"{name!r} shares memory with {others[0]!r}, so that pruning one prunes the other; exclude {name!r} to "
                "leave both out, or make them one parameter."
            )

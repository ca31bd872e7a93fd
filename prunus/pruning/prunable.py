"""Which weights of a model may be pruned: those of its linear and convolutional layers; and why the others are not.

Biases and normalization layers never are. Names can be included or excluded by shell patterns. A parameter that is
frozen (requires_grad=False) may be pruned like any other: exclude it to keep it as it is.
"""

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList

from prunus.errors import ModelError, NoPrunableWeightsError, NotPrunedWarning, TiedWeightsError
from prunus.modules import check_module
from prunus.pruning.layer_checks import why_zeros_may_not_hold
from prunus.types import Params

LINEAR = (nn.Linear, nn.Bilinear)
CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
NORMS = (
    nn.modules.batchnorm._NormBase,  # BatchNorm and InstanceNorm of every dimension
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def layer_kinds(model: nn.Module) -> dict[str, str]:
    """The kind, "linear" or "conv", of every weight that layer types allow to prune, by parameter name."""
    kinds = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, LINEAR + CONVOLUTIONS):
            kind = "linear" if isinstance(module, LINEAR) else "conv"
            kinds[f"{name}.weight" if name else "weight"] = kind
    return kinds


def prunable_weights(
    model: nn.Module, include: Sequence[str] = ("*",), exclude: Sequence[str] = ()
) -> Params:
    """The weights that may be pruned, by name, in the order of the model; not copies.

    Args:
        model: Any module.
        include: Shell patterns of the names of weights to prune.
        exclude: Shell patterns of the names of weights not to prune; a tensor with several names is excluded by any.

    Returns:
        The weights by name. Where the patterns select weight matrices of other kinds (an LSTM's, an embedding, a layer
        under weight_norm), these are left out with a NotPrunedWarning; `skipped_parameters` has the reasons.

    Raises:
        NoPrunableWeightsError: There is none.
        TiedWeightsError: A weight shares memory with another tensor.
        ModelError: A pattern matches nothing, or a layer has no values: it is lazy, on the meta device, or masked by
            torch.nn.utils.prune.

    >>> list(prunable_weights(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), exclude=["2.*"]))
    ['0.weight']
    """
    selection = _select(model, include, exclude)
    if not selection.weights:
        why = "; ".join(f"{name}: {reason}" for name, reason in list(selection.skipped.items())[:6])
        raise NoPrunableWeightsError(
            f"{type(model).__name__} has no weight to prune: of its parameters {list(selection.parameters)[:6]} the "
            f"layer types allow {list(layer_kinds(model))}, and the patterns leave none with an entry"
            f"{f' ({why})' if why else ''}."
        )
    _check_not_tied(model, selection)
    if selection.unsupported:
        total = sum(tensor.numel() for tensor in model.parameters())
        left_out = sum(selection.parameters[name].numel() for name in selection.unsupported)
        reasons = {name: selection.skipped[name] for name in selection.unsupported}
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

    >>> skipped_parameters(nn.Sequential(nn.Linear(2, 3), nn.LSTM(3, 1, bias=False)))
    {'0.bias': 'bias', '1.weight_ih_l0': 'weight of LSTM, not supported', '1.weight_hh_l0': 'weight of LSTM, ...'}
    """
    selection = _select(model, include, exclude)
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
    sizes = {name: tensor.numel() for name, tensor in model.named_parameters()}
    total, left_out = sum(sizes.values()), sum(sizes.get(name, 0) for name in skipped)
    if not left_out:
        return f"All {total:,} parameters are prunable."
    return (
        f"{100 * left_out / total:.1f} % of all parameters ({left_out:,} of {total:,}) were not pruned: "
        f"{grouped_by_reason(skipped)}."
    )


def coverage(model: nn.Module, skipped: Mapping[str, str]) -> dict[str, object]:
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
    sizes = {name: tensor.numel() for name, tensor in model.named_parameters()}
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
    unsupported: list[str]
    """Those of the skipped that are weight matrices and that the patterns choose."""
    parameters: Params


def _select(model: nn.Module, include: Sequence[str], exclude: Sequence[str]) -> _Selection:
    check_module(model)
    parameters: Params = dict(model.named_parameters(remove_duplicate=False))
    kinds = layer_kinds(model)
    _check_patterns(model, kinds, parameters, include, exclude)
    twins = _names_of_tensors(parameters)
    owners = dict(model.named_modules(remove_duplicate=False))
    weights, skipped, unsupported, seen = {}, {}, [], set()
    for name, parameter in parameters.items():
        by_pattern = _why_patterns_leave_out(name, twins[id(parameter)], include, exclude)
        reason, is_weight = _why_not_prunable(name, parameter, kinds, owners)
        if reason is None and by_pattern is None:
            _check_initialized(name, parameter)
            reason = why_zeros_may_not_hold(owners[name.rpartition(".")[0]])
            is_weight = True
        if reason is None and by_pattern is None:
            weights[name] = parameter
            continue
        if id(parameter) in seen:
            continue  # its first name has the reason
        seen.add(id(parameter))
        skipped[name] = reason or by_pattern or ""
        if is_weight and by_pattern is None:
            unsupported.append(name)
    _check_not_masked(owners, skipped, unsupported)
    return _Selection(weights, skipped, unsupported, parameters)


def _check_patterns(
    model: nn.Module,
    kinds: Mapping[str, str],
    parameters: Params,
    include: Sequence[str],
    exclude: Sequence[str],
) -> None:
    """Raise ModelError where a pattern to include matches no prunable weight, or one to exclude no parameter."""
    for name, patterns in (("include", include), ("exclude", exclude)):
        if isinstance(patterns, str):
            raise ModelError(
                f"Expected {name} to be a list of patterns, got {patterns!r}; pass [{patterns!r}]."
            )
    for pattern in (*include, *exclude):
        allowed = [*kinds, *parameters] if pattern in exclude else list(kinds)
        if pattern == "*" or any(fnmatchcase(name, pattern) for name in allowed):
            continue
        owners = dict(model.named_modules(remove_duplicate=False))
        others = {
            name: _why_not_prunable(name, parameter, kinds, owners)[0] or ""
            for name, parameter in parameters.items()
            if fnmatchcase(name, pattern)
        }
        but = f"; it matches {grouped_by_reason(others)}" if others else ""
        raise ModelError(f"The pattern {pattern!r} matches none of the prunable weights {list(kinds)}{but}.")


def _why_patterns_leave_out(
    name: str, twins: Sequence[str], include: Sequence[str], exclude: Sequence[str]
) -> str | None:
    for twin in (name, *twins):
        if _matches(twin, exclude):
            return "excluded" if twin == name else f"same tensor as {twin!r}, which is excluded"
    return None if _matches(name, include) else "not included"


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


def _why_not_prunable(
    name: str, parameter: Tensor, kinds: Mapping[str, str], owners: Mapping[str, nn.Module]
) -> tuple[str | None, bool]:
    """The reason why a parameter is no prunable weight (None: it is one), and whether it is a weight matrix."""
    path, _, last = name.rpartition(".")
    owner = owners[path]
    if isinstance(owner, ParametrizationList):
        computed = path.rpartition(".")[2]
        functions = ", ".join(type(function).__name__.lstrip("_") for function in owner)
        return (
            f"{computed!r} is computed by the parametrization {functions}; make it a parameter first with "
            f"torch.nn.utils.parametrize.remove_parametrizations(layer, {computed!r})"
        ), computed.startswith("weight")
    if name in kinds:
        if parameter.dtype not in DTYPES:
            return f"weight of type {parameter.dtype}, not supported".replace("torch.", ""), True
        if not is_lazy(parameter) and not parameter.numel():
            return "weight without an entry", False
        if not is_lazy(parameter) and _overlaps_itself(parameter):
            return "several of its entries share one place in memory", True
        return None, True
    kind = type(owner).__name__
    if isinstance(owner, LINEAR + CONVOLUTIONS) and last != "bias":
        if last == "weight_orig":
            mask = hasattr(owner, "weight_mask")
            return (
                "masked by torch.nn.utils.prune" if mask else "'weight' is computed by spectral_norm"
            ), True
        if last in ("weight_g", "weight_v"):
            return (
                "'weight' is computed by weight_norm; make it a parameter first with "
                "torch.nn.utils.remove_weight_norm(layer)"
            ), True
    if isinstance(owner, NORMS):
        return f"{'scale' if last == 'weight' else last} of {kind}", False
    if "bias" in last:
        return "bias", False
    matrix = not is_lazy(parameter) and sum(size > 1 for size in parameter.shape) > 1
    what = (
        "weight" if last.startswith(("weight", "in_proj_weight")) or last.endswith("_weight") else "parameter"
    )
    return f"{what} of {kind}, not supported", matrix


def _matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a pattern matches the parameter's name or that of the weight that is computed from it."""
    return any(fnmatchcase(key, pattern) for key in (name, _computed_weight(name)) for pattern in patterns)


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


def _check_not_masked(
    owners: Mapping[str, nn.Module], skipped: Mapping[str, str], unsupported: Sequence[str]
) -> None:
    """Raise ModelError where a chosen weight is masked by torch.nn.utils.prune: it would be overwritten."""
    for name in unsupported:
        path, _, last = name.rpartition(".")
        if last == "weight_orig" and hasattr(owners[path], "weight_mask"):
            weight = name.removesuffix("_orig")
            raise ModelError(
                f"Expected {weight!r} to be a parameter, but it is masked by torch.nn.utils.prune; make the mask "
                f"permanent with torch.nn.utils.prune.remove(layer, 'weight'), or exclude {weight!r}."
            )


def _names_of_tensors(parameters: Params) -> dict[int, list[str]]:
    """All names of each tensor, by its id, also those of tensors that share memory with it."""
    names: dict[int, list[str]] = {}
    for name, parameter in parameters.items():
        names.setdefault(id(parameter), []).append(name)
    tensors = {id(parameter): parameter for parameter in parameters.values()}
    for first, other in _pairs_that_share_memory(tensors):
        together = sorted({*names[first], *names[other]}, key=list(parameters).index)
        names[first] = names[other] = together
    return names


def _pairs_that_share_memory(tensors: Mapping[int, Tensor]) -> Iterator[tuple[int, int]]:
    """Keys of different tensors of which at least one entry is the same place in memory."""
    spans = sorted(
        (str(tensor.device), *_span(tensor), key)
        for key, tensor in tensors.items()
        # Some devices give no address.
        if not is_lazy(tensor)
        and tensor.layout == torch.strided
        and not tensor.is_meta
        and tensor.numel()
        and tensor.data_ptr()
    )
    for place, (device, _, end, key) in enumerate(spans):
        for other_device, start, _, other in spans[place + 1 :]:
            if other_device != device or start >= end:
                break
            if _share_an_entry(tensors[key], tensors[other]):
                yield key, other


def _span(tensor: Tensor) -> tuple[int, int]:
    """The first address of a tensor's entries and the one after the last."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def _share_an_entry(tensor: Tensor, other: Tensor) -> bool:
    if tensor.element_size() != other.element_size():
        return True
    start = min(tensor.data_ptr(), other.data_ptr())
    offsets = [(part.data_ptr() - start) // tensor.element_size() for part in (tensor, other)]
    length = max(_span(tensor)[1], _span(other)[1]) - start
    used = torch.zeros(length // tensor.element_size(), dtype=torch.bool)
    used.as_strided(tensor.shape, tensor.stride(), offsets[0]).fill_(True)
    return bool(used.as_strided(other.shape, other.stride(), offsets[1]).any())


def _overlaps_itself(tensor: Tensor) -> bool:
    return any(size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _check_not_tied(model: nn.Module, selection: _Selection) -> None:
    """Raise TiedWeightsError where pruning a selected weight would change another parameter or a buffer."""
    tensors = selection.parameters | dict(model.named_buffers())
    names = _names_of_tensors(tensors)
    for name, weight in selection.weights.items():
        others = [other for other in names[id(weight)] if other != name]
        if others:
            shares = "is the same tensor as" if tensors[others[0]] is weight else "shares memory with"
            raise TiedWeightsError(
                f"{name!r} {shares} {others[0]!r}, so that pruning one prunes the other; exclude {name!r} to leave "
                "both out."
            )

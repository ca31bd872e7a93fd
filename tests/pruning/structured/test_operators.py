"""Every core operator of torch has a rule, is elementwise (computed here), or is refused."""

from collections import Counter

import pytest
import torch

from prunus.pruning.structured.graph import operator_name
from prunus.pruning.structured.rules import RULES
from prunus.pruning.structured.walk import ELEMENTWISE, is_elementwise

REFUSED = frozenset(
    (
        *("_adaptive_avg_pool2d_backward", "avg_pool2d_backward", "convolution_backward", "col2im", "_cdist_forward"),
        *("_pdist_forward", "argmax", "argmin", "arange", "as_strided", "topk", "sort", "nonzero", "sym_size"),
        *("_embedding_bag", "_fft_c2c", "_fft_c2r", "_fft_r2c", "_local_scalar_dense", "_trilinear", "bernoulli"),
        *("embedding_dense_backward", "index_put", "masked_scatter", "native_group_norm_backward", "rand", "randn"),
        "native_group_norm",
        *("native_layer_norm_backward", "max_pool2d_with_indices_backward", "native_batch_norm_backward", "randperm"),
        *("_native_batch_norm_legit", "grid_sampler_2d", "native_dropout", "scalar_tensor"),
        *("scatter", "scatter_add", "scatter_reduce", "select_scatter", "slice_scatter", "sym_numel"),
        *("sym_storage_offset", "sym_stride", "sym_is_contiguous", "upsample_bilinear2d_backward", "randint"),
    )
)  # fmt: skip


def core_operators():
    for name in dir(torch.ops.aten):
        packet = getattr(torch.ops.aten, name)
        for overload in packet.overloads() if hasattr(packet, "overloads") else ():
            operator = getattr(packet, overload)
            if torch.Tag.core in operator.tags:
                yield operator


OPERATORS: dict[str, list] = {}
for operator in core_operators():
    OPERATORS.setdefault(operator_name(operator), []).append(operator)


def kind(name):
    return "rule" if name in RULES else "elementwise" if is_elementwise(OPERATORS[name][0]) else "refused"


def test_every_core_operator_is_in_one_class():
    kinds = {name: kind(name) for name in OPERATORS}
    refused = {name for name, support in kinds.items() if support == "refused"}
    assert refused <= REFUSED, sorted(refused - REFUSED)
    counts = Counter(kinds.values())
    assert counts["rule"] >= 45
    assert counts["elementwise"] >= 65


def arguments_of(operator, dtype):
    """Tensors [2, 3] for tensor arguments, and values for the others."""
    values = []
    for argument in operator._schema.arguments:
        kind = str(argument.type)
        if kind == "Tensor":
            tensor = torch.rand(2, 3) * 0.8 + 0.1
            values.append((tensor * 4).to(dtype) if dtype != torch.bool else tensor > 0.5)
        elif argument.kwarg_only:
            break
        elif "?" in str(argument.real_type) or "Optional" in kind:
            values.append(0.5 if "number" in kind or "Scalar" in str(argument.real_type) else None)
        elif argument.has_default_value():
            break
        else:
            values.append({"float": 0.5, "int": 1, "bool": False, "number": 1.5, "Scalar": 1.5}.get(kind))
    return values


def one_changed(tensor):
    changed = tensor.clone()
    changed[1, 1] = ~changed[1, 1] if changed.dtype == torch.bool else changed[1, 1] * 0.5 + 1
    return changed


def is_elementwise_by_computation(operator):
    for dtype in (torch.float32, torch.int64, torch.bool):
        torch.manual_seed(0)
        arguments = arguments_of(operator, dtype)
        try:
            before = operator(*(x.clone() if torch.is_tensor(x) else x for x in arguments))
            changed = operator(*(one_changed(x) if torch.is_tensor(x) else x for x in arguments))
        except (RuntimeError, TypeError, IndexError):
            continue
        if not torch.is_tensor(before):
            return None
        if before.shape != (2, 3):
            return False
        different = before != changed
        different[1, 1] = False
        return not bool((different & ~(before.isnan() & changed.isnan())).any())
    return None


RANDOM = {"dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "rrelu"}
"""Operators that are random in training; a graph is traced in evaluation mode."""
NOT_COMPUTED = {
    "log_sigmoid": "is a function that calls another operator",
    "masked_fill": "takes a boolean mask, as `where` does",
    "prelu": "has a weight for each channel, which is aligned with dimension 1",
    "where": "takes a boolean condition",
}


def test_where_and_masked_fill_change_one_entry_only():
    condition, x, y = torch.rand(2, 3) > 0.5, torch.rand(2, 3), torch.rand(2, 3)
    for function in (lambda c, a: torch.where(c, a, y), lambda c, a: a.masked_fill(c, 3.0)):
        different = function(condition, x) != function(one_changed(condition), one_changed(x))
        different[1, 1] = False
        assert not different.any()


@pytest.mark.parametrize(
    "name", sorted(name for name in OPERATORS if kind(name) == "elementwise" and name not in NOT_COMPUTED)
)
def test_elementwise_core_operator_changes_one_entry_only(name):
    results = {is_elementwise_by_computation(operator) for operator in OPERATORS[name]}
    assert True in results
    assert False not in results


@pytest.mark.parametrize("name", sorted(ELEMENTWISE - NOT_COMPUTED.keys() - RANDOM))
def test_listed_operator_is_elementwise(name):
    packet = getattr(torch.ops.aten, name, None) or getattr(torch.ops.aten, f"{name}_")
    results = {is_elementwise_by_computation(getattr(packet, overload)) for overload in packet.overloads()}
    assert True in results
    assert False not in results

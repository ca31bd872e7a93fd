"""Check that removing channels gives the outputs of setting them to zero."""

import numpy as np

from prunus.pruning.structured.groups import kept_indices
from prunus.pruning.structured.sizes import bound_attributes
from prunus.pruning.structured.verify import removal_error


def error_of(model, analysis, removed):
    """How far the outputs without channels are from those with the channels set to zero."""
    attributes = bound_attributes(analysis.bindings, analysis.kept_ids(removed))
    return removal_error(model, analysis.traced.inputs, kept_indices(analysis, removed), attributes)


def check_channels(model, analysis, channels, halves=True):
    """Check single channels (name of the group, index), and about half of every group at once."""
    for name, index in channels:
        error, tolerance = error_of(model, analysis, {name: [index]})
        assert error <= tolerance, (name, index, error)
    exact = [group for group in analysis.groups if group.exact and group.channels > 1]
    if halves and exact:
        generator = np.random.default_rng(0)
        removed = {
            group.name: generator.permutation(group.channels)[: max(group.channels // 2 - i % 3, 1)].tolist()
            for i, group in enumerate(exact)
        }
        error, tolerance = error_of(model, analysis, removed)
        assert error <= tolerance, (removed, error)


def covered_fraction(model, analysis):
    """The fraction of the weights of linear and convolutional layers that are in exact groups."""
    kinds = ("Linear", "Conv1D", "Conv2d", "NonDynamicallyQuantizableLinear")
    sizes = {
        f"{path}.weight": module.weight.numel()
        for path, module in model.named_modules()
        if type(module).__name__ in kinds
    }
    members = {member.name for group in analysis.groups if group.exact for member in group.members}
    return sum(size for name, size in sizes.items() if name in members) / sum(sizes.values())


def exact_channels(analysis):
    return [(group.name, i) for group in analysis.groups if group.exact for i in range(group.channels)]

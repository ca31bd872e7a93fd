"""The analysis of a model: its graph, the coupling of its channels, and the sizes in its code."""

from torch import nn

from prunus.pruning.structured.graph import trace_model
from prunus.pruning.structured.groups import Analysis, group_labels
from prunus.pruning.structured.sizes import resolve_sizes
from prunus.pruning.structured.walk import label_graph


def analyze(model: nn.Module, example_inputs: object, *, rewrite: bool = False) -> Analysis:
    """Find the groups of a model.

    Args:
        model: Any module; it is not changed.
        example_inputs: What its forward takes: one tensor, a tuple of arguments, or a dict of named arguments.
        rewrite: Whether channels may be removed whose number is a literal of the model's code; only the exported graph
            can be changed in this way.

    Returns:
        The groups, and the dimensions from which no channel can be removed.

    Raises:
        ModelError: The model cannot be exported.
    """
    analysis = group_labels(label_graph(trace_model(model, example_inputs), model), model)
    return analysis if rewrite else resolve_sizes(analysis, model)

"""Recurrent networks: a hidden unit is one row of each gate and one recurrent column."""

from collections.abc import Sequence

import numpy as np

from prunus.pruning.structured.labels import Atoms, Coupling, LabelLayer, Labels
from prunus.pruning.structured.rules.registry import (
    ResultShapes,
    RuleArguments,
    RuleResult,
    UnsupportedCall,
    register_rule,
)


@register_rule("lstm", "gru", "rnn_tanh", "rnn_relu")
def _recurrent(coupling: Coupling, a: RuleArguments, shapes: ResultShapes) -> RuleResult:
    """Recurrent networks: a hidden unit is removed from all layers and directions, which have one size."""
    assert coupling.node is not None
    if "input" not in a or not isinstance(a["params"], list | tuple):
        raise UnsupportedCall("prunus has no rule for packed sequences")
    gates = {"lstm": 4, "gru": 3}.get(str(coupling.node.target).split(".")[1], 1)
    directions = 2 if a["bidirectional"] else 1
    states = a["hx"] if isinstance(a["hx"], list | tuple) else [a["hx"]]
    per_cell = 4 if a["has_biases"] else 2
    cells = [a["params"][i : i + per_cell] for i in range(0, len(a["params"]), per_cell)]
    if len(cells) != a["num_layers"] * directions:
        raise UnsupportedCall("prunus has no rule for recurrent networks with projections")
    x, unit = coupling.vector(a["input"], 2)
    x = coupling.fix(
        coupling.fix(x, 0, "this is the dimension of the time steps or of the batch"),
        1,
        "this is the dimension of the time steps or of the batch",
    )
    hidden = [_recurrent_cell(coupling, cell, gates) for cell in cells]
    for state in states:
        layer = state.layer(2)
        coupling.join([hidden[0], layer.atoms if layer else None], "the initial state has a fixed size")
        for dim in (0, 1):
            coupling.fix(state, dim, "this is the dimension of the batch or of the layers")
        if layer is not None and not layer.zero:
            coupling.mark_inexact(layer.atoms, "the initial state is not zero")
    for cell_units in hidden[1:]:
        coupling.tie(hidden[0], cell_units)
    for i, cell in enumerate(cells):
        below = unit if i < directions else np.concatenate(hidden[:directions])
        coupling.join(
            [below, cell[0].layer(1).atoms if cell[0].layer(1) else None], "the number of inputs is fixed"
        )
    sequence = LabelLayer((2,), np.concatenate(hidden[:directions]), True)
    results: list[Labels | None] = []
    for i, shape in enumerate(shapes):
        assert shape is not None
        results.append(Labels(shape, (sequence if i == 0 else LabelLayer((2,), hidden[0], True),)))
    return results


@register_rule("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def _recurrent_step(coupling: Coupling, a: RuleArguments, shapes: ResultShapes) -> RuleResult:
    """One step of a recurrent network."""
    assert coupling.node is not None
    gates = {"lstm_cell": 4, "gru_cell": 3}.get(str(coupling.node.target).split(".")[1], 1)
    states = a["hx"] if isinstance(a["hx"], list | tuple) else [a["hx"]]
    cell = [tensor for tensor in (a["w_ih"], a["w_hh"], a["b_ih"], a["b_hh"]) if tensor is not None]
    unit = _recurrent_cell(coupling, cell, gates)
    last = len(a["input"].shape) - 1
    for state in states:
        layer = state.layer(last)
        coupling.join([unit, layer.atoms if layer else None], "the state has a fixed size")
        if layer is not None and not layer.zero:
            coupling.mark_inexact(layer.atoms, "the state is not zero")
    _, channels = coupling.vector(a["input"], last)
    columns = a["w_ih"].layer(1)
    coupling.join([channels, columns.atoms if columns else None], "the number of inputs is fixed")
    results: list[Labels | None] = [
        None if shape is None else Labels(shape, (LabelLayer((last,), unit, True),)) for shape in shapes
    ]
    return results if len(results) > 1 else results[0]  # type: ignore[return-value]


def _recurrent_cell(coupling: Coupling, cell: Sequence[Labels], gates: int) -> Atoms:
    """Couple the rows of each gate with each other and with the recurrent columns; returns the units' labels."""
    recurrent_columns = cell[1].layer(1)
    if recurrent_columns is None:
        raise UnsupportedCall("prunus has no rule for a recurrent network with one hidden unit")
    unit = recurrent_columns.atoms
    for tensor in cell:
        rows = tensor.layer(0)
        if rows is not None:
            coupling.tie(unit, rows.atoms.reshape(gates, -1))
    return unit

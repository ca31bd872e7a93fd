"""Recurrent networks: a hidden unit is one row of each gate and one recurrent column."""

from collections.abc import Sequence

import numpy as np

from prunus.pruning.structured.labels import ChannelIds, Coupling, LabelLayer, Labels, Shape
from prunus.pruning.structured.rules.registry import Arguments, UnsupportedCall, register_rule

GATES = {"lstm": 4, "gru": 3, "lstm_cell": 4, "gru_cell": 3}
"""The number of gates of an operator; 1 of others."""


@register_rule("lstm", "gru", "rnn_tanh", "rnn_relu")
def _recurrent(coupling: Coupling, a: Arguments, shape: Shape) -> list[Labels]:
    """Recurrent networks: a hidden unit is removed from all layers and directions, which have one size."""
    if "input" not in a or not isinstance(a["params"], list | tuple):
        raise UnsupportedCall("prunus has no rule for packed sequences")
    directions = 2 if a["bidirectional"] else 1
    per_cell = 4 if a["has_biases"] else 2
    cells = [a["params"][i : i + per_cell] for i in range(0, len(a["params"]), per_cell)]
    if len(cells) != a["num_layers"] * directions:
        raise UnsupportedCall("prunus has no rule for recurrent networks with projections")
    x = coupling.isolate(a["input"], 2)
    coupling.fix(x, 0, 1, reason="this is the dimension of the time steps or of the batch")
    hidden = [_recurrent_cell(coupling, cell) for cell in cells]
    for state in _states(coupling, a, hidden[0], 2, "the initial state"):
        coupling.fix(state, 0, 1, reason="this is the dimension of the batch or of the layers")
    for cell_units in hidden[1:]:
        coupling.tie(hidden[0], cell_units)
    outputs = np.concatenate(hidden[:directions])
    for i, cell in enumerate(cells):
        below = x.ids(2) if i < directions else outputs
        coupling.join([below, cell[0].ids(1)], "the number of inputs is fixed")
    sequence, *states = coupling.shapes
    results = [Labels(sequence, (LabelLayer((2,), outputs, True),))]
    return results + [Labels(state, (LabelLayer((2,), hidden[0], True),)) for state in states]


@register_rule("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def _recurrent_step(coupling: Coupling, a: Arguments, shape: Shape) -> list[Labels]:
    """One step of a recurrent network."""
    unit = _recurrent_cell(
        coupling, [a[key] for key in ("w_ih", "w_hh", "b_ih", "b_hh") if a[key] is not None]
    )
    last = len(a["input"].shape) - 1
    _states(coupling, a, unit, last, "the state")
    x = coupling.isolate(a["input"], last)
    coupling.join([x.ids(last), a["w_ih"].ids(1)], "the number of inputs is fixed")
    return [Labels(shape, (LabelLayer((last,), unit, True),)) for shape in coupling.shapes]


def _states(coupling: Coupling, a: Arguments, unit: ChannelIds, dim: int, name: str) -> list[Labels]:
    """The states before the first step, which are coupled with the hidden units."""
    states = list(a["hx"]) if isinstance(a["hx"], list | tuple) else [a["hx"]]
    for state in states:
        layer = state.layer(dim)
        coupling.join([unit, state.ids(dim)], f"{name} has a fixed size")
        if layer is not None and not layer.zero:
            coupling.mark_inexact(layer.ids, f"{name} is not zero")
    return states


def _recurrent_cell(coupling: Coupling, cell: Sequence[Labels]) -> ChannelIds:
    """Couple the rows of each gate with each other and with the recurrent columns; returns the ids of the units."""
    unit = cell[1].ids(1)
    if unit is None:
        raise UnsupportedCall("prunus has no rule for a recurrent network with one hidden unit")
    for tensor in cell:
        rows = tensor.ids(0)
        if rows is not None:
            coupling.tie(unit, rows.reshape(GATES.get(coupling.operator, 1), -1))
    return unit

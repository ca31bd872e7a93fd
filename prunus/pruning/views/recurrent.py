"""Recurrent layers (`nn.LSTM`, `nn.GRU`, `nn.RNN`) and their cells with matrices as Linear layers.

gates_t = W_ih x_t + b_ih,  W_hh h_{t-1} + b_hh        i, f, g, o of an LSTM;  r, z, n of a GRU
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from prunus.pruning.views.linear import linear_of

RecurrentState = tuple[Tensor, ...]
"""(h,), or (h, c) of an LSTM."""


def _lstm(x: Tensor, h: Tensor, state: RecurrentState) -> RecurrentState:
    i, f, g, o = (x + h).chunk(4, -1)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru(x: Tensor, h: Tensor, state: RecurrentState) -> RecurrentState:
    (r_x, z_x, n_x), (r_h, z_h, n_h) = x.chunk(3, -1), h.chunk(3, -1)
    z = (z_x + z_h).sigmoid()
    n = (n_x + (r_x + r_h).sigmoid() * n_h).tanh()
    return ((1 - z) * n + z * state[0],)


STEPS: dict[str, Callable[[Tensor, Tensor, RecurrentState], RecurrentState]] = {
    "LSTM": _lstm,
    "GRU": _gru,
    "RNN_TANH": lambda x, h, state: ((x + h).tanh(),),
    "RNN_RELU": lambda x, h, state: ((x + h).relu(),),
}
"""(input gates, hidden gates, state) -> the next state, by the mode of a recurrent layer."""


class CellView(nn.Module):
    """The function of an LSTMCell, GRUCell or RNNCell, on its tensors."""

    def __init__(self, cell: nn.RNNCellBase) -> None:
        super().__init__()
        names = {"LSTMCell": "LSTM", "GRUCell": "GRU"}
        kind = next((names[t.__name__] for t in type(cell).__mro__ if t.__name__ in names), None)
        self.mode = kind or f"RNN_{str(getattr(cell, 'nonlinearity', 'tanh')).upper()}"
        self.hidden_size = cell.hidden_size
        self.weight_ih = linear_of(cell.weight_ih, cell.bias_ih)
        self.weight_hh = linear_of(cell.weight_hh, cell.bias_hh)

    def forward(self, input: Tensor, hx: Tensor | RecurrentState | None = None) -> Tensor | RecurrentState:
        """As the forward of the cell.

        Args:
            input: [B, I] or [I].
            hx: h, or (h, c) of an LSTMCell; None: zeros.

        Returns:
            The next h, or (h, c).
        """
        if hx is None:
            zeros = input.new_zeros(*input.shape[:-1], self.hidden_size)
            hx = (zeros, zeros) if self.mode == "LSTM" else zeros
        state = hx if isinstance(hx, tuple) else (hx,)
        state = STEPS[self.mode](self.weight_ih(input), self.weight_hh(state[0]), state)
        return state if self.mode == "LSTM" else state[0]


class RecurrentView(nn.Module):
    """The function of an LSTM, GRU or RNN without projections, on its tensors."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.mode, self.hidden_size, self.batch_first = layer.mode, layer.hidden_size, layer.batch_first
        self.num_layers, self.dropout = layer.num_layers, layer.dropout
        self.suffixes = ("", "_reverse") if layer.bidirectional else ("",)
        for name in layer._flat_weights_names:
            if name.startswith("weight_"):
                bias = getattr(layer, name.replace("weight", "bias")) if layer.bias else None
                self.add_module(name, linear_of(getattr(layer, name), bias))

    def flatten_parameters(self) -> None:
        """Do nothing; models call this method before the forward pass."""

    def forward(
        self, input: Tensor | PackedSequence, hx: Tensor | RecurrentState | None = None
    ) -> tuple[Tensor | PackedSequence, Tensor | RecurrentState]:
        """As the forward of the layer.

        Args:
            input: [T, B, I], [B, T, I] where batches are first, [T, I], or a packed sequence.
            hx: h, or (h, c) of an LSTM; None: zeros.

        Returns:
            The outputs of all steps, and the last h, or (h, c).
        """
        states = hx if isinstance(hx, tuple) else None if hx is None else (hx,)
        if isinstance(input, PackedSequence):
            if states is not None and input.sorted_indices is not None:
                states = tuple(s.index_select(1, input.sorted_indices) for s in states)
            data, last = self._run(input.data, input.batch_sizes.tolist(), states)
            if input.unsorted_indices is not None:
                last = tuple(s.index_select(1, input.unsorted_indices) for s in last)
            output: Tensor | PackedSequence = input._replace(data=data)
        else:
            is_batch = input.dim() == 3
            sequence = input if is_batch else input.unsqueeze(1)
            sequence = sequence.transpose(0, 1) if is_batch and self.batch_first else sequence
            states = states if states is None or is_batch else tuple(s.unsqueeze(1) for s in states)
            length, batch = sequence.shape[:2]
            data, last = self._run(sequence.reshape(length * batch, -1), [batch] * length, states)
            output = data.reshape(length, batch, -1)
            output = output.transpose(0, 1) if is_batch and self.batch_first else output
            if not is_batch:
                output, last = output.squeeze(1), tuple(s.squeeze(1) for s in last)
        return output, last if self.mode == "LSTM" else last[0]

    def _run(
        self, data: Tensor, batch_sizes: list[int], states: RecurrentState | None
    ) -> tuple[Tensor, RecurrentState]:
        """The outputs of all layers for packed inputs [sum of the batch sizes, I], and the last states."""
        if states is None:
            shape = self.num_layers * len(self.suffixes), batch_sizes[0], self.hidden_size
            states = tuple(data.new_zeros(shape) for _ in range(2 if self.mode == "LSTM" else 1))
        last: list[RecurrentState] = []
        for layer in range(self.num_layers):
            outputs = []
            for suffix in self.suffixes:
                state = tuple(s[len(last)] for s in states)
                output, state = self._run_direction(data, batch_sizes, state, f"l{layer}{suffix}")
                outputs.append(output)
                last.append(state)
            data = torch.cat(outputs, 1)
            if layer + 1 < self.num_layers:
                data = F.dropout(data, self.dropout, self.training)
        return data, tuple(torch.stack(parts) for parts in zip(*last, strict=True))

    def _run_direction(
        self, data: Tensor, batch_sizes: list[int], state: RecurrentState, name: str
    ) -> tuple[Tensor, RecurrentState]:
        gates = self.get_submodule(f"weight_ih_{name}")(data).split(batch_sizes)
        recur = self.get_submodule(f"weight_hh_{name}")
        outputs: dict[int, Tensor] = {}
        steps = range(len(batch_sizes))
        for step in reversed(steps) if name.endswith("_reverse") else steps:
            size = batch_sizes[step]  # the sequences that are as long
            active = tuple(s[:size] for s in state)
            active = STEPS[self.mode](gates[step], recur(active[0]), active)
            state = tuple(torch.cat([n, s[size:]]) for n, s in zip(active, state, strict=True))
            outputs[step] = active[0]
        return torch.cat([outputs[step] for step in steps]), state

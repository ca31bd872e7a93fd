"""A network with the values of its kept weights: loaded from a model, trained or evaluated, and written back."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prunus.training.recipe import Recipe
from prunus.training.sparse import program
from prunus.training.sparse.arrays import RecordArray
from prunus.training.sparse.optimizers import NUMBERS, OptimizerSettings
from prunus.training.sparse.places import Connection
from prunus.training.sparse.tables import list_parameters, make_arrays
from prunus.training.sparse.vectors import LANES, zeros

Keys = NDArray[np.uint64]
_ADAM_STATE = ("exp_avg", "exp_avg_sq")
_SGD_STATE = ("momentum_buffer",)


class SparseNetwork:
    """A model whose pruned weights are zero, computed with its kept weights only.

    `load` copies the values of the model and `store` writes them back; in between, the model does not change.
    """

    def __init__(
        self, model: nn.Module, masks: Mapping[str, Tensor], connections: Sequence[Connection]
    ) -> None:
        """Make the tables of the compiled kernels; no values are loaded yet.

        Args:
            model: The model, in float32, on the CPU.
            masks: The masks of weights by parameter name; parameters without one are kept.
            connections: The layers of the model with their places, made with the same masks.
        """
        self._parameters = list_parameters(model, masks)
        self._net = make_arrays(connections, self._parameters)
        modules = [connection.layer.module for connection in connections]
        self._norms = [m for m in modules if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
        self.has_dropout = any(isinstance(module, nn.Dropout) for module in modules)
        self._moments = np.zeros((2, len(self._net.params)), np.float32)
        self._step = self._num_new_steps = 0

    @property
    def num_classes(self) -> int:
        """The number of logits."""
        return self._net.num_classes

    def load(self) -> None:
        """Copy the values of the model."""
        for parameter in self._parameters.values():
            self._net.params[parameter.first : parameter.last] = parameter.read(parameter.tensor)
        for norm, records in self._norm_statistics():
            records["mean"], records["variance"] = norm.running_mean.numpy(), norm.running_var.numpy()

    def load_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Copy the state of the optimizer of the model; without a state, the training has taken no step."""
        self._moments[:], self._step, self._num_new_steps = 0, 0, 0
        for parameter in self._parameters.values():
            state = optimizer.state.get(parameter.tensor, {})
            for row, key in enumerate(_state_keys(state)):
                self._moments[row, parameter.first : parameter.last] = parameter.read(state[key])
            self._step = max(self._step, int(state.get("step", 0)))

    def store(self, optimizer: torch.optim.Optimizer) -> None:
        """Write the values into the model and the state into its optimizer, if there was a step since the last call.

        Entries of pruned weights do not change.
        """
        if not self._num_new_steps:
            return
        for parameter in self._parameters.values():
            parameter.write(parameter.tensor, self._net.params)
            state = _complete_state(optimizer, parameter.tensor)
            for row, key in enumerate(_state_keys(state)):
                parameter.write(state[key], self._moments[row])
            if "step" in state:
                state["step"].fill_(self._step)
        for norm, records in self._norm_statistics():
            if norm.training:
                norm.running_mean.copy_(torch.from_numpy(records["mean"]))
                norm.running_var.copy_(torch.from_numpy(records["variance"]))
                norm.num_batches_tracked.add_(self._num_new_steps)
        self._num_new_steps = 0

    def train(
        self,
        recipe: Recipe,
        inputs: Tensor,
        labels: Tensor,
        order: Tensor,
        learning_rates: NDArray[np.float64],
        keys: Keys,
    ) -> tuple[float, int]:
        """Take one step per learning rate, on batches of `order`.

        Args:
            recipe: The recipe, of which the batch size, the optimizer and the penalty are used.
            inputs: Contiguous examples [N, ...], float32.
            labels: Class indices [N].
            order: The indices of the examples of the batches [n].
            learning_rates: The learning rate of each step.
            keys: The key of dropout of each step.

        Returns:
            The sum of the losses in nats, each before its step, and the number of labeled examples.
        """
        self._reserve(min(recipe.batch_size, len(order)))
        penalties = [recipe.penalty_strength if recipe.penalty == name else 0.0 for name in ("l1", "l2")]
        values = map(float, (recipe.momentum, recipe.weight_decay, *penalties))
        settings = OptimizerSettings(NUMBERS[recipe.optimizer], *values)
        examples = program.OrderedExamples(_flat(inputs), labels.numpy(), order.numpy())
        loss, num_labeled, step = program.train_batches(
            self._net, examples, recipe.batch_size, settings, self._moments, learning_rates, keys, self._step
        )
        self._num_new_steps += step - self._step
        self._step = step
        return loss, num_labeled

    def evaluate(self, inputs: Tensor, labels: Tensor) -> tuple[float, int]:
        """The sum of the losses in nats and the number of correct predictions, in evaluation mode.

        Args:
            inputs: Contiguous examples [N, ...], float32.
            labels: Class indices [N]; examples whose label is `IGNORE_INDEX` do not count.

        Returns:
            Both sums over all labeled examples.
        """
        self._reserve(LANES)
        examples = program.OrderedExamples(_flat(inputs), labels.numpy(), np.arange(len(labels)))
        sums: tuple[float, int] = program.evaluate_batches(self._net, examples, LANES)
        return sums

    def logits(self, inputs: Tensor) -> Tensor:
        """The logits [n, C] of at most `LANES` examples, in evaluation mode."""
        self.evaluate(inputs, torch.zeros(len(inputs), dtype=torch.int64))
        first = self._net.logits
        vectors = self._net.values.reshape(-1, LANES)[first : first + self.num_classes, : len(inputs)]
        return torch.from_numpy(vectors.T.copy())

    def _reserve(self, batch_size: int) -> None:
        """Make room for the activations of a batch."""
        size = -(-batch_size // LANES) * self._net.block_size
        if len(self._net.values) < size * LANES:
            self._net = self._net._replace(values=zeros(size), value_gradients=zeros(size))

    def _norm_statistics(self) -> Iterator[tuple[Any, RecordArray]]:
        """Each BatchNorm with the records of its channels in `statistics`."""
        first = 0
        for norm in self._norms:
            yield norm, self._net.statistics[first : first + norm.num_features]
            first += norm.num_features


def _flat(inputs: Tensor) -> NDArray[np.float32]:
    """The features of all examples, one example after the other."""
    flat: NDArray[np.float32] = inputs.contiguous().reshape(-1).numpy()
    return flat


def _state_keys(state: Mapping[str, Any]) -> list[str]:
    """The names of the tensors in the state of an optimizer that have the shape of their parameter."""
    return [key for key in (*_ADAM_STATE, *_SGD_STATE) if state.get(key) is not None]


def _complete_state(optimizer: torch.optim.Optimizer, tensor: Tensor) -> dict[str, Any]:
    """The state of a parameter, which is made if it takes no step before."""
    state: dict[str, Any] = optimizer.state[tensor]
    if "betas" in optimizer.defaults:
        if "step" not in state:
            state["step"] = torch.zeros(())
            state.update({key: torch.zeros_like(tensor) for key in _ADAM_STATE})
    elif optimizer.defaults["momentum"] and not _state_keys(state):
        state.update({key: torch.zeros_like(tensor) for key in _SGD_STATE})
    return state

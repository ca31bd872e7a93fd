"""The mean loss of a network on examples as a function of some of its parameters."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from prunus.data.examples import Batch, Calibration, Examples, as_examples, replace_tensors
from prunus.errors import ModelError, NonFiniteError, StatisticsError
from prunus.modules import copied
from prunus.pruning.calibration_checks import check_finite_inputs, check_reached, run_forward
from prunus.pruning.masks import check_finite
from prunus.pruning.structured.graph import TracedGraph, trace_model
from prunus.pruning.weights import with_weights
from prunus.training.losses import LOSSES, Loss, LossFunction, check_labels, find_loss, loss_rows, mean_loss
from prunus.training.outputs import Forward, call_model, output_field, output_tensor
from prunus.types import IGNORE_INDEX, Params


@dataclass(frozen=True)
class Objective:
    """The mean loss over examples as a function of weights; made by `make_objective`."""

    model: nn.Module
    """A copy in evaluation mode."""
    weights: Params
    """The parameters to differentiate by, at the point of differentiation; weights and biases alike."""
    examples: Examples
    loss: Loss | LossFunction | None
    """None: the loss that the outputs contain, else cross-entropy."""
    forward: Forward | None = None
    """(model, batch) -> outputs; None: the model is called with the inputs of the batch."""
    _graphs: list[TracedGraph] = field(default_factory=list, repr=False, compare=False)
    """The graph, once it was traced; the same list in objectives of the same model with other weights."""

    @property
    def graph(self) -> TracedGraph:
        """The exported graph of the model.

        Raises:
            ModelError: The model cannot be exported.
        """
        if not self._graphs:
            self._graphs.append(trace_model(self.model, self.examples.inputs))
        return self._graphs[0]

    @property
    def differentiable_loss(self) -> Loss:
        """The loss with its derivatives by outputs [B, C].

        Raises:
            StatisticsError: They are not known, or the outputs have more dimensions.
        """
        loss = LOSSES["cross_entropy"] if self.loss is None else self.loss
        targets = self.examples.labels
        if not isinstance(loss, Loss) or targets is None or targets.dim() != (1 if loss.takes_labels else 2):
            raise StatisticsError(
                f"Expected a loss of outputs [B, C] whose derivatives are known, one of {', '.join(LOSSES)}, got "
                f"{'another' if targets is None else f'labels {tuple(targets.shape)}'}; choose a method that needs "
                "gradients alone, such as fisher, obd_hutchinson or snip."
            )
        return loss

    @property
    def inputs(self) -> Tensor:
        """The inputs of all examples."""
        assert isinstance(self.examples.inputs, Tensor)
        return self.examples.inputs

    @property
    def targets(self) -> Tensor:
        """The labels or numbers of all examples."""
        assert self.examples.labels is not None
        return self.examples.labels

    def labeled_batches(self, batch_size: int) -> list[tuple[Batch, Tensor]]:
        """Batches of at most this many examples, each with its labels or numbers."""
        targets = torch.split(self.targets, batch_size)
        return list(zip(self.examples.batches(batch_size), targets, strict=True))

    def call(self, weights: Params, batch: Batch) -> object:
        """What the model returns for a batch with its parameters replaced by `weights`.

        Args:
            weights: Parameters by name.
            batch: Some examples, or their inputs.

        Returns:
            Any output.
        """
        module = _Call(self.model, self.forward)
        # Copies, because derivatives of a function that changes a buffer in place are not defined.
        replaced = {f"model.{name}": buffer.clone() for name, buffer in self.model.named_buffers()}
        replaced |= {f"model.{name}": weight for name, weight in weights.items()}
        with sdpa_kernel(SDPBackend.MATH):  # the other kernels of attention have no second derivative
            return functional_call(module, replaced, (batch,))

    def outputs(self, weights: Params, batch: Batch) -> Tensor:
        """The outputs of the model for a batch with its parameters replaced by `weights`.

        Args:
            weights: Parameters by name.
            batch: Some examples, or their inputs.

        Returns:
            The tensor, or the logits, that the model returns.
        """
        return output_tensor(self.model, self.call(weights, batch))

    def error(self, weights: Params, batch: Batch | None = None) -> Tensor:
        """The mean loss of the model with its parameters replaced by `weights`; differentiable.

        Args:
            weights: Parameters by name.
            batch: Some of the examples; None: all.

        Returns:
            A scalar.
        """
        batch = self.examples.batch if batch is None else batch
        return mean_loss(self.model, self.call(weights, batch), batch, self.loss)

    def batch_of_one(self, tensors: Sequence[Tensor]) -> Batch:
        """One example as a batch, from its tensors in the order of `iter_tensors`, as `vmap` passes them."""
        return replace_tensors(self.examples.batch, [tensor.unsqueeze(0) for tensor in tensors])

    def replace_weights(self, weights: Params) -> "Objective":
        """The same objective at other weights. Raises NonFiniteError where one is not finite."""
        check_finite(weights, "The weight")
        dtypes = {name: parameter.dtype for name, parameter in self.model.named_parameters()}
        return replace(
            self,
            model=with_weights(self.model, weights),
            weights={name: weight.detach().clone().to(dtypes[name]) for name, weight in weights.items()},
        )


class _Call(nn.Module):
    """A module whose forward is `call_model` on another module."""

    def __init__(self, model: nn.Module, function: Forward | None) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, batch: Batch) -> object:
        return call_model(self.model, batch, self.function)


def make_objective(
    model: nn.Module,
    weights: Params,
    inputs: Calibration,
    targets: Tensor | None = None,
    *,
    loss: str | Loss | LossFunction | None = "cross_entropy",
    forward: Forward | None = None,
) -> Objective:
    """The mean loss of `model`, in evaluation mode, on examples, as a function of `weights`.

    Args:
        model: Any module; copied, so that training it later changes nothing.
        weights: Some of its parameters by name, as `prunable_weights` or `named_parameters` gives them.
        inputs: Examples in any form, or inputs [N, ...] alone where `targets` are given. Floating-point tensors are
            converted to the dtype of the weights, and to float32 for weights of 16 bits (unless the forward pass takes
            these alone); integers, such as tokens, are not. Examples with a label to ignore are left out.
        targets: Labels [N], or numbers [N, C] for squared_error.
        loss: A key of LOSSES, a Loss, a function (outputs, batch) -> mean loss, or None: the loss that the outputs
            contain, else cross-entropy.
        forward: (model, batch) -> outputs; None: the model is called with the inputs.

    Returns:
        The objective at the given weights.

    Raises:
        StatisticsError: No example, inputs of a shape that the model does not take, or outputs and targets that do not
            fit the loss.
        NonFiniteError: Inputs, weights or the loss are not finite.
        ModelError: A name that the model does not have, or a weight that the forward pass does not reach.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> objective = make_objective(
    ...     model, dict(model.named_parameters()), torch.ones(1, 2), torch.zeros(1, 1), loss="squared_error"
    ... )
    >>> float(objective.error({"weight": torch.tensor([[2.0, 1.0]])}))
    4.5
    """
    examples = as_examples(inputs if targets is None else (inputs, targets))
    labels = examples.labels
    if labels is not None and labels.dim() == 1 and labels.dtype == torch.int64 and (labels >= 0).any():
        examples = examples.take(labels != IGNORE_INDEX)
    objective = Objective(model, {}, examples, find_loss(loss), forward)
    check_parameters(model, weights)
    weight_dtype = next(iter(weights.values())).dtype
    promoted = torch.float32 if weight_dtype.itemsize < 4 else weight_dtype
    try:
        return _in_dtype(objective, weights, promoted)
    except StatisticsError:
        if promoted == weight_dtype:
            raise
    # The forward converts its inputs to the dtype of its weights.
    return _in_dtype(objective, weights, weight_dtype)


def check_parameters(model: nn.Module, weights: Params) -> None:
    """Raise ModelError unless `weights` are of names and shapes of parameters of `model`, and at least one.

    Args:
        model: The model.
        weights: Tensors by name.

    Raises:
        ModelError: There are none, or one that the model does not have.
    """
    parameters = dict(model.named_parameters())
    if not weights:
        raise ModelError(f"Expected weights of {type(model).__name__} to differentiate by, got none.")
    for name, weight in weights.items():
        if name not in parameters or parameters[name].shape != weight.shape:
            raise ModelError(
                f"Expected parameters of {type(model).__name__} to differentiate by, got {name!r} of shape "
                f"{tuple(weight.shape)}; it has {[f'{n} {tuple(p.shape)}' for n, p in parameters.items()]}."
            )


def _in_dtype(objective: Objective, weights: Params, dtype: torch.dtype) -> Objective:
    """The objective with the model, its weights and the examples in `dtype`, checked."""
    model = copied(objective.model).to(dtype).eval().requires_grad_(False)
    objective = replace(objective, model=model, examples=objective.examples.to(dtype))
    objective = objective.replace_weights({name: weight.to(dtype) for name, weight in weights.items()})
    _check(objective)
    return objective


@torch.no_grad()
def _check(objective: Objective) -> None:
    """Check the examples, and the outputs and the loss for all of them.

    A label beyond the classes would be an index out of range, on a GPU a crash.
    """
    model, examples, loss = objective.model, objective.examples, objective.loss
    check_finite_inputs(examples, "inputs", "The batch of")
    output = run_forward(model, examples.batch, lambda batch: objective.call(objective.weights, batch))
    if loss is None and output_field(output, "loss") is None:
        loss = LOSSES["cross_entropy"]
    if isinstance(loss, Loss):
        outputs, targets = loss_rows(output_tensor(model, output), examples.labels, loss)
        if loss.takes_labels:
            check_labels(outputs, targets)
        else:
            check_finite({"targets": targets}, "The batch of")
    error = mean_loss(model, output, examples.batch, loss)
    if not torch.isfinite(error):
        raise NonFiniteError(
            f"Expected a finite error to differentiate, got {float(error)} for {type(model).__name__} on "
            f"{len(examples)} examples."
        )
    check_reached(objective.error, objective.weights, examples)


def flatten_weights(weights: Params) -> Tensor:
    """All entries as one vector [P], in the order of the names."""
    return torch.cat([weight.reshape(-1) for weight in weights.values()])


def unflatten_weights(vector: Tensor, like: Params) -> Params:
    """The inverse of `flatten_weights`.

    Args:
        vector: [P]
        like: Tensors whose names and shapes the result has.

    Returns:
        The entries of `vector`, by name.

    >>> weights = {"a": torch.ones(1, 2), "b": torch.zeros(1)}
    >>> unflatten_weights(flatten_weights(weights), weights)
    {'a': tensor([[1., 1.]]), 'b': tensor([0.])}
    """
    parts = torch.split(vector, [weight.numel() for weight in like.values()])
    return {name: part.reshape(w.shape) for part, (name, w) in zip(parts, like.items(), strict=True)}

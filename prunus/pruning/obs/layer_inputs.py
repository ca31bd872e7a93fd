"""The inputs of layers, handed to a function while calibration examples pass through the network.

The output of a layer is compared with W x on the first examples, so that a layer that computes something else (its own
padding, a standardized weight, a hook) is refused, and so is a weight that something else than its layer uses.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypedDict, Unpack

import torch
from torch import Tensor, nn

from prunus.data.examples import Calibration, as_examples, iter_tensors
from prunus.errors import ModelError, reason_of
from prunus.pruning.calibration_checks import (
    check_finite_inputs,
    run_forward,
    uninformative_error,
    unreached_error,
)
from prunus.pruning.layer_checks import NUM_COMPARED_EXAMPLES, check_layer_output, first_examples
from prunus.pruning.masks import check_finite
from prunus.pruning.matrix import from_matrix, im2col_batches
from prunus.pruning.progress import tracked
from prunus.pruning.weights import with_weights
from prunus.training.outputs import Forward, call_model
from prunus.types import Params, Progress

NUM_COMPARED_CALLS = 4
"""Calls of a layer whose outputs are compared with weight · input."""

AddInputs = Callable[[Tensor], None]
"""Adds the inputs of one call of a layer, [..., D] or [B, C, ...]."""


class PassOptions(TypedDict, total=False):
    """How examples pass through a network: the options of `pass_layer_inputs` and of all functions that call it."""

    batch_size: int
    """Examples per forward pass; 100 by default."""
    forward: Forward | None
    """(model, batch) -> outputs; None: the model is called with the inputs."""
    progress: Progress | None
    """Called after each batch."""


@torch.no_grad()
def pass_layer_inputs(
    model: nn.Module,
    weights: Params,
    inputs: Calibration,
    adders: Mapping[str, AddInputs],
    *,
    batch_size: int = 100,
    forward: Forward | None = None,
    progress: Progress | None = None,
) -> None:
    """Pass `inputs` once through a copy of `model` with these weights, and hand on the inputs of the layer of each.

    Args:
        model: Any module; it is not changed.
        weights: Weights of Linear, Conv1d, Conv2d and Conv3d layers, by name; `views.layer_view` shows other layers
            as these.
        inputs: Calibration examples in any form, on the device of the model.
        adders: Called with the inputs of each call of a layer, by name of the weight.
        batch_size: Examples per forward pass.
        forward: (model, batch) -> outputs; None: the model is called with the inputs.
        progress: Called after each batch.

    Raises:
        StatisticsError: No example, not a tensor, or a shape that the model does not take.
        NonFiniteError: Inputs of the model or weights are not finite.
        ModelError: A name that the model does not have, a layer of another kind, one that does not return weight ·
            input + bias, one whose weight is used elsewhere too, or one that the forward pass does not reach.
    """
    examples = as_examples(inputs)
    check_finite_inputs(examples, "calibration", "The inputs for")
    check_finite(weights, "The weight")
    for name in weights:
        layer_of(model, name)
    model = with_weights(model, weights).eval()
    run = partial(run_forward, model, forward=partial(call_model, model, forward=forward))
    with hooked_layers(model, adders):
        for batch in tracked(examples.batches(batch_size), "calibration batches", progress):
            run(batch)
    first = examples.take(slice(NUM_COMPARED_EXAMPLES)).batch
    check_used_by_layers_alone(model, list(weights), lambda: run(first))


@contextmanager
def hooked_layers(model: nn.Module, adders: Mapping[str, AddInputs]) -> Iterator[None]:
    """Inside, the inputs of layers are handed on while `model` runs.

    Args:
        model: Contains the layers; its hooks are removed on leaving.
        adders: As for `pass_layer_inputs`.

    Yields:
        Once; after it, every layer must have been called.

    Raises:
        ModelError: As `pass_layer_inputs`.
    """
    layers = [_HookedLayer(name, layer_of(model, name), add) for name, add in adders.items()]
    with ExitStack() as hooks:
        for layer in layers:
            hooks.enter_context(layer.module.register_forward_pre_hook(layer.pre_hook, with_kwargs=True))
            hooks.enter_context(layer.module.register_forward_hook(layer.compare_output))
        yield
    for layer in layers:
        if not layer.num_calls:
            raise unreached_error(layer.name)


@torch.no_grad()
def input_norms(
    model: nn.Module, weights: Params, inputs: Calibration, **options: Unpack[PassOptions]
) -> Params:
    """The L2 norm, over all examples and positions, of the input that each weight is multiplied with.

    Args:
        model: Any module; it is not changed.
        weights: Weights of Linear, Conv1d, Conv2d and Conv3d layers, by name.
        inputs: Calibration examples in any form.
        options: See `PassOptions`.

    Returns:
        Tensors of the shapes of the weights, in float32 at least; all rows of a group are equal.

    Raises:
        StatisticsError: As `pass_layer_inputs`, or a layer whose inputs are all zero.
        NonFiniteError: Inputs of the model or of a layer are not finite.
        ModelError: As `pass_layer_inputs`.

    >>> model, inputs = nn.Linear(2, 1), torch.tensor([[3.0, 1.0], [4.0, 0.0]])
    >>> input_norms(model, {"weight": model.weight}, inputs)
    {'weight': tensor([[5., 1.]])}
    """
    squares = {name: _SquareSum(layer_of(model, name)) for name in weights}
    pass_layer_inputs(model, weights, inputs, {n: s.add for n, s in squares.items()}, **options)
    norms = {}
    for name, weight in weights.items():
        total = torch.as_tensor(squares[name].total, device=weight.device)
        check_finite({name: total}, "The calibration inputs of the layer of")
        if not total.any():
            raise uninformative_error(f"All inputs of the layer of {name!r} are zero in all examples")
        rows = total.sqrt().unsqueeze(1).expand(-1, len(weight) // len(total), -1).flatten(0, 1)
        norms[name] = from_matrix(rows, weight).to(torch.promote_types(weight.dtype, torch.float32))
    return norms


@dataclass
class _SquareSum:
    """The sum of squares of each input of one layer, [G, D] in float64."""

    module: nn.Module
    total: Tensor | float = 0.0

    def add(self, inputs: Tensor) -> None:
        """Add the inputs of a call; the squares of all examples are summed before they are unfolded."""
        if isinstance(self.module, nn.Linear):
            inputs = inputs.reshape(-1, self.module.in_features)
        elif inputs.dim() < self.module.get_parameter("weight").dim():
            inputs = inputs.unsqueeze(0)
        values = inputs.abs()
        squares = values.to(torch.promote_types(values.dtype, torch.float32)).square()
        for x in im2col_batches(self.module, squares.sum(0, keepdim=True, dtype=torch.float64)):
            self.total = self.total + x.sum(1)


@dataclass
class _HookedLayer:
    """The hooks of one layer."""

    name: str
    module: nn.Module
    add: AddInputs
    num_calls: int = 0
    first: Tensor | None = None
    """The first examples of the inputs of the present call, where its output is to be compared."""

    def pre_hook(self, module: nn.Module, arguments: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        """Hand on the inputs of a call."""
        x = arguments[0] if arguments else named.get("input")
        if not isinstance(x, Tensor):
            raise ModelError(
                f"Expected a tensor as the input of the layer of {self.name!r} ({type(module).__name__}), got "
                f"{'other arguments' if x is None else f'a {type(x).__name__}'}; exclude {self.name!r}."
            )
        self.first = None
        is_own_error = x.shape[-1] != getattr(module, "in_features", x.shape[-1])
        if is_own_error or not x.numel():
            return  # the layer's own error says more; an expert that no token is sent to is not reached
        self.num_calls += 1
        if self.num_calls <= NUM_COMPARED_CALLS:
            self.first = first_examples(module, x).clone()  # copied, as a forward may write over its input
        try:
            self.add(x)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise ModelError(
                f"Expected inputs that a {type(module).__name__} multiplies for the layer of {self.name!r}, got shape "
                f"{tuple(x.shape)} ({reason_of(error)}); exclude {self.name!r}."
            ) from error

    def compare_output(self, module: nn.Module, arguments: tuple[Tensor, ...], output: object) -> None:
        """Raise ModelError unless the output of a call is weight · input + bias."""
        if self.first is not None:
            check_layer_output(self.name, module, self.first, output)


@torch.enable_grad()
def check_used_by_layers_alone(model: nn.Module, names: Sequence[str], run: Callable[[], object]) -> None:
    """Check that the output of `model` depends on each weight through the output of its layer alone.

    The outputs of the layers are detached, so that a gradient of the model's output, or of a layer's input, reaches a
    weight only where something else uses it.

    Args:
        model: A copy, whose hooks and `requires_grad` are changed.
        names: Of the weights.
        run: Runs the model on some examples, and returns its output.

    Raises:
        ModelError: A weight is used elsewhere too.
    """
    layers = {name: layer_of(model, name) for name in names}
    parameters = {name: layer.get_parameter("weight") for name, layer in layers.items()}
    model.requires_grad_(False)  # so that no activation is stored for other gradients
    weights = {name: p.requires_grad_() for name, p in parameters.items() if not p.is_inference()}
    tensors: list[Tensor] = []
    for layer in layers.values():
        layer.register_forward_hook(partial(_detach, tensors), with_kwargs=True)
    tensors += iter_tensors(run())
    tensors = [tensor for tensor in tensors if tensor.requires_grad]
    if not tensors or not weights:
        return
    gradients = torch.autograd.grad(
        tensors, list(weights.values()), [torch.ones_like(t) for t in tensors], allow_unused=True
    )
    for name, gradient in zip(weights, gradients, strict=True):
        if gradient is not None:
            raise ModelError(
                f"Expected {name!r} to be used by its layer alone, but the forward pass of {type(model).__name__} uses "
                f"it elsewhere too, so that the error of its layer's output is not all that changes; exclude {name!r}, "
                "or choose a method that uses weights or gradients alone, such as magnitude."
            )


def _detach(
    tensors: list[Tensor],
    module: nn.Module,
    arguments: tuple[object, ...],
    named: dict[str, object],
    output: object,
) -> object:
    """Collect the inputs of a layer, and detach its output from them."""
    tensors += iter_tensors((arguments, named))
    return output.detach() if isinstance(output, Tensor) else output


def layer_of(model: nn.Module, name: str) -> nn.Module:
    """The layer of a weight.

    Args:
        model: Contains the layer.
        name: Of the weight, in the model.

    Returns:
        The layer.

    Raises:
        ModelError: There is no such layer, or it is neither Linear nor a convolution.
    """
    path, _, last = name.rpartition(".")
    try:
        module = model.get_submodule(path)
    except AttributeError:
        raise ModelError(f"Expected the name of a weight of {type(model).__name__}, got {name!r}.") from None
    if last != "weight" or not isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        raise ModelError(
            f"Expected weights of Linear and convolutional layers to prune layer by layer, but {name!r} is of a "
            f"{type(module).__name__}; exclude {name!r}."
        )
    return module

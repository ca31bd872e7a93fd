"""Which backend computes: `dense` is PyTorch, `sparse` computes with the kept weights only, `auto` chooses.

The choice depends on the network and its masks, never on measured time, so that equal calls give bit-identical
results. A layer is expected to take density / threshold of its dense time in the sparse backend, with one threshold for
linear layers and one for convolutions; `auto` chooses the sparse backend if the layers together are expected to take
less time than dense ones:

    Σ MACs · density / threshold < Σ MACs

MACs are the multiply-adds of a layer for one example. A short computation is dense, because the sparse backend takes
time to start. The thresholds are below the densities at which both backends cost the same on the CPUs that were
measured (`python -m benchmarks density_cost`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from prunus.errors import SpecError
from prunus.masks import Masks, apply_masks
from prunus.training.checks import unchanged
from prunus.training.constraint import Constraint, NoConstraint
from prunus.training.modes import eval_mode
from prunus.training.recipe import Recipe
from prunus.training.sparse.places import Connection, connect_layers
from prunus.training.sparse.trace import UnsupportedError, trace_layers
from prunus.types import Split

if TYPE_CHECKING:
    from prunus.training.sparse.network import SparseNetwork

BACKENDS = ("auto", "dense", "sparse")
LINEAR_THRESHOLD, CONVOLUTION_THRESHOLD = 0.6, 0.25
EVALUATION_MACS = 1e10
"""An evaluation of fewer multiply-adds (about 0.2 seconds of dense layers) is dense."""
TRAINING_MACS = 1e11
"""A training of fewer multiply-adds (about 3 seconds of dense layers) is dense, because the sparse backend takes time
to start, as docs/sparse-training.md says."""
TOLERANCE = 1e-3
"""The largest difference of the logits of both backends, relative to the largest logit."""
_OPTIMIZERS = ("sgd", "nesterov", "adam", "adamw")
"""The optimizers that the sparse backend has."""
_DENSE_SETTINGS = ("label_smoothing", "micro_batch_size", "autocast", "channels_last", "compile")
"""The settings of a recipe that the sparse backend does not have."""


@dataclass(frozen=True)
class Backend:
    """The backend that computes, and why it is not the sparse one."""

    name: str
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})" if self.reason else self.name


def check_backend(backend: str) -> None:
    """Raise SpecError unless `backend` is "auto", "dense" or "sparse"."""
    if backend not in BACKENDS:
        raise SpecError(f"Expected backend to be one of {', '.join(BACKENDS)}, got {backend!r}.")


def choose_backend(
    backend: str, model: nn.Module, masks: Mapping[str, Tensor], inputs: Tensor, least_macs: float = 0
) -> "tuple[Backend, SparseNetwork | None]":
    """Choose the backend for a model whose pruned weights are zero.

    Args:
        backend: "auto", "dense" or "sparse".
        model: The model, in the modes in which its modules are trained.
        masks: The masks by parameter name of the model.
        inputs: The examples [N, ...], of which the shape and the first two are used.
        least_macs: "auto" chooses the dense backend for models with fewer multiply-adds per example.

    Returns:
        The backend, and the network of the sparse backend if that was chosen.

    Raises:
        SpecError: `backend` is unknown, or it is "sparse" and the sparse backend cannot compute the model.
    """
    return _choose(backend, "network", lambda: _sparse_network(backend, model, masks, inputs, least_macs))


def choose_training_backend(
    backend: str,
    model: nn.Module,
    constraint: Constraint,
    recipe: Recipe,
    split: Split,
    reason: str | None = None,
) -> "tuple[Backend, SparseNetwork | None]":
    """Choose the backend of a training.

    "auto" chooses the sparse backend only if dense layers would need `TRAINING_MACS` multiply-adds.

    Args:
        backend: "auto", "dense" or "sparse".
        model: The model, in the modes in which its modules are trained.
        constraint: The constraint on the weights after every step.
        recipe: The recipe, of which the optimizer is used.
        split: The training examples.
        reason: Why the sparse backend cannot train, where the caller knows one.

    Returns:
        The backend, and the network of the sparse backend if that was chosen.

    Raises:
        SpecError: `backend` is unknown, or it is "sparse" and the sparse backend cannot train the model.
    """

    def make() -> "SparseNetwork":
        if reason is not None:
            raise UnsupportedError(reason)
        _check_training(model, constraint, recipe)
        num_passes = 3 * max(recipe.epochs, 1) * len(split)  # forward, and backward by inputs and by weights
        masks, least_macs = _masks_of(model, constraint), TRAINING_MACS / num_passes
        return _sparse_network(backend, model, masks, split.inputs, least_macs)

    return _choose(backend, "training", make)


def choose_evaluation_backend(
    backend: str, model: nn.Module, inputs: Tensor
) -> "tuple[Backend, SparseNetwork | None]":
    """Choose the backend of an evaluation; weights that are zero count as pruned.

    "auto" chooses the sparse backend only if dense layers would need `EVALUATION_MACS` multiply-adds, because it takes
    time to prepare.

    Args:
        backend: "auto", "dense" or "sparse".
        model: The model.
        inputs: The examples [N, ...].

    Returns:
        The backend, and the network of the sparse backend if that was chosen.

    Raises:
        SpecError: `backend` is unknown, or it is "sparse" and the sparse backend cannot compute the model.
    """
    masks = {}
    for name, module in model.named_modules() if backend != "dense" else ():
        # Another kind of weight is computed from parameters: to read it may change buffers, and draw random numbers.
        weight = module._parameters.get("weight")
        if isinstance(module, nn.Linear | nn.Conv2d) and weight is not None:
            mask = weight.detach() != 0
            if mask.sum() < 0.9 * mask.numel():
                masks[f"{name}.weight".removeprefix(".")] = mask
    return choose_backend(backend, model, masks, inputs, EVALUATION_MACS / len(inputs))


def _choose(
    backend: str, what: str, make: "Callable[[], SparseNetwork]"
) -> "tuple[Backend, SparseNetwork | None]":
    """The sparse backend with the network that `make` returns, or the dense one with the reason."""
    check_backend(backend)
    if backend == "dense":
        return Backend("dense"), None
    try:
        return Backend("sparse"), make()
    except UnsupportedError as reason:
        if backend == "sparse":
            raise SpecError(
                f"Expected a {what} that the sparse backend can compute, but {reason}; choose the backend auto or "
                "dense."
            ) from reason
        return Backend("dense", str(reason)), None


def _check_training(model: nn.Module, constraint: Constraint, recipe: Recipe) -> None:
    """Raise UnsupportedError if the sparse backend cannot train with these settings, whatever the layers are."""
    if not isinstance(constraint, Masks | NoConstraint):
        raise UnsupportedError(f"the constraint is a {type(constraint).__name__}")
    if isinstance(constraint, Masks) and any(bool(v.any()) for v in constraint.pruned_values.values()):
        raise UnsupportedError("pruned weights are frozen at values other than zero")
    if recipe.optimizer not in _OPTIMIZERS:
        raise UnsupportedError(f"it has no optimizer {recipe.optimizer!r}")
    for name in _DENSE_SETTINGS:
        if getattr(recipe, name) != Recipe.__dataclass_fields__[name].default:
            raise UnsupportedError(f"the recipe has {name} = {getattr(recipe, name)!r}")
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            raise UnsupportedError(f"the parameter {name!r} is not trained")
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
            raise UnsupportedError(f"the gradient of {name!r} has hooks")


def _masks_of(model: nn.Module, constraint: Constraint) -> Mapping[str, Tensor]:
    """The masks by parameter name of `model`, of which the constraint may bind a submodule."""
    if not isinstance(constraint, Masks):
        return {}
    part = next(name for name, module in model.named_modules() if module is constraint.model)
    return {f"{part}.{name}".removeprefix("."): mask for name, mask in constraint.items()}


def _check_tensors(model: nn.Module, inputs: Tensor) -> None:
    """Raise UnsupportedError unless all tensors are float32 on the CPU, and no parameter is used twice."""
    named = [*model.named_parameters(remove_duplicate=False), ("inputs", inputs)]
    for name, tensor in named:
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu" or tensor.layout != torch.strided:
            kind = f"{tensor.dtype} on {tensor.device.type}"
            raise UnsupportedError(f"{name!r} is {kind}, not float32 on a CPU")
    if len({id(tensor) for _, tensor in named}) < len(named):
        raise UnsupportedError("it uses a parameter twice")


def _check_parameters(
    model: nn.Module, masks: Mapping[str, Tensor], connections: Sequence[Connection]
) -> None:
    """Raise UnsupportedError unless each parameter belongs to one of the layers, and masks are of weights."""
    layers = [connection.layer for connection in connections if connection.layer.name]
    if len({layer.name for layer in layers}) < len(layers):
        raise UnsupportedError("it uses a layer twice")
    owned = {layer.parameter(key) for layer in layers for key in ("weight", "bias")}
    weights = {layer.parameter("weight") for layer in layers if layer.kind == "weighted"}
    for name, _ in model.named_parameters():
        if name not in owned:
            raise UnsupportedError(f"no layer uses the parameter {name!r}")
    others = [name for name in masks if name not in weights]
    if others:
        raise UnsupportedError(
            f"{others[0]!r} is masked but is not the weight of a linear layer or a convolution"
        )


def _check_cost(connections: Sequence[Connection], least_macs: float) -> None:
    """Raise UnsupportedError unless the sparse backend is expected to be faster."""
    dense = sparse = 0.0
    for connection in connections:
        mask, positions = connection.mask, connection.target.height * connection.target.width
        if mask.ndim:
            dense += mask.size * positions
            sparse += mask.sum() * positions / (LINEAR_THRESHOLD if mask.ndim == 2 else CONVOLUTION_THRESHOLD)
    if sparse >= dense:
        raise UnsupportedError(f"the cost expected of it is {sparse / dense:.2f} times that of dense layers")
    if dense < least_macs:
        raise UnsupportedError("the network or the number of examples is small")


def _sparse_network(
    backend: str, model: nn.Module, masks: Mapping[str, Tensor], inputs: Tensor, least_macs: float
) -> "SparseNetwork":
    """The network of a model. Raises UnsupportedError."""
    if not masks and backend == "auto":
        raise UnsupportedError("no weight is masked")
    _check_tensors(model, inputs)
    connections = connect_layers(trace_layers(model), masks, inputs.shape[1:])
    _check_parameters(model, masks, connections)
    if backend == "auto":
        _check_cost(connections, least_macs)
    from prunus.training.sparse.network import SparseNetwork

    network = SparseNetwork(model, masks, connections)
    network.load()
    parameters = apply_masks({name: p.detach() for name, p in model.named_parameters()}, dict(masks))
    with unchanged(model), torch.no_grad(), eval_mode(model):
        expected = torch.func.functional_call(model, parameters, inputs[:2])
    logits = network.logits(inputs[:2])
    scale = float(expected.abs().max()) + 1
    if logits.shape != expected.shape or not torch.allclose(logits, expected, rtol=0, atol=TOLERANCE * scale):
        raise UnsupportedError("its logits are not those of its layers in their order")
    return network

"""Whether a layer computes what a pruning method assumes.

Methods that reconstruct a layer's output assume      output = weight · input (+ bias), with the layer's own stride,
                                                      padding, dilation and groups (`check_layer_output`)
Methods that only set weights to zero assume          the forward pass multiplies with `weight` itself, so that a
                                                      zero has no effect (`why_zeros_may_not_hold`)

A layer type guarantees neither: a subclass may standardize its weight or pad its input in its own forward, and a hook
may change inputs or outputs. Both checks run the layer and compare its outputs.
"""

import torch
from torch import Tensor, nn
from torch.func import functional_call

from prunus.errors import ModelError, PrunusError, reason_of
from prunus.pruning.matrix import im2col_batches, to_matrix
from prunus.training.modes import eval_mode

NUM_COMPARED_EXAMPLES = 2
"""Examples of a batch that are compared for a convolution."""
NUM_COMPARED_VECTORS = 64
"""Inputs that are compared for a Linear layer."""
TOLERANCE = 1e-3
"""Relative to the norm of the output without its bias."""
MAX_POSITIONS = 8
"""Neighboring inputs that are tried at most."""
ROUNDING = 8
"""Rounding errors of the output's dtype that are allowed, relative to the sum of absolute products."""


def first_examples(module: nn.Module, tensor: Tensor) -> Tensor:
    """The inputs or outputs of a layer that `check_layer_output` compares: [n, C] of Linear, else [B, C, ...].

    Args:
        module: Linear, or a convolution.
        tensor: Its inputs or outputs.

    Returns:
        A view of the first of them.
    """
    if isinstance(module, nn.Linear):
        return tensor.reshape(-1, tensor.shape[-1])[:NUM_COMPARED_VECTORS]
    weight = module.weight
    assert isinstance(weight, Tensor)
    return (tensor if tensor.dim() == weight.dim() else tensor.unsqueeze(0))[:NUM_COMPARED_EXAMPLES]


@torch.no_grad()
def check_layer_output(name: str, module: nn.Module, inputs: Tensor, output: object) -> None:
    """Raise ModelError unless `output` is weight · input + bias.

    Args:
        name: Name of the weight, for the error.
        module: Linear, Conv1d or Conv2d, or a subclass.
        inputs: `first_examples` of the inputs that reached the layer, after all of its pre-hooks.
        output: What the layer returned for all of them, after all of its hooks.

    Raises:
        ModelError: The output differs by more than rounding.
    """
    difference = _difference(module, inputs, output)
    if difference is not None:
        raise ModelError(
            f"Expected the layer of {name!r} ({type(module).__name__}) to return weight · input + bias, but "
            f"{difference}: its forward or a hook computes something else, and the error of its output cannot be "
            f"predicted; exclude {name!r}, or choose a method that uses weights or gradients alone, such as magnitude."
        )


def _difference(module: nn.Module, inputs: Tensor, output: object) -> str | None:
    """How the output differs from the expected one; None where it does not."""
    if not isinstance(output, Tensor):
        return f"it returned a {type(output).__name__}"
    weight, bias = module.weight, module.bias
    assert isinstance(weight, Tensor)
    rows = to_matrix(weight.detach()).double()
    expected, absolute = _products(module, inputs, rows), _products(module, inputs.abs(), rows.abs())
    if not torch.isfinite(absolute).all():
        return None  # another error reports inputs that are not finite
    output = first_examples(module, output)
    returned = output.double() if isinstance(module, nn.Linear) else output.double().flatten(2).mT
    returned = returned.reshape(-1, returned.shape[-1])
    if returned.shape != expected.shape:
        return (
            f"it returned {returned.numel()} values for {len(inputs)} examples instead of {expected.numel()}"
        )
    if isinstance(bias, Tensor):
        returned, absolute = returned - bias.double(), absolute + bias.double().abs()
    epsilon = torch.finfo(output.dtype).eps if output.is_floating_point() else 1.0
    allowed = max(TOLERANCE, ROUNDING * epsilon) * float(expected.norm())
    allowed += ROUNDING * epsilon * float(absolute.norm())
    difference = float((returned - expected).norm())
    if difference <= allowed:
        return None
    return f"its output differs by {difference:.3g} in norm from the expected one of {float(expected.norm()):.3g}"


def _products(module: nn.Module, inputs: Tensor, rows: Tensor) -> Tensor:
    """The products of the matrix [O, D] with the unfolded inputs, [n, O], in the order of the positions."""
    parts = []
    for vectors in im2col_batches(module, inputs):  # [G, n, D]
        groups = len(vectors)
        weight = rows.reshape(groups, -1, rows.shape[1])
        parts.append(torch.bmm(vectors.double(), weight.mT).permute(1, 0, 2).flatten(1))
    return torch.cat(parts)


@torch.no_grad()
def why_zeros_may_not_hold(module: nn.Module) -> str | None:
    """Why a zero of `weight` may not be a zero in the forward pass of `module`; None where it is one.

    The forward of layers of torch.nn is known. Any other forward is tried: with all weights but one of each output at
    zero, an output may depend on one input only. (Subtracting the mean of a weight, for one, makes it depend on all.)

    >>> why_zeros_may_not_hold(nn.Linear(2, 2))
    >>> class Centered(nn.Linear):
    ...     def forward(self, x):
    ...         return nn.functional.linear(x, self.weight - self.weight.mean(1, keepdim=True), self.bias)
    >>> why_zeros_may_not_hold(Centered(2, 2))
    'the forward of Centered multiplies with other values than its weight, in which zeros are not zero'
    """
    if has_forward_of_torch(module):
        return None
    kind = type(module).__name__
    try:
        responses = _responses_of_one_weight(module)
    except PrunusError:
        raise
    except (Exception, SystemExit) as error:  # a user's forward may fail in any way
        return f"the forward of {kind} could not be tried on a single input ({reason_of(error)})"
    if int(responses.max()) > 1:
        return (
            f"the forward of {kind} multiplies with other values than its weight, in which zeros are not zero"
        )
    return None


def has_forward_of_torch(module: nn.Module) -> bool:
    """Whether the forward of a module, and the methods that it calls, are those of torch.nn."""
    if {"forward", "_conv_forward"} & set(vars(module)):
        return False
    definitions = [getattr(type(module), method, None) for method in ("forward", "_conv_forward")]
    modules = [getattr(definition, "__module__", "") for definition in definitions if definition is not None]
    return all(name.startswith("torch.nn.modules.") for name in modules)


def _responses_of_one_weight(module: nn.Module) -> Tensor:
    """The number of tried inputs that each output depends on, where each output has one nonzero weight; [O, ...].

    The inputs are zero except at one position: in the first channel of each group at some neighboring positions, then
    in the second channel.
    """
    weight, groups = module.get_parameter("weight"), getattr(module, "groups", 1)
    transposed = getattr(module, "transposed", False)
    weight_of_ones = torch.zeros_like(weight, memory_format=torch.contiguous_format)
    by_group = weight_of_ones.view(groups, weight.shape[0] // groups, weight.shape[1], -1)
    if transposed:  # [I, O / G, K, ...]
        by_group[:, 0, :, 0] = 1.0
    else:  # [O, I / G, K, ...]
        by_group[:, :, 0, 0] = 1.0
    inputs = by_group.shape[1] if transposed else by_group.shape[2]
    kernel = weight.shape[2:]
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, getattr(module, "dilation", ()), strict=True)]
    size = [4 * span + 1 for span in spans]
    positions = [tuple(length // 2 for length in size)]
    if kernel:
        positions += [
            (*positions[0][:-1], positions[0][-1] + shift)
            for shift in range(1, min(spans[-1], MAX_POSITIONS))
        ]
    inputs_tried = weight.new_zeros(len(positions) + 1 + (inputs > 1), groups, inputs, *size)
    for example, position in zip(inputs_tried, positions, strict=False):
        example[(slice(None), 0, *position)] = 1.0
    if inputs > 1:
        inputs_tried[(len(positions), slice(None), 1, *positions[0])] = 1.0
    state = {name: buffer.clone() for name, buffer in module.named_buffers()} | {"weight": weight_of_ones}
    with eval_mode(module), torch.random.fork_rng(devices=[]):
        outputs: Tensor = functional_call(module, state, (inputs_tried.flatten(1, 2),)).double()
    change = (outputs[:-1] - outputs[-1:]).abs()  # the last example is zero
    return (change > 1e-6 * change.max()).sum(0)

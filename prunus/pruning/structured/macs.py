"""Count the multiply-accumulate operations (MACs) of a model."""

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from prunus.errors import ModelError, reason_of
from prunus.modules import check_module, unwrapped
from prunus.pruning.structured.graph import as_arguments, exact_attention
from prunus.training.modes import eval_mode


def count_macs(model: nn.Module, example_inputs: object) -> int:
    """Count the multiply-accumulates of convolutions, matrix products and attention in one forward pass.

    They are half the FLOPs of `torch.utils.flop_counter`. On the meta device nothing is computed.

    Args:
        model: Any module without recurrent layers, which are not counted there; it is run in evaluation mode.
        example_inputs: What its forward takes: one tensor, a tuple of arguments, or a dict of named arguments. Pass a
            batch of one example for the number that papers state.

    Returns:
        The number for the whole batch.

    Raises:
        ModelError: The model has recurrent layers, or does not take the inputs.

    Example:
        >>> count_macs(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 2)), torch.zeros(1, 1, 8, 8))
        1584
    """
    check_module(model)
    model = unwrapped(model)
    check_countable(model)
    args, kwargs = as_arguments(example_inputs)
    counter = FlopCounterMode(display=False)
    try:
        # as matrix products: the kernel of attention on a CPU has no formula
        with counter, eval_mode(model), exact_attention(), sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            model(*args, **kwargs)
    except Exception as error:  # the user's forward may fail in any way
        raise ModelError(
            f"Expected inputs that {type(model).__name__} takes, but its forward failed: {reason_of(error)}"
        ) from error
    return counter.get_total_flops() // 2


def check_countable(model: nn.Module) -> None:
    """Raise ModelError where the model has recurrent layers, whose multiply-accumulates are not counted."""
    if any(isinstance(module, nn.RNNBase | nn.RNNCellBase) for module in model.modules()):
        raise ModelError(
            f"Expected a model without recurrent layers, whose multiply-accumulates are not counted, got "
            f"{type(model).__name__}; limit the parameters or the latency instead."
        )

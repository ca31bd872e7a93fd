"""How sparse the activations of a network are: the fraction of zeros in the inputs of each layer."""

from contextlib import ExitStack
from functools import partial

import torch
from torch import nn

from prunus.data.examples import Calibration, as_examples, iter_tensors
from prunus.modules import unwrapped
from prunus.pruning.weight_layers import weight_layers
from prunus.training.modes import eval_mode
from prunus.training.outputs import Forward, call_model


@torch.no_grad()
def activation_zeros(
    model: nn.Module, data: Calibration, *, forward: Forward | None = None, batch_size: int = 100
) -> dict[str, float]:
    """Measure the fraction of zeros in the inputs of each layer that has prunable weights.

    A layer reads its inputs after the activation function and the pooling of the layer before. A multiplication by an
    input that is zero can be skipped, so that a layer of density d, a fraction z of whose inputs is zero, needs
    d · (1 - z) of its multiplications ("Act%" of Han et al. 2015, Tables 2 and 3, is 100 · (1 - z)).

    Args:
        model: Any module; it is run in evaluation mode.
        data: Examples in any form, as for `prunus.prune`; of a Dataset, those of the training split.
        forward: (model, batch) -> outputs; None: the model is called with the inputs.
        batch_size: Examples per forward pass.

    Returns:
        The fractions, from 0 to 1, by the name of the layer in the order of the model; a layer that is called several
        times has the fraction over all calls. Layers that are not called, or without examples, are left out.

    Raises:
        StatisticsError: The data has no example, or is in no form of `prunus.prune`.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> _ = model[0].weight.data.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])), model[0].bias.data.zero_()
        >>> activation_zeros(model, torch.tensor([[1.0, 0.0], [2.0, 1.0]]))
        {'0': 0.25, '2': 0.5}
    """
    model = unwrapped(model)
    counts: dict[str, tuple[int, int]] = {}
    layers = {layer.module for layer in weight_layers(model).values()}
    modules = {module: name for name, module in model.named_modules() if module in layers}
    with ExitStack() as stack:
        for module, name in modules.items():
            hook = partial(_count, counts, name)
            stack.enter_context(module.register_forward_pre_hook(hook, with_kwargs=True))
        with eval_mode(model):
            for batch in as_examples(data).batches(batch_size):
                call_model(model, batch, forward)
    called = {name: counts[name] for name in modules.values() if name in counts}
    return {name: 1 - nonzero / total for name, (nonzero, total) in called.items() if total}


def _count(
    counts: dict[str, tuple[int, int]], name: str, module: nn.Module, args: object, kwargs: object
) -> None:
    inputs = next(iter_tensors([args, kwargs]))
    nonzero, total = counts.get(name, (0, 0))
    counts[name] = nonzero + int(torch.count_nonzero(inputs)), total + inputs.numel()

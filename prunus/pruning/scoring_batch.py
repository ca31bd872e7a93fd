"""A probe: a network as it is now and a batch, to ask how it would answer with other weights."""

import torch
from torch import Tensor, nn
from torch.func import functional_call

from prunus.errors import ModelError, StatisticsError
from prunus.modules import check_initialized
from prunus.pruning.calibration_checks import check_is_output, check_is_tensor, run_forward
from prunus.pruning.weights import copied
from prunus.types import Params, ScoringBatch


def make_scoring_batch(model: nn.Module, inputs: Tensor, labels: Tensor) -> ScoringBatch:
    """The answers of `model` in evaluation mode, with any of its weights replaced, and a batch to ask about.

    What is not replaced (biases, norms and their statistics) is copied now: neither training the model later nor
    its mode changes the probe, and the probe never changes the model. An answer is in the dtype of the weights
    that are given, differentiable by them alone.

    Args:
        model: any module that answers [B, ...] with logits [B, C].
        inputs, labels: a batch of at least one, [B, ...] and [B], on the device of the model.

    Raises StatisticsError (an empty or mismatched batch, inputs of a shape the model does not take), ModelError
    (answers that are no logits of these labels). `answer` raises ModelError for weights that the model has not.

    >>> asked = make_scoring_batch(nn.Linear(2, 3), torch.ones(4, 2), torch.zeros(4, dtype=torch.int64))
    >>> asked.answer({"weight": torch.zeros(3, 2), "bias": torch.ones(3)}, torch.ones(1, 2))
    tensor([[1., 1., 1.]])
    """
    check_initialized(model)
    check_is_tensor(inputs)
    check_is_tensor(labels, "calibration labels")
    if not inputs.numel() or labels.shape != inputs.shape[:1] or labels.dtype != torch.int64:
        raise StatisticsError(
            f"A probe was asked for inputs {tuple(inputs.shape)} and labels {tuple(labels.shape)} of "
            f"{labels.dtype}; pass a batch of at least one input with one label, torch.int64, each."
        )
    frozen = copied(model).eval().requires_grad_(False)
    own = {**dict(frozen.named_parameters()), **dict(frozen.named_buffers())}

    def answer(weights: Params, asked: Tensor) -> Tensor:
        _check_weights(model, own, weights)
        dtype = next(iter(weights.values())).dtype
        rest = {name: _cast(tensor, dtype) for name, tensor in own.items() if name not in weights}
        return run_forward(
            model, _cast(asked, dtype), lambda x: functional_call(frozen, {**rest, **weights}, (x,))
        )

    with torch.no_grad():
        # Two examples tell the classes; a label beyond them would be an index out of range, on a GPU a crash.
        some = inputs[:2]
        _check_logits(model, answer(dict(frozen.named_parameters()), some), len(some), labels)
    return ScoringBatch(answer, inputs, labels)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _check_weights(model: nn.Module, own: Params, weights: Params) -> None:
    kind = type(model).__name__
    if not weights:
        raise ModelError(
            f"The probe of a {kind} was given no weights to answer with; pass some of {list(own)}."
        )
    for name, weight in weights.items():
        if name not in own:
            raise ModelError(f"The probe was given a weight {name!r}, which {kind} has not, but {list(own)}.")
        if own[name].shape != weight.shape:
            raise ModelError(
                f"The probe was given {name!r} of shape {tuple(weight.shape)}, but in {kind} it has "
                f"{tuple(own[name].shape)}."
            )


def _check_logits(model: nn.Module, logits: Tensor, n: int, labels: Tensor) -> None:
    check_is_output(model, logits)
    shape, lowest, highest = tuple(logits.shape), int(labels.min()), int(labels.max())
    if len(shape) != 2 or shape[0] != n or lowest < 0 or highest >= shape[1]:
        raise ModelError(
            f"{type(model).__name__} answers {n} inputs with {shape}, but labels from {lowest} to {highest} need "
            f"logits [{n}, C] with C above {highest}; pass a classifier of these labels."
        )

"""The identity of a training: everything that its result depends on.

A checkpoint is used only by a training with the identity of the one that wrote it.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from prunus.data.examples import iter_tensors
from prunus.data.image_folder import ImageFiles
from prunus.masks import Masks
from prunus.training.checks import checked_forward, unchanged
from prunus.training.constraint import Constraint
from prunus.training.losses import training_loss
from prunus.training.modes import eval_mode
from prunus.training.outputs import output_field
from prunus.training.state import add_prefix
from prunus.training.trainer import Trainer
from prunus.types import Dataset, Split

RESPONSE_EXAMPLES = 8
"""The number of examples for which outputs in training mode are compared, if a batch has as many."""
TOLERANCE = 1e-3
"""Relative difference of outputs that another number of threads, or another machine, may cause."""

_DESCRIPTIONS = {
    "training data": "its training data were others",
    "validation data": "its validation data were others",
    "model": "its model has another structure (layers, parameters, frozen parameters, modes)",
    "initial weights": "its initial weights were others (to continue, pass the model as it was at the first call)",
    "initial optimizer state": "its initial optimizer state was another",
    "constraint": "its constraint (masks, pruned values, codebooks or scores) was another",
}


@dataclass(frozen=True)
class Identity:
    """What the result of a training depends on."""

    values: dict[str, Any]
    """What must be equal, by name: the recipe, the seed, the first step, and digests of everything else."""
    responses: dict[str, Tensor]
    """Outputs and gradients of the initial model, which differ between functions that have the same structure."""


def training_identity(training: Trainer, data: Dataset, seed: int) -> Identity:
    """The identity of a training that is about to start.

    Args:
        training: The training in its initial state. Every field of its recipe counts, except `source`.
        data: The training and validation splits count.
        seed: The seed of the training.

    Returns:
        The identity.
    """
    model, recipe, state = training.model, training.recipe, training.capture()
    values = {
        "recipe": {
            f.name: _as_json(getattr(recipe, f.name))
            for f in fields(recipe)
            if f.metadata.get("identity", True)
        },
        "seed": int(seed),
        "first step": state.step,
        "backend": training.backend.name,
        "number of processes": training.processes,
        "training data": _digest_of_split(data.train),
        "validation data": _digest_of_split(data.validation),
        "model": _digest_of_structure(model),
        "initial weights": digest(state.model),
        "initial optimizer state": digest(state.optimizer),
        "constraint": _digest_of_constraint(training.constraint),
    }
    batch = data.train.take(min(RESPONSE_EXAMPLES, recipe.batch_size))
    with unchanged(model), torch.no_grad(), eval_mode(model):
        two = data.train.take(2)
        output = checked_forward(model, (two.inputs, two.labels), training.forward)
        outputs = _response(output).detach().float().cpu()
    return Identity(values, {"evaluation": outputs, **_training_responses(training, batch)})


def identity_differences(saved: Identity, current: Identity) -> list[str]:
    """The differences between the identity in a checkpoint and that of a training, as clauses; empty: none.

    Args:
        saved: The identity in the checkpoint.
        current: The identity of the training that is to continue.

    Returns:
        One clause for each difference, for an error message. The outputs of the models are compared, up to rounding,
        only where there is no other difference.
    """
    differences = []
    for key, value in current.values.items():
        other = saved.values.get(key)
        if other == value:
            continue
        if key == "recipe" and isinstance(other, Mapping):
            differences += [
                f"its recipe has {name} = {other.get(name)!r}, this one {value[name]!r}"
                for name in value
                if other.get(name) != value[name]
            ]
        elif key in ("seed", "first step", "backend", "number of processes"):
            differences.append(f"its {key} is {other}, this run's {value}")
        else:
            differences.append(_DESCRIPTIONS[key])
    empty = torch.empty(0)
    if not differences and not all(
        _are_close(saved.responses.get(name, empty), response) for name, response in current.responses.items()
    ):
        differences = ["its model computes another function of the same weights, or other gradients"]
    return differences


def digest(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """32 hexadecimal digits that depend on the names, dtypes, shapes and bits of `tensors`, and on `text`.

    Args:
        tensors: Dense tensors of any shape, dtype and device by name; their order does not count.
        text: Any text that belongs to them.

    Returns:
        A BLAKE2b digest of 16 bytes as hexadecimal digits.
    """
    hashed = hashlib.blake2b(text.encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        hashed.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        if tensor.numel():
            values = tensor.detach().cpu().contiguous().reshape(-1)
            hashed.update(values.view(torch.uint8).numpy().data)
    return hashed.hexdigest()


def _as_json(value: object) -> object:
    """A setting as it is after it was written and read as JSON."""
    return list(value) if isinstance(value, tuple) else value


def _digest_of_split(split: Split) -> str:
    if isinstance(split, ImageFiles):
        return digest({"labels": split.labels}, split.description())
    return digest({"inputs": split.inputs, "labels": split.labels})


def _digest_of_constraint(constraint: Constraint) -> str:
    """Of its class, its state before the first step, and the values of pruned weights."""
    values = constraint.pruned_values if isinstance(constraint, Masks) else {}
    tensors = add_prefix("state/", constraint.state_dict()) | add_prefix("values/", values)
    return digest(tensors, type(constraint).__name__)


def _digest_of_structure(model: nn.Module) -> str:
    """Of the layers with their settings, the parameters, which of them are trained, and the modes of all modules."""
    parameters = [
        f"{name} {p.dtype} {tuple(p.shape)} {p.requires_grad}"
        for name, p in model.named_parameters(remove_duplicate=False)
    ]
    modes = [f"{name} {module.training}" for name, module in model.named_modules()]
    layers = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(model))  # addresses differ from process to process
    return digest({}, "\n".join([layers, *parameters, *modes]))


def _response(output: object) -> Tensor:
    """A tensor that stands for what the model returned: its logits, its loss, or the first one."""
    tensors = output, output_field(output, "logits"), output_field(output, "loss"), *iter_tensors(output)
    return next((t for t in tensors if isinstance(t, Tensor)), torch.empty(0))


def _training_responses(training: Trainer, split: Split) -> dict[str, Tensor]:
    """In the modes in which the model is trained: its outputs, and the norm of each gradient [P].

    They depend on what evaluation does not show: the probability of a functional dropout, hooks on gradients. Both are
    empty if a second call gives other values, as with noise that does not come from torch.
    """
    model, batch = training.model, (split.inputs, split.labels)
    parameters = [p for p in model.parameters() if p.requires_grad]

    def respond() -> dict[str, Tensor]:
        with unchanged(model), torch.enable_grad():
            torch.manual_seed(0)
            output = checked_forward(model, batch, training.forward)
            outputs = value = _response(output)
            if training.loss is not None:
                value = training_loss(model, output, batch, training.loss)
            gradients = torch.autograd.grad(value.square().mean(), parameters, allow_unused=True)
        norms = [torch.zeros(()) if g is None else g.detach().norm().float().cpu() for g in gradients]
        return {"training": outputs.detach().float().cpu(), "gradients": torch.stack(norms)}

    first, second = respond(), respond()
    if all(_are_close(first[name], second[name]) for name in first):
        return first
    return dict.fromkeys(first, torch.empty(0))


def _are_close(a: Tensor, b: Tensor) -> bool:
    """Whether outputs are equal up to rounding."""
    scale = float(b.nan_to_num().abs().max()) if b.numel() else 0.0
    return a.shape == b.shape and torch.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE * scale, equal_nan=True)

"""The state of a training run between two epochs, as one safetensors file, and whose run it is.

Tensors: `model/NAME`, `optimizer/NAME/KEY`, `constraint/NAME` (masks as bits), `best/NAME`, `observer/NAME`, `random`,
and `identity/NAME`. Metadata: `prunus`, one JSON object with the steps behind, the epochs so far, what the observer
wrote down and the identity of the run; and `digest`, of that object and of all tensors.

The identity of a run is everything that its result depends on. A checkpoint is used only by a run of the same identity,
and only where its content has the digest that was written with it. Written whole or not at all.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from prunus.errors import CheckpointError
from prunus.files import create_folder, write_atomic
from prunus.masks import Masks
from prunus.training.checks import forward, unchanged
from prunus.training.constraint import Constraint
from prunus.training.evaluate import EpochMetrics
from prunus.training.modes import eval_mode
from prunus.training.state import (
    Observer,
    optimizer_state,
    state_from_tensors,
    state_to_tensors,
    strip_prefix,
)
from prunus.types import Dataset, Split

if TYPE_CHECKING:
    from prunus.training.loop import Trainer

RESPONSE_EXAMPLES = 8
"""Examples for which the response of a model in training is compared, where a batch has as many."""
TOLERANCE = 1e-3
"""Relative difference of outputs that other numbers of threads, or another machine, may explain."""


@dataclass(frozen=True)
class Identity:
    """What the result of a run depends on."""

    values: dict[str, Any]
    """What must be equal, by name; digests, but for recipe and seed."""
    responses: dict[str, Tensor]
    """Of the initial model to some training examples, which tell functions apart that have the same structure."""


def identity_of(run: "Trainer", data: Dataset, seed: int) -> Identity:
    """The identity of a run whose model, optimizer and constraint are as they were given."""
    recipe = {
        f.name: getattr(run.recipe, f.name) for f in fields(run.recipe) if f.metadata.get("identity", True)
    }
    values = {
        "recipe": recipe,
        "seed": seed,
        "first step": run.done,
        "training data": _digest_of_split(data.train),
        "validation data": _digest_of_split(data.validation),
        "model": _digest_of_structure(run.model),
        "initial weights": digest(run.model.state_dict()),
        "initial optimizer state": digest(optimizer_state(run.optimizer, run.trainable_tensors)),
        "constraint": _digest_of_constraint(run.constraint),
    }
    responses = {"evaluation": _outputs(run.model, data.train.inputs[:2])}
    batch = data.train.inputs[: min(RESPONSE_EXAMPLES, run.recipe.batch_size)]
    return Identity(values, responses | _training_responses(run.model, batch))


def check_writable(path: Path) -> None:
    """Raise CheckpointError where no checkpoint can be written to `path`, whose folders need not exist yet."""
    if path.is_dir():
        raise CheckpointError(f"The checkpoint {path} would be a file, but is a folder; choose another name.")
    existing = next(folder for folder in path.absolute().parents if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise CheckpointError(
            f"No checkpoint can be written to {path.parent}: {existing} is no folder that can be written to; choose "
            "another."
        )


def save(path: Path, run: "Trainer", identity: Identity, observer: Observer | None = None) -> None:
    """Write the state of `run`; a reader never sees half of it."""
    seen, said = observer.state_dict() if observer is not None else ({}, None)
    tensors = {
        **state_to_tensors(run.capture()),
        **_under("constraint", run.constraint.state_dict()),
        **_under("best", run.best),
        **_under("observer", seen),
        **_under("identity", identity.responses),
    }
    # Cloned, because safetensors refuses tensors that share memory, as tied weights do.
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    metadata = json.dumps({
        "step": run.done,
        "epochs": [asdict(epoch) for epoch in run.epochs],
        "observer": said,
        "identity": identity.values,
    })  # fmt: skip
    create_folder(path.parent)
    try:
        content = to_bytes(tensors, {"prunus": metadata, "digest": digest(tensors, metadata)})
    except SafetensorError as error:
        raise CheckpointError(f"The checkpoint {path} could not be written: {error}") from error
    write_atomic(path, content, error=CheckpointError)


@dataclass(frozen=True)
class Checkpoint:
    """The content of a file."""

    tensors: dict[str, Tensor]
    metadata: dict[str, Any]


def read(path: Path, identity: Identity, observer: Observer | None = None) -> Checkpoint:
    """The checkpoint at `path`. Raises CheckpointError where it is damaged, or not of the run of this identity."""
    tensors, metadata = _read(path)
    differences = _differences(metadata["identity"], identity.values)
    theirs, empty = strip_prefix("identity/", tensors), torch.empty(0)
    if not differences and not all(
        _are_close(theirs.get(name, empty), mine) for name, mine in identity.responses.items()
    ):
        differences = ["its model computes another function of the same weights, or other gradients"]
    if differences:
        raise CheckpointError(
            f"The checkpoint {path} belongs to another run ({'; '.join(differences)}); delete it, or name another "
            "file, to train from the start."
        )
    if (metadata["observer"] is None) != (observer is None):
        raise CheckpointError(f"The checkpoint {path} is of a run that was observed otherwise; delete it.")
    return Checkpoint(tensors, metadata)


def restore(checkpoint: Checkpoint, run: "Trainer", observer: Observer | None = None) -> None:
    """Put a checkpoint into the run it is of, into its observer, and into torch's random stream."""
    tensors, metadata = checkpoint.tensors, checkpoint.metadata
    run.constraint.load_state_dict(strip_prefix("constraint/", tensors))
    run.put(state_from_tensors(metadata["step"], tensors))
    run.best = strip_prefix("best/", tensors)
    run.epochs = [EpochMetrics(**epoch) for epoch in metadata["epochs"]]
    if observer is not None:
        observer.load_state_dict(strip_prefix("observer/", tensors), metadata["observer"])


def digest(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """32 hexadecimal digits that tell the names, types, shapes and bits of `tensors`, and `text`, from all others."""
    found = hashlib.blake2b(text.encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        found.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        if tensor.numel():
            values = tensor.detach().cpu().contiguous().reshape(-1)
            found.update(values.view(torch.uint8).numpy().data)
    return found.hexdigest()


def _differences(theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> list[str]:
    """What differs between two identities, as clauses of a sentence."""
    found = []
    for key, value in mine.items():
        other = theirs.get(key)
        if other == value:
            continue
        if key == "recipe" and isinstance(other, Mapping):
            changed = [name for name in value if other.get(name) != value[name]]
            found += [
                f"its recipe has {name} = {other.get(name)!r}, this one {value[name]!r}" for name in changed
            ]
        elif key in ("seed", "first step"):
            found.append(f"its {key} is {other}, this run's {value}")
        else:
            found.append(_DIFFERS[key])
    return found


_DIFFERS = {
    "training data": "its training data were others",
    "validation data": "its validation data were others",
    "model": "its model has another structure (layers, parameters, frozen parameters, modes)",
    "initial weights": "its initial weights were others (to go on, pass the model as it was at the first call)",
    "initial optimizer state": "its initial optimizer state was another",
    "constraint": "its constraint (masks, pruned values, codebooks or scores) was another",
}


def _digest_of_split(split: Split) -> str:
    return digest({"inputs": split.inputs, "labels": split.labels})


def _digest_of_constraint(constraint: Constraint) -> str:
    """Of its kind, its state before the first step, and the values of pruned weights."""
    pruned = constraint.pruned_values if isinstance(constraint, Masks) else {}
    state = {**_under("state", constraint.state_dict()), **_under("values", pruned)}
    return digest(state, type(constraint).__name__)


def _digest_of_structure(model: nn.Module) -> str:
    """Of the layers with their settings, the parameters, which of them are trained, and the modes of all modules."""
    parameters = [
        f"{name} {p.dtype} {tuple(p.shape)} {p.requires_grad}"
        for name, p in model.named_parameters(remove_duplicate=False)
    ]
    modes = [f"{name} {module.training}" for name, module in model.named_modules()]
    layers = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(model))  # addresses differ from process to process
    return digest({}, "\n".join([layers, *parameters, *modes]))


def _outputs(model: nn.Module, inputs: Tensor) -> Tensor:
    """[B, C] in evaluation mode, in float32."""
    with unchanged(model), torch.no_grad(), eval_mode(model):
        outputs = forward(model, inputs)
    assert isinstance(outputs, Tensor)  # checked before the training
    return outputs.detach().float().cpu()


def _training_responses(model: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    """Of the model in the modes in which it is trained: its outputs [B, C], and the norm of each gradient [P].

    They depend on what evaluation does not show: the probability of a functional dropout, hooks on gradients. Empty
    where a second call gives others, as with noise that does not come from torch.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]

    def respond() -> dict[str, Tensor]:
        with unchanged(model), torch.enable_grad():
            torch.manual_seed(0)
            outputs = forward(model, inputs)
            assert isinstance(outputs, Tensor)  # checked before the training
            found = torch.autograd.grad(outputs.square().mean(), parameters, allow_unused=True)
        norms = [torch.zeros(()) if g is None else g.detach().norm().float().cpu() for g in found]
        return {"training": outputs.detach().float().cpu(), "gradients": torch.stack(norms)}

    first, second = respond(), respond()
    if all(_are_close(first[name], second[name]) for name in first):
        return first
    return dict.fromkeys(first, torch.empty(0))


def _are_close(theirs: Tensor, mine: Tensor) -> bool:
    """Whether outputs are equal up to rounding."""
    scale = float(mine.nan_to_num().abs().max()) if mine.numel() else 0.0
    return theirs.shape == mine.shape and torch.allclose(
        theirs, mine, rtol=TOLERANCE, atol=TOLERANCE * scale, equal_nan=True
    )


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            written = file.metadata() or {}
            text = written["prunus"]
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        metadata = json.loads(text)
    except (OSError, SafetensorError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"The checkpoint {path} cannot be read ({error}); delete it to start again."
        ) from error
    if "digest" not in written:
        raise CheckpointError(
            f"The checkpoint {path} was written by an earlier version of prunus, which did not write whose run it is; "
            "delete it to start again."
        )
    if written["digest"] != digest(tensors, text):
        raise CheckpointError(
            f"The checkpoint {path} is damaged: its content is not what was written; delete it to start again."
        )
    return tensors, metadata


def _under(room: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{room}/{name}": tensor for name, tensor in tensors.items()}

"""The state of a training run between two epochs, as one safetensors file.

Tensors: `model/NAME`, `optimiser/NAME/KEY`, `constraint/NAME` (masks as bits), `best/NAME`, `observer/NAME`, `random`.
Metadata: one JSON object `prunus` with the steps behind, the epochs so far, what the observer wrote down, and a
fingerprint of recipe, seed and shapes, so that a checkpoint of another run is refused. Written whole or not at all.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from prunus.errors import CheckpointError
from prunus.files import os_errors, write_atomic
from prunus.training.evaluate import Epoch
from prunus.training.state import Observer, flat, under, unflat

if TYPE_CHECKING:
    from prunus.training.loop import Training


def fingerprint(run: "Training", seed: int) -> dict[str, Any]:
    """What must be equal for a checkpoint to be this run's."""
    shapes = {name: list(tensor.shape) for name, tensor in run.model.state_dict().items()}
    return {"recipe": asdict(run.recipe), "seed": seed, "shapes": shapes}


def save(path: Path, run: "Training", seed: int, observer: Observer | None = None) -> None:
    """Write the state of `run`; a reader never sees half of it."""
    seen, said = observer.state() if observer is not None else ({}, None)
    tensors = {
        **flat(run.capture()),
        **_under("constraint", run.constraint.state()),
        **_under("best", run.best),
        **_under("observer", seen),
    }
    metadata = {
        "step": run.done,
        "epochs": [asdict(epoch) for epoch in run.epochs],
        "observer": said,
        "fingerprint": fingerprint(run, seed),
    }
    # Cloned, because safetensors refuses tensors that share memory, as tied weights do.
    copies = {k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()}
    try:
        content = to_bytes(copies, {"prunus": json.dumps(metadata)})
    except SafetensorError as error:
        raise CheckpointError(f"The checkpoint {path} could not be written: {error}") from error
    with os_errors(path, CheckpointError):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, content, error=CheckpointError)


def restore(path: Path, run: "Training", seed: int, observer: Observer | None = None) -> None:
    """Put the state at `path` into `run`, into its observer, and into torch's random stream."""
    tensors, metadata = _read(path)
    mine = fingerprint(run, seed)
    for key, found in metadata["fingerprint"].items():
        if found != mine[key]:
            raise CheckpointError(
                f"The checkpoint {path} is of another run: its {key} is {found}, this run's {mine[key]}; "
                "delete it or name another."
            )
    if (metadata["observer"] is None) != (observer is None):
        raise CheckpointError(f"The checkpoint {path} is of a run that was observed otherwise; delete it.")
    run.constraint.restore(under("constraint/", tensors))
    run.put(unflat(metadata["step"], tensors))
    run.best = under("best/", tensors)
    run.epochs = [Epoch(**epoch) for epoch in metadata["epochs"]]
    if observer is not None:
        observer.restore(under("observer/", tensors), metadata["observer"])


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {})["prunus"])
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"The checkpoint {path} cannot be read ({error}); delete it to start again."
        ) from error


def _under(room: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{room}/{name}": tensor for name, tensor in tensors.items()}

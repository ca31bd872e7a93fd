"""The state of a training run between two epochs, as one safetensors file.

Tensors: `model/NAME`, `optimiser/INDEX/KEY`, `constraint/NAME` (masks as bits), `best/NAME`, `random`.
Metadata: one JSON object `prunus` with the epochs so far, the scalars of the optimiser, and a fingerprint of
recipe, seed and shapes, so that a checkpoint of another run is refused. Written beside, then renamed.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from prunus.errors import CheckpointError
from prunus.training.evaluate import Epoch

if TYPE_CHECKING:
    from prunus.training.loop import Training


def fingerprint(run: "Training", seed: int) -> dict[str, Any]:
    """What must be equal for a checkpoint to be this run's."""
    shapes = {name: list(tensor.shape) for name, tensor in run.model.state_dict().items()}
    return {"recipe": asdict(run.recipe), "seed": seed, "shapes": shapes}


def save(path: Path, run: "Training", seed: int) -> None:
    """Write the state of `run`; a reader never sees half of it."""
    optimiser = run.optimiser.state_dict()
    state = {f"{i}/{k}": v for i, entry in optimiser["state"].items() for k, v in entry.items()}
    tensors = {
        **_under("model", run.model.state_dict()),
        **_under("optimiser", {k: v for k, v in state.items() if isinstance(v, Tensor)}),
        **_under("constraint", run.constraint.state()),
        **_under("best", run.best),
        "random": torch.get_rng_state(),
    }
    scalars = {k: v for k, v in state.items() if not isinstance(v, Tensor)}
    metadata = {
        "epochs": [asdict(epoch) for epoch in run.epochs],
        "scalars": scalars,
        "fingerprint": fingerprint(run, seed),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        # Cloned, because safetensors refuses tensors that share memory, as tied weights do.
        save_file(
            {k: v.detach().clone().contiguous() for k, v in tensors.items()},
            beside,
            {"prunus": json.dumps(metadata)},
        )
        beside.replace(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"The checkpoint {path} could not be written: {error}") from error
    finally:
        beside.unlink(missing_ok=True)


def restore(path: Path, run: "Training", seed: int) -> None:
    """Put the state at `path` into `run` and into torch's random stream."""
    tensors, metadata = _read(path)
    mine = fingerprint(run, seed)
    for key, found in metadata["fingerprint"].items():
        if found != mine[key]:
            raise CheckpointError(
                f"The checkpoint {path} is of another run: its {key} is {found}, this run's {mine[key]}; "
                "delete it or name another."
            )
    run.model.load_state_dict(_over("model", tensors))
    run.constraint.restore(_over("constraint", tensors))
    run.best = _over("best", tensors)
    run.epochs = [Epoch(**epoch) for epoch in metadata["epochs"]]
    parameters = [p for group in run.optimiser.param_groups for p in group["params"]]
    entries: dict[int, dict[str, Any]] = {}
    for key, value in {**_over("optimiser", tensors), **metadata["scalars"]}.items():
        index, name = key.split("/")
        entries.setdefault(int(index), {})[name] = _laid_out_as(parameters[int(index)], value)
    groups = run.optimiser.state_dict()["param_groups"]
    run.optimiser.load_state_dict({"state": entries, "param_groups": groups})
    torch.set_rng_state(tensors["random"])


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {})["prunus"])
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"The checkpoint {path} cannot be read ({error}); delete it to start again."
        ) from error


def _laid_out_as(parameter: Tensor, value: Any) -> Any:
    """`value` in the memory order of its parameter (channels-last, say), which fused optimisers take for granted."""
    if isinstance(value, Tensor) and value.shape == parameter.shape:
        return torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    return value


def _under(room: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{room}/{name}": tensor for name, tensor in tensors.items()}


def _over(room: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(f"{room}/"): t for name, t in tensors.items() if name.startswith(f"{room}/")}

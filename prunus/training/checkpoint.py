"""A checkpoint: tensors and JSON values of a training in one safetensors file, with the identity of the training.

The tensors are `model/NAME`, `optimizer/NAME/KEY`, `random`, `constraint/NAME` (masks as bits), `best/NAME`,
`best_constraint/NAME`, `observer/NAME` and `identity/NAME`. The metadata are `prunus`, one JSON object (`step`,
`epochs`, `observer` and `identity`), and `digest`, of that object and of all tensors. A file is used only if its
content has the digest that was written with it and its identity is that of the training. It is written completely or
not at all.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from prunus.errors import CheckpointError
from prunus.files import why_not_writable, write_atomic
from prunus.training.identity import Identity, digest, identity_differences
from prunus.training.state import add_prefix, strip_prefix


def check_checkpoint_writable(path: Path) -> None:
    """Raise CheckpointError if no checkpoint can be written to `path`, whose folders need not exist yet."""
    if path.is_dir():
        raise CheckpointError(f"The checkpoint {path} would be a file, but is a folder; choose another name.")
    if reason := why_not_writable(path.parent):
        raise CheckpointError(
            f"No checkpoint can be written to {path.parent}: {reason}; choose another folder."
        )


def save_checkpoint(
    path: Path, identity: Identity, tensors: Mapping[str, Tensor], values: Mapping[str, Any]
) -> None:
    """Write a checkpoint; a reader never sees a part of it.

    Args:
        path: The file. Its folder must exist.
        identity: The identity of the training.
        tensors: The tensors by name.
        values: The JSON values by name.

    Raises:
        CheckpointError: The file cannot be written.
    """
    tensors = {**tensors, **add_prefix("identity/", identity.responses)}
    # Cloned, because safetensors refuses tensors that share memory, as tied weights do.
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    metadata = json.dumps({**values, "identity": identity.values})
    try:
        content = to_bytes(tensors, {"prunus": metadata, "digest": digest(tensors, metadata)})
    except SafetensorError as error:
        raise CheckpointError(f"The checkpoint {path} could not be written: {error}") from error
    write_atomic(path, content, error=CheckpointError)


def load_checkpoint(path: Path, identity: Identity) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and JSON values of the checkpoint at `path`.

    Args:
        path: The file.
        identity: The identity of the training that is to continue.

    Returns:
        The `tensors` and `values` of `save_checkpoint`.

    Raises:
        CheckpointError: The file is damaged, or belongs to a training with another identity.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            text = metadata["prunus"]
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        values = json.loads(text)
    except (OSError, SafetensorError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"The checkpoint {path} cannot be read ({error}); delete it to start again."
        ) from error
    if metadata.get("digest") != digest(tensors, text):
        raise CheckpointError(
            f"The checkpoint {path} is damaged: its content is not what was written; delete it to start again."
        )
    saved = Identity(values.pop("identity"), strip_prefix("identity/", tensors))
    differences = identity_differences(saved, identity)
    if differences:
        raise CheckpointError(
            f"The checkpoint {path} belongs to another run ({'; '.join(differences)}); delete it, or name another "
            "file, to train from the start."
        )
    return tensors, values

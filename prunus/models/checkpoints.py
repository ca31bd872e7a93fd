"""Read the state_dict of a weights file, and match its names with those of a model."""

import argparse
import pickle
import shlex
import zipfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from prunus.errors import ModelError
from prunus.models.safetensors_file import tied_names

STATE_KEYS = ("state_dict", "model_state_dict", "model_state", "model", "net")
"""Keys of a training checkpoint that hold the state_dict, in order of preference."""
PREFIXES = ("module.", "_orig_mod.", "model.")
"""What DataParallel, torch.compile, and a module with an attribute `model` put before the names."""

# Classes of numbers and settings that training scripts store with the weights; reading them runs no code of a file.
_SAFE_CLASSES = [
    argparse.Namespace,
    np._core.multiarray.scalar,  # type: ignore[attr-defined]
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8")),
]


@dataclass(frozen=True)
class Checkpoint:
    """The state_dict of a file."""

    state: dict[str, Any]
    """Tensors, and extra state of modules, by name."""
    keys: tuple[str, ...] = ()
    """The keys under which the state_dict was in a training checkpoint."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """That of a safetensors file."""

    def describe(self) -> str:
        """Where the state_dict was; empty where it is the whole file."""
        return f"the state_dict is taken from {' → '.join(map(repr, self.keys))}" if self.keys else ""


def read_checkpoint(path: Path) -> Checkpoint:
    """The state_dict in a .safetensors file, or in a file of torch.save, where it may be in a training checkpoint.

    A torch file is opened with `weights_only`, so that none of its code runs.

    Args:
        path: A name that ends in .safetensors selects that format.

    Returns:
        The state_dict, on the CPU.

    Raises:
        ModelError: The file cannot be read; it is a TorchScript file, or contains a module, which have to be converted;
            or it has no state_dict.
    """
    if not path.is_file():
        raise ModelError(f"Expected a weights file, but {path} is not a file; check the path.")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                names = file.keys()
                return Checkpoint({name: file.get_tensor(name) for name in names}, (), file.metadata() or {})
        _check_no_torchscript(path)
        with torch.serialization.safe_globals(_SAFE_CLASSES):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        with path.open("rb") as file:
            head = file.read(8)
        if not head.startswith((b"PK", b"\x80")):  # zip, pickle
            raise ModelError(
                f"Expected a file whose name ends in .safetensors, or a file of torch.save, but {path} is neither and "
                f"begins with {head!r}; check the path."
            ) from error
        raise ModelError(
            f"Expected a torch file of tensors alone, but {path} contains other objects, which are refused because "
            "reading them could run code; save model.state_dict(), or, where you trust the file, convert a whole "
            f"module with: {_conversion('torch.load', path, ', weights_only=False')}"
        ) from error
    except (
        *(OSError, SafetensorError, RuntimeError, ValueError, EOFError, LookupError, zipfile.BadZipFile),
    ) as error:
        reason = f"{type(error).__name__}: {str(error).partition('. ')[0]}"
        raise ModelError(
            f"{path} cannot be read as weights ({reason}); save model.state_dict() by torch.save or as .safetensors."
        ) from error
    checkpoint = _find_state(content)
    if checkpoint is None:
        keys = f"; its keys are {list(content)[:9]}" if isinstance(content, Mapping) else ""
        raise ModelError(f"Expected a state_dict, tensors by name, in {path}{keys}; save model.state_dict().")
    return checkpoint


def _check_no_torchscript(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        if any("/code/" in name for name in archive.namelist()):
            raise ModelError(
                f"Expected a state_dict, but {path} is a TorchScript file, a compiled model; convert it with: "
                f"{_conversion('torch.jit.load', path, '')}"
            )


def _conversion(function: str, path: Path, options: str) -> str:
    target = path.with_name(f"{path.stem}-weights.pt")
    code = f"import torch; torch.save({function}({str(path)!r}{options}).state_dict(), {str(target)!r})"
    return f"python -c {shlex.quote(code)}"


def _find_state(content: object, keys: tuple[str, ...] = ()) -> Checkpoint | None:
    """The state_dict in what a file holds: the whole, under a usual key, or under the only key that has one."""
    if not isinstance(content, Mapping) or len(keys) > 3:
        return None
    if is_state_dict(content):
        return Checkpoint(dict(content), keys)
    for key in STATE_KEYS:
        if (nested := _find_state(content.get(key), (*keys, key))) is not None:
            return nested
    others = [key for key, value in content.items() if isinstance(key, str) and is_state_dict(value)]
    return Checkpoint(dict(content[others[0]]), (*keys, others[0])) if len(others) == 1 else None


def is_state_dict(content: object) -> bool:
    """Whether an object is a mapping from names to tensors, at least one, and to extra state of modules."""
    if not isinstance(content, Mapping):
        return False
    names = [name for name in content if not str(name).endswith("_extra_state")]
    return bool(names) and all(isinstance(n, str) and isinstance(content[n], Tensor) for n in names)


def stored_bytes(state: Mapping[str, Any]) -> int:
    """The bytes of the tensors of a state_dict; each of several tied tensors counts once."""
    tied = tied_names(state)
    return sum(t.nbytes for name, t in state.items() if isinstance(t, Tensor) and name not in tied)


@dataclass(frozen=True)
class NameMatch:
    """How names of a file become names of a model."""

    names: dict[str, str]
    """The name in the model by the name in the file."""
    change: str = ""
    """What was changed, as a clause; empty where nothing was."""


def match_names(names: Collection[str], expected: Collection[str]) -> NameMatch:
    """Strip or add the prefixes of wrapped modules if more names match those of the model afterwards.

    Args:
        names: Those in a file.
        expected: Those of a model.

    Returns:
        The names in the model; the same where no prefix helps.

    >>> match_names(["module.weight", "module.bias"], ["weight", "bias"])
    NameMatch(names={'module.weight': 'weight', 'module.bias': 'bias'}, change="the prefix 'module.' is stripped")
    """
    best = NameMatch({name: name for name in names})
    known, num_known = set(expected), len(set(names) & set(expected))
    for candidate in _renamings(names) if num_known < len(names) else ():
        renamed = set(candidate.names.values())
        if len(renamed) == len(names) and len(renamed & known) > num_known:
            best, num_known = candidate, len(renamed & known)
    return best


def _renamings(names: Collection[str]) -> Iterator[NameMatch]:
    for length in (1, 2, 3):
        for parts in product(PREFIXES, repeat=length):
            prefix = "".join(parts)
            if any(name.startswith(prefix) for name in names):
                yield NameMatch(
                    {name: name.removeprefix(prefix) for name in names}, f"the prefix {prefix!r} is stripped"
                )
    for prefix in PREFIXES[:2]:  # a part of the model was wrapped
        if any(f".{prefix}" in name for name in names):
            yield NameMatch(
                {name: name.replace(f".{prefix}", ".").removeprefix(prefix) for name in names},
                f"{prefix!r} is left out of names",
            )
    for prefix in PREFIXES:
        yield NameMatch({name: prefix + name for name in names}, f"the prefix {prefix!r} is added")

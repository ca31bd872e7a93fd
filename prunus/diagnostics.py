"""Check the installation and the machine: the library behind `prunus doctor`.

    print(prunus.diagnostics.diagnose().to_json())

A finding is information, or a problem: something that makes a command fail. A missing optional package, a data set
that is not downloaded yet and a cache that cannot be written (every process compiles again) are information. A package
that cannot be imported, torch and numpy that do not work together, and a data root or a store that cannot be written
are problems.

This module does not import torch before its functions run, so that it works in a broken installation.
"""

import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from prunus.errors import DataError, describe_cause
from prunus.files import why_not_writable
from prunus.version import __version__

REQUIRED = ("torch", "numpy", "safetensors", "constriction", "numba")
"""The packages that every installation needs."""

OPTIONAL: Mapping[str, tuple[str, ...]] = {
    "cli": ("typer", "rich", "jinja2", "matplotlib", "scipy"),
    "lightning": ("lightning",),
    "transformers": ("transformers", "accelerate"),
    "ray": ("ray",),
    "slurm": ("submitit",),
    "images": ("pillow",),
}
"""The packages of each extra, as a package index names them: pip install "prunus[NAME]"."""

MODULES = {"pillow": "PIL"}
"""The modules of the packages whose names differ from theirs."""

COMPILED = "prunus.compression.codecs.huffman_kernel"
"""A module of functions that numba compiles; all such modules have one cache."""


@dataclass(frozen=True)
class Finding:
    """One line of a diagnosis."""

    section: str
    """"versions", "machine", "data", "store", "optional" or "cache"."""
    name: str
    value: str | int
    problem: str = ""
    """A sentence that says what does not work and what to do; empty if there is no problem."""


@dataclass(frozen=True)
class Diagnosis:
    """The findings about the installation and the machine."""

    findings: list[Finding]

    @property
    def problems(self) -> list[str]:
        """One sentence per problem."""
        return [finding.problem for finding in self.findings if finding.problem]

    def to_json(self) -> dict[str, Any]:
        """The values by section and name, and the list of problems."""
        sections: dict[str, Any] = {}
        for finding in self.findings:
            sections.setdefault(finding.section, {})[finding.name] = finding.value
        return {**sections, "problems": self.problems}


def diagnose(store: Path | str = "store") -> Diagnosis:
    """Check versions, machine, data root, store, optional packages and the cache of compiled code.

    Args:
        store: The store of runs to check. Nothing is created.

    Returns:
        The findings, section by section.

    Example:
        >>> diagnose().to_json()["versions"]["prunus"] == __version__
        True
    """
    parts = (_versions(), _machine(), _data(), _store(Path(store)), _optional(), _cache())
    return Diagnosis([finding for part in parts for finding in part])


def _versions() -> Iterator[Finding]:
    yield Finding("versions", "prunus", __version__)
    yield Finding("versions", "python", platform.python_version())
    for name in REQUIRED:
        try:
            import_module(name)
        except Exception as error:  # a broken installation may fail in any way
            yield Finding("versions", name, "missing", _import_problem(name, error))
        else:
            yield Finding("versions", name, _version(name))
    try:
        import numpy
        import torch

        torch.from_numpy(numpy.ones(2)).numpy()
    except ImportError:
        return  # a finding above
    except Exception as error:
        problem = (
            f"torch {_version('torch')} and numpy {_version('numpy')} do not work together ({describe_cause(error)}); "
            "install versions that do: pip install --upgrade torch numpy"
        )
        yield Finding("versions", "torch with numpy", "do not work together", problem)


def _machine() -> Iterator[Finding]:
    yield Finding("machine", "platform", platform.platform())
    try:
        import torch

        from prunus.runs.environment import cpu_name
    except Exception:  # a problem of the versions
        return
    yield Finding("machine", "cpu", cpu_name())
    yield Finding("machine", "cpu capability", torch.backends.cpu.get_cpu_capability())
    yield Finding("machine", "cpus", os.cpu_count() or 1)
    yield Finding("machine", "torch threads", torch.get_num_threads())
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    yield Finding("machine", "gpus", ", ".join(f"cuda:{i} {name}" for i, name in enumerate(gpus)) or "none")


def _data() -> Iterator[Finding]:
    try:
        from prunus.data import data_root, present_data_sets
        from prunus.data.files import VARIABLE

        root = data_root()
    except DataError as error:
        yield Finding("data", "root", "none", str(error))
        return
    except Exception:  # torch cannot be imported, which is a problem of the versions
        return
    present, reason, problem = present_data_sets(root), why_not_writable(root), ""
    missing = [name for name, is_present in present.items() if not is_present]
    if reason and missing:  # a root that cannot be written is no problem if nothing has to be downloaded
        problem = (
            f"The data root {root} cannot be written ({reason}), so that {', '.join(missing)} cannot be downloaded; "
            f"make it writable, or set {VARIABLE} to another folder."
        )
    yield Finding("data", "root", str(root), problem)
    for name, is_present in present.items():
        yield Finding("data", name, "present" if is_present else "missing; downloaded when it is first used")


def _store(store: Path) -> Iterator[Finding]:
    value = "present" if store.is_dir() else "missing; created when it is first used"
    for folder in (store, store / "runs", store / "work", store / "experiments"):
        if (folder == store or folder.exists()) and (reason := why_not_writable(folder)):
            problem = f"The store {store} cannot be written: {reason}; make {folder} writable, or name another store."
            yield Finding("store", str(store), "cannot be written", problem)
            return
    yield Finding("store", str(store), value)


def _optional() -> Iterator[Finding]:
    for extra, packages in OPTIONAL.items():
        for name in packages:
            missing = find_spec(MODULES.get(name, name)) is None
            yield Finding(
                "optional", name, f'missing: pip install "prunus[{extra}]"' if missing else _version(name)
            )


def _cache() -> Iterator[Finding]:
    """Where numba stores compiled functions; without such a folder each process compiles them again."""
    slow = "every process compiles again, which takes seconds; set NUMBA_CACHE_DIR to a folder that can be written"
    try:
        kernels = [value for value in vars(import_module(COMPILED)).values() if hasattr(value, "stats")]
        path = kernels[0].stats.cache_path
    except Exception as error:
        yield Finding("cache", "numba", f"unknown ({describe_cause(error)})")
        return
    reason = "none" if path is None else why_not_writable(Path(path))
    location = f"{path}: " if path is not None else ""
    yield Finding("cache", "numba", f"{location}{reason}; {slow}" if reason else str(path))


def _import_problem(name: str, error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name == name:
        return f"{name} is not installed: pip install {name}"
    return f"{name} cannot be imported ({describe_cause(error)}); install it again."


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown version"

"""What a run was computed with: versions, machine, threads, device."""

import os
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from prunus.version import __version__

EXPORTED = (
    *("prunus", "commit", "python", "torch", "numpy", "cpu", "capability", "cores", "threads"),
    *("device", "device_name", "executor"),
)
"""What `prunus runs export` writes of an environment: nothing that names a host."""


def environment(executor: str, device: str) -> dict[str, Any]:
    """Return everything except the spec that the numbers of a run may depend on.

    Args:
        executor: The name of the executor.
        device: The torch device.

    Returns:
        Plain values by name: versions, the commit, the machine, the threads, the device and the executor. A value that
        does not apply or is not known is None.
    """
    import numpy as np  # here, because a store is listed without torch and NumPy
    import torch

    return {
        "prunus": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "cpu": cpu_name(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device,
        "device_name": torch.cuda.get_device_name(device) if device.startswith("cuda") else None,
        "executor": executor,
    }


@cache
def _commit() -> str | None:
    """Return the commit that prunus is imported from, with "-dirty" if files were changed; None if there is none."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@cache
def cpu_name() -> str:
    """Return the model of the CPU, as the system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()

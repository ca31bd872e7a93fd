"""Devices and threads as options name them."""

import os

import torch

from prunus.errors import SpecError, UnknownNameError


def resolve_device(name: str) -> str:
    """Check that a device such as "cpu", "cuda" or "cuda:1" can compute here, and return its name.

    Raises:
        UnknownNameError: There is no such device, or it does not work.
    """
    try:
        torch.zeros(1, dtype=torch.float64, device=name).cpu()  # float64: losses are summed in it
    except Exception as error:  # torch raises errors of many types here, AssertionError included
        reason = str(error).partition("\n")[0].partition(". ")[0].rstrip(".")
        available = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        raise UnknownNameError(
            f"Expected a device that can compute here, got {name!r} ({type(error).__name__}: {reason}); "
            f"available: {', '.join(available)}."
        ) from error
    return name


def use_threads(number: int) -> None:
    """Let torch compute with `number` threads. Raises SpecError unless there are as many CPUs."""
    cpus = os.cpu_count() or 1
    if not 1 <= number <= cpus:  # torch accepts any number, and crashes where the system has no more threads
        raise SpecError(
            f"Expected --threads from 1 to {cpus}, the number of CPUs here, got {number}; choose fewer threads."
        )
    torch.set_num_threads(number)

"""Devices and threads as the command line names them."""

import os

import torch

from prunus.errors import SpecError, UnknownNameError


def resolve_device(name: str) -> str:
    """`name` itself, of a device that computes here: "cpu", "cuda", "cuda:1". Raises UnknownNameError."""
    try:
        torch.zeros(1, dtype=torch.float64, device=name).cpu()  # float64: losses are summed in it
    except Exception as error:  # torch raises what it likes, an AssertionError among it
        why = str(error).partition("\n")[0].partition(". ")[0].rstrip(".")
        raise UnknownNameError(
            f"{name!r} is no device to compute on here ({type(error).__name__}: {why}); "
            f"there is: {', '.join(_there())}."
        ) from error
    return name


def use_threads(number: int) -> None:
    """Let torch compute with `number` threads. Raises SpecError unless there are as many CPUs."""
    cpus = os.cpu_count() or 1
    if not 1 <= number <= cpus:  # torch takes any number, and crashes where the system has no more threads
        raise SpecError(
            f"Expected --threads from 1 to {cpus}, the number of CPUs here, got {number}; choose fewer threads."
        )
    torch.set_num_threads(number)


def _there() -> list[str]:
    return ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]

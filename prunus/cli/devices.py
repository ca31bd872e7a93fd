"""Devices as the command line names them."""

import torch

from prunus.errors import UnknownNameError


def checked(name: str) -> str:
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


def _there() -> list[str]:
    return ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]

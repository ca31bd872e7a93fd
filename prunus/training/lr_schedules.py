"""How the learning rate falls: functions of the share of training that is done, t in [0, 1)."""

from collections.abc import Callable
from math import cos, pi


def constant(t: float) -> float:
    """1."""
    return 1.0


def cosine(t: float) -> float:
    """(1 + cos πt) / 2 (Loshchilov & Hutter 2017, eq. 5 without restarts)."""
    return (1 + cos(pi * t)) / 2


def steps(t: float) -> float:
    """1, then 0.1 from half of the training on, then 0.01 from three quarters on (He et al. 2016)."""
    return 1.0 if t < 0.5 else 0.1 if t < 0.75 else 0.01


def linear(t: float) -> float:
    """1 - t."""
    return 1 - t


LR_SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": constant,
    "cosine": cosine,
    "steps": steps,
    "linear": linear,
}

"""Training settings as frozen values, each with its source, and the learning-rate schedules.

Learning-rate schedules are factors of `learning_rate`, functions of the fraction t of the training steps that are done,
in [0, 1).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np

from prunus.registry import lookup


@dataclass(frozen=True)
class Recipe:
    """How to train: everything that the training loop needs besides model, data and seed."""

    epochs: int
    """Passes over the training split; with 0, the weights stay as they are, for example to prune without retraining."""
    learning_rate: float
    """What the schedule and the warm-up multiply."""
    batch_size: int
    """The number of examples of an optimizer step."""
    optimizer: str = "adam"
    """A key of `prunus.training.optimizers.OPTIMIZERS`."""
    momentum: float = 0.0
    """Of the optimizers "sgd", "nesterov" and "rmsprop"; the others do not use it."""
    weight_decay: float = 0.0
    """Decoupled from the gradient in "adamw", added to the gradient as an L2 penalty in the other optimizers."""
    lr_schedule: str = "constant"
    """How the learning rate changes: a key of `prunus.training.recipe.LR_SCHEDULES`."""
    penalty: str = "none"
    """A penalty on the weights, added to the loss: a key of `prunus.training.optimizers.PENALTIES`."""
    penalty_strength: float = 0.0
    """λ of the penalty; not used without one."""
    augmentation: str = "none"
    """How the images of a batch are changed: a key of `prunus.training.augmentation.AUGMENTATIONS`."""
    patience: int | None = None
    """Stop after this many epochs without a lower validation loss, and restore the best epoch; None: never."""
    milestones: tuple[float, ...] | None = None
    """The fractions of the training after which the schedule "steps" multiplies the rate by 0.1; None: 1/2 and 3/4."""
    warmup_epochs: float = 0.0
    """The learning rate rises linearly from 0 to that of the schedule in this many epochs."""
    label_smoothing: float = 0.0
    """The part of the target probability that is spread over all classes, in [0, 1); not used in evaluation."""
    micro_batch_size: int | None = None
    """The most examples of one forward and backward pass, whose gradients are added up to those of the batch; None:
    all of the batch."""
    autocast: str = "none"
    """The dtype that `torch.autocast` computes in: "bfloat16", or "float16" with a scaled loss; "none": float32."""
    channels_last: bool = False
    """Whether images are stored with their channels last, which other kernels of convolutions take."""
    compile: bool = False
    """Whether `torch.compile` compiles the forward and backward pass of the training."""
    source: str = field(default="", metadata={"identity": False})
    """Where the settings come from."""

    def __post_init__(self) -> None:
        for setting in fields(self):
            object.__setattr__(self, setting.name, _without_numpy(getattr(self, setting.name)))

    def replace(self, **changes: object) -> "Recipe":
        """The same recipe with some settings changed.

        >>> LENET_300_100.replace(epochs=1).epochs
        1
        """
        return replace(self, **changes)  # type: ignore[arg-type]


def _without_numpy(value: object) -> object:
    """Numbers of NumPy as those of Python, which torch and JSON take everywhere."""
    if isinstance(value, tuple):
        return tuple(map(_without_numpy, value))
    return value.item() if isinstance(value, np.generic) else value


def constant(t: float) -> float:
    """1."""
    return 1.0


def cosine(t: float) -> float:
    """(1 + cos πt) / 2 (Loshchilov & Hutter 2017, eq. 5 without restarts)."""
    return (1 + math.cos(math.pi * t)) / 2


def steps(t: float, milestones: Sequence[float] = (0.5, 0.75)) -> float:
    """0.1 to the power of the number of milestones that are reached; the default is that of He et al. 2016.

    Args:
        t: The fraction of the training steps that are done, in [0, 1).
        milestones: Such fractions.

    Returns:
        The factor of the learning rate.
    """
    return 10.0 ** -sum(t >= milestone for milestone in milestones)


def linear(t: float) -> float:
    """1 - t."""
    return 1 - t


LR_SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": constant,
    "cosine": cosine,
    "steps": steps,
    "linear": linear,
}


def learning_rate_at(recipe: Recipe, t: float) -> float:
    """The learning rate of a step.

    The factor of the warm-up is that of Goyal et al. 2017 (section 2.2), from 0 as Frankle & Carbin 2019 have it.

    Args:
        recipe: The recipe, of which the schedule, its milestones, the epochs and the warm-up are used.
        t: The fraction of the training steps that are done before the step, in [0, 1).

    Returns:
        The learning rate; 0 at the first step of a warm-up.

    Raises:
        UnknownNameError: There is no such schedule.

    >>> recipe = Recipe(10, 1.0, 60, lr_schedule="steps", warmup_epochs=2)
    >>> [learning_rate_at(recipe, t) for t in (0, 0.1, 0.2, 0.5, 0.75)]
    [0.0, 0.5, 1.0, 0.1, 0.01]
    """
    schedule = lookup("learning-rate schedule", LR_SCHEDULES, recipe.lr_schedule)
    rate = recipe.learning_rate * (schedule(t) if recipe.milestones is None else steps(t, recipe.milestones))
    return rate * min(1.0, t * recipe.epochs / recipe.warmup_epochs) if recipe.warmup_epochs else rate


LENET_300_100 = Recipe(
    epochs=55,
    learning_rate=1.2e-3,
    batch_size=60,
    source="Frankle & Carbin 2019, Figure 2 (50,000 iterations of 60 are 55 epochs of 55,000)",
)

RECIPES: Mapping[str, Recipe] = {
    "lenet-300-100": LENET_300_100,
    "lenet-5": LENET_300_100.replace(
        source="Frankle & Carbin 2019, Figure 2 (LeNet-300-100's; none is published for Caffe's LeNet-5)"
    ),
    "conv-2": Recipe(27, 2e-4, 60, source="Frankle & Carbin 2019, Figure 2: 20,000 iterations"),
    "conv-4": Recipe(34, 3e-4, 60, source="Frankle & Carbin 2019, Figure 2: 25,000 iterations"),
    "conv-6": Recipe(40, 3e-4, 60, source="Frankle & Carbin 2019, Figure 2: 30,000 iterations"),
}

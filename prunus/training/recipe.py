"""Training settings as frozen values, each with its source, and the tables of what a recipe may name.

Learning-rate schedules are factors of `learning_rate`, functions of the fraction t of the training steps that are done,
in [0, 1). A penalty adds its gradient to the gradient of each weight before the optimizer sees it, as Han et al. 2015
(section 3.1) compare them; λ is `penalty_strength`:

    none  0
    l1    λ Σ |w|      adds λ sign(w)
    l2    λ/2 Σ w²     adds λ w
"""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from prunus.errors import SpecError
from prunus.registry import lookup
from prunus.training.augmentation import AUGMENTATIONS


@dataclass(frozen=True)
class Recipe:
    """How to train: everything that the training loop needs besides model, data and seed."""

    epochs: int
    learning_rate: float
    batch_size: int
    optimizer: str = "adam"
    """A key of `prunus.training.recipe.OPTIMIZERS`."""
    momentum: float = 0.0
    weight_decay: float = 0.0
    lr_schedule: str = "constant"
    """How the learning rate changes: a key of `prunus.training.recipe.LR_SCHEDULES`."""
    penalty: str = "none"
    """A penalty on the weights, added to the loss: a key of `prunus.training.recipe.PENALTIES`."""
    penalty_strength: float = 0.0
    augmentation: str = "none"
    """How the images of a batch are changed: a key of `prunus.training.augmentation.AUGMENTATIONS`."""
    patience: int | None = None
    """Stop after this many epochs without a lower validation loss, and restore the best epoch; None: never."""
    source: str = field(default="", metadata={"identity": False})
    """Where the settings come from."""

    def replace(self, **changes: object) -> "Recipe":
        """The same recipe with some settings changed.

        >>> LENET_300_100.replace(epochs=1).epochs
        1
        """
        return replace(self, **changes)  # type: ignore[arg-type]


def check_recipe(recipe: Recipe) -> None:
    """Raise SpecError if a number of the recipe is out of range, UnknownNameError if a name is in no table."""
    if not isinstance(recipe, Recipe):
        raise SpecError(
            f"Expected a prunus.Recipe, got {recipe!r}; RECIPES has those of the built-in networks, for example "
            'RECIPES["lenet-300-100"].'
        )
    for kind, table, name in (
        ("optimizer", OPTIMIZERS, recipe.optimizer),
        ("learning-rate decay", LR_SCHEDULES, recipe.lr_schedule),
        ("penalty", PENALTIES, recipe.penalty),
        ("augmentation", AUGMENTATIONS, recipe.augmentation),
    ):
        lookup(kind, table, name)
    for name, low in (("epochs", 0), ("batch_size", 1), ("patience", 0)):
        value = getattr(recipe, name)
        is_absent = value is None and name == "patience"
        if not is_absent and (not isinstance(value, Integral) or int(value) < low):
            raise SpecError(
                f"Expected {name} to be an integer of at least {low}, got {value!r}; correct the recipe."
            )
    for name in ("learning_rate", "weight_decay", "penalty_strength", "momentum"):
        value = getattr(recipe, name)
        if not isinstance(value, Real) or not 0 <= float(value) < math.inf:
            raise SpecError(
                f"Expected {name} to be a finite number of at least 0, got {value!r}; correct the recipe."
            )
    if recipe.momentum >= 1 or (recipe.optimizer == "nesterov" and not recipe.momentum):
        allowed = "above 0" if recipe.optimizer == "nesterov" else "at least 0"
        raise SpecError(
            f"Expected the momentum of the optimizer {recipe.optimizer!r} to be {allowed} and below 1, got "
            f"{recipe.momentum!r}; set a value such as 0.9."
        )


def constant(t: float) -> float:
    """1."""
    return 1.0


def cosine(t: float) -> float:
    """(1 + cos πt) / 2 (Loshchilov & Hutter 2017, eq. 5 without restarts)."""
    return (1 + math.cos(math.pi * t)) / 2


def steps(t: float) -> float:
    """1 in the first half of training, then 0.1, and 0.01 in the last quarter (He et al. 2016)."""
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


def no_penalty(weights: Sequence[Tensor], strength: float) -> None:
    """Add nothing.

    Args:
        weights: Not used.
        strength: Not used.
    """


def l1(weights: Sequence[Tensor], strength: float) -> None:
    """Add λ sign(w) to the gradient of each weight.

    Args:
        weights: The weights, of any shape; their gradients are changed in place. A weight without a gradient is left
            out.
        strength: λ, at least 0.
    """
    for weight in weights:
        if weight.grad is not None:
            weight.grad.add_(weight.detach().sign(), alpha=strength)


def l2(weights: Sequence[Tensor], strength: float) -> None:
    """Add λ w to the gradient of each weight.

    Args:
        weights: The weights, of any shape; their gradients are changed in place. A weight without a gradient is left
            out.
        strength: λ, at least 0.
    """
    pairs = [(w.grad, w.detach()) for w in weights if w.grad is not None]
    if pairs:
        gradients, values = zip(*pairs, strict=True)
        torch._foreach_add_(gradients, values, alpha=strength)


PENALTIES: dict[str, Callable[[Sequence[Tensor], float], None]] = {"none": no_penalty, "l1": l1, "l2": l2}


def _without_compiler(optimizer: type[torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
    """The same optimizer for training that is not compiled.

    torch wraps these methods to exclude them from compilation, and the wrappers import its whole compiler at the first
    call (about 1 CPU second per process). `inspect.unwrap` returns a method that is not wrapped as it is. The other
    effect of the wrapper of `step`, that no gradients are recorded, is kept.
    """
    names = ("add_param_group", "state_dict", "load_state_dict", "zero_grad")
    methods: dict[str, Any] = {name: inspect.unwrap(getattr(optimizer, name)) for name in names}
    methods["step"] = torch.no_grad()(inspect.unwrap(optimizer.step))
    return type(optimizer.__name__, (optimizer,), methods)


_SGD, _ADAM, _ADAMW, _RMSPROP = (
    _without_compiler(kind)
    for kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop)
)


def sgd(tensors: Iterable[Tensor], recipe: Recipe, nesterov: bool = False) -> torch.optim.Optimizer:
    """Stochastic gradient descent with classical momentum.

    Args:
        tensors: The tensors to step.
        recipe: The recipe, of which `learning_rate`, `momentum` and `weight_decay` are used.
        nesterov: Whether the momentum is Nesterov's; it must be above 0 then.

    Returns:
        The fused optimizer of torch, with all tensors in one parameter group.
    """
    return _SGD(tensors, momentum=recipe.momentum, nesterov=nesterov, fused=True, **_common(recipe))


def nesterov(tensors: Iterable[Tensor], recipe: Recipe) -> torch.optim.Optimizer:
    """Stochastic gradient descent with Nesterov's momentum.

    Args:
        tensors: The tensors to step.
        recipe: The recipe, of which `learning_rate`, `momentum` (above 0) and `weight_decay` are used.

    Returns:
        The fused optimizer of torch, with all tensors in one parameter group.
    """
    return sgd(tensors, recipe, nesterov=True)


def adam(tensors: Iterable[Tensor], recipe: Recipe) -> torch.optim.Optimizer:
    """Adam (Kingma & Ba 2015); `weight_decay` is its L2 form.

    Args:
        tensors: The tensors to step.
        recipe: The recipe, of which `learning_rate` and `weight_decay` are used; `momentum` is not.

    Returns:
        The fused optimizer of torch, with all tensors in one parameter group.
    """
    return _ADAM(tensors, fused=True, **_common(recipe))


def adamw(tensors: Iterable[Tensor], recipe: Recipe) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019).

    Args:
        tensors: The tensors to step.
        recipe: The recipe, of which `learning_rate` and `weight_decay` are used; `momentum` is not.

    Returns:
        The fused optimizer of torch, with all tensors in one parameter group.
    """
    return _ADAMW(tensors, fused=True, **_common(recipe))


def rmsprop(tensors: Iterable[Tensor], recipe: Recipe) -> torch.optim.Optimizer:
    """RMSprop (Tieleman & Hinton 2012).

    Args:
        tensors: The tensors to step.
        recipe: The recipe, of which `learning_rate`, `momentum` and `weight_decay` are used.

    Returns:
        The optimizer of torch, with all tensors in one parameter group; it is not fused.
    """
    return _RMSPROP(tensors, momentum=recipe.momentum, **_common(recipe))


def _common(recipe: Recipe) -> dict[str, float]:
    return {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay}


OPTIMIZERS: dict[str, Callable[[Iterable[Tensor], Recipe], torch.optim.Optimizer]] = {
    "sgd": sgd,
    "nesterov": nesterov,
    "adam": adam,
    "adamw": adamw,
    "rmsprop": rmsprop,
}
"""The optimizers of torch, in their fused form where there is one (a third faster on CPU)."""

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

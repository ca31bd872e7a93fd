"""Training small networks to a minimum: the whole set at every step, many starts at once, in float64.

    (A + (λ + μ) I) δ = -g          A = (1/N) Σ X Xᵀ, g the gradient of E + λ/2 |w|², μ falls with success

Source: Levenberg 1944, Marquardt 1963. Where second-order pruning takes the network to be at a minimum, it should
be; gradient descent gets there only after thousands of steps.

R starts, P weights, N examples, C outputs.
"""

import torch
from torch import Tensor
from torch.func import jacrev, vmap

from prunus.pruning.obs.objective import Objective, flatten_weights, unflatten_weights
from prunus.types import MaskDict, Params


def minimize(objective: Objective, weights: Params, masks: MaskDict, *, decay: float, steps: int) -> Params:
    """The weights at a minimum of E + decay/2 |w|² near `weights`; what `masks` do not keep stays zero.

    Args:
        objective: The error E of a network on its examples.
        weights: Where to start, tensors in the shapes of `objective.weights`, by name; not modified.
        masks: True where a weight is free, by name.
        decay: Weight decay, at least 0.
        steps: The largest number of steps; the training ends earlier where no entry of the gradient exceeds 1e-9.

    Returns:
        The weights by name, in the shapes of `weights`.
    """
    start, free = flatten_weights(weights)[None], flatten_weights(masks)[None]
    minima, _ = minimize_batch(objective, start, free, decay=decay, steps=steps)
    return unflatten_weights(minima[0], weights)


@torch.no_grad()
def minimize_batch(
    objective: Objective, starts: Tensor, left: Tensor | None = None, *, decay: float = 0.0, steps: int = 100
) -> tuple[Tensor, Tensor]:
    """Minima near each of `starts`, [R, P], and the error there without the decay, [R].

    Args:
        objective: The error E of a network on its examples.
        starts: The weights to start from, [R, P]; not modified.
        left: True where a weight is free, bool [R, P]; the others are zero. None: all weights are free.
        decay: Weight decay, at least 0.
        steps: The largest number of steps; the training ends earlier where no entry of the gradient exceeds 1e-9.

    Returns:
        The weights at the minima, [R, P], and the errors E there, [R].
    """
    free = torch.ones_like(starts) if left is None else left.to(starts)
    w, trust = starts * free, torch.full((len(starts),), 1e-3, dtype=starts.dtype)
    value = _value(objective, w, decay)
    for _ in range(steps):
        gradient, curve = _derivatives(objective, w, free, decay)
        if not (gradient.abs().amax(1) > 1e-9).any():
            break
        # Held weights get a curvature of one and no gradient, so that they stay where they are.
        curve.diagonal(dim1=1, dim2=2).add_(decay + trust[:, None] + (1 - free))
        trial = w - torch.linalg.solve(curve, gradient)
        trial_value = _value(objective, trial, decay)
        better = trial_value < value
        w = torch.where(better[:, None], trial, w)
        value = torch.where(better, trial_value, value)
        trust = torch.where(better, trust / 4, trust * 6).clamp(1e-12, 1e12)
    return w, _value(objective, w, 0.0)


def outputs(objective: Objective, w: Tensor) -> Tensor:
    """The outputs for the objective's inputs with each row of `w`, [R, N, C].

    Args:
        objective: A network and its inputs, N examples.
        w: All weights of a network per row, [R, P], in the order of `objective.weights`.

    Returns:
        The outputs, [R, N, C].
    """
    predicted: Tensor = vmap(
        lambda row: objective.outputs(unflatten_weights(row, objective.weights), objective.inputs)
    )(w)
    return predicted


def _value(objective: Objective, w: Tensor, decay: float) -> Tensor:
    predicted, targets = _flatten_rows(outputs(objective, w), objective.targets)
    errors = objective.differentiable_loss.value(predicted, targets).reshape(len(w), -1).mean(1)
    return errors + decay / 2 * w.square().sum(1)


def _derivatives(objective: Objective, w: Tensor, free: Tensor, decay: float) -> tuple[Tensor, Tensor]:
    """The gradient [R, P] of the error with its decay, and A [R, P, P]."""
    jacobian = vmap(
        jacrev(lambda row: objective.outputs(unflatten_weights(row, objective.weights), objective.inputs))
    )(w)
    jacobian = jacobian * free[:, None, None]
    predicted, targets = _flatten_rows(outputs(objective, w), objective.targets)
    n, rows = len(objective.inputs), (len(w), len(objective.inputs))
    loss = objective.differentiable_loss
    roots, output_gradients = loss.hessian_root(predicted, targets), loss.gradient(predicted, targets)
    x = torch.einsum("rncp,rncd->rndp", jacobian, roots.reshape(*rows, *roots.shape[1:])).flatten(1, 2)
    gradient = torch.einsum("rncp,rnc->rp", jacobian, output_gradients.reshape(*rows, -1)) / n + decay * w
    return gradient, x.mT @ x / n


def _flatten_rows(predicted: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs [R, N, C] and targets [N, ...] as one batch of R · N."""
    return predicted.flatten(0, 1), targets.repeat(len(predicted), *[1] * (targets.dim() - 1))

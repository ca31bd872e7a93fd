"""Compiled optimizers of kept weights: the formulas of torch's fused optimizers, in float32."""

from typing import NamedTuple

import numpy as np

from prunus.compiled import compile_kernel
from prunus.training.sparse.arrays import Arrays, Float32Array
from prunus.training.sparse.vectors import never_inline

SGD, NESTEROV, ADAM, ADAMW = range(4)
NUMBERS = {"sgd": SGD, "nesterov": NESTEROV, "adam": ADAM, "adamw": ADAMW}
"""The number of each optimizer by its name in a recipe."""
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


class OptimizerSettings(NamedTuple):
    """The settings of an optimizer step in a recipe, except the learning rate."""

    optimizer: int
    momentum: float
    weight_decay: float
    l1: float
    """λ of the penalty λ Σ |w|."""
    l2: float
    """λ of the penalty λ/2 Σ w²."""


@compile_kernel(error_model="numpy")
def optimizer_step(
    net: Arrays, moments: Float32Array, settings: OptimizerSettings, learning_rate: float, step: int
) -> None:
    """Add the penalty to the gradients, and step.

    Args:
        net: The network.
        moments: The state of the optimizer [2, P]: the moments of Adam, or the momentum in its first row.
        settings: The recipe.
        learning_rate: That of the step.
        step: The number of the step, from 1.
    """
    never_inline()
    l1, l2 = np.float32(settings.l1), np.float32(settings.l2)
    if l1 or l2:
        for k in range(net.num_weights):
            net.gradients[k] += l1 * np.sign(net.params[k]) + l2 * net.params[k]
    if settings.optimizer >= ADAM:
        _adam_step(net, moments, settings, learning_rate, step)
    else:
        _sgd_step(net, moments[0], settings, learning_rate)


@compile_kernel(error_model="numpy")
def _sgd_step(net: Arrays, buffer: Float32Array, settings: OptimizerSettings, learning_rate: float) -> None:
    """Gradient descent with classical or Nesterov's momentum."""
    never_inline()
    params, gradients, is_nesterov = net.params, net.gradients, settings.optimizer == NESTEROV
    rate, mu = np.float32(learning_rate), np.float32(settings.momentum)
    decay = np.float32(settings.weight_decay)
    for k in range(len(params)):
        gradient = gradients[k] + decay * params[k]
        if mu:
            buffer[k] = mu * buffer[k] + gradient
            gradient = gradient + mu * buffer[k] if is_nesterov else buffer[k]
        params[k] -= rate * gradient


@compile_kernel(error_model="numpy")
def _adam_step(
    net: Arrays, moments: Float32Array, settings: OptimizerSettings, learning_rate: float, step: int
) -> None:
    """Adam (Kingma & Ba 2015, Algorithm 1), or AdamW (Loshchilov & Hutter 2019, Algorithm 2)."""
    never_inline()
    params, gradients, means, squares = net.params, net.gradients, moments[0], moments[1]
    is_decoupled = settings.optimizer == ADAMW
    one, rate = np.float32(1), np.float32(learning_rate / (1 - BETA1**step))
    scale = np.float32(1 / np.sqrt(1 - BETA2**step))
    beta1, beta2, epsilon = np.float32(BETA1), np.float32(BETA2), np.float32(EPSILON)
    decay = np.float32(0 if is_decoupled else settings.weight_decay)
    shrink = np.float32(1 - learning_rate * settings.weight_decay if is_decoupled else 1)
    for k in range(len(params)):
        gradient = gradients[k] + decay * params[k]
        means[k] += (one - beta1) * (gradient - means[k])
        squares[k] = beta2 * squares[k] + (one - beta2) * gradient * gradient
        params[k] = shrink * params[k] - rate * means[k] / (np.sqrt(squares[k]) * scale + epsilon)

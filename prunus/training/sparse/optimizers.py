"""Compiled optimizers of kept weights: the formulas of torch's fused optimizers, in float32."""

import numpy as np

from prunus.compiled import compile_kernel
from prunus.training.sparse.layers import Floats
from prunus.training.sparse.vectors import never_inline

SGD, NESTEROV, ADAM, ADAMW = range(4)
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


@compile_kernel(error_model="numpy")
def add_penalty(params: Floats, gradients: Floats, num_weights: int, l1: float, l2: float) -> None:
    """Add λ sign(w) or λ w to the gradients of the weights, which are the first `num_weights` parameters."""
    never_inline()
    if l1:
        strength = np.float32(l1)
        for k in range(num_weights):
            gradients[k] += strength * np.sign(params[k])
    if l2:
        strength = np.float32(l2)
        for k in range(num_weights):
            gradients[k] += strength * params[k]


@compile_kernel(error_model="numpy")
def sgd_step(
    params: Floats,
    gradients: Floats,
    buffer: Floats,
    learning_rate: float,
    momentum: float,
    weight_decay: float,
    is_nesterov: bool,
) -> None:
    """Step by gradient descent with classical or Nesterov's momentum."""
    never_inline()
    rate, mu, decay = np.float32(learning_rate), np.float32(momentum), np.float32(weight_decay)
    for k in range(len(params)):
        gradient = gradients[k] + decay * params[k]
        if mu:
            buffer[k] = mu * buffer[k] + gradient
            gradient = gradient + mu * buffer[k] if is_nesterov else buffer[k]
        params[k] -= rate * gradient


@compile_kernel(error_model="numpy")
def adam_step(
    params: Floats,
    gradients: Floats,
    means: Floats,
    squares: Floats,
    learning_rate: float,
    weight_decay: float,
    step: int,
    is_decoupled: bool,
) -> None:
    """Step by Adam (Kingma & Ba 2015) or AdamW (Loshchilov & Hutter 2019); `step` counts from 1."""
    never_inline()
    one, rate = np.float32(1), np.float32(learning_rate / (1 - BETA1**step))
    scale = np.float32(1 / np.sqrt(1 - BETA2**step))
    beta1, beta2, epsilon = np.float32(BETA1), np.float32(BETA2), np.float32(EPSILON)
    decay = np.float32(0 if is_decoupled else weight_decay)
    shrink = np.float32(1 - learning_rate * weight_decay if is_decoupled else 1)
    for k in range(len(params)):
        gradient = gradients[k] + decay * params[k]
        means[k] += (one - beta1) * (gradient - means[k])
        squares[k] = beta2 * squares[k] + (one - beta2) * gradient * gradient
        params[k] = shrink * params[k] - rate * means[k] / (np.sqrt(squares[k]) * scale + epsilon)

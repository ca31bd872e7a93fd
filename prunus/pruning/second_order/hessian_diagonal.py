"""The diagonal of a Hessian, in four ways that are chosen by name; none stands in for another.

    recursion             OBD's, through chains of layers; two gradients            `obd_diagonal`
    levenberg_marquardt   the same without f'': never negative                      `obd_diagonal`
    exact                 a Hessian-vector product a weight, any network            P products for P weights
    hutchinson            the mean of v ∘ H v over random signs v, any network      one product a sample

Source: LeCun et al. 1990 (the first two); Pearlmutter 1994 (H v); Hutchinson 1990, Bekas et al. 2007 (the last).
The variance of an entry of hutchinson is Σ_{j≠i} H_ij² / samples: it may be negative, and large where weights
hang together.
"""

from typing import Protocol

import torch
from torch import Tensor
from torch.func import grad, vjp, vmap

from prunus.pruning.masks import check_finite
from prunus.pruning.second_order.flattening import flatten_weights, unflatten_weights
from prunus.pruning.second_order.obd_recursion import levenberg_marquardt, recursion
from prunus.pruning.second_order.objective import Objective
from prunus.seeds import make_generator
from prunus.types import Params, Progress

CHUNK = 32
"""Hessian-vector products at once."""
SAMPLES = 200


class Diagonal(Protocol):
    """(objective, seed=0, progress=None) -> d²E/dw² of every weight, of the weight's shape."""

    def __call__(self, asked: Objective, *, seed: int = 0, progress: Progress | None = None) -> Params:
        """The diagonal at the weights of the objective."""


def exact(asked: Objective, *, seed: int = 0, progress: Progress | None = None) -> Params:
    """The true diagonal, up to rounding: e_q · H e_q for every weight q. `seed` changes nothing.

    >>> from torch import nn
    >>> from prunus.pruning.second_order.objective import make_objective
    >>> model = nn.Linear(2, 1, bias=False)
    >>> x, d = torch.tensor([[1.0, 3.0]]), torch.zeros(1, 1)
    >>> exact(make_objective(model, dict(model.named_parameters()), x, d, loss="squared_error"))
    {'weight': tensor([[1., 9.]])}
    """
    at = flatten_weights(asked.weights)

    def entry(place: Tensor) -> Tensor:
        basis = torch.zeros_like(at).scatter(0, place.reshape(1), 1.0)
        return basis @ hessian_vector_product(asked, basis)

    parts = []
    for places in torch.split(torch.arange(len(at), device=at.device), CHUNK):
        parts.append(vmap(entry)(places))
        if progress:
            progress("entries of the diagonal", int(places[-1]) + 1, len(at))
    return _finite(unflatten_weights(torch.cat(parts), asked.weights))


def hutchinson(
    asked: Objective, *, seed: int = 0, samples: int = SAMPLES, progress: Progress | None = None
) -> Params:
    """An unbiased estimate of the diagonal from `samples` random sign vectors drawn by `seed`."""
    at, draw = flatten_weights(asked.weights), make_generator(seed, "hutchinson")
    total = torch.zeros_like(at)
    for sample in range(1, samples + 1):
        signs = (torch.randint(2, at.shape, generator=draw) * 2 - 1).to(at)
        total += signs * hessian_vector_product(asked, signs)
        if progress:
            progress("samples of the diagonal", sample, samples)
    return _finite(unflatten_weights(total / samples, asked.weights))


def hessian_vector_product(asked: Objective, direction: Tensor) -> Tensor:
    """The Hessian times a vector over all weights, by differentiating the gradient."""

    def error(vector: Tensor) -> Tensor:
        return asked.error(unflatten_weights(vector, asked.weights))

    # Backwards twice: forward-mode differentiation warns on its first use, and a Hessian is symmetric.
    result: Tensor = vjp(grad(error), flatten_weights(asked.weights))[1](direction)[0]
    return result


def _finite(diagonal: Params) -> Params:
    check_finite(diagonal, "The curvature of")
    return {name: curvature.detach() for name, curvature in diagonal.items()}


DIAGONALS: dict[str, Diagonal] = {
    "recursion": recursion,
    "levenberg_marquardt": levenberg_marquardt,
    "exact": exact,
    "hutchinson": hutchinson,
}

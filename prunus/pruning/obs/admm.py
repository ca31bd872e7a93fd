"""ADMM on the output error of each layer: weights that minimize it and masks of the largest contributions in turn.

    minimize E(X) (`hessian.py`)  so that  X = Z,  Z in the pattern,  all weights multiplied by d = (H_ii + λ)^½
        S = X + U               Z = S where the highest S² are kept, else 0              U = S - Z
        X = V + ρ (2 Z - S - V) (A + ρ I)⁻¹,     V the original weights,   A = (H + λ I) / (d dᵀ),  whose diagonal is 1
        next S = α X + (1 - α) Z + U

for all rows of a layer at once, with one factorization per layer. The density decreases from iteration to iteration,
d(t) = d + (1 - d) (1 - t)⁵, to the final one. N:M patterns, which have one density, are selected from the first
iteration on. S² is the first-order cost of a weight, in the units of E, so that scopes may rank layers together. The
weights of the last masks are improved by two steps of conjugate gradients, which lower E more than iterations do.

Source: Boža 2024, "Fast and effective weight update for pruned large language models", Algorithm 1 and section 3.2 (the
normalization, the gradual masks); Meng et al. 2024, "ALPS" (conjugate gradients after ADMM). Relaxation α: Boyd et al.
2011, section 3.4.3.
Differences from the papers: the power of the schedule is 5 (3 in Zhu & Gupta 2017), ρ = 0.65 and α = 1.8 (Boža: 1 and
1), so that 7 iterations and the two steps reach what 20 iterations do with his numbers; damping is λ of `hessian.py`; a
layer whose update loses more of its output than zeroing is solved for again (`fallback.py`), with a warning.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prunus.errors import EmptyLayerWarning, NonFiniteError, StatisticsError
from prunus.masks import mask_density
from prunus.pruning.density import densities_by_name
from prunus.pruning.masks import warn_if_empty
from prunus.pruning.matrix import from_matrix, to_matrix
from prunus.pruning.obs.fallback import limit_layer_updates
from prunus.pruning.obs.hessian import LayerHessian
from prunus.pruning.obs.layer_method import LayerMethod, LayerTask
from prunus.pruning.obs.refit import least_squares
from prunus.pruning.obs.state import PruneResult
from prunus.pruning.scopes import FunctionScope, Scope
from prunus.seeds import derive_seed
from prunus.types import Density, MaskDict

PENALTY = 0.65
"""ρ. With 0.5 the error is lower by 2 to 4 % on most layers, but up to 15 % higher on one of ResNet-56."""
RELAXATION = 1.8
SCHEDULE_POWER = 5
FINAL_STEPS = 2
"""Steps of conjugate gradients after the last iteration."""


@dataclass(frozen=True, kw_only=True)
class Admm(LayerMethod):
    """ADMM layer by layer, nearly as good as `ExactObs` and about as fast as `SparseGpt`.

    Args:
        num_iterations: At least 5. More lower the error where inputs are strongly correlated, at a cost in proportion.
        damping: λ as a fraction of the mean curvature of a layer; may be 0.
        batch_size: Examples per forward pass.
        num_examples: Calibration examples.

    Raises:
        StatisticsError: A number out of range, or more than one step.

    >>> from prunus.pruning.scopes import Layer
    >>> from prunus.types import Split
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> examples = Split(torch.tensor([[1.0, 1.0], [2.0, 2.0]]), torch.zeros(2, dtype=torch.int64))
    >>> weights = {"weight": torch.tensor([[0.5, 1.0]])}
    >>> Admm().prune(model, weights, 0.5, Layer(), examples).weights["weight"].round(decimals=1)
    tensor([[0.0000, 1.5000]])
    """

    summary: ClassVar[str] = (
        "ADMM on the output error of each layer, all rows at once, with an update of the remaining weights."
    )
    num_iterations: int = 7

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_iterations < 5:
            raise StatisticsError(
                f"Expected at least 5 iterations, got {self.num_iterations}: {self.summary}"
            )

    def _prune_layers(self, task: LayerTask) -> PruneResult:
        hessians, weights = task.hessians, task.weights
        layers = {name: _AdmmLayer(name, weights[name], hessian) for name, hessian in hessians.items()}
        masks = _iterate(layers, task, self.num_iterations)
        warn_if_empty(masks)
        updated = {name: layer.weight(masks[name]) for name, layer in layers.items()}
        updated, _ = limit_layer_updates("ADMM", hessians, weights, masks, updated)
        increase = sum(h.damped_error(updated[name] - weights[name]) for name, h in hessians.items())
        return PruneResult(updated, masks, increase)


class _AdmmLayer:
    """The variables of one layer, multiplied by d: [G, R, D]."""

    def __init__(self, name: str, weight: Tensor, hessian: LayerHessian) -> None:
        self.original = weight
        dtype = torch.promote_types(weight.dtype, torch.float32)
        damped = hessian.damped()
        scale = damped.diagonal(dim1=1, dim2=2).sqrt()
        if not (scale > 0).all():
            raise NonFiniteError(
                f"{hessian.num_zero_inputs} inputs of {name!r} are always zero and have no curvature with damping "
                f"{hessian.damping:.3g}; use a larger one, such as damping=0.01."
            )
        self.matrix = damped.div_(scale.unsqueeze(2)).div_(scale.unsqueeze(1)).to(dtype)
        del damped
        system = self.matrix.clone()
        system.diagonal(dim1=1, dim2=2).add_(PENALTY)
        self.inverse = torch.cholesky_inverse(torch.linalg.cholesky(system)).mul_(PENALTY)
        self.scale = scale.to(dtype).unsqueeze(1)
        self.target = hessian.rows(weight, dtype) * self.scale
        self.sum = self.target.clone()
        self.remaining = torch.empty_like(self.sum)

    def scores(self) -> Tensor:
        """S², of the weight's shape."""
        return from_matrix(self.sum.square().flatten(0, 1), self.original)

    def keep(self, mask: Tensor) -> None:
        """Z: what the mask keeps of S."""
        torch.mul(self.sum, to_matrix(mask).reshape(self.sum.shape), out=self.remaining)

    def step(self) -> None:
        """S of the next iteration, in the place of Z too, which `keep` sets again."""
        difference = self.target - self.remaining
        reflected = self.remaining.sub_(self.sum).sub_(difference)
        self.sum.add_(difference, alpha=RELAXATION).baddbmm_(reflected, self.inverse, alpha=RELAXATION)

    def weight(self, mask: Tensor) -> Tensor:
        """Z as a weight, after steps of conjugate gradients on what the mask keeps."""
        masks = to_matrix(mask).reshape(self.sum.shape)
        groups = zip(self.matrix, self.target, self.remaining, masks, strict=True)
        solved = torch.stack(
            [least_squares(*group, converged=0.0, max_iterations=FINAL_STEPS) for group in groups]
        )
        return from_matrix((solved / self.scale).flatten(0, 1), self.original).to(self.original.dtype)


def _iterate(layers: Mapping[str, _AdmmLayer], task: LayerTask, num_iterations: int) -> MaskDict:
    """Run all iterations of layers that are ranked together, and return the masks."""
    seed = derive_seed(task.seed, "cut")
    masks: MaskDict = {}
    for density in _decreasing_densities(task.density, task.scope, task.masks, num_iterations):
        if masks:
            for layer in layers.values():
                layer.step()
        scores = {name: layer.scores() for name, layer in layers.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", EmptyLayerWarning)  # of all layers together at the end
            masks = task.scope.select(scores, density, task.within, seed)
        for name, layer in layers.items():
            layer.keep(masks[name])
    return masks


def _decreasing_densities(density: Density, scope: Scope, before: MaskDict, num_steps: int) -> list[Density]:
    """The density of each iteration, from that of `before` to the last."""
    if scope.has_fixed_density or isinstance(scope, FunctionScope):
        return [density] * num_steps
    fractions = [(1 - step / num_steps) ** SCHEDULE_POWER for step in range(1, num_steps + 1)]
    if scope.ranks_layers_together:
        assert not isinstance(density, Mapping)
        start = mask_density(before)
        return [density + (start - density) * fraction for fraction in fractions]
    targets = densities_by_name(density, list(before))
    starts = {name: mask_density({name: mask}) for name, mask in before.items()}
    return [
        {name: target + (starts[name] - target) * fraction for name, target in targets.items()}
        for fraction in fractions
    ]

"""Compression without training: layers pruned and quantized by the error of their outputs on calibration examples.

The Hessians of these errors are collected once, in the network as it is given, and are used for pruning, for the
choice of the densities of the layers, and for the codes. Layers whose weight is not a matrix that is multiplied with
inputs, such as LSTM, are represented by those of a view (`prunus.pruning.views`).
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from prunus.compression.quantization import CodebookTensor, quantize_weights
from prunus.compression.quantization.coordinate_descent import minimize_output_error
from prunus.data.examples import Examples
from prunus.errors import DensityError
from prunus.masks import all_kept
from prunus.pruning.matrix import from_matrix
from prunus.pruning.obs.densities import allocate_densities, error_curves, relative_error_curves
from prunus.pruning.obs.exact_obs import ExactObs, ExactObsState, cholesky, exact_obs_state
from prunus.pruning.obs.hessian import LayerHessian
from prunus.pruning.obs.layer_method import LayerMethod
from prunus.pruning.obs.method import PruningMethod
from prunus.pruning.obs.state import PruneResult
from prunus.pruning.scopes import Scope
from prunus.pruning.views import LayerView
from prunus.seeds import derive_seed
from prunus.types import Density, MaskDict, Params, Progress, Scores, numel_by_name


@dataclass(frozen=True)
class CalibratedLayers:
    """The layers to compress, with the Hessians of the errors of their outputs."""

    model: nn.Module
    view: LayerView
    """Of the model, for the weights."""
    weights: Params
    """Before compression, by name; weights that are zero stay zero."""
    examples: Examples
    method: PruningMethod
    scope: Scope
    hessians: dict[str, LayerHessian]
    """By name of the weights in the view."""
    forward_and_loss: Mapping[str, Any]
    """These arguments of `PruningMethod.prune`."""
    seed: int
    progress: Progress | None

    def prune(self, density: Density, within: MaskDict | None = None) -> PruneResult:
        """Prune the original weights.

        Args:
            density: The fraction of all weights to keep, one, or one per name.
            within: Masks of the weights that are not zero; None: no weight is zero.

        Returns:
            Pruned and updated weights with their masks.

        Raises:
            DensityError, NonFiniteError: As `PruningMethod.prune`.
        """
        method = self.method
        seeds = derive_seed(self.seed, "criterion", 1), derive_seed(self.seed, "ties", 1)
        if isinstance(method, ExactObs) and method.num_steps == 1:
            with self.view.names_of_model():
                state, scores = self._exact_obs
                masks = self.scope.select(scores, self.view.density(density), self._in_view(within), seeds[1])
                return self.view.from_view(state.prune_to(masks))
        if isinstance(method, LayerMethod) and method.num_steps == 1:
            with self.view.names_of_model():
                result = method.prune_layers(
                    self.hessians, self._weights_in_view, self.view.density(density), self.scope,
                    within=self._in_view(within), seed=seeds[1], progress=self.progress,
                )  # fmt: skip
                return self.view.from_view(result)
        return method.prune(
            self.model, self.weights, density, self.scope, self.examples,
            within=within, seeds=seeds, progress=self.progress, **self.forward_and_loss,
        )  # fmt: skip

    @cached_property
    def _weights_in_view(self) -> Params:
        return self.view.weights(self.weights)

    def _in_view(self, within: MaskDict | None) -> MaskDict | None:
        return None if within is None else self.view.to_view(within)

    @cached_property
    def _exact_obs(self) -> tuple[ExactObsState, Scores]:
        """The state and the scores of ExactOBS, which serve all densities."""
        weights = self._weights_in_view
        masks = {name: weight != 0 for name, weight in weights.items()}
        state = exact_obs_state(self.hessians, weights, masks, self.scope, self.progress)
        return state, state.scores()

    def quantize(
        self, pruned: Params, masks: MaskDict, bits: dict[str, int], kmeans_init: str, *, reserve_zero: bool
    ) -> dict[str, CodebookTensor]:
        """Quantize pruned weights so that the outputs of the layers are close to those of the original weights.

        Args:
            pruned: The pruned and updated weights, by name, that the codebooks start from.
            masks: True where a weight remains.
            bits: Bits of a code, by name.
            kmeans_init: The initialization of k-means.
            reserve_zero: As for `quantize_weights`.

        Returns:
            The quantized tensors, zero where `masks` are False.

        Raises:
            QuantizationError, NonFiniteError: As `quantize_weights`.
        """
        view, names = self.view, self.view.model_names
        nearest = quantize_weights(
            view.to_view(pruned), view.to_view(masks), {viewed: bits[name] for viewed, name in names.items()},
            kmeans_init, self.seed, reserve_zero=reserve_zero,
        )  # fmt: skip
        quantized = minimize_output_error(
            nearest, self._weights_in_view, self.hessians, progress=self.progress
        )
        return {name: self._from_view(name, quantized[view.viewed[name].name]) for name in pruned}

    def _from_view(self, name: str, quantized: CodebookTensor) -> CodebookTensor:
        """The quantized parameter of this name, from that of the view, which has the same entries in another order."""
        codes = quantized.codes.new_full((quantized.shape.numel(),), -1)
        codes = codes.scatter(0, quantized.indices, quantized.codes).reshape(quantized.shape)
        codes = self.view.viewed[name].from_view(codes)
        flat = codes.flatten()
        indices = (flat >= 0).nonzero().flatten()
        return replace(quantized, codes=flat[indices], indices=indices, shape=codes.shape)

    def allocations(self, densities: Sequence[float]) -> dict[float, dict[str, float]]:
        """Divide each density over the layers so that the sum of their relative output errors is small.

        Args:
            densities: Fractions of the weights of all layers together to keep.

        Returns:
            The densities by layer; densities that leave a layer without weights are left out.

        Raises:
            NonFiniteError: The output of a layer is zero.
        """
        weights, names = self._weights_in_view, self.view.model_names
        curves = error_curves(removal_costs(weights, self.hessians), all_kept(weights))
        curves = relative_error_curves(curves, self.hessians, weights)
        divided = {}
        for density in densities:
            with suppress(DensityError):
                allocated = allocate_densities(curves, numel_by_name(weights), density)
                divided[density] = {names[viewed]: value for viewed, value in allocated.items()}
        return divided


def removal_costs(weights: Params, hessians: dict[str, LayerHessian]) -> Scores:
    """What the removal of each weight alone adds to the error of its layer: ½ w_q² / [(H + λ I)⁻¹]_qq.

    Source: Hassibi & Stork 1993, eq. 5, of one layer.

    Args:
        weights: By name.
        hessians: Of the same layers.

    Returns:
        One cost per weight, in float64.

    Raises:
        NonFiniteError: A Hessian is singular with its damping.

    >>> hessian = LayerHessian(torch.tensor([[[2.0, 0.0], [0.0, 4.0]]], dtype=torch.float64), 0.0, 2)
    >>> removal_costs({"fc": torch.tensor([[1.0, 1.0]])}, {"fc": hessian})["fc"].float()
    tensor([[1., 2.]])
    """
    costs = {}
    for name, hessian in hessians.items():
        groups = range(len(hessian.hessian))
        pivots = torch.stack([torch.cholesky_inverse(cholesky(name, hessian, g)).diagonal() for g in groups])
        costs[name] = from_matrix(
            (hessian.rows(weights[name]).square() / (2 * pivots.unsqueeze(1))).flatten(0, 1), weights[name]
        )
    return costs

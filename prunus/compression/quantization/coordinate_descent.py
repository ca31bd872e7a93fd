"""Codes and centroids that minimize the error of a layer's output, without training.

    minimize E(c, a) = ½ Σ_rows (c[a] - w)ᵀ (H + λ I) (c[a] - w)        pruned weights are zero

in turn over the codes a and the codebook c of a layer. With the other weights of its row fixed, the best value of a
weight is nearest to  c[a_j] - [(H + λ I) (c[a] - w)]_j / (H_jj + λ),  so that one sweep visits the columns of the
layer's matrix and assigns the nearest centroid to each weight, for all rows at once. With the codes fixed, E is a
quadratic function of the codebook, which conjugate gradients minimize. Neither step increases E.

Source: Behdin et al. 2023, "QuantEase", Algorithm 1 and section 3, for uniform grids without pruned weights.
Difference from the paper: the values are a codebook, which is fitted after every sweep.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from prunus.compression.quantization.codebook import CodebookTensor
from prunus.pruning.matrix import from_matrix
from prunus.pruning.obs.hessian import LayerHessian
from prunus.pruning.progress import tracked
from prunus.types import Params, Progress

NUM_SWEEPS = 4
"""The number of sweeps; more sweeps change few codes."""
BLOCK_COLUMNS = 64
"""Columns of a block: within it, columns are updated one by one, and those after it by one product for the block."""
MAX_ITERATIONS = 20
"""The largest number of conjugate-gradient steps; a codebook of k values needs at most k."""
CONVERGED = 1e-10
"""The conjugate gradients stop when the squared gradient is reduced by this factor."""


def minimize_output_error(
    quantized: Mapping[str, CodebookTensor],
    original: Params,
    hessians: Mapping[str, LayerHessian],
    *,
    progress: Progress | None = None,
) -> dict[str, CodebookTensor]:
    """Change the codes and centroids of quantized layers so that the outputs are close to those of `original`.

    Args:
        quantized: The layers to start from, by name; which weights are zero does not change.
        original: The weights before pruning and quantization, by the same names.
        hessians: Of the layers, with their damping.
        progress: Called after each layer.

    Returns:
        Quantized layers with the same indices and at most as many values.

    >>> weight = torch.tensor([[0.9, 1.1, 1.6]])
    >>> quantized = CodebookTensor(torch.tensor([1.0, 2.0]), torch.tensor([0, 0, 1]), torch.arange(3), weight.shape)
    >>> hessian = LayerHessian(torch.eye(3, dtype=torch.float64).unsqueeze(0), 0.0, 1)
    >>> minimize_output_error({"fc": quantized}, {"fc": weight}, {"fc": hessian})["fc"].dense()
    tensor([[1.0000, 1.0000, 1.6000]])
    """
    result = dict(quantized)
    for name, tensor in tracked(list(quantized.items()), "layers quantized", progress):
        if len(tensor.codebook) > 1:
            result[name] = _Layer(tensor, original[name], hessians[name]).minimize()
    return result


class _Layer:
    """One layer while its codes change; columns are stored as rows, [G, D, R], so that each is contiguous."""

    def __init__(self, quantized: CodebookTensor, original: Tensor, hessian: LayerHessian) -> None:
        self.quantized, self.like = quantized, original.detach()
        self.hessian = hessian.damped().float()
        self.pivots = self.hessian.diagonal(dim1=1, dim2=2).unsqueeze(2).clamp(min=torch.finfo().tiny)
        flat = torch.zeros(self.like.numel(), dtype=torch.int64, device=self.like.device)
        codes = flat.scatter(0, quantized.indices, quantized.codes)
        is_kept = flat.scatter(0, quantized.indices, 1)
        self.target, self.codes, self.is_kept = (
            hessian.rows(tensor.reshape(self.like.shape)).mT.contiguous()
            for tensor in (self.like, codes, is_kept)
        )
        self.target, self.codes, self.is_kept = self.target.float(), self.codes.long(), self.is_kept.bool()
        self.codebook = quantized.codebook

    def minimize(self) -> CodebookTensor:
        """Sweep over the columns and fit the codebook, until no code changes."""
        for _ in range(NUM_SWEEPS):
            before = self.codes.clone()
            self._sweep()
            self._fit_codebook()
            if torch.equal(before, self.codes):
                break
        order = self.codebook.argsort()
        codes = from_matrix(order.argsort()[self.codes].mT.flatten(0, 1), self.like)
        codes = codes.flatten()[self.quantized.indices]
        return replace(self.quantized, codebook=self.codebook[order], codes=codes)

    def _values(self, codebook: Tensor) -> Tensor:
        """The weights with these centroids, [G, D, R]."""
        return torch.where(self.is_kept, codebook[self.codes], 0.0)

    def _sweep(self) -> None:
        """Assign each weight of each column the best centroid, given the current values of all other weights."""
        order = self.codebook.argsort()
        ascending = self.codebook[order]
        midpoints = (ascending[1:] + ascending[:-1]) / 2
        values = self._values(self.codebook)
        gradient = self.hessian @ (values - self.target)
        for first in range(0, values.shape[1], BLOCK_COLUMNS):
            end = min(first + BLOCK_COLUMNS, values.shape[1])
            before = values[:, first:end].clone()
            for column in range(first, end):
                minimizer = values[:, column] - gradient[:, column] / self.pivots[:, column]
                codes = order[torch.bucketize(minimizer, midpoints)]
                new = torch.where(self.is_kept[:, column], self.codebook[codes], 0.0)
                change = (new - values[:, column]).unsqueeze(1)
                # Later columns of the block; those after it are updated below.
                gradient[:, column:end] += self.hessian[:, column:end, column, None] * change
                self.codes[:, column], values[:, column] = codes, new
            gradient[:, end:] += self.hessian[:, end:, first:end] @ (values[:, first:end] - before)

    def _fit_codebook(self) -> None:
        """Set the codebook to the least squares for the codes; a centroid that no weight has keeps its value."""
        codebook = self.codebook.double()
        residual = self._sum_by_code(self.hessian @ (self.target - self._values(self.codebook)))
        direction, square = residual, residual.dot(residual)
        target = CONVERGED * square
        for _ in range(MAX_ITERATIONS):
            if square <= target:
                break
            product = self._sum_by_code(self.hessian @ self._values(direction.float()))
            step = square / direction.dot(product)
            codebook = codebook + step * direction
            residual = residual - step * product
            new_square = residual.dot(residual)
            direction, square = residual + new_square / square * direction, new_square
        self.codebook = codebook.to(self.codebook.dtype)

    def _sum_by_code(self, matrix: Tensor) -> Tensor:
        """The sum of the entries of each code, [k] in float64."""
        sums = torch.zeros(len(self.codebook), dtype=torch.float64, device=matrix.device)
        return sums.index_add_(0, self.codes[self.is_kept], matrix[self.is_kept].double())

"""The Hessian of the error of a layer's output, layer by layer, from the layer's inputs.

    E(W') = (1/N) Σ_n |W x_n - W' x_n|²          H = (2/N) Σ_n x_n x_nᵀ,  the same for every row of W

N examples; a convolution has an x at every position of its output, and their errors are summed. H is summed while the
examples pass through the network, so that memory does not grow with their number.

Source: Dong et al. 2017 (L-OBS); Frantar & Alistarh 2022, eq. 2, H = 2 X Xᵀ. Dividing by N changes no choice, and makes
errors comparable between layers and calibration sets.
Precision: the products of a batch are in float32 (float64 for inputs in float64), their sums over batches in float64.
Damping: λ I is added before inverting, λ a fraction of the mean of the diagonal (0.01 as Frantar & Alistarh 2023), over
inputs that are not always zero. It is reported, and no other is ever added.
"""

from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor, nn

from prunus.data.examples import Calibration, as_examples
from prunus.errors import StatisticsError
from prunus.pruning.calibration_checks import uninformative_error
from prunus.pruning.masks import check_finite
from prunus.pruning.matrix import conv2d_input_products, im2col_batches, to_matrix
from prunus.pruning.obs.layer_inputs import PassOptions, layer_of, pass_layer_inputs
from prunus.types import Params

DAMPING = 0.01
ERROR_COLUMNS = 128
"""Columns that the rows of a change are multiplied with at once, for its error."""
BUFFER_ROWS = 512
"""The number of inputs that are collected before they are multiplied."""
STRIPE_ROWS = 512
"""Rows of H that are summed at once, from the diagonal on; the other triangle is the same."""


@dataclass(frozen=True)
class LayerHessian:
    """The Hessian of the error of a layer's output."""

    hessian: Tensor
    """[G, D, D] in float64, undamped: G groups of a convolution (else 1), D the columns of its matrix."""
    damping: float
    """λ, absolute."""
    num_vectors: int
    """Number of inputs x; with fewer than D, H is singular and only λ makes it invertible."""

    @property
    def num_zero_inputs(self) -> int:
        """Number of inputs that are zero in every example: their weights have no effect."""
        return int((self.hessian.diagonal(dim1=1, dim2=2) == 0).sum())

    def damped(self) -> Tensor:
        """H + λ I, [G, D, D]."""
        damped = self.hessian.clone()
        damped.diagonal(dim1=1, dim2=2).add_(self.damping)
        return damped

    def error(self, change: Tensor) -> float:
        """(1/N) Σ_n |ΔW x_n|² of a change ΔW of the weight, of the weight's shape."""
        rows, total = self.rows(change), 0.0
        for first in range(0, rows.shape[2], ERROR_COLUMNS):  # H is symmetric: half of it is enough
            part = slice(first, first + ERROR_COLUMNS)
            products = rows[:, :, part] @ self.hessian[:, part, first:]
            products[:, :, :ERROR_COLUMNS] /= 2
            total += float((products * rows[:, :, first:]).sum())
        return max(0.0, total)  # rounding can take a sum of squares below zero

    def damped_error(self, change: Tensor) -> float:
        """`error` with H + λ I for H."""
        return self.error(change) + self.damping / 2 * float(change.detach().double().square().sum())

    def row_errors(self, change: Tensor) -> Tensor:
        """The error that each row of the layer's matrix contributes, [G, O / G] in float64."""
        rows = self.rows(change)
        return (rows @ self.hessian * rows).sum(2).clamp(min=0) / 2

    def rows(self, weight: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """The rows of a layer's matrix, by group.

        Args:
            weight: The weight of the layer, or another tensor of its shape.
            dtype: The dtype of the result.

        Returns:
            [G, O / G, D].
        """
        matrix = to_matrix(weight.detach()).to(dtype)
        return matrix.reshape(len(self.hessian), -1, matrix.shape[1])


def layer_hessians(
    model: nn.Module,
    weights: Params,
    inputs: Calibration,
    *,
    damping: float = DAMPING,
    **options: Unpack[PassOptions],
) -> dict[str, LayerHessian]:
    """Pass `inputs` once through a copy of `model` with these weights, and sum H of the layer of each of them.

    Args:
        model: Any module; it is not changed.
        weights: Weights of Linear, Conv1d, Conv2d and Conv3d layers, by name; `views.layer_view` shows other layers
            as these.
        inputs: Calibration examples in any form, on the device of the model.
        damping: λ as a fraction of the mean of H's diagonal.
        options: See `PassOptions`.

    Returns:
        One Hessian per weight.

    Raises:
        StatisticsError: As `pass_layer_inputs`, damping below 0, or a layer whose inputs are all zero.
        NonFiniteError: Inputs of the model or of a layer are not finite.
        ModelError: As `pass_layer_inputs`.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> inputs = torch.tensor([[1.0, 3.0], [1.0, 1.0]])
    >>> hessian = layer_hessians(model, dict(model.named_parameters()), inputs)["weight"]
    >>> hessian.hessian, hessian.damping
    (tensor([[[ 2.,  4.],
             [ 4., 10.]]], dtype=torch.float64), 0.06)
    """
    if not 0 <= damping < float("inf"):
        raise StatisticsError(
            f"Expected a damping of at least 0, as a fraction of the mean curvature, got {damping}."
        )
    examples = as_examples(inputs)
    sums = {name: ProductSum(name, layer_of(model, name)) for name in weights}
    adders = {name: products.add for name, products in sums.items()}
    pass_layer_inputs(model, weights, examples, adders, **options)
    return {name: products.hessian(len(examples), damping) for name, products in sums.items()}


class ProductSum:
    """The sum of x xᵀ over the inputs of one layer."""

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name, self.module = name, module
        self.num_vectors, self.num_buffered = 0, 0
        self.buffer: Tensor | None = None
        self.total: Tensor | None = None

    def add(self, inputs: Tensor) -> None:
        """Add the layer's inputs of a batch; copied, as the model may write over them."""
        inputs = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
        if isinstance(self.module, nn.Conv2d) and self.module.kernel_size[0] > 1:
            for products, count in conv2d_input_products(self.module, inputs):
                self.total = products if self.total is None else self.total.add_(products)
                self.num_vectors += count
            return
        for x in im2col_batches(self.module, inputs):
            count, size = x.shape[1:]
            if self.buffer is None:
                self.buffer = x.new_empty(len(x), BUFFER_ROWS, size)
            if self.num_buffered + count > self.buffer.shape[1]:
                self.flush()
            if count < self.buffer.shape[1]:
                self.buffer[:, self.num_buffered : self.num_buffered + count] = x
                self.num_buffered += count
            else:
                self.add_products(x)

    def flush(self) -> None:
        """Add the collected inputs: one product of many costs less than many products of few."""
        if self.buffer is not None and self.num_buffered:
            self.add_products(self.buffer[:, : self.num_buffered])
            self.num_buffered = 0

    def add_products(self, x: Tensor) -> None:
        """Add x xᵀ on and above the diagonal; the sum is in float64."""
        groups, count, size = x.shape
        if self.total is None:
            self.total = torch.zeros(groups, size, size, dtype=torch.float64, device=x.device)
        for first in range(0, size, STRIPE_ROWS):
            end = first + STRIPE_ROWS
            self.total[:, first:end, first:] += x[:, :, first:end].mT @ x[:, :, first:]
        self.num_vectors += count

    def hessian(self, num_examples: int, damping: float) -> LayerHessian:
        """The Hessian.

        Args:
            num_examples: The number of examples that the inputs are of.
            damping: λ as a fraction of the mean of the diagonal.

        Returns:
            The Hessian, in place of the sum.

        Raises:
            StatisticsError: All inputs are zero.
            NonFiniteError: Inputs are not finite.
        """
        self.flush()
        assert self.total is not None
        hessian = self.total.mul_(2 / num_examples)
        self.buffer = self.total = None
        for first in range(0, hessian.shape[1], STRIPE_ROWS):
            end = first + STRIPE_ROWS
            hessian[:, end:, first:end] = hessian[:, first:end, end:].mT
        check_finite({self.name: hessian}, "The calibration inputs of the layer of")
        pivots = hessian.diagonal(dim1=1, dim2=2)
        positive = pivots[pivots > 0]
        if not len(positive):
            raise uninformative_error(
                f"All inputs of the layer of {self.name!r} are zero in all {num_examples} calibration examples"
            )
        return LayerHessian(hessian, damping * float(positive.mean()), self.num_vectors)

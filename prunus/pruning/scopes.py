"""Scopes: which weights are ranked together, and in which pattern they are pruned.

    Layer()               each tensor alone, single weights                     "layer"
    Global()              all tensors together, single weights                  "global"
    NByM(2, 4)            exactly N of every M neighboring inputs               "2:4"
    Block(1, 4)           each tensor alone, blocks of rows × columns           "1x4"

A scope is a value. `counts` gives the number of weights that it keeps by arithmetic on shapes alone, and `select` the
masks, which keep exactly that many. Ties are broken at random by the seed. A row of a pattern is an output and a column
an input of the layer's matrix (`prunus.pruning.matrix`); in a convolution neighboring columns are input channels at one
position of the kernel.
"""

import math
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from prunus.errors import DensityError, EmptyLayerWarning, UnknownNameError
from prunus.pruning.density import (
    check_density,
    check_keeps_one,
    count_within,
    densities_by_name,
    spread_over_columns,
)
from prunus.pruning.masks import check_finite, warn_if_empty
from prunus.pruning.matrix import from_matrix, to_matrix
from prunus.registry import call_user_function, lookup
from prunus.seeds import make_generator
from prunus.types import Density, MaskDict, Scores

Shapes = Mapping[str, tuple[int, ...]]
Counts = Mapping[str, int]
MakeGenerator = Callable[[], torch.Generator]
"""Makes the generator of the random order of ties, where it is needed."""

TOLERANCE = 1e-9
"""The largest difference between a density and N / M that counts as rounding of floats."""


@dataclass(frozen=True)
class Scope(ABC):
    """Which weights are ranked together, and the sparsity pattern."""

    ranks_layers_together: ClassVar[bool] = False
    has_fixed_density: ClassVar[bool] = False
    """Whether the pattern allows one density only."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The name that `parse_scope` reads."""

    @property
    def weights_per_unit(self) -> int:
        """The number of weights that are kept or pruned together."""
        return 1

    @property
    def columns_per_unit(self) -> int:
        """The number of neighboring columns of a layer's matrix that the pattern spans."""
        return 1

    @abstractmethod
    def counts(self, shapes: Shapes, density: Density, within_counts: Counts | None = None) -> dict[str, int]:
        """The exact number of weights that `select` keeps.

        Args:
            shapes: The shape of each tensor, by name.
            density: The fraction of all weights of a tensor to keep, in (0, 1]; one, or one per name.
            within_counts: The number of weights that earlier masks keep, by name.

        Returns:
            One count per name; a single one, "all", where layers are ranked together.

        Raises:
            DensityError: A density is out of range, does not fit the pattern, or keeps more than `within_counts`; the
                pattern does not fit a shape.
        """

    def select(
        self, scores: Scores, density: Density, within: MaskDict | None = None, seed: int = 0
    ) -> MaskDict:
        """The masks that keep the highest scores.

        Args:
            scores: Finite tensors of any shape, by name.
            density: The fraction of *all* weights of a tensor to keep, in (0, 1]; one, or one per name.
            within: Earlier masks; the result keeps no weight that they prune.
            seed: Seed of the random order of equal scores.

        Returns:
            Boolean masks of the shapes of `scores`, True where a weight is kept.

        Raises:
            DensityError: As `counts`, or the pattern does not fit `within`.
            NonFiniteError: A score is NaN or infinite.
        """
        check_finite(scores, "The score of")
        shapes = shapes_of(scores)
        counts = self.counts(shapes, density, self._counts_within(shapes, within))
        masks = {
            name: self.select_count(name, score, counts[name], None if within is None else within[name], seed)
            for name, score in scores.items()
        }
        warn_if_empty(masks)
        return masks

    def select_count(self, name: str, scores: Tensor, count: int, within: Tensor | None, seed: int) -> Tensor:
        """The mask of one tensor, or of some of its columns, that keeps the highest scores; nothing is checked.

        Args:
            name: Of the tensor; the order of equal scores depends on it.
            scores: Finite, of any shape.
            count: The number of weights to keep, as `counts` or `column_counts` gives it.
            within: An earlier mask; None: all weights may be kept.
            seed: Seed of the random order of equal scores.

        Returns:
            Boolean mask of the shape of `scores`, True where a weight is kept.

        >>> Layer().select_count("fc", torch.tensor([3.0, 1.0, 2.0]), 1, None, 0)
        tensor([ True, False, False])
        """
        return self._select_one(scores.detach(), count, within, partial(make_generator, seed, "ties", name))

    def _select_one(
        self, scores: Tensor, count: int, within: Tensor | None, generator: MakeGenerator
    ) -> Tensor:
        """The mask of one tensor that keeps `count` weights."""
        return _top_k_within(scores, count, within, generator())

    def check(self, shapes: Shapes, densities: Sequence[Density], within: MaskDict | None = None) -> None:
        """Check, before any work, that each of these densities can be reached from the one before it.

        Args:
            shapes: The shape of each tensor, by name.
            densities: Of the steps of a schedule, in its order.
            within: Masks that those of the first step must be nested in.

        Raises:
            DensityError: As `select` would raise it.

        >>> NByM(2, 4).check({"fc": (3, 8)}, [0.7, 0.5])
        Traceback (most recent call last):
        prunus.errors.DensityError: Expected density 0.5 of 'fc', which 2:4 keeps of every layer, got 0.7; ...
        """
        counts: Counts | None = self._counts_within(shapes, within)
        for density in densities:
            counts = self.counts(shapes, density, counts)

    def check_not_empty(self, shapes: Shapes, density: Density) -> None:
        """Check that a density keeps at least one weight, or block, of what is ranked together.

        Args:
            shapes: The shape of each tensor, by name.
            density: One, or one per name.

        Raises:
            DensityError: It keeps none; the error names the smallest density that keeps one.

        >>> Layer().check_not_empty({"a": (4,), "b": (40,)}, {"a": 0.5, "b": 0.01})
        Traceback (most recent call last):
        prunus.errors.DensityError: Expected a density that keeps one of the 40 weights of 'b', at least 0.0125, ...
        """
        units = "weights" if self.weights_per_unit == 1 else f"blocks of {self.name}"
        densities = densities_by_name(density, list(shapes))
        ranked = {
            f"{units} of {n!r}": (densities[n], math.prod(shape) // self.weights_per_unit)
            for n, shape in shapes.items()
        }
        if self.ranks_layers_together and not isinstance(density, Mapping):
            total = sum(math.prod(shape) for shape in shapes.values())
            ranked = {f"{units} of all layers together": (density, total)}
        for what, (fraction, total) in ranked.items():
            check_keeps_one(fraction, total, what)

    @property
    def is_pattern(self) -> bool:
        """Whether the scope distinguishes rows and columns of a layer's matrix."""
        return self.weights_per_unit > 1 or self.columns_per_unit > 1

    def why_unfit(self, shape: tuple[int, ...]) -> str | None:
        """Why the pattern does not fit a tensor of this shape, [O, I, ...]; None: it fits.

        >>> NByM(2, 4).why_unfit((16, 3, 3, 3))
        'the pattern 2:4 does not fit 3 inputs'
        """
        misfit = _misfit(self, shape)
        return f"the pattern {self.name} does not fit {misfit[1]} {misfit[0]}" if misfit else None

    def column_step(self, at_most: int) -> int:
        """The number of columns whose masks are chosen together: whole patterns, about `at_most` columns.

        >>> Layer().column_step(128), Block(4, 3).column_step(128), NByM(2, 4).column_step(128)
        (128, 126, 4)
        """
        unit = self.columns_per_unit
        return unit if self.has_fixed_density else max(unit, at_most // unit * unit)

    def column_counts(self, mask: Tensor, density: float, step: int, name: str = "weight") -> list[int]:
        """The number of weights to keep of every `step` columns of one layer, for methods that go column by column.

        The counts add up to what `counts` gives for the layer, and are spread evenly over the weights that are still
        kept (N:M: over all weights).

        Args:
            mask: The mask of the layer's matrix before this pruning, bool [O, D].
            density: Of this layer.
            step: From `column_step`.
            name: Of the layer, for errors.

        Returns:
            One count for each step; the last may have fewer columns.

        Raises:
            DensityError: As `counts`.

        >>> Layer().column_counts(torch.ones(3, 4, dtype=torch.bool), 0.5, 3)
        [5, 1]
        """
        per_column = mask.count_nonzero(0).tolist()
        total = self.counts({name: tuple(mask.shape)}, density, {name: sum(per_column)})[name]
        if self.has_fixed_density:
            per_column = [len(mask)] * mask.shape[1]
        # Of a pattern with a fixed density every count is exact by itself.
        unit = 1 if self.has_fixed_density else self.weights_per_unit
        return spread_over_columns(total, per_column, len(mask), step, unit)

    def _counts_within(self, shapes: Shapes, within: MaskDict | None) -> dict[str, int] | None:
        """The number of weights that earlier masks keep, by name, after a check that the pattern fits them."""
        if within is None:
            return None
        self._check_within(shapes, within)
        return {name: int(within[name].count_nonzero()) for name in shapes}

    def _check_within(self, shapes: Shapes, within: MaskDict) -> None:
        """Raise DensityError where the pattern does not fit earlier masks."""
        del shapes, within  # single weights fit any masks


@dataclass(frozen=True)
class Layer(Scope):
    """Each tensor is ranked alone and keeps its own fraction.

    Source: Han et al. 2015, section 3.1 (a threshold per layer); Frankle & Carbin 2019, section 2.
    Also called: local, layer-wise, uniform (where the densities are equal).

    >>> Layer().select({"fc": torch.tensor([3.0, 1.0, 2.0, 4.0])}, 0.5)
    {'fc': tensor([ True, False, False,  True])}
    """

    name = "layer"

    def counts(self, shapes: Shapes, density: Density, within_counts: Counts | None = None) -> dict[str, int]:
        """One count per tensor.

        Args:
            shapes: The shape of each tensor, by name.
            density: The fraction of weights to keep, in (0, 1]; one, or one per name.
            within_counts: The number of weights that earlier masks keep, by name; None: all.

        Returns:
            The number of weights to keep of each tensor, by name.

        Raises:
            DensityError: A density is out of range or missing, or keeps more weights than earlier masks.
        """
        densities, counts = densities_by_name(density, list(shapes)), {}
        for name, shape in shapes.items():
            available = None if within_counts is None else within_counts[name]
            counts[name] = count_within(densities[name], math.prod(shape), available, f"weights of {name!r}")
        return counts


@dataclass(frozen=True)
class Global(Scope):
    """All tensors are ranked together, so that layers with low scores lose more.

    Source: Frankle & Carbin 2019, section 4 (deep networks); Liu et al. 2019, section 3.

    >>> Global().select({"a": torch.tensor([1.0, 4.0]), "b": torch.tensor([3.0, 2.0])}, 0.5)
    {'a': tensor([False,  True]), 'b': tensor([ True, False])}
    """

    ranks_layers_together: ClassVar[bool] = True

    name = "global"

    def counts(self, shapes: Shapes, density: Density, within_counts: Counts | None = None) -> dict[str, int]:
        """One count, "all".

        Args:
            shapes: The shape of each tensor, by name.
            density: The fraction of the weights of all tensors together to keep, in (0, 1]; one number.
            within_counts: The number of weights that earlier masks keep, by name; None: all.

        Returns:
            The number of weights to keep of all tensors together, under the key "all".

        Raises:
            DensityError: There is a density per name, or the density is out of range or keeps more weights than earlier
                masks.
        """
        if isinstance(density, Mapping):
            raise DensityError(
                f"Expected one density, as the scope 'global' ranks all layers together, got {dict(density)}; use "
                "the scope 'layer' for densities per layer."
            )
        check_density(density)
        total = sum(math.prod(shape) for shape in shapes.values())
        available = None if within_counts is None else sum(within_counts.values())
        return {"all": count_within(density, total, available, "weights")}

    def select(
        self, scores: Scores, density: Density, within: MaskDict | None = None, seed: int = 0
    ) -> MaskDict:
        """Keep the highest scores of all tensors together.

        Args:
            scores: Finite tensors of any shape, by name; scores of different tensors are compared.
            density: The fraction of all weights of all tensors together to keep, in (0, 1]; one number.
            within: Earlier masks; the result keeps no weight that they prune. None: all weights may be kept.
            seed: The seed of the random order of equal scores.

        Returns:
            Boolean masks of the shapes of `scores`, True where a weight is kept.

        Raises:
            DensityError: As `counts`.
            NonFiniteError: A score is NaN or infinite.
        """
        check_finite(scores, "The score of")
        shapes = shapes_of(scores)
        count = self.counts(shapes, density, self._counts_within(shapes, within))["all"]
        flat = torch.cat([score.flatten() for score in scores.values()])
        all_within = None if within is None else torch.cat([within[name].flatten() for name in scores])
        mask = _top_k_within(flat, count, all_within, make_generator(seed, "ties"))
        pieces = torch.split(mask, [score.numel() for score in scores.values()])
        masks = {name: piece.reshape(scores[name].shape) for name, piece in zip(scores, pieces, strict=True)}
        warn_if_empty(masks)
        return masks


@dataclass(frozen=True)
class NByM(Scope):
    """Of every M neighboring inputs of an output exactly N weights are kept, so that hardware can skip the others.

    The density is N / M in every group of M columns. A scope sees tensors, not layers: the weight of a transposed
    convolution has its inputs first, so that there the groups are of output channels.

    Source: Mishra et al. 2021, "Accelerating sparse deep neural networks", section 3 (2:4); Zhou, Ma et al. 2021,
    "Learning N:M fine-grained structured sparse neural networks from scratch", section 3 (any N and M).
    Also called: semi-structured or fine-grained structured sparsity.

    >>> NByM(2, 4).select({"fc": torch.tensor([[3.0, 1.0, 2.0, 4.0]])}, 0.5)
    {'fc': tensor([[ True, False, False,  True]])}
    """

    n: int
    m: int
    has_fixed_density: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (self.m >= 2 and 1 <= self.n < self.m):
            raise DensityError(
                f"Expected N:M with at least 1 and fewer than M weights kept, got {self.name}; use for example 2:4."
            )

    @property
    def name(self) -> str:
        """The name that `parse_scope` reads."""
        return f"{self.n}:{self.m}"

    @property
    def columns_per_unit(self) -> int:
        """The columns of a group or block."""
        return self.m

    def counts(self, shapes: Shapes, density: Density, within_counts: Counts | None = None) -> dict[str, int]:
        """N of every M weights of each tensor.

        Args:
            shapes: The shape of each tensor, by name.
            density: N / M, up to rounding of floats; one, or one per name.
            within_counts: Unused; `select` checks that earlier masks keep N weights of every group.

        Returns:
            The number of weights to keep of each tensor, by name.

        Raises:
            DensityError: A density is not N / M, or is missing, or the number of inputs of a tensor is not a multiple
                of M.
        """
        exact = self.n / self.m
        for name, layer_density in densities_by_name(density, list(shapes)).items():
            if abs(layer_density - exact) > TOLERANCE:
                raise DensityError(
                    f"Expected density {exact:g} of {name!r}, which {self.name} keeps of every layer, got "
                    f"{layer_density:g}; set density {exact:g} in one round, and leave out layers with exclude."
                )
            _check_fits(name, shapes[name], self)
        return {name: math.prod(shape) // self.m * self.n for name, shape in shapes.items()}

    def _select_one(
        self, scores: Tensor, count: int, within: Tensor | None, generator: MakeGenerator
    ) -> Tensor:
        groups = _to_tiles(scores, 1, self.m)
        if within is not None:
            groups = groups.masked_fill(~_to_tiles(within, 1, self.m), -torch.inf)
        ranked = groups.sort(dim=-1, descending=True).values
        threshold, next_best = ranked[..., self.n - 1], ranked[..., self.n]
        mask = groups >= threshold.unsqueeze(-1)
        tied = threshold == next_best
        if tied.any():
            mask[tied] = self._draw_ties(groups[tied], threshold[tied].unsqueeze(-1), generator())
        return _from_tiles(mask, scores)

    def _draw_ties(self, groups: Tensor, threshold: Tensor, generator: torch.Generator) -> Tensor:
        """The masks of groups [n, M] in which a pruned score is equal to the lowest one kept."""
        # Above the threshold comes first, then what is at it, in random order, and what is below it last.
        order = torch.rand(groups.shape, generator=generator).to(groups.device)
        order = order.masked_fill_(groups > threshold, 2.0).masked_fill_(groups < threshold, -1.0)
        return torch.zeros_like(groups, dtype=torch.bool).scatter_(
            -1, order.topk(self.n, dim=-1).indices, True
        )

    def _check_within(self, shapes: Shapes, within: MaskDict) -> None:
        for name, shape in shapes.items():
            _check_fits(name, shape, self)
            num_short = int((_to_tiles(within[name], 1, self.m).sum(-1) < self.n).sum())
            if num_short:
                raise DensityError(
                    f"Expected {self.n} kept weights in every group of {self.m} inputs of {name!r}, got fewer in "
                    f"{num_short} groups; a pruned weight cannot be restored, so choose another scope."
                )


@dataclass(frozen=True)
class Block(Scope):
    """Each tensor is ranked alone, and pruned in blocks of rows × columns of its matrix.

    The score of a block is the sum of the scores of its weights.

    Source: Narang, Undersander & Diamos 2017, "Block-sparse recurrent neural networks", section 3.1 (there the score of
    a block is its largest magnitude); Mao et al. 2017, "Exploring the granularity of sparsity", section 3 (the sum).
    Also called: block sparsity, vector sparsity (1xN).

    >>> Block(1, 2).select({"fc": torch.tensor([[3.0, 1.0, 2.0, 4.0]])}, 0.5)
    {'fc': tensor([[False, False,  True,  True]])}
    """

    rows: int
    columns: int

    def __post_init__(self) -> None:
        if self.rows < 1 or self.columns < 1:
            raise DensityError(
                f"Expected blocks of at least one row and one column, got {self.name}; use for example 1x4."
            )

    @property
    def name(self) -> str:
        """The name that `parse_scope` reads."""
        return f"{self.rows}x{self.columns}"

    @property
    def weights_per_unit(self) -> int:
        """The weights of a block."""
        return self.rows * self.columns

    @property
    def columns_per_unit(self) -> int:
        """The columns of a group or block."""
        return self.columns

    def counts(self, shapes: Shapes, density: Density, within_counts: Counts | None = None) -> dict[str, int]:
        """The weights in the blocks of each tensor that are kept.

        Args:
            shapes: The shape of each tensor, by name.
            density: The fraction of the blocks of a tensor to keep, in (0, 1]; one, or one per name.
            within_counts: The number of weights that earlier masks keep, by name, in whole blocks; None: all.

        Returns:
            The number of weights to keep of each tensor, by name; a multiple of the weights of a block.

        Raises:
            DensityError: A density is out of range or missing, blocks do not fill the matrix of a tensor, or more
                blocks would be kept than earlier masks keep.
        """
        densities, size, counts = densities_by_name(density, list(shapes)), self.weights_per_unit, {}
        for name, shape in shapes.items():
            _check_fits(name, shape, self)
            available = None if within_counts is None else within_counts[name] // size
            what = f"blocks of {self.name} of {name!r}"
            counts[name] = size * count_within(densities[name], math.prod(shape) // size, available, what)
        return counts

    def _select_one(
        self, scores: Tensor, count: int, within: Tensor | None, generator: MakeGenerator
    ) -> Tensor:
        tiles = _to_tiles(scores, self.rows, self.columns)
        # In float64, in which sums neither overflow nor depend on the order of addition.
        sums = tiles.sum((1, 3), dtype=torch.float64)
        available = None if within is None else _to_tiles(within, self.rows, self.columns).any(3).any(1)
        mask = _top_k_within(sums, count // self.weights_per_unit, available, generator())
        return _from_tiles(mask[:, None, :, None].expand_as(tiles), scores)

    def _check_within(self, shapes: Shapes, within: MaskDict) -> None:
        for name, shape in shapes.items():
            _check_fits(name, shape, self)
            per_block = _to_tiles(within[name], self.rows, self.columns).sum((1, 3))
            num_partial = int(((per_block > 0) & (per_block < self.weights_per_unit)).sum())
            if num_partial:
                raise DensityError(
                    f"Expected earlier masks to keep or prune blocks of {self.name} as a whole, got {num_partial} "
                    f"partly pruned blocks of {name!r}; choose another scope."
                )


@dataclass(frozen=True)
class FunctionScope(Scope):
    """A function (scores, density, within, seed) -> masks as a scope; counts and checks come from trial calls."""

    function: Callable[..., MaskDict]

    @property
    def name(self) -> str:
        """The name of the function."""
        return getattr(self.function, "__name__", type(self.function).__name__)

    def counts(self, shapes: Shapes, density: Density, within_counts: Counts | None = None) -> dict[str, int]:
        """The counts of a trial call with meaningless scores.

        Args:
            shapes: The shape of each tensor, by name.
            density: The density that the function is given.
            within_counts: Unused; the trial call has no earlier masks.

        Returns:
            The number of weights that the function keeps of each tensor, by name.

        Raises:
            DensityError: The function raises it for this density.
        """
        return {name: int(mask.count_nonzero()) for name, mask in self._try(shapes, density, None).items()}

    def select(
        self, scores: Scores, density: Density, within: MaskDict | None = None, seed: int = 0
    ) -> MaskDict:
        """Call the function.

        Args:
            scores: Tensors of any shape, by name; they are not checked.
            density: The density that the function is given.
            within: Earlier masks that the function is given; None: there are none.
            seed: The seed that the function is given.

        Returns:
            What the function returns: boolean masks by name, True where a weight is kept.

        Raises:
            DensityError: The function fails, or returns anything else.
        """
        masks = call_user_function("The scope", DensityError, self.function, scores, density, within, seed)
        got = {} if not isinstance(masks, Mapping) else masks
        if shapes_of(scores) != {
            name: tuple(getattr(mask, "shape", ())) for name, mask in got.items()
        } or any(mask.dtype != torch.bool for mask in got.values()):
            raise DensityError(
                f"Expected the scope {self.name!r} to return a boolean mask by name of each tensor, of its shape, got "
                f"{_describe(masks)}; correct the function."
            )
        return masks

    def select_count(self, name: str, scores: Tensor, count: int, within: Tensor | None, seed: int) -> Tensor:
        """The mask that the function returns for some columns of one tensor.

        Args:
            name: Of the tensor.
            scores: [O, columns].
            count: The number of weights to keep, from which the density follows.
            within: An earlier mask; None: there is none.
            seed: The seed that the function is given.

        Returns:
            Boolean mask, True where a weight is kept.

        Raises:
            DensityError: As `select`.
        """
        masks = None if within is None else {name: within}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", EmptyLayerWarning)  # these columns are not the layer
            return self.select({name: scores}, count / scores.numel(), masks, seed)[name]

    def check(self, shapes: Shapes, densities: Sequence[Density], within: MaskDict | None = None) -> None:
        """Check the densities by trial calls, each within the masks of the one before.

        Args:
            shapes: The shape of each tensor, by name.
            densities: The densities of the steps of a schedule, in its order.
            within: Masks that those of the first step must be nested in; None: there are none.

        Raises:
            DensityError: The function raises it for one of the densities.
        """
        for density in densities:
            within = self._try(shapes, density, within)

    def _try(self, shapes: Shapes, density: Density, within: MaskDict | None) -> MaskDict:
        scores = {
            name: torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape)
            for name, shape in shapes.items()
        }
        if within is not None:
            scores = {name: score.to(within[name].device) for name, score in scores.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", EmptyLayerWarning)  # these scores mean nothing
            return self.select(scores, density, within)


SCOPES: dict[str, Scope] = {
    "layer": Layer(),
    "global": Global(),
    "2:4": NByM(2, 4),
    "4:8": NByM(4, 8),
    "1x4": Block(1, 4),
}
"""Other N:M patterns and blocks have names too, see `parse_scope`."""


def parse_scope(scope: str | Scope | Callable[..., MaskDict]) -> Scope:
    """The scope of a name, "layer", "global", "N:M" or "ROWSxCOLUMNS"; a scope is returned as it is.

    Args:
        scope: A name, a scope, or a function (scores, density, within, seed) -> masks.

    Returns:
        The scope as a value.

    Raises:
        UnknownNameError: There is no scope of this name.
        DensityError: The name describes an impossible pattern, such as 5:4, or the scope is none of these.

    >>> parse_scope("1:3"), parse_scope("4x4")
    (NByM(n=1, m=3), Block(rows=4, columns=4))
    """
    if isinstance(scope, Scope):
        return scope
    if not isinstance(scope, str) and not callable(scope):
        raise DensityError(f"Expected a scope: a name, a function or a scope value, got {scope!r}.")
    if not isinstance(scope, str):
        return FunctionScope(scope)
    # At most nine digits: no layer has more rows or columns.
    for pattern, make in ((r"([0-9]{1,9}):([0-9]{1,9})", NByM), (r"([0-9]{1,9})x([0-9]{1,9})", Block)):
        if match := re.fullmatch(pattern, scope):
            return make(int(match[1]), int(match[2]))
    try:
        return lookup("scope", SCOPES, scope)
    except UnknownNameError as error:
        raise UnknownNameError(
            f"{error} Patterns N:M, such as 1:4, and blocks ROWSxCOLUMNS, such as 4x4, are scopes too."
        ) from None


def top_k(scores: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """The mask of exactly the `k` highest scores; ties at the threshold are broken at random.

    One selection, no sort: O(n).

    Args:
        scores: [n], finite.
        k: From 0 to n.
        generator: Of the random order of ties, on the CPU.

    Returns:
        Boolean mask [n].

    Raises:
        DensityError: K is out of range.
    """
    n = scores.numel()
    if not 0 <= k <= n:
        raise DensityError(f"Expected to keep 0 to {n} of {n} weights, got {k}; lower the density.")
    if k in (0, n):
        return torch.full_like(scores, k == n, dtype=torch.bool)
    threshold = _smallest(scores, n - k)
    mask = scores > threshold
    num_missing = k - int(torch.count_nonzero(mask))
    ties = torch.nonzero(scores == threshold).squeeze(1)
    if num_missing < len(ties):
        ties = ties[torch.randperm(len(ties), generator=generator)[:num_missing]]
    mask[ties] = True
    return mask


def _top_k_within(scores: Tensor, k: int, within: Tensor | None, generator: torch.Generator) -> Tensor:
    """The mask of the `k` highest of the scores that `within` keeps, of any shape."""
    if within is None:
        return top_k(scores.flatten(), k, generator).reshape(scores.shape)
    mask = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)  # contiguous
    mask[within] = top_k(scores[within], k, generator)
    return mask


def _smallest(values: Tensor, place: int) -> float:
    """The entry at `place`, counted from 0, of the values in ascending order."""
    if values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64):
        # NumPy's selection takes half the time of kthvalue on CPU.
        return float(np.partition(values.detach().numpy(), place)[place])
    return float(values.kthvalue(place + 1).values)


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor, by name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _describe(masks: object) -> str:
    if not isinstance(masks, Mapping):
        return f"a {type(masks).__name__}"
    parts = (
        f"{name!r}: {mask.dtype} {list(mask.shape)}"
        if isinstance(mask, Tensor)
        else f"{name!r}: {type(mask).__name__}"
        for name, mask in masks.items()
    )
    return f"{{{', '.join(parts)}}}"


def _misfit(scope: Scope, shape: tuple[int, ...]) -> tuple[str, int, int] | None:
    """Where patterns do not fill the matrix of a tensor: "outputs" or "inputs", their number, the pattern's."""
    outputs, inputs = (1, math.prod(shape)) if len(shape) < 2 else shape[:2]
    rows = scope.weights_per_unit // scope.columns_per_unit or 1
    units = ("outputs", outputs, rows), ("inputs", inputs, scope.columns_per_unit)
    return next((misfit for misfit in units if misfit[1] % misfit[2]), None)


def _check_fits(name: str, shape: tuple[int, ...], scope: Scope) -> None:
    """Raise DensityError where patterns do not fill the matrix of a tensor."""
    if misfit := _misfit(scope, shape):
        what, size, unit = misfit
        raise DensityError(
            f"Expected a multiple of {unit} {what} in {name!r}, {list(shape)}, got {size}; exclude {name!r} or "
            "choose another pattern."
        )


def _to_tiles(tensor: Tensor, rows: int, columns: int) -> Tensor:
    """[O, I, K, ...] -> [O / rows, rows, K · I / columns, columns], tile (a, b) at [a, :, b, :]."""
    matrix = to_matrix(tensor)
    return matrix.reshape(matrix.shape[0] // rows, rows, matrix.shape[1] // columns, columns)


def _from_tiles(tiles: Tensor, like: Tensor) -> Tensor:
    """The inverse of `_to_tiles`, of the shape of `like`."""
    outputs, rows, places, columns = tiles.shape
    return from_matrix(tiles.reshape(outputs * rows, places * columns), like).contiguous()

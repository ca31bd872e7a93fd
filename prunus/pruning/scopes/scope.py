"""What a scope is, and the two scopes without a pattern: `Layer` and `Global`."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prunus.errors import DensityError
from prunus.pruning.density import (
    check_density,
    check_keeps_one,
    count_within,
    densities_by_name,
    spread_over_columns,
)
from prunus.pruning.masks import check_finite, warn_if_empty
from prunus.pruning.scopes.top_k import top_k_within
from prunus.seeds import make_generator
from prunus.types import Density, MaskDict, Scores

Shapes = Mapping[str, tuple[int, ...]]
Counts = Mapping[str, int]


@dataclass(frozen=True)
class Scope(ABC):
    """Which weights are ranked together, and the sparsity pattern; unless it says otherwise, each tensor alone."""

    ranks_layers_together: ClassVar[bool] = False
    has_fixed_density: ClassVar[bool] = False
    """Whether the pattern allows one density only."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The name that `parse_scope` reads."""

    @property
    def tile(self) -> tuple[int, int]:
        """The neighboring rows and columns of a layer's matrix that the pattern spans."""
        return 1, 1

    @property
    def is_pattern(self) -> bool:
        """Whether the scope distinguishes rows and columns of a layer's matrix."""
        return self.tile != (1, 1)

    @property
    def weights_per_unit(self) -> int:
        """The number of weights that are kept or pruned together."""
        return 1 if self.has_fixed_density else math.prod(self.tile)

    def counts(self, shapes: Shapes, density: Density, within_counts: Counts | None = None) -> dict[str, int]:
        """The exact number of weights that `select` keeps.

        Args:
            shapes: The shape of each tensor, by name.
            density: The fraction of all weights of a tensor to keep, in (0, 1]; one, or one per name.
            within_counts: The number of weights that earlier masks keep, by name; None: all.

        Returns:
            One count per name; a single one, "all", where layers are ranked together.

        Raises:
            DensityError: A density is out of range, does not fit the pattern, or keeps more than `within_counts`; the
                pattern does not fit a shape.
        """
        densities, size, counts = densities_by_name(density, list(shapes)), self.weights_per_unit, {}
        for name, shape in shapes.items():
            self._check_fits(name, shape)
            available = None if within_counts is None else within_counts[name] // size
            what = f"{self._units} of {name!r}"
            counts[name] = size * count_within(densities[name], math.prod(shape) // size, available, what)
        return counts

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
        masks = self._select(scores, counts, within, seed)
        warn_if_empty(masks)
        return masks

    def _select(self, scores: Scores, counts: Counts, within: MaskDict | None, seed: int) -> MaskDict:
        """The masks that keep as many weights as `counts`."""
        return {
            name: self.select_count(name, score, counts[name], None if within is None else within[name], seed)
            for name, score in scores.items()
        }

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
        return self._select_one(scores.detach(), count, within, make_generator(seed, "ties", name))

    def _select_one(
        self, scores: Tensor, count: int, within: Tensor | None, generator: torch.Generator
    ) -> Tensor:
        """The mask of one tensor that keeps `count` weights; `generator` gives the order of ties."""
        return top_k_within(scores, count, within, generator)

    def check(self, shapes: Shapes, densities: Sequence[Density], within: MaskDict | None = None) -> None:
        """Check, before any work, that each of these densities can be reached from the one before it.

        Args:
            shapes: The shape of each tensor, by name.
            densities: Of the steps of a schedule, in its order.
            within: Masks that those of the first step must be nested in.

        Raises:
            DensityError: As `select` would raise it.

        >>> from prunus.pruning.scopes import NByM
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
        densities = densities_by_name(density, list(shapes))
        if self.ranks_layers_together and not isinstance(density, Mapping):
            total = sum(map(math.prod, shapes.values()))
            check_keeps_one(density, total, "weights of all layers together")
            return
        for name, shape in shapes.items():
            total = math.prod(shape) // self.weights_per_unit
            check_keeps_one(densities[name], total, f"{self._units} of {name!r}")

    def why_unfit(self, shape: tuple[int, ...]) -> str | None:
        """Why the pattern does not fit a tensor of this shape, [O, I, ...]; None: it fits.

        >>> from prunus.pruning.scopes import NByM
        >>> NByM(2, 4).why_unfit((16, 3, 3, 3))
        'the pattern 2:4 does not fit 3 inputs'
        """
        misfit = self._misfit(shape)
        return f"the pattern {self.name} does not fit {misfit[1]} {misfit[0]}" if misfit else None

    def column_step(self, at_most: int) -> int:
        """The number of columns whose masks are chosen together: whole patterns, about `at_most` columns.

        >>> from prunus.pruning.scopes import Block, NByM
        >>> Layer().column_step(128), Block(4, 3).column_step(128), NByM(2, 4).column_step(128)
        (128, 126, 4)
        """
        unit = self.tile[1]
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
        return spread_over_columns(total, per_column, len(mask), step, self.weights_per_unit)

    @property
    def _units(self) -> str:
        """What is kept or pruned as a whole, in errors."""
        return "weights" if self.weights_per_unit == 1 else f"blocks of {self.name}"

    def _counts_within(self, shapes: Shapes, within: MaskDict | None) -> dict[str, int] | None:
        """The number of weights that earlier masks keep, by name, after a check that the pattern fits them."""
        if within is None:
            return None
        for name, shape in shapes.items():
            self._check_fits(name, shape)
            self._check_earlier(name, within[name])
        return {name: int(within[name].count_nonzero()) for name in shapes}

    def _check_earlier(self, name: str, mask: Tensor) -> None:
        """Raise DensityError where the pattern does not fit an earlier mask; single weights fit any."""
        del name, mask

    def _misfit(self, shape: tuple[int, ...]) -> tuple[str, int, int] | None:
        """Where tiles do not fill the matrix of a tensor: "outputs" or "inputs", their number, the tile's."""
        sizes = (1, math.prod(shape)) if len(shape) < 2 else shape[:2]
        units = zip(("outputs", "inputs"), sizes, self.tile, strict=True)
        return next((misfit for misfit in units if misfit[1] % misfit[2]), None)

    def _check_fits(self, name: str, shape: tuple[int, ...]) -> None:
        """Raise DensityError where tiles do not fill the matrix of a tensor."""
        if misfit := self._misfit(shape):
            what, size, unit = misfit
            raise DensityError(
                f"Expected a multiple of {unit} {what} in {name!r}, {list(shape)}, got {size}; exclude {name!r} or "
                "choose another pattern."
            )


@dataclass(frozen=True)
class Layer(Scope):
    """Each tensor is ranked alone and keeps its own fraction.

    Source: Han et al. 2015, section 4 (a threshold per layer); Frankle & Carbin 2019, section 2.
    Also called: local, layer-wise, uniform (where the densities are equal).

    >>> Layer().select({"fc": torch.tensor([3.0, 1.0, 2.0, 4.0])}, 0.5)
    {'fc': tensor([ True, False, False,  True])}
    """

    name = "layer"


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
        total = sum(map(math.prod, shapes.values()))
        available = None if within_counts is None else sum(within_counts.values())
        return {"all": count_within(density, total, available, "weights")}

    def _select(self, scores: Scores, counts: Counts, within: MaskDict | None, seed: int) -> MaskDict:
        flat = torch.cat([score.flatten() for score in scores.values()])
        all_within = None if within is None else torch.cat([within[name].flatten() for name in scores])
        mask = top_k_within(flat, counts["all"], all_within, make_generator(seed, "ties"))
        pieces = torch.split(mask, [score.numel() for score in scores.values()])
        return {name: piece.reshape(scores[name].shape) for name, piece in zip(scores, pieces, strict=True)}


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor, by name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}

"""A function of the user as a scope."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prunus.errors import DensityError, EmptyLayerWarning
from prunus.masks import are_nested
from prunus.pruning.scopes.scope import Counts, Scope, Shapes
from prunus.registry import call_user_function
from prunus.types import Density, MaskDict, Scores


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
            DensityError: The function fails, returns anything else, or keeps a weight that `within` prunes.
        """
        masks = call_user_function("The scope", DensityError, self.function, scores, density, within, seed)
        if _kinds(masks) != {name: f"{torch.bool} {list(score.shape)}" for name, score in scores.items()}:
            raise DensityError(
                f"Expected the scope {self.name!r} to return a boolean mask by name of each tensor, of its shape, got "
                f"{_describe(masks)}; correct the function."
            )
        if within is not None and not are_nested(masks, within):
            raise DensityError(
                f"Expected the scope {self.name!r} to keep only weights that earlier masks keep, got others; combine "
                "its masks with those of `within` by &."
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


def _kinds(masks: object) -> dict[str, str]:
    """The dtype and shape of each mask, or what it is instead of a tensor."""
    if not isinstance(masks, Mapping):
        return {}
    return {
        name: f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        for name, mask in masks.items()
    }


def _describe(masks: object) -> str:
    if not isinstance(masks, Mapping):
        return f"a {type(masks).__name__}"
    return f"{{{', '.join(f'{name!r}: {kind}' for name, kind in _kinds(masks).items())}}}"

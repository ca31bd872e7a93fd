"""The smallest file that loses at most so many points of accuracy: a search over densities and bits.

The lowest density that fits is found by bisection, first with 4 bits, then with fewer and more bits near that
density. This takes about nine compressions: the accuracy is taken to fall with the density and with the bits.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from prunus.errors import AccuracyError, SpecError

DENSITIES = (
    *(
        0.9,
        0.8,
        0.7,
        0.6,
        0.5,
        0.45,
        0.4,
        0.37,
        0.34,
        0.31,
        0.28,
        0.25,
        0.22,
        0.2,
        0.17,
        0.14,
        0.12,
        0.1,
        0.08,
    ),
    *(0.06, 0.05, 0.04, 0.03, 0.02),
)
"""The densities of all weights together that are tried."""
BITS = (4, 3, 5, 8)
"""The bits that are tried: the first at all densities, 3 and 5 near the lowest density that fits, and 8 only where none
fits with fewer."""
NUM_NEIGHBORS = 3
"""Densities beside the lowest one of the first bits that are considered with other bits."""

T = TypeVar("T")


@dataclass(frozen=True)
class Trial:
    """One compression of the search."""

    density: float
    """Of all weights together."""
    bits: int | None
    """Of every weight; None: as the recipe says."""
    accuracy_drop: float
    """In percentage points of the validation split; negative where the accuracy has increased."""
    file_bytes: int


def check_max_accuracy_drop(points: float) -> None:
    """Raise SpecError unless `points` is a number of percentage points, 0 to 100."""
    if isinstance(points, bool) or not isinstance(points, int | float) or not 0 <= points <= 100:
        raise SpecError(
            f"Expected a largest accuracy drop of 0 to 100 percentage points, got {points!r}; use a value such as 1.0."
        )


class BudgetSearch(Generic[T]):
    """The search, and everything that it has tried.

    Args:
        compress: (density, bits) -> what was tried, and its result.
        densities: The densities to try, falling.
        max_drop: Percentage points.
    """

    def __init__(
        self,
        compress: Callable[[float, int | None], tuple[Trial, T]],
        densities: Sequence[float],
        max_drop: float,
    ) -> None:
        self.compress, self.densities, self.max_drop = compress, densities, max_drop
        self.trials: list[Trial] = []
        self.best: T | None = None
        self._best_bytes = math.inf

    def run(self, bits: Sequence[int | None]) -> T:
        """Find the smallest file.

        Args:
            bits: The bits to try; the first are tried at all densities.

        Returns:
            The result of the smallest trial that fits.

        Raises:
            AccuracyError: None fits.
        """
        first, *others = bits
        lowest = self._lowest(first, 0, len(self.densities))
        for number in others:
            if lowest < 0:
                lowest = self._lowest(number, 0, len(self.densities))
            elif number == 3:
                self._lowest(number, max(0, lowest - NUM_NEIGHBORS), lowest + 1)
            elif number == 5:
                self._lowest(number, lowest + 1, min(len(self.densities), lowest + 1 + NUM_NEIGHBORS))
        if self.best is None:
            least = min(trial.accuracy_drop for trial in self.trials)
            raise AccuracyError(
                f"Expected settings that lose at most {self.max_drop:g} points of validation accuracy, but the best of "
                f"{len(self.trials)} tried loses {least:.2f}; allow a larger drop, or train."
            )
        return self.best

    def _lowest(self, bits: int | None, low: int, high: int) -> int:
        """The index of the lowest density from `low` on and before `high` that fits; `low` - 1 where none does."""
        while low < high:
            middle = (low + high) // 2
            trial, result = self.compress(self.densities[middle], bits)
            self.trials.append(trial)
            fits = trial.accuracy_drop <= self.max_drop
            if fits and trial.file_bytes < self._best_bytes:
                self.best, self._best_bytes = result, trial.file_bytes
            low, high = (middle + 1, high) if fits else (low, middle)
        return low - 1

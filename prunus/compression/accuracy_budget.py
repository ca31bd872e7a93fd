"""Search densities and bits for the smallest file that loses at most a given number of points of accuracy.

The lowest density that fits is found by bisection, first with 4 bits, then with fewer and more bits near that
density. This takes about nine compressions: the accuracy is taken to fall with the density and with the bits, so that
fewer bits are not tried where more do not fit.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prunus.errors import AccuracyError

DENSITIES = (
    *(0.9, 0.8, 0.7, 0.6, 0.5, 0.45, 0.4, 0.37, 0.34, 0.31, 0.28, 0.25, 0.22, 0.2, 0.17, 0.14, 0.12, 0.1),
    *(0.08, 0.06, 0.05, 0.04, 0.03, 0.02),
)
"""The densities of all weights together that are tried."""
BITS = (4, 3, 5, 8)
"""The bits that are tried: the first at all densities, or the next higher number where none fits; then fewer, and the
next higher number, near the lowest density that fits."""
NUM_NEIGHBORS = 3
"""How many densities next to the lowest one that fits with the first bits are tried with other bits."""


@dataclass(frozen=True)
class Trial:
    """One compression of the search."""

    density: float
    """Of all weights together."""
    bits: int | None
    """Of every weight; None: as the recipe says."""
    accuracy_drop: float
    """In percentage points, or units of the metric, of the validation split; negative where it has increased."""
    file_bytes: int


def find_smallest(
    attempt: Callable[[float, int | None], Trial],
    densities: Sequence[float],
    bits: Sequence[int | None],
    max_drop: float,
) -> list[Trial]:
    """Search for the smallest file that loses at most `max_drop`.

    Args:
        attempt: (density, bits) -> what was tried.
        densities: The densities to try, falling.
        bits: The bits to try, in the order of BITS; or None alone, for those of the recipe.
        max_drop: Percentage points, or units of a metric.

    Returns:
        What was tried, in order; at least one trial fits.

    Raises:
        AccuracyError: None fits.
    """
    trials: list[Trial] = []

    def lowest_density(number: int | None, low: int, high: int) -> int:
        """The index of the lowest density from `low` on and before `high` that fits; `low` - 1 where none does."""
        while low < high:
            middle = (low + high) // 2
            trials.append(attempt(densities[middle], number))
            fits = trials[-1].accuracy_drop <= max_drop
            low, high = (middle + 1, high) if fits else (low, middle)
        return low - 1

    first, *others = bits
    numbers = [number for number in others if number is not None and first is not None]
    fewer = [number for number in numbers if first is not None and number < first]
    more = sorted(set(numbers) - set(fewer))
    lowest = lowest_density(first, 0, len(densities))
    while lowest < 0 and more:
        fewer = []
        lowest = lowest_density(more.pop(0), 0, len(densities))
    if lowest >= 0:
        for number in fewer:
            lowest_density(number, max(0, lowest - NUM_NEIGHBORS), lowest + 1)
        if more:
            lowest_density(more[0], lowest + 1, min(len(densities), lowest + 1 + NUM_NEIGHBORS))
    # A metric may be NaN, which compares with nothing.
    drops = [trial.accuracy_drop for trial in trials if not math.isnan(trial.accuracy_drop)]
    least = min(drops, default=math.nan)
    if not least <= max_drop:
        raise AccuracyError(
            f"Expected settings that lose at most {max_drop:g} points of validation accuracy, but the best of "
            f"{len(trials)} tried loses {least:.2f}; allow a larger drop, or train."
        )
    return trials

"""Times two or more functions in turn, so that what the machine does meanwhile falls on all of them alike."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles


@dataclass(frozen=True)
class Timed:
    """Seconds of each call, in the order of the rounds."""

    seconds: Mapping[str, list[float]]

    def median(self, name: str) -> float:
        return median(self.seconds[name])

    def ratio(self, name: str, to: str) -> str:
        """Median of the rounds' ratios, with the quartiles."""
        return spread([a / b for a, b in zip(self.seconds[name], self.seconds[to], strict=True)])


def interleaved(
    functions: Mapping[str, Callable[[], object]],
    rounds: int = 15,
    clock: Callable[[], float] = time.process_time,
) -> Timed:
    """`rounds` rounds after one to warm up; in each, every function once.

    CPU seconds, unless another clock is given: those of several threads are not what one waits for.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(rounds + 1):
        for name, function in functions.items():
            start = clock()
            function()
            if turn:
                seconds[name].append(clock() - start)
    return Timed(seconds)


def spread(ratios: list[float]) -> str:
    """The median, with the quartiles."""
    low, _, high = quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return f"{median(ratios):.2f} ({low:.2f} to {high:.2f})"


def table(header: list[str], rows: list[list[object]]) -> str:
    """A markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)

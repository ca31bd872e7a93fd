"""Statistics over seeds: paired comparisons, and the decision of a claim.

A comparison is paired: both sides have the same seeds, so the same initialization and order of data, and the
difference within each pair is tested. Its confidence interval is Student's,

    d ± t(n - 1) · s / √n,    d and s: mean and standard deviation of the n differences.

Source: Student 1908, "The probable error of a mean", Biometrika 6(1). Also known as the paired
t-test. One of 20 intervals of 95 % misses the true value on average. The verdicts on the claims of an experiment are
therefore corrected for their number (`holm`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Literal

from prunus.errors import NonFiniteError, PrunusError

DIGITS = 12
"""Significant digits of the compared values; smaller differences are rounding errors of floating point."""


@dataclass(frozen=True)
class Comparison:
    """The mean of b - a over `n` pairs, and its interval at `confidence`."""

    n: int
    difference: float
    low: float
    high: float
    p: float
    """Two-sided p-value of the hypothesis that there is no difference."""
    confidence: float

    @property
    def significant(self) -> bool:
        """Whether the interval excludes zero and p is below 1 - confidence; never for one pair."""
        return not self.low <= 0 <= self.high and self.p < 1 - self.confidence

    def amount(self, unit: str) -> str:
        """Format the difference and its interval: the absolute value where it is significant, else b - a.

        Args:
            unit: Unit of the difference, such as "pp" for percentage points.

        Returns:
            The difference with its unit, and its interval where there is one.

        Example:
            >>> compare_paired({0: 98.0, 1: 98.1, 2: 97.9}, {0: 97.8, 1: 97.85, 2: 97.7}).amount("pp")
            '0.22 pp (0.14 to 0.29)'
        """
        flip = self.n > 1 and self.significant and self.difference < 0
        center = -self.difference if flip else self.difference
        if self.n < 2:
            return f"{format_number(center)} {unit}"
        if self.low == self.high:
            return f"{format_number(center)} {unit} in every pair"
        low, high = (-self.high, -self.low) if flip else (self.low, self.high)
        center_text, low_text, high_text = format_interval(center, low, high)
        return f"{center_text} {unit} ({low_text} to {high_text})"


def compare_paired(a: Mapping[int, float], b: Mapping[int, float], confidence: float = 0.95) -> Comparison:
    """Compare b with a on the seeds that both have.

    One pair has an infinite interval and p = 1. Equal differences have an interval of width zero and the p-value of the
    sign test, 2^(1 - n), because Student's t-test is not defined for them.

    Args:
        a, b: Values by seed.
        confidence: Confidence of the interval, between 0 and 1.

    Returns:
        The mean difference b - a with its interval and p-value.

    Raises:
        PrunusError: No seed is shared, the confidence is out of range, or scipy is not installed.
        NonFiniteError: A value is NaN or infinite.

    Example:
        >>> compare_paired({1: 2.0, 2: 4.0, 3: 1.0}, {1: 2.5, 2: 5.5, 4: 0.0}).difference
        1.0
    """
    if not 0 < confidence < 1:
        raise PrunusError(f"Expected a confidence between 0 and 1, got {confidence}.")
    differences = _differences(a, b)
    n, center = len(differences), mean(differences)
    if n < 2:
        return Comparison(n, center, -math.inf, math.inf, 1.0, confidence)
    error = stdev(differences) / math.sqrt(n)
    if not error:
        return Comparison(n, center, center, center, 2.0 ** (1 - n) if center else 1.0, confidence)
    check_interval_library()
    from scipy.special import stdtr, stdtrit

    half = float(stdtrit(n - 1, (1 + confidence) / 2)) * error
    p = 2 * float(stdtr(n - 1, -abs(center) / error))
    return Comparison(n, center, center - half, center + half, p, confidence)


Verdict = Literal["holds", "does not hold", "not shown"]
Expectation = Literal["higher", "lower", "equal", "not higher", "not lower"]
"""The claimed relation of one side to the other: "equal" within a margin, "not higher" or "not lower" by more than a
margin."""
WITHIN_MARGIN: tuple[Expectation, ...] = ("equal", "not higher", "not lower")
"""The relations that have a margin."""


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for multiple comparisons by Holm's step-down method.

    Args:
        p_values: The p-values of all comparisons, in [0, 1].

    Returns:
        Corrected p-values in the order of `p_values`, each at most 1. Rejecting those below 0.05 keeps the
        probability of any false rejection at or below 0.05, whatever the dependence between the tests.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of
    Statistics 6(2).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    corrected, largest = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def claim_p_value(comparison: Comparison, expected: Expectation, margin: float = 0.0) -> float:
    """Compute the p-value that decides a claim.

    For "higher" and "lower" this is the p-value of the paired comparison. For "equal" it is that of the one-sided
    test that the difference is on the measured side of the nearer margin (two one-sided tests: Schuirmann 1987); for
    "not higher" and "not lower" that the difference is on the measured side of the margin or of minus the margin. If
    all differences are identical, it is that of their signs, 2^-n.

    Args:
        comparison: The paired comparison of the two sides.
        expected: The claimed relation.
        margin: What counts as no difference, in its unit; only for relations within a margin.

    Returns:
        The p-value, in [0, 1], not corrected for the number of claims.
    """
    if comparison.n < 2 or expected in ("higher", "lower"):
        return comparison.p
    distance = _distance_from_margin(comparison.difference, expected, margin)
    half_width = (comparison.high - comparison.low) / 2
    if not half_width:
        return 2.0**-comparison.n if distance else 1.0
    from scipy.special import stdtr, stdtrit

    error = half_width / float(stdtrit(comparison.n - 1, (1 + comparison.confidence) / 2))
    return float(stdtr(comparison.n - 1, -abs(distance) / error))


def _distance_from_margin(difference: float, expected: Expectation, margin: float) -> float:
    """How far a difference is from the nearer margin; below zero on its far side."""
    if expected == "equal":
        return margin - abs(difference)
    return margin - difference if expected == "not higher" else margin + difference


def decide(comparison: Comparison, expected: Expectation, p: float, margin: float = 0.0) -> Verdict:
    """Decide a claim: "not shown" for one pair or where `p` is not below 1 - confidence.

    Args:
        comparison: The paired comparison of the two sides.
        expected: The claimed relation.
        p: The p-value of the claim, corrected for multiple comparisons.
        margin: What counts as no difference; only for relations within a margin.

    Returns:
        The verdict; where it is shown, it follows the sign of the difference for "higher" and "lower", and otherwise
        whether the difference is within `margin`.
    """
    if comparison.n < 2 or p >= 1 - comparison.confidence:
        return "not shown"
    if expected in WITHIN_MARGIN:
        is_within = _distance_from_margin(comparison.difference, expected, margin) >= 0
        return "holds" if is_within else "does not hold"
    return "holds" if (comparison.difference > 0) == (expected == "higher") else "does not hold"


def check_interval_library() -> None:
    """Check before any work that the library of `compare_paired` is installed. Raises PrunusError."""
    try:
        import scipy.special  # noqa: F401
    except ImportError as error:
        raise PrunusError(
            "Intervals need scipy, which is not installed: pip install 'prunus[cli]'."
        ) from error


def _differences(a: Mapping[int, float], b: Mapping[int, float]) -> list[float]:
    """b - a for each shared seed, rounded to `DIGITS` significant digits of the values."""
    seeds = sorted(a.keys() & b.keys())
    if not seeds:
        raise PrunusError(
            f"Expected values with common seeds to pair, got the seeds {sorted(a)} and {sorted(b)}."
        )
    for seed in seeds:
        if not (math.isfinite(a[seed]) and math.isfinite(b[seed])):
            raise NonFiniteError(
                f"Expected finite values to compare, got {a[seed]} and {b[seed]} for seed {seed}."
            )
    scale = max(abs(float(side[seed])) for side in (a, b) for seed in seeds)
    places = DIGITS - math.ceil(math.log10(scale)) if scale else 0
    return [round(float(b[seed]) - float(a[seed]), places) for seed in seeds]


def format_number(value: float) -> str:
    """Format a number with three significant digits, or as an integer from 1000 on.

    >>> format_number(0.12345), format_number(999.7)
    ('0.123', '1,000')
    """
    return f"{value:z.3g}" if abs(value) < 999.5 else f"{value:,.0f}"


def format_interval(center: float, low: float, high: float) -> tuple[str, str, str]:
    """Format three numbers with equal decimal places: enough for a tenth of the width, and for an end close to zero.

    Args:
        center: The middle of the interval.
        low: Its lower end.
        high: Its upper end, above the lower one.

    Returns:
        The three numbers as text.

    >>> format_interval(98.1234, 98.0, 98.3)
    ('98.12', '98.00', '98.30')
    """
    places = max(0, -math.floor(math.log10((high - low) / 10)))
    while any(end and not round(end, places) for end in (low, high)):
        places += 1
    first, second, third = (f"{value:z.{places}f}" for value in (center, low, high))
    return first, second, third

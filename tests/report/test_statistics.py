"""Paired comparisons and verdicts: coverage of the interval, equality with scipy, and invariances."""

import math
import random
import warnings
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_rel

from prunus.errors import NonFiniteError, PrunusError
from prunus.report.statistics import claim_p_value, compare_paired, decide, holm

VALUES = st.floats(-1e3, 1e3).map(lambda value: round(value, 6))
PAIRS = st.dictionaries(st.integers(0, 99), st.tuples(VALUES, VALUES), min_size=1, max_size=12)
DENSE = {0: 98.0, 1: 98.1, 2: 97.9, 3: 98.05}
TICKET = {0: 98.2, 1: 98.35, 2: 98.1, 3: 98.2}


def sides(pairs: Mapping[int, tuple[float, float]]) -> tuple[dict[int, float], dict[int, float]]:
    return {seed: a for seed, (a, _) in pairs.items()}, {seed: b for seed, (_, b) in pairs.items()}


@pytest.mark.parametrize(("n", "confidence"), [(2, 0.95), (3, 0.95), (5, 0.95), (5, 0.8), (20, 0.99)])
def test_interval_covers_the_true_difference_at_its_confidence(n: int, confidence: float) -> None:
    """A normal interval would cover 0.88 instead of 0.95 at n = 5, an unpaired one nearly always."""
    draws, true = 2000, 0.3
    generator = np.random.default_rng(n)
    hits = 0
    for _ in range(draws):
        common = 5 * generator.standard_normal(n)
        a, b = common, common + true + 0.2 * generator.standard_normal(n)
        comparison = compare_paired(dict(enumerate(a)), dict(enumerate(b)), confidence)
        hits += comparison.low <= true <= comparison.high
    assert hits / draws == pytest.approx(confidence, abs=3 * math.sqrt(confidence * (1 - confidence) / draws))


@given(PAIRS, st.floats(0.5, 0.999))
def test_comparison_equals_the_paired_t_test_of_scipy(
    pairs: dict[int, tuple[float, float]], confidence: float
) -> None:
    a, b = sides(pairs)
    ours = compare_paired(a, b, confidence)
    assert ours.n == len(pairs)
    if ours.n < 2 or ours.low == ours.high:
        return
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", RuntimeWarning
        )  # scipy's, where the spread is small beside the values
        theirs = ttest_rel([b[seed] for seed in pairs], [a[seed] for seed in pairs])
    interval = theirs.confidence_interval(confidence)
    assert (ours.low, ours.high) == pytest.approx((interval.low, interval.high), rel=1e-5, abs=1e-7)
    assert ours.p == pytest.approx(theirs.pvalue, rel=1e-3, abs=1e-9)


@given(PAIRS)
def test_swapped_comparison_is_the_negative(pairs: dict[int, tuple[float, float]]) -> None:
    a, b = sides(pairs)
    forward, backward = compare_paired(a, b), compare_paired(b, a)
    assert (forward.low, forward.difference, forward.high) == (
        -backward.high,
        -backward.difference,
        -backward.low,
    )
    assert (forward.p, forward.n, forward.significant) == (backward.p, backward.n, backward.significant)
    if forward.significant:
        assert forward.amount("pp") == backward.amount("pp")
    assert forward.low <= forward.difference <= forward.high
    if forward.n > 1:
        assert forward.significant == (forward.p < 0.05) or forward.p == pytest.approx(0.05)


@given(PAIRS, st.floats(-50, 50), st.sampled_from([-2.0, 0.5, 3.0]), st.randoms())
def test_comparison_is_invariant_to_order_shift_and_unpaired_seeds(
    pairs: dict[int, tuple[float, float]], shift: float, scale: float, chance: random.Random
) -> None:
    a, b = sides(pairs)
    plain = compare_paired(a, b)
    mixed = chance.sample(sorted(pairs), len(pairs))
    assert (
        compare_paired({s: a[s] for s in mixed} | {100: 5.0}, {s: b[s] for s in mixed[::-1]} | {101: -5.0})
        == plain
    )
    moved = compare_paired({s: v + shift for s, v in a.items()}, {s: v + shift for s, v in b.items()})
    assert (moved.low, moved.high) == pytest.approx((plain.low, plain.high), abs=1e-6)
    scaled = compare_paired({s: v * scale for s, v in a.items()}, {s: v * scale for s, v in b.items()})
    ends = sorted((plain.low * scale, plain.high * scale))
    assert (scaled.low, scaled.high) == pytest.approx(tuple(ends), rel=1e-6, abs=1e-6)


@given(PAIRS, st.floats(0.1, 0.9))
def test_interval_widens_with_confidence(pairs: dict[int, tuple[float, float]], confidence: float) -> None:
    a, b = sides(pairs)
    narrow, wide = compare_paired(a, b, confidence), compare_paired(a, b, confidence + 0.09)
    assert wide.low <= narrow.low <= narrow.high <= wide.high
    assert wide.low < narrow.low or narrow.low == narrow.high or narrow.n == 1
    assert (wide.p, wide.difference) == (narrow.p, narrow.difference)


def test_significant_difference_is_printed_without_a_sign() -> None:
    assert compare_paired(DENSE, TICKET).amount("pp") == "0.20 pp (0.14 to 0.26)"
    assert compare_paired(TICKET, DENSE).amount("pp") == "0.20 pp (0.14 to 0.26)"
    slower = compare_paired({0: 5000.0, 1: 5200.0, 2: 5100.0}, {0: 12100.0, 1: 12500.0, 2: 12000.0}, 0.9)
    assert slower.amount("iterations") == "7100 iterations (6763 to 7437)"


def test_difference_is_not_significant_when_the_interval_contains_zero() -> None:
    comparison = compare_paired({0: 1.0, 1: 1.2, 2: 1.1}, {0: 1.1, 1: 1.0, 2: 1.15})
    assert not comparison.significant
    assert comparison.amount("pp") == "-0.02 pp (-0.42 to 0.38)"


def test_small_end_of_an_interval_is_not_printed_as_zero() -> None:
    comparison = compare_paired({0: 0.0, 1: 0.0, 2: 0.0}, {0: 1.0, 1: 2.0, 2: 2.9})
    factor = comparison.difference / (comparison.difference - comparison.low) * 0.999
    middle = comparison.difference
    spread = {seed: middle + factor * (value - middle) for seed, value in enumerate((1.0, 2.0, 2.9))}
    nearly = compare_paired({0: 0.0, 1: 0.0, 2: 0.0}, spread)
    assert nearly.significant
    assert 0 < nearly.low < 0.005
    assert nearly.amount("pp") == "1.967 pp (0.002 to 3.931)"


def test_one_pair_is_never_significant() -> None:
    comparison = compare_paired({7: 98.0}, {7: 99.0})
    assert (comparison.n, comparison.difference, comparison.p) == (1, 1, 1)
    assert (comparison.low, comparison.high) == (-math.inf, math.inf)
    assert not comparison.significant
    assert comparison.amount("pp") == "1 pp"


def test_equal_differences_have_no_interval() -> None:
    same = compare_paired(DENSE, DENSE)
    assert (same.difference, same.low, same.high, same.p, same.significant) == (0, 0, 0, 1, False)
    assert same.amount("pp") == "0 pp in every pair"
    low = {0: 0.1, 1: 0.7, 2: 98.1, 3: 5.0, 4: 0.3, 5: 98.2}
    dust = {seed: value + 0.1 for seed, value in low.items()}
    assert len({dust[seed] - low[seed] for seed in low}) > 1
    up = compare_paired(low, dust)
    assert (up.low, up.difference, up.high, up.p) == (0.1, 0.1, 0.1, 1 / 32)
    assert up.amount("pp") == compare_paired(dust, low).amount("pp") == "0.1 pp in every pair"


@pytest.mark.parametrize("n", range(2, 9))
def test_equal_differences_have_the_p_value_of_the_sign_test(n: int) -> None:
    """All of one sign by chance: one time in 2^(n - 1); below 5 % from six pairs on."""
    comparison = compare_paired(dict.fromkeys(range(n), 98.0), dict.fromkeys(range(n), 98.1))
    assert comparison.p == 2 / 2**n
    assert comparison.significant == (n >= 6)


@pytest.mark.parametrize(
    ("a", "b", "confidence", "error", "words"),
    [
        ({1: 1.0}, {2: 1.0}, 0.95, PrunusError, r"\[1\] and \[2\]"),
        ({}, {}, 0.95, PrunusError, "common seeds to pair"),
        ({1: 1.0, 3: math.nan}, {1: 1.0, 3: 1.0}, 0.95, NonFiniteError, "got nan and 1.0 for seed 3"),
        ({1: 1.0}, {1: math.inf}, 0.95, NonFiniteError, "for seed 1"),
        (DENSE, TICKET, 95, PrunusError, "between 0 and 1"),
        (DENSE, TICKET, 1.0, PrunusError, "between 0 and 1"),
    ],
)
def test_values_that_cannot_be_compared_are_refused(
    a: dict[int, float], b: dict[int, float], confidence: float, error: type[PrunusError], words: str
) -> None:
    with pytest.raises(error, match=words):
        compare_paired(a, b, confidence)


def test_holm_keeps_order_and_never_lowers_a_p_value() -> None:
    """The step-down values of Holm 1979 for four hypotheses, computed by hand."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(
    ("values", "expected", "margin", "verdict"),
    [
        ([1.0, 1.1, 0.9, 1.05], "higher", 0.0, "holds"),
        ([1.0, 1.1, 0.9, 1.05], "lower", 0.0, "does not hold"),
        ([1.0, -1.1, 0.9, -1.05], "higher", 0.0, "not shown"),
        ([0.01, -0.02, 0.02, 0.0], "equal", 0.5, "holds"),
        ([1.0, 1.1, 0.9, 1.05], "equal", 0.5, "does not hold"),
        ([0.4, 0.7, 0.3, 0.6], "equal", 0.5, "not shown"),
        ([0.2, -0.3, 0.1, -0.1], "not lower", 0.5, "holds"),
        ([3.0, -0.3, 2.0, 1.0], "not lower", 1.0, "holds"),
        ([-1.0, -1.1, -0.9, -1.05], "not lower", 0.5, "does not hold"),
        ([-0.4, -0.7, -0.3, -0.6], "not lower", 0.5, "not shown"),
        ([-3.0, 0.3, -2.0, -1.0], "not higher", 1.0, "holds"),
        ([1.0, 1.1, 0.9, 1.05], "not higher", 0.5, "does not hold"),
        ([0.4, 0.7, 0.3, 0.6], "not higher", 0.5, "not shown"),
        ([5.0], "higher", 0.0, "not shown"),
        ([0.1] * 5, "equal", 0.5, "holds"),  # p is 1/32
        ([0.1] * 4, "equal", 0.5, "not shown"),
        ([0.9] * 5, "not higher", 0.5, "does not hold"),
        ([0.5] * 9, "equal", 0.5, "not shown"),
    ],
)
def test_claims_are_decided_by_interval_and_margin(values, expected, margin, verdict) -> None:  # type: ignore[no-untyped-def]
    comparison = compare_paired(dict.fromkeys(range(len(values)), 0.0), dict(enumerate(values)))
    p = claim_p_value(comparison, expected, margin)
    assert decide(comparison, expected, p, margin) == verdict
    assert decide(comparison, expected, 0.06, margin) == "not shown"

"""The inner loop of ExactOBS, compiled: the weights of a row are removed one after another, cheapest first."""

import numpy as np
from numba import get_num_threads, prange, set_num_threads
from numpy.typing import NDArray

from prunus.compiled import compile_kernel

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def elimination_scores(
    weights: Floats,
    inverse: Floats,
    remaining: Bools,
    block_size: int,
    group_size: int,
    quota: int,
    threads: int,
) -> Floats:
    """What each removal costs, made nondecreasing along the removals of a row.

    Args:
        weights: [R, D].
        inverse: [D, D], of the damped Hessian.
        remaining: [R, D], True where a weight remains; the others are zero.
        block_size: Number of neighboring columns that are removed together; 1: single weights.
        group_size: Number of neighboring columns that share a quota; D: no such rule.
        quota: Of every `group_size` columns at most this many are removed before all others have reached theirs.
        threads: Rows at once; the result does not depend on it.

    Returns:
        [R, D]: 0 for weights that do not remain; otherwise the cost of the removal (of a block, its fraction). Where
        later removals cost less, all of that stretch have its mean, each larger than the one before by the smallest
        difference of floats: the order of the removals of a row is that of its scores.
    """
    scores = np.zeros_like(weights)
    before = get_num_threads()
    set_num_threads(max(1, min(threads, before)))
    try:
        _eliminate(weights, inverse, remaining, block_size, group_size, quota, scores)
    finally:
        set_num_threads(before)
    return scores


@compile_kernel(parallel=True)
def _eliminate(
    weights: Floats,
    inverse: Floats,
    remaining: Bools,
    block_size: int,
    group_size: int,
    quota: int,
    scores: Floats,
) -> None:
    for row in prange(len(weights)):
        _eliminate_row(
            weights[row].copy(), inverse.copy(), remaining[row], block_size, group_size, quota, scores[row]
        )


@compile_kernel()
def _eliminate_row(
    w: Floats, a: Floats, remaining: Bools, block_size: int, group_size: int, quota: int, scores: Floats
) -> None:
    """`w` and the lower triangle of `a` shrink: the removed weight is exchanged with the last one."""
    size = len(w)
    column = np.arange(size)  # at a position
    position_of = np.arange(size)  # of a column
    for q in range(size):
        if not remaining[q]:
            w[position_of[q]] = 0.0
            size = _remove(position_of[q], w, a, size, column, position_of)
    quotas = np.full(-(-len(remaining) // group_size), quota)  # earlier removals count
    for q in range(len(remaining)):
        quotas[q // group_size] -= not remaining[q]
    alive = remaining.copy()
    removed, costs = np.empty(size, np.int64), np.empty(size)
    num_removed = 0
    while size:
        first, cost = _cheapest(w, a, size, column, position_of, alive, block_size, group_size, quotas)
        if first < 0:  # every group is at its quota
            quotas[:] = len(remaining)
            continue
        members = alive[first : first + block_size].sum()
        for q in range(first, min(first + block_size, len(remaining))):
            if alive[q]:
                removed[num_removed], costs[num_removed] = q, cost / members
                num_removed += 1
                alive[q] = False
                quotas[q // group_size] -= 1
                size = _remove(position_of[q], w, a, size, column, position_of)
    _make_nondecreasing(costs)
    before = -np.inf
    for t in range(num_removed):
        before = max(np.nextafter(before, np.inf), costs[t])
        scores[removed[t]] = before


@compile_kernel()
def _make_nondecreasing(costs: Floats) -> None:
    """Isotonic regression by pool adjacent violators: replace each stretch of decreasing costs by its mean.

    The results are the slopes of the greatest convex minorant of the cumulative costs (Ayer et al. 1955).
    """
    starts, means = np.empty(len(costs), np.int64), np.empty(len(costs))
    stretches = 0
    for t in range(len(costs)):
        start, mean = t, costs[t]
        while stretches and means[stretches - 1] >= mean:
            stretches -= 1
            longer = start - starts[stretches]
            mean = (means[stretches] * longer + mean * (t + 1 - start)) / (t + 1 - starts[stretches])
            start = starts[stretches]
        starts[stretches], means[stretches] = start, mean
        stretches += 1
    for stretch in range(stretches):
        end = starts[stretch + 1] if stretch + 1 < stretches else len(costs)
        costs[starts[stretch] : end] = means[stretch]


@compile_kernel()
def _cheapest(
    w: Floats,
    a: Floats,
    size: int,
    column: NDArray[np.int64],
    position_of: NDArray[np.int64],
    alive: Bools,
    block_size: int,
    group_size: int,
    quotas: NDArray[np.int64],
) -> tuple[int, float]:
    """The first column of the cheapest removal, and its cost; -1: none is allowed."""
    best, lowest = -1, np.inf
    if block_size == 1:
        for i in range(size):
            cost = w[i] * w[i] / (2 * a[i, i])
            if quotas[column[i] // group_size] > 0 and (best < 0 or cost < lowest):
                best, lowest = column[i], cost
        return best, lowest
    for first in range(0, len(alive), block_size):
        if alive[first : first + block_size].any():
            cost = _block_cost(w, a, first, min(first + block_size, len(alive)), position_of, alive)
            if best < 0 or cost < lowest:
                best, lowest = first, cost
    return best, lowest


@compile_kernel()
def _block_cost(
    w: Floats, a: Floats, first: int, end: int, position_of: NDArray[np.int64], alive: Bools
) -> float:
    """½ w_Bᵀ (A_BB)⁻¹ w_B, one member after another."""
    members = [position_of[q] for q in range(first, end) if alive[q]]
    n = len(members)
    v, s = np.empty(n), np.empty((n, n))
    for i in range(n):
        v[i] = w[members[i]]
        for j in range(i + 1):
            s[i, j] = a[max(members[i], members[j]), min(members[i], members[j])]
    cost = 0.0
    for q in range(n):
        cost += v[q] * v[q] / (2 * s[q, q])
        for i in range(q + 1, n):
            factor = s[i, q] / s[q, q]
            v[i] -= factor * v[q]
            for j in range(q + 1, i + 1):
                s[i, j] -= factor * s[j, q]
    return cost


@compile_kernel(fastmath={"contract"})
def _remove(
    position: int, w: Floats, a: Floats, size: int, column: NDArray[np.int64], position_of: NDArray[np.int64]
) -> int:
    """Remove the weight at a position, update the others and the inverse; return the number that remain."""
    last = size - 1
    v = np.empty(size)
    for i in range(size):
        v[i] = a[position, i] if i < position else a[i, position]
    pivot, factor = v[position], w[position] / v[position]
    if position != last:  # the last is moved to its position
        w[position], v[position] = w[last], v[last]
        moved, removed_column = column[last], column[position]
        column[position], position_of[moved] = moved, position
        column[last], position_of[removed_column] = removed_column, last
        for j in range(position):
            a[position, j] = a[last, j]
        a[position, position] = a[last, last]
        for i in range(position + 1, last):
            a[i, position] = a[last, i]
    for i in range(last):
        w[i] -= factor * v[i]
        if v[i]:
            a[i, : i + 1] -= v[i] / pivot * v[: i + 1]
    return last

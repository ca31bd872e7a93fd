"""The inner loop of ExactOBS, compiled: the weights of a row are removed one after another, cheapest first."""

import numpy as np
from numba import get_num_threads, prange, set_num_threads
from numpy.typing import NDArray

from prunus.compiled import compile_kernel

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def elimination_scores(
    weights: Floats, inverse: Floats, left: Bools, block: int, group: int, quota: int, threads: int
) -> Floats:
    """What each removal costs, made nondecreasing along the removals of a row.

    Args:
        weights: [R, D].
        inverse: [D, D], of the damped Hessian.
        left: [R, D], True where a weight remains; the others are zero.
        block: Number of neighboring columns that are removed together; 1: single weights.
        group: Number of neighboring columns that share a quota; D: no such rule.
        quota: Of every `group` columns at most this many are removed before all others have reached theirs.
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
        _rows(weights, inverse, left, block, group, quota, scores)
    finally:
        set_num_threads(before)
    return scores


@compile_kernel(parallel=True)
def _rows(
    weights: Floats, inverse: Floats, left: Bools, block: int, group: int, quota: int, scores: Floats
) -> None:
    for row in prange(len(weights)):
        _row(weights[row].copy(), inverse.copy(), left[row], block, group, quota, scores[row])


@compile_kernel()
def _row(w: Floats, a: Floats, left: Bools, block: int, group: int, quota: int, scores: Floats) -> None:
    """`w` and the lower triangle of `a` shrink: the removed weight is exchanged with the last one."""
    size = len(w)
    column = np.arange(size)  # at a position
    place = np.arange(size)  # of a column
    for q in range(size):
        if not left[q]:
            w[place[q]] = 0.0
            size = _delete(place[q], w, a, size, column, place)
    quotas = np.full(-(-len(left) // group), quota)  # earlier removals count
    for q in range(len(left)):
        quotas[q // group] -= not left[q]
    alive = left.copy()
    removed, costs = np.empty(size, np.int64), np.empty(size)
    num_removed = 0
    while size:
        first, cost = _cheapest(w, a, size, column, place, alive, block, group, quotas)
        if first < 0:  # every group is at its quota
            quotas[:] = len(left)
            continue
        members = alive[first : first + block].sum()
        for q in range(first, min(first + block, len(left))):
            if alive[q]:
                removed[num_removed], costs[num_removed] = q, cost / members
                num_removed += 1
                alive[q] = False
                quotas[q // group] -= 1
                size = _delete(place[q], w, a, size, column, place)
    _level(costs)
    before = -np.inf
    for t in range(num_removed):
        before = max(np.nextafter(before, np.inf), costs[t])
        scores[removed[t]] = before


@compile_kernel()
def _level(costs: Floats) -> None:
    """Where costs decrease, replace that stretch by its mean: the slopes of the convex curve below their sums."""
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
    place: NDArray[np.int64],
    alive: Bools,
    block: int,
    group: int,
    quotas: NDArray[np.int64],
) -> tuple[int, float]:
    """The first column of the cheapest removal, and its cost; -1: none is allowed."""
    best, lowest = -1, np.inf
    if block == 1:
        for i in range(size):
            cost = w[i] * w[i] / (2 * a[i, i])
            if quotas[column[i] // group] > 0 and (best < 0 or cost < lowest):
                best, lowest = column[i], cost
        return best, lowest
    for first in range(0, len(alive), block):
        if alive[first : first + block].any():
            cost = _joint(w, a, first, min(first + block, len(alive)), place, alive)
            if best < 0 or cost < lowest:
                best, lowest = first, cost
    return best, lowest


@compile_kernel()
def _joint(w: Floats, a: Floats, first: int, end: int, place: NDArray[np.int64], alive: Bools) -> float:
    """½ w_Bᵀ (A_BB)⁻¹ w_B, one member after another."""
    members = [place[q] for q in range(first, end) if alive[q]]
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
def _delete(
    at: int, w: Floats, a: Floats, size: int, column: NDArray[np.int64], place: NDArray[np.int64]
) -> int:
    """Remove the weight at a position, update the others and the inverse; return the number that remain."""
    last = size - 1
    v = np.empty(size)
    for i in range(size):
        v[i] = a[at, i] if i < at else a[i, at]
    pivot, factor = v[at], w[at] / v[at]
    if at != last:  # the last is moved to its position
        w[at], v[at] = w[last], v[last]
        moved, removed_column = column[last], column[at]
        column[at], place[moved] = moved, at
        column[last], place[removed_column] = removed_column, last
        for j in range(at):
            a[at, j] = a[last, j]
        a[at, at] = a[last, last]
        for i in range(at + 1, last):
            a[i, at] = a[last, i]
    for i in range(last):
        w[i] -= factor * v[i]
        if v[i]:
            a[i, : i + 1] -= v[i] / pivot * v[: i + 1]
    return last

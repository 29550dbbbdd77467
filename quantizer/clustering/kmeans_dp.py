"""Optimal weighted 1-D k-means of one row, in numba.

Clusters of an optimum are intervals of the sorted points, so a solution is a partition of the
points 0..m-1 into K intervals. With S0, S1 the prefix sums of w and w x, an interval [i, j) saves

    gain(i, j) = (S1[j] - S1[i])^2 / (S0[j] - S0[i])

of the constant sum of w x^2. -gain obeys the quadrangle inequality, which both solvers rest on:

`_by_penalty`: the best partition into any number of intervals that cost a penalty each, in
O(m log m) with a queue of candidates (Hirschberg and Larmore, "The least weight subsequence
problem", SIAM J. Comput. 16, 1987). A partition of exactly K intervals that is optimal for some
penalty is optimal among all of K (Lagrange), and the number falls as the penalty rises.

`_by_layers`: the dynamic program over K by divide and conquer, O(K m log m), for the rows where
ties leave no penalty with exactly K intervals.
"""

import numpy as np
from numba import njit

MAX_PENALTIES = 60
COARSE_POINTS = 256  # penalties are first tried on a few times so many merged points
GUESS_CHUNK = 32  # points per step of the density estimate


@njit(cache=True, inline="always")
def _gain(s0, s1, i, j):
    moment = s1[j] - s1[i]
    return moment * moment / (s0[j] - s0[i])


@njit(cache=True)
def partition(s0, s1, x, clusters):
    """Bounds (clusters + 1,) of the optimal intervals of m > clusters >= 1 points.

    s0, s1: (m + 1,) prefix sums of the weights, strictly ascending, and of weight x value;
    x: (m,) ascending values.
    """
    points = x.size
    penalty = _coarse_penalty(s0, s1, x, clusters)
    parent = np.empty(points + 1, np.int32)
    if _search(s0, s1, clusters, penalty, parent) <= 0.0:
        return _by_layers(s0, s1, clusters)
    bounds = np.empty(clusters + 1, np.int32)
    j = points
    for k in range(clusters, -1, -1):
        bounds[k] = j
        j = parent[j]
    return bounds


@njit(cache=True)
def _coarse_penalty(s0, s1, x, clusters):
    """A penalty that is probably right: right for the row with neighbours merged."""
    guess = _density_penalty(s0, x, clusters)
    if x.size < 4 * COARSE_POINTS or clusters * 8 > COARSE_POINTS:
        return guess
    picks = merged_starts(x, COARSE_POINTS)
    parent = np.empty(picks.size, np.int32)
    found = _search(s0[picks], s1[picks], clusters, guess, parent)
    return found if found > 0.0 else guess


@njit(cache=True)
def merged_starts(x, groups):
    """First points of groups of neighbours, and m: few points each, and a small part of the range.

    The second matters for heavy tails, where few points stand far apart.
    """
    most_points, widest = max(1, x.size // groups), (x[-1] - x[0]) / groups
    starts = np.empty(x.size + 1, np.int64)
    starts[0], count = 0, 1
    for i in range(1, x.size):
        first = starts[count - 1]
        if i - first >= most_points or x[i] - x[first] >= widest:
            starts[count] = i
            count += 1
    starts[count] = x.size
    return starts[: count + 1]


@njit(cache=True)
def _density_penalty(s0, x, clusters):
    """Penalty for K intervals from the high-resolution error (integral p^(1/3))^3 / (12 K^2).

    Its derivative in K is the penalty. Source: Panter and Dite, "Quantization distortion in
    pulse-count modulation with nonuniform spacing of levels", Proc. IRE 39, 1951.
    """
    total = 0.0
    for i in range(0, x.size - 1, GUESS_CHUNK):
        j = min(i + GUESS_CHUNK, x.size - 1)
        total += (s0[j] - s0[i]) ** (1.0 / 3.0) * (x[j] - x[i]) ** (2.0 / 3.0)
    return total**3 / (6.0 * clusters**3)


@njit(cache=True)
def _search(s0, s1, clusters, penalty, parent):
    """Penalty whose partition has `clusters` intervals, left in `parent`; 0 if there is none."""
    low, high = 0.0, np.inf  # too many intervals at low, too few at high
    for attempt in range(MAX_PENALTIES):
        count = _by_penalty(s0, s1, penalty, parent)
        if count == clusters:
            return penalty
        if count > clusters:
            low = penalty
        else:
            high = penalty
        step = (count / clusters) ** 3  # intervals go as penalty^(-1/3)
        following = penalty * min(max(step, 1e-6), 1e6)
        if not low < following < high or attempt > 6:
            following = _middle(low, high, penalty)
        if not low < following < high:
            return 0.0
        penalty = following
    return 0.0


@njit(cache=True)
def _middle(low, high, penalty):
    if high == np.inf:
        return penalty * 16.0
    if low == 0.0:
        return penalty / 16.0
    return np.sqrt(low * high)


@njit(cache=True)
def _by_penalty(s0, s1, penalty, parent):
    """Best partition when every interval costs `penalty`: number of intervals, and parents.

    Queue entry q: from column `start[q]` on, `candidate[q]` is the best left bound so far.
    """
    points = s0.size - 1
    best = np.empty(points + 1)
    count = np.empty(points + 1, np.int32)
    candidate = np.empty(points + 1, np.int32)
    start = np.empty(points + 1, np.int32)
    best[0], count[0], parent[0] = 0.0, 0, -1
    candidate[0], start[0] = 0, 1
    head, tail = 0, 0
    for j in range(1, points + 1):
        while head < tail and start[head + 1] <= j:
            head += 1
        i = candidate[head]
        best[j] = best[i] + _gain(s0, s1, i, j) - penalty
        parent[j], count[j] = i, count[i] + 1
        if j == points:
            break
        column = j + 1
        while tail >= head and _beats(s0, s1, best, j, candidate[tail], max(start[tail], j + 1)):
            tail -= 1
        if tail >= head:
            column = _overtakes(s0, s1, best, j, candidate[tail], max(start[tail], j + 1))
        if column <= points:
            tail += 1
            candidate[tail], start[tail] = j, column
    return count[points]


@njit(cache=True, inline="always")
def _beats(s0, s1, best, j, rival, column):
    """Whether left bound j is better than `rival` at that column; once it is, it stays so."""
    return best[j] + _gain(s0, s1, j, column) > best[rival] + _gain(s0, s1, rival, column)


@njit(cache=True)
def _overtakes(s0, s1, best, j, rival, low):
    """First column above `low`, where it does not, at which j beats `rival`; m + 1 if none."""
    beyond = s0.size
    high, step = low + 1, 1
    while high < beyond and not _beats(s0, s1, best, j, rival, high):
        low, step = high, 2 * step
        high = min(high + step, beyond)
    while high - low > 1:
        middle = (low + high) // 2
        if _beats(s0, s1, best, j, rival, middle):
            high = middle
        else:
            low = middle
    return high


@njit(cache=True)
def _by_layers(s0, s1, clusters):
    """Bounds of the optimum by dynamic programming over the number of intervals."""
    points = s0.size - 1
    best = np.full(points + 1, -np.inf)
    for j in range(1, points + 1):
        best[j] = _gain(s0, s1, 0, j)
    parents = np.zeros((clusters + 1, points + 1), np.int32)
    for k in range(2, clusters + 1):
        best = _layer(s0, s1, best, parents[k], k, last=k == clusters)
    bounds = np.zeros(clusters + 1, np.int32)
    bounds[clusters] = points
    for k in range(clusters, 1, -1):
        bounds[k - 1] = parents[k, bounds[k]]
    return bounds


@njit(cache=True)
def _layer(s0, s1, best, parent, k, last):
    """What k intervals up to each column save, by divide and conquer; `last`: up to m alone.

    The best left bound of a column never lies left of that of a column before it.
    """
    points = s0.size - 1
    following = np.full(points + 1, -np.inf)
    stack = np.empty((128, 4), np.int64)
    stack[0] = (points if last else k, points, k - 1, points - 1)
    depth = 1
    while depth:
        depth -= 1
        low, high, left, right = stack[depth]
        middle = (low + high) // 2
        top, at = -np.inf, left
        for i in range(left, min(right, middle - 1) + 1):
            value = best[i] + _gain(s0, s1, i, middle)
            if value > top:
                top, at = value, i
        following[middle], parent[middle] = top, at
        if low < middle:
            stack[depth] = (low, middle - 1, left, at)
            depth += 1
        if middle < high:
            stack[depth] = (middle + 1, high, at, right)
            depth += 1
    return following

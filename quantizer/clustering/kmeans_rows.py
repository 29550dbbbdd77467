"""Rows in parallel for the 1-D k-means: sort, merge duplicates, partition, average; numba."""

import numpy as np
from numba import njit, prange

from quantizer.clustering.kmeans_dp import merged_starts, partition

FAST_POINTS = 256  # the fast mode partitions about so many merged points
NEGLIGIBLE = 2.0**-52  # of the sum of a row's weights
FAST_ROUNDS = 3  # of Lloyd's algorithm after it


@njit(cache=True)
def _merge(values, weights, order, x, w):
    """Distinct values of positive weight, ascending, into x and w; how many.

    A row without any positive weight counts every value once.
    """
    plain = not (weights > 0.0).any()
    count = 0
    for column in order:
        weight = 1.0 if plain else weights[column]
        if weight <= 0.0:
            continue
        if count and x[count - 1] == values[column]:
            w[count - 1] += weight
        else:
            x[count], w[count] = values[column], weight
            count += 1
    return count


@njit(cache=True)
def _drop_negligible(x, w):
    """Leave out points whose weight a sum of all weights would round away; how many stay."""
    least = w.sum() * NEGLIGIBLE
    count = 0
    for i in range(x.size):
        if w[i] > least:
            x[count], w[count] = x[i], w[i]
            count += 1
    return count


@njit(cache=True)
def _prefix(x, w):
    """Centre of the row, which is taken off x, and prefix sums of w and of w x."""
    centre = (x * w).sum() / w.sum()
    x -= centre
    s0, s1 = np.zeros(x.size + 1), np.zeros(x.size + 1)
    for i in range(x.size):
        s0[i + 1] = s0[i] + w[i]
        s1[i + 1] = s1[i] + w[i] * x[i]
    return centre, s0, s1


@njit(cache=True)
def _means(s0, s1, x, bounds, centroids):
    """Weighted mean of each interval that is not empty, inside it whatever the rounding."""
    for k in range(centroids.size):
        i, j = bounds[k], bounds[k + 1]
        if j > i:
            mean = (s1[j] - s1[i]) / (s0[j] - s0[i])
            centroids[k] = min(max(mean, x[i]), x[j - 1])


@njit(cache=True)
def _nearly(s0, s1, x, centroids):
    """Bounds of a good partition: optimal on merged neighbours, then Lloyd's algorithm."""
    picks = merged_starts(x, max(FAST_POINTS, 8 * centroids.size))
    bounds = picks[partition(s0[picks], s1[picks], x[picks[:-1]], centroids.size)]
    for _ in range(FAST_ROUNDS):
        _means(s0, s1, x, bounds, centroids)
        middles = (centroids[1:] + centroids[:-1]) / 2.0
        bounds[1:-1] = np.searchsorted(x, middles)
    return bounds


@njit(cache=True)
def _row(values, weights, order, centroids, exact):
    """Centroids of one row, ascending; spare ones repeat the largest."""
    clusters = centroids.size
    x, w = np.empty(values.size), np.empty(values.size)
    count = _merge(values, weights, order, x, w)
    count = _drop_negligible(x[:count], w[:count])
    x, w = x[:count], w[:count]
    if count <= clusters:
        centroids[:count] = x
        centroids[count:] = x[count - 1]
        return
    centre, s0, s1 = _prefix(x, w)
    if exact or count < 8 * clusters:
        bounds = partition(s0, s1, x, clusters).astype(np.int64)
    else:
        bounds = _nearly(s0, s1, x, centroids)
    _means(s0, s1, x, bounds, centroids)
    centroids += centre


@njit(cache=True, parallel=True)
def solve_rows(values, weights, order, centroids, exact):
    """Fill (N, K) float64 centroids for (N, C) float64 values and weights, and int64 argsort.

    Every row is solved by one thread alone, so the result is the same for any thread count.
    """
    for row in prange(values.shape[0]):
        _row(values[row], weights[row], order[row], centroids[row], exact)

"""Weighted 1-D k-means of every row of a matrix: the codebook of least sum_i w_i (x_i - Q(x_i))^2.

SqueezeLLM's clustering (arXiv 2306.07629, equation 3), which its code solves by scikit-learn from
a random start. Here the result is the global optimum (`kmeans_dp` on the CPU, `kmeans_torch` on a
GPU), or in fast mode a solution near it.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from perfmodel.errors import UsageError
from quantizer.clustering.kmeans_rows import solve_rows
from quantizer.clustering.kmeans_torch import solve_batch

MODES = ("exact", "fast")
CHUNK_WEIGHTS = 1 << 21  # weights sorted and solved at a time on a CPU
SAMPLE_STEP = 16  # fast mode: every so many rows are solved exactly to know the gap


class ClusteringError(UsageError):
    """Values or weights that cannot be clustered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clusters:
    """Codebooks of all rows."""

    centroids: Tensor  # (N, entries) float64, ascending; spare ones repeat the largest
    gap: float  # (objective / optimum - 1) of the rows of a sample; 0 in exact mode


def cluster_rows(
    values: Tensor, weights: Tensor | None, entries: int, *, mode: str = "exact"
) -> Clusters:
    """Cluster each row of (N, C) `values` into `entries` centroids, under (N, C) `weights` >= 0.

    Values of weight zero do not count; a row without any positive weight is clustered unweighted.
    On a CPU in numba on all cores, elsewhere in torch; the fast mode is for the CPU.

    Raises: ClusteringError unless shapes agree, values are finite and weights finite and >= 0.
    """
    weights = torch.ones_like(values) if weights is None else weights
    _check(values, weights, entries, mode)
    rows_at_once = max(1, CHUNK_WEIGHTS // values.shape[1])
    if values.device.type != "cpu":  # there `solve_batch` cuts to size, and launches are dear
        rows_at_once = values.shape[0]
    parts = [
        _solve(v, w, entries, exact=mode == "exact")
        for v, w in zip(values.split(rows_at_once), weights.split(rows_at_once), strict=True)
    ]
    centroids = torch.cat(parts)
    gap = 0.0
    if mode == "fast":
        sample = slice(None, None, SAMPLE_STEP)
        gap = _gap(values[sample], weights[sample], centroids[sample])
    return Clusters(centroids=centroids, gap=gap)


def nearest_codes(values: Tensor, tables: Tensor) -> Tensor:
    """(N, C) uint8: nearest entry of each value in ascending (N, entries) tables."""
    wide = tables.to(values.dtype)
    middles = ((wide[:, 1:] + wide[:, :-1]) / 2).contiguous()
    return torch.searchsorted(middles, values.contiguous()).to(torch.uint8)


def weighted_error(values: Tensor, weights: Tensor, quantized: Tensor) -> Tensor:
    """(N,) float64: sum_i w_i (x_i - q_i)^2 of each row."""
    return (weights.double() * (values.double() - quantized.double()).square()).sum(dim=1)


def objective(values: Tensor, weights: Tensor, tables: Tensor) -> Tensor:
    """(N,) float64: weighted error of each row when every value takes its nearest entry."""
    codes = nearest_codes(values.double(), tables.double())
    return weighted_error(values, weights, tables.gather(1, codes.long()))


def _solve(values: Tensor, weights: Tensor, entries: int, *, exact: bool) -> Tensor:
    if values.device.type != "cpu":
        return solve_batch(values, weights, entries)
    array = values.float().numpy()
    order = np.argsort(array, axis=1)
    centroids = np.empty((array.shape[0], entries))
    wide = weights.double().contiguous().numpy()
    threads = torch.get_num_threads()
    solve_rows(array.astype(np.float64), wide, order, centroids, exact)
    torch.set_num_threads(threads)  # numba's first parallel call sets OpenMP's number, so torch's
    return torch.from_numpy(centroids)


def _gap(values: Tensor, weights: Tensor, centroids: Tensor) -> float:
    found = objective(values, weights, centroids).sum()
    best = objective(values, weights, cluster_rows(values, weights, centroids.shape[1]).centroids)
    return max(0.0, float(found / best.sum()) - 1.0) if float(best.sum()) > 0 else 0.0


def _check(values: Tensor, weights: Tensor, entries: int, mode: str) -> None:
    if mode not in MODES:
        raise ClusteringError(f"mode is {mode!r}, expected one of {', '.join(MODES)}")
    if values.ndim != 2 or values.numel() == 0:
        raise ClusteringError(f"shape of values is {tuple(values.shape)}, expected (N, C)")
    if weights.shape != values.shape:
        found, due = tuple(weights.shape), tuple(values.shape)
        raise ClusteringError(f"shape of weights is {found}, expected {due} as the values")
    if entries < 1:
        raise ClusteringError(f"entries is {entries}, expected at least 1")
    if not bool(values.isfinite().all()):
        raise ClusteringError("values are not all finite")
    if not bool((weights >= 0).all() & weights.isfinite().all()):
        raise ClusteringError("weights are not all finite and at least 0")

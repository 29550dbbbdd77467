"""Exact 1-D k-means against brute force, against its torch twin, and on awkward rows."""

import os
import subprocess
import sys
from itertools import combinations

import numba
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantizer.clustering.kmeans import ClusteringError, cluster_rows, nearest_codes, objective
from quantizer.clustering.kmeans_dp import _by_layers, partition
from quantizer.clustering.kmeans_torch import solve_batch


def brute_force(values, weights, entries):
    """Least weighted error over all partitions of the sorted values into intervals."""
    order = np.argsort(values)
    x, w = np.asarray(values, float)[order], np.asarray(weights, float)[order]
    best = np.inf
    for cuts in combinations(range(1, len(x)), min(entries, len(x)) - 1):
        error = 0.0
        for i, j in zip((0, *cuts), (*cuts, len(x)), strict=True):
            mass = w[i:j].sum()
            mean = (w[i:j] * x[i:j]).sum() / mass if mass else 0.0
            error += (w[i:j] * (x[i:j] - mean) ** 2).sum()
        best = min(best, error)
    return best


def error_of(values, weights, centroids):
    return float(objective(values, weights, centroids).sum())


def random_rows(rows, columns, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, columns, generator=generator)
    return values, torch.rand(rows, columns, generator=generator).square() + 1e-3


ROW = st.lists(
    st.tuples(st.integers(-6, 6), st.sampled_from([0.0, 0.5, 1.0, 3.0])), min_size=1, max_size=9
)


@given(row=ROW, entries=st.integers(1, 4))
@settings(max_examples=100, deadline=None)
def test_no_partition_is_better(row, entries):
    values = torch.tensor([[float(x) for x, _ in row]])
    weights = torch.tensor([[w for _, w in row]])
    counted = weights if bool((weights > 0).any()) else torch.ones_like(weights)
    best = brute_force(values[0].numpy(), counted[0].numpy(), entries)
    exact = cluster_rows(values, weights, entries).centroids
    assert error_of(values, counted, exact) == pytest.approx(best, abs=1e-9)
    batched = solve_batch(values, weights, entries)
    assert error_of(values, counted, batched) == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("entries", [1, 2, 3, 4, 8, 16, 32, 64, 128])
def test_penalties_find_what_the_dynamic_program_finds(entries):
    values, weights = random_rows(8, 1500)
    centroids = cluster_rows(values, weights, entries).centroids
    for row in range(8):
        x, order = values[row].double().sort()
        w = weights[row].double()[order]
        s0 = np.concatenate(([0.0], np.cumsum(w.numpy())))
        s1 = np.concatenate(([0.0], np.cumsum((w * x).numpy())))
        bounds = _by_layers(s0, s1, entries)
        means = torch.from_numpy(np.diff(s1[bounds]) / np.diff(s0[bounds]))
        torch.testing.assert_close(centroids[row], means, rtol=1e-9, atol=1e-9)


def test_ties_fall_back_to_the_dynamic_program():
    x = np.arange(6.0)  # equally spaced: no penalty has an optimum of exactly four intervals
    s0, s1 = np.arange(7.0), np.concatenate(([0.0], np.cumsum(x - x.mean())))
    bounds = partition(s0, s1, x, 4)
    assert sorted(np.diff(bounds)) == [1, 1, 2, 2]


@pytest.mark.parametrize(
    ("rows", "columns", "entries"), [(5, 700, 8), (3, 300, 16), (2, 11008, 8), (2, 150, 64)]
)
def test_torch_finds_the_same_optimum(rows, columns, entries):
    values, weights = random_rows(rows, columns)
    exact = cluster_rows(values, weights, entries).centroids
    torch.testing.assert_close(
        objective(values, weights, solve_batch(values, weights, entries)),
        objective(values, weights, exact),
        rtol=1e-9,
        atol=0,
    )


def test_threads_do_not_change_a_bit():
    values, weights = random_rows(40, 512)
    before = numba.get_num_threads()
    results = []
    for threads in (1, min(2, before)):
        numba.set_num_threads(threads)
        results.append(cluster_rows(values, weights, 16).centroids)
    numba.set_num_threads(before)
    assert torch.equal(*results)


@given(seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_the_order_of_columns_does_not_matter(seed):
    values, weights = random_rows(2, 60, seed)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(seed))
    straight = cluster_rows(values, weights, 4).centroids
    shuffled = cluster_rows(values[:, order], weights[:, order], 4).centroids
    torch.testing.assert_close(straight, shuffled)


def test_a_centroid_is_the_weighted_mean_of_its_values():
    values = torch.tensor([[0.0, 1.0, 10.0, 11.0]])
    weights = torch.tensor([[1.0, 3.0, 1.0, 1.0]])
    centroids = cluster_rows(values, weights, 2).centroids
    assert centroids.tolist() == [[pytest.approx(0.75), pytest.approx(10.5)]]


def test_values_of_weight_zero_do_not_count():
    values = torch.tensor([[0.0, 1.0, 10.0, 500.0]])
    weights = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    assert cluster_rows(values, weights, 2).centroids.tolist() == [[0.5, 10.0]]


def test_a_row_without_weight_is_clustered_unweighted():
    values = torch.tensor([[0.0, 2.0, 10.0, 12.0], [5.0, 5.0, 5.0, 5.0]])
    centroids = cluster_rows(values, torch.zeros(2, 4), 2).centroids
    assert centroids.tolist() == [[1.0, 11.0], [5.0, 5.0]]


@pytest.mark.parametrize("solve", [cluster_rows, solve_batch])
def test_fewer_distinct_values_than_entries_are_kept_exactly(solve):
    values = torch.tensor([[3.0, -1.0, 3.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    found = solve(values, torch.ones(2, 4), 8)
    centroids = found if isinstance(found, torch.Tensor) else found.centroids
    assert centroids[0].tolist() == [-1.0, 2.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0]
    assert centroids[1].tolist() == [0.0] * 8


def test_duplicates_count_by_their_weight():
    values = torch.tensor([[1.0, 1.0, 1.0, 2.0, 9.0]])
    merged = torch.tensor([[1.0, 2.0, 9.0]])
    plain = cluster_rows(values, None, 2).centroids
    weighted = cluster_rows(merged, torch.tensor([[3.0, 1.0, 1.0]]), 2).centroids
    assert torch.equal(plain, weighted)


def test_bf16_rows_have_the_optimum_of_their_float_values():
    values, weights = random_rows(4, 2048)
    values = values.bfloat16()
    assert torch.equal(
        cluster_rows(values, weights, 8).centroids,
        cluster_rows(values.float(), weights, 8).centroids,
    )


def test_weights_far_below_the_others_do_no_harm():
    values, weights = random_rows(4, 400)
    weights[:, ::3] *= 1e-30  # a sum of the others does not change by them
    due = objective(values, weights, cluster_rows(values, weights, 8).centroids)
    batched = solve_batch(values, weights, 8)
    torch.testing.assert_close(objective(values, weights, batched), due, rtol=1e-9, atol=0)
    kept = torch.ones(400, dtype=torch.bool)
    kept[::3] = False
    alone = cluster_rows(values[:, kept], weights[:, kept], 8).centroids
    torch.testing.assert_close(objective(values, weights, alone), due, rtol=1e-9, atol=0)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_the_scale_of_the_weights_does_not_matter(scale):
    values, weights = random_rows(3, 200)
    reference = cluster_rows(values, weights, 8).centroids
    torch.testing.assert_close(cluster_rows(values, weights * scale, 8).centroids, reference)


def test_fast_mode_says_how_far_it_is_from_the_optimum():
    values, weights = random_rows(32, 4096)
    fast = cluster_rows(values, weights, 8, mode="fast")
    exact = cluster_rows(values, weights, 8)
    ratio = error_of(values, weights, fast.centroids) / error_of(values, weights, exact.centroids)
    assert exact.gap == 0.0
    assert 0.0 <= fast.gap < 0.01
    assert 1.0 - 1e-12 <= ratio < 1.01


def test_codes_are_the_nearest_entries():
    values, _ = random_rows(3, 50)
    tables = torch.tensor([[-1.0, -0.2, 0.3, 1.5]]).expand(3, -1)
    slow = (values[:, :, None] - tables[:, None, :]).abs().argmin(dim=2)
    assert torch.equal(nearest_codes(values, tables).long(), slow)


@pytest.mark.parametrize(
    ("values", "weights", "message"),
    [
        (torch.ones(2, 3), torch.ones(3, 2), "shape of weights is"),
        (torch.full((1, 2), torch.inf), torch.ones(1, 2), "values are not all finite"),
        (torch.ones(1, 2), -torch.ones(1, 2), "weights are not all finite and at least 0"),
        (torch.ones(1, 2), torch.full((1, 2), torch.nan), "weights are not all finite"),
        (torch.ones(0, 2), torch.ones(0, 2), "shape of values"),
    ],
)
def test_bad_input_is_refused(values, weights, message):
    with pytest.raises(ClusteringError, match=message):
        cluster_rows(values, weights, 2)


def test_torch_keeps_its_number_of_threads():
    """In a process of its own: numba asks OpenMP for threads when it first runs in parallel."""
    code = (
        "import torch; torch.set_num_threads(1); torch.ones(1 << 16).sub_(1.0);"
        "from quantizer.clustering.kmeans import cluster_rows;"
        "cluster_rows(torch.randn(4, 64), None, 4); print(torch.__config__.parallel_info())"
    )
    environment = os.environ | {"NUMBA_NUM_THREADS": "2"}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert "omp_get_max_threads() : 1" in run.stdout

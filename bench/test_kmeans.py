"""Exact 1-D k-means against scikit-learn as SqueezeLLM calls it, and flash1dkmeans, in one run.

`pytest bench/test_kmeans.py`. Rows of 4096 values, all on one thread: rows per CPU-second, and the
weighted error over the optimum. Data: Gaussian values with lognormal(1.5) weights; Student's t(4)
values with chi-square weights; Gaussian values with uniform weights.
"""

import time
from importlib.util import find_spec

import numba
import numpy as np
import pytest
import torch

from quantizer.clustering.kmeans import cluster_rows, objective

COLUMNS = 4096
ROWS = {"ours": 256, "fast": 256, "torch": 16, "sklearn": 12, "flash1dkmeans": 64}
LEAST_SPEEDUP = 5.0  # over scikit-learn, at 8 entries
SKLEARN = {"random_state": 0, "n_init": "auto", "max_iter": 50}  # SqueezeLLM's nuq.py
MODULES = {"sklearn": "scikit-learn", "flash1dkmeans": "flash1dkmeans"}


def data(name, rows):
    generator = np.random.default_rng(0)
    shape = (rows, COLUMNS)
    values, weights = {
        "gaussian": lambda: (generator.standard_normal(shape), generator.lognormal(0, 1.5, shape)),
        "heavy": lambda: (generator.standard_t(4, shape), generator.chisquare(1, shape)),
        "uniform": lambda: (generator.standard_normal(shape), generator.random(shape)),
    }[name]()
    return torch.from_numpy(values).float(), torch.from_numpy(weights).float()


def ours(values, weights, entries):
    return cluster_rows(values, weights, entries).centroids


def fast(values, weights, entries):
    return cluster_rows(values, weights, entries, mode="fast").centroids


def batched(values, weights, entries):
    from quantizer.clustering.kmeans_torch import solve_batch

    return solve_batch(values, weights, entries)


def sklearn(values, weights, entries):
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        found = [
            KMeans(entries, **SKLEARN).fit(x[:, None], sample_weight=w).cluster_centers_[:, 0]
            for x, w in zip(values.numpy(), weights.numpy(), strict=True)
        ]
    return torch.from_numpy(np.sort(np.stack(found), axis=1)).double()


def flash1dkmeans(values, weights, entries):
    from flash1dkmeans import kmeans_1d

    found = [
        kmeans_1d(x, entries, sample_weights=w, max_iter=50, random_state=0)[0]
        for x, w in zip(values.numpy(), weights.numpy(), strict=True)
    ]
    return torch.from_numpy(np.sort(np.stack(found), axis=1)).double()


SOLVERS = {
    "ours": ours,
    "fast": fast,
    "torch": batched,
    "sklearn": sklearn,
    "flash1dkmeans": flash1dkmeans,
}


@pytest.fixture(autouse=True)
def _one_thread():
    before = numba.get_num_threads(), torch.get_num_threads()
    numba.set_num_threads(1)
    torch.set_num_threads(1)
    yield
    numba.set_num_threads(before[0])
    torch.set_num_threads(before[1])


def rows_per_cpu_s(solve, values, weights, entries):
    start = time.process_time()
    solve(values, weights, entries)
    return len(values) / (time.process_time() - start)


@pytest.mark.parametrize("name", ["gaussian", "heavy", "uniform"])
@pytest.mark.parametrize("entries", [8, 16])
@pytest.mark.parametrize("solver", SOLVERS)
def test_kmeans(benchmark, capsys, solver, entries, name):
    if solver in MODULES and find_spec(solver) is None:
        pytest.skip(f"{MODULES[solver]} is not installed; `make bench` installs it")
    solve = SOLVERS[solver]
    values, weights = data(name, ROWS[solver])
    centroids = solve(values, weights, entries)  # and compile
    optimum = objective(values, weights, ours(values, weights, entries))
    ratios = objective(values, weights, centroids) / optimum
    benchmark.group = f"{name}, {entries} entries"
    benchmark.pedantic(solve, args=(values, weights, entries), rounds=3)
    facts = {
        "rows_per_cpu_s": rows_per_cpu_s(solve, values, weights, entries),
        "mean_ratio": float(ratios.mean()),
        "worst_ratio": float(ratios.max()),
    }
    benchmark.extra_info.update(facts)
    with capsys.disabled():
        print(
            f"\n{solver:14} K={entries:<3} {name:9} {facts['rows_per_cpu_s']:8.0f} rows/CPU-s, "
            f"error over optimum {facts['mean_ratio']:.4f}, worst row {facts['worst_ratio']:.4f}",
            end="",
        )
    assert float(ratios.min()) > 1.0 - 1e-9  # nothing is better than the optimum


@pytest.mark.parametrize("name", ["gaussian", "heavy", "uniform"])
def test_at_least_five_times_the_speed_of_sklearn(name):
    """Alternating, in one process: contention of other jobs hits both."""
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    mine, theirs = data(name, 128), data(name, 4)
    ours(*mine, 8)
    sklearn(*theirs, 8)
    pairs = [(rows_per_cpu_s(ours, *mine, 8), rows_per_cpu_s(sklearn, *theirs, 8)) for _ in "123"]
    assert max(a for a, _ in pairs) >= LEAST_SPEEDUP * max(b for _, b in pairs)

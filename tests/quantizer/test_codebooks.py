"""Constrained tables: stored values, cost beside the free optimum, and plain searches."""

import pytest
import torch

from quantizer.clustering.kmeans import cluster_rows, objective
from quantizer.methods.codebooks import fit_table

KINDS = [(4, "fp16"), (3, "int8"), (4, "int8"), (4, "u7"), (4, "sym"), (2, "int8")]


def rows(count=16, columns=1024, *, heavy=False):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(count, columns, generator=generator)
    if heavy:  # Student's t of 4 degrees of freedom
        squares = torch.randn(4, count, columns, generator=generator).square()
        values = values / squares.mean(dim=0).sqrt()
    weights = torch.randn(count, columns, generator=generator).mul(1.5).exp()
    return 0.02 * values, weights


@pytest.mark.parametrize("heavy", [False, True])
@pytest.mark.parametrize(("bits", "kind"), KINDS)
def test_the_cost_of_a_constraint_is_told_and_small(bits, kind, heavy):
    values, weights = rows(heavy=heavy)
    table = fit_table(values, weights, bits=bits, kind=kind)
    free = objective(values, weights, cluster_rows(values, weights, 2**bits).centroids)
    found = table.values.gather(1, table.codes.long())
    error = (weights.double() * (values.double() - found.double()).square()).sum()
    assert table.error == pytest.approx(float(error))
    assert table.cost_over_free == pytest.approx(float(error / free.sum()))
    limits = {"fp16": 1.001, "int8": 1.006, "u7": 1.025, "sym": 1.25}
    heavy_limits = {"fp16": 1.001, "int8": 1.018, "u7": 1.04, "sym": 1.3}
    assert 1.0 <= table.cost_over_free < (heavy_limits if heavy else limits)[kind]


@pytest.mark.parametrize(("bits", "kind"), KINDS)
def test_every_code_is_the_nearest_of_its_table(bits, kind):
    values, weights = rows(4, 300)
    table = fit_table(values, weights, bits=bits, kind=kind)
    distances = (values[:, :, None] - table.values[:, None, :]).abs()
    found = distances.gather(2, table.codes.long()[:, :, None])[:, :, 0]
    torch.testing.assert_close(found, distances.amin(dim=2), rtol=0, atol=1e-7)


@pytest.mark.parametrize(("bits", "kind"), [(3, "int8"), (4, "u7")])
def test_descent_beats_rounding_the_free_optimum(bits, kind):
    values, weights = rows(heavy=True)
    table = fit_table(values, weights, bits=bits, kind=kind)
    centroids = cluster_rows(values, weights, 2**bits).centroids
    if kind == "int8":
        scale = centroids.abs().amax(1, keepdim=True) / 127
        rounded = (centroids / scale).round() * scale
    else:
        low = centroids[:, :1]
        scale = (centroids[:, -1:] - low) / 127
        rounded = ((centroids - low) / scale).round() * scale + low
    assert table.error < float(objective(values, weights, rounded).sum())


def test_sym_is_the_optimum_of_the_magnitudes():
    values, weights = rows(4, 300)
    table = fit_table(values, weights, bits=4, kind="sym")
    due = cluster_rows(values.abs(), weights, 8).centroids.half()
    assert torch.equal(table.entries, due)
    assert torch.equal(table.codes >= 8, values < 0)


@pytest.mark.parametrize(("bits", "kind"), KINDS)
@pytest.mark.parametrize("value", [0.0, 0.5, -3e-7])
def test_constant_rows_and_tiny_values(bits, kind, value):
    table = fit_table(torch.full((2, 64), value), torch.ones(2, 64), bits=bits, kind=kind)
    found = table.values.gather(1, table.codes.long())
    torch.testing.assert_close(found, torch.full((2, 64), value), rtol=1e-3, atol=1e-7)

"""GPTVQ: its loss in closed form, its codebooks against brute force, what each part gains."""

import pytest
import torch

from quantizer.clustering.kmeans import cluster_rows
from quantizer.clustering.vector_kmeans import fit_tables, nearest
from quantizer.methods.codebook_update import update_tables
from quantizer.methods.gptvq import (
    block_levels,
    fit_vectors,
    hessian_error,
    rounded,
    updated,
    values_of,
)
from quantizer.methods.matrix import Settings, Statistics
from quantizer.methods.registry import quantize_matrix
from tests.quantizer.test_gptq import damped, error, problem


def gptvq(weight, hessian, name, **options):
    return quantize_matrix(weight, Statistics(hessian=hessian), Settings(format=name, **options))


def fitted(weight, hessian, name, **options):
    options = {"em_rounds": 20, **options}
    return fit_vectors(weight, Statistics(hessian=hessian), Settings(format=name, **options))


@pytest.mark.parametrize("name", ["gptvq-1d-w2-g384", "gptvq-2d-w2", "gptvq-4d-w2-g4096"])
def test_what_joint_vectors_hand_on_is_the_closed_form(name):
    """The sum of || (w - q) U_BB^-1 ||^2 is tr(dW H dW^T), also in a last block of 64 columns."""
    weight, hessian = problem()
    fit = fitted(weight, hessian, name, vector_metric="joint")
    assert fit.error == pytest.approx(hessian_error(fit), rel=2e-3)
    measured = error(weight, values_of(fit), damped(hessian))
    assert hessian_error(fit) == pytest.approx(measured, rel=1e-4)


def test_in_one_dimension_the_metrics_agree():
    weight, hessian = problem(columns=128)
    one, other = (
        gptvq(weight, hessian, "gptvq-1d-w2", vector_metric=metric).dequantize()
        for metric in ("paper", "joint")
    )
    assert float((one != other).double().mean()) < 0.01  # float32 ties


def test_without_correlations_it_is_exact_clustering():
    weight, _ = problem(columns=256)
    fit = fitted(weight, torch.eye(256), "gptvq-1d-w2")
    expected = cluster_rows(weight, None, 4).centroids.float()  # a table per row
    torch.testing.assert_close(fit.tables[:, 0, :, 0], expected)


@pytest.mark.parametrize("seeds", ["mahalanobis", "kmeans++"])
def test_codebooks_are_a_fixed_point_of_both_steps(seeds):
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(3, 16, 8, 2, generator=generator)
    root = torch.randn(8, 2, 2, generator=generator)
    metric = root @ root.transpose(1, 2) + 0.1 * torch.eye(2)
    tables = fit_tables(points, metric, 8, seeds=seeds, rounds=200)
    codes = nearest(points, metric, tables)
    change = points[..., None, :] - tables[:, None, None]  # (T, r, V, E, d)
    cost = torch.einsum("trvea,vab,trveb->trve", change, metric, change)
    assert torch.equal(codes, cost.argmin(dim=3))
    for entry in range(8):  # no pull on any entry is left
        pull = torch.einsum("trva,vab->trvb", change[:, :, :, entry], metric)
        left = (pull * (codes == entry)[..., None]).sum(dim=(1, 2))
        assert float(left.abs().max()) < 1e-3


def test_updated_codebooks_solve_the_normal_equations():
    """Against least squares over the one-hot matrix of each row block."""
    weight, hessian = problem(rows=16, columns=256)
    fit = fitted(weight, hessian, "gptvq-2d-w2")  # 8 rows per table
    found = update_tables(fit.weight, fit.hessian, fit.entries, fit.scales, fit.tables)
    root = torch.linalg.cholesky(fit.hessian.double())
    for block in range(2):
        rows = slice(8 * block, 8 * block + 8)
        hot = torch.nn.functional.one_hot(fit.codes[rows], 16).double()  # (8, V, E)
        spread = torch.einsum("nve,ab->nvaeb", hot, torch.eye(2).double()).flatten(3).flatten(1, 2)
        design = torch.einsum("kj,nku->nju", root, spread).flatten(0, 1)
        target = (fit.weight[rows].double() @ root).flatten()
        best = torch.linalg.lstsq(design, target[:, None]).solution
        least = float((design @ best - target[:, None]).square().sum())
        reached = design @ found[block, 0].double().reshape(-1, 1)
        assert float((reached - target[:, None]).square().sum()) < 1.001 * least


def test_every_part_earns_its_place():
    """At equal bits more dimensions err less; the update helps; int8 costs next to nothing."""
    weight, hessian = problem(rows=64, columns=256)
    fits = {
        dim: fitted(weight, hessian, f"gptvq-{dim}d-w2-g{group}")
        for dim, group in ((1, 256), (2, 2048))
    }
    assert hessian_error(fits[2]) < hessian_error(fits[1])
    for fit in fits.values():
        better = updated(fit)
        assert hessian_error(better) < 0.995 * hessian_error(fit)
        entries, scale = rounded(better.tables)
        stored = better._replace(tables=entries.float() * scale.float()[..., None, None])
        assert hessian_error(stored) < 1.01 * hessian_error(better)
    plain = gptvq(weight, hessian, "gptq-w2-g128").dequantize()
    assert hessian_error(fits[2]) < 0.6 * error(weight, plain, damped(hessian))


def test_blockwise_scales_are_sizes_in_steps():
    """By hand: 8, 1, 4 and 0.1 over the largest, times 14: 14, 1.75, 7 and 0.175.

    The mean square of the first half of the weights is 66.25 / 4, of the second 16.02 / 4: half as
    large, 7.
    """
    part = torch.tensor([[[[8.0, -1.0], [0.5, 1.0], [-4.0, 0.0], [0.1, 0.1]]]])  # (1, 1, 4, 2)
    halves = torch.tensor([0, 0, 1, 1])
    assert block_levels(part, torch.arange(4), "max").tolist() == [[[15, 3, 11, 0]]]
    assert block_levels(part, halves, "max").tolist() == [[[15, 11]]]
    assert block_levels(part, halves, "rms").tolist() == [[[15, 11]]]
    assert block_levels(part, torch.arange(4), "rms").tolist() == [[[15, 4, 11, 0]]]
    part[0, 0, 3] = 4.0
    assert block_levels(part, halves, "rms").tolist() == [[[15, 14]]]  # 48 over 66.25: 0.85


@pytest.mark.parametrize(
    "name", ["gptvq-1d-w3-g512-n64", "gptvq-2d-w2-n16", "gptvq-4d-w2-g4096-n256"]
)
def test_the_closed_form_holds_with_blockwise_scales(name):
    """What is handed on, what the fit stands for, and what is packed, in a last block of 64."""
    weight, hessian = problem()
    fit = fitted(weight, hessian, name, vector_metric="joint")
    assert fit.error == pytest.approx(hessian_error(fit), rel=2e-3)
    matrix = gptvq(weight, hessian, name, em_rounds=20)
    measured = error(weight, matrix.dequantize(), damped(hessian))
    assert matrix.notes["hessian_error"] == pytest.approx(measured, rel=1e-4)


def test_rows_of_different_size_need_blockwise_scales():
    """A scale per row and table: an eighth of what a shared table loses."""
    weight, hessian = problem(rows=32, columns=256)
    weight *= torch.logspace(-1, 0, 32, base=8)[torch.randperm(32)][:, None]
    shared, own = (
        hessian_error(updated(fitted(weight, hessian, f"gptvq-2d-w2-g4096{subrow}")))
        for subrow in ("", "-n256")
    )
    assert own < 0.8 * shared


def test_weights_of_points_count():
    """A weight of three is a point that is there three times."""
    generator = torch.Generator().manual_seed(0)
    points, metric = torch.randn(1, 12, 1, 2, generator=generator), torch.eye(2)[None]
    weights = torch.ones(1, 12, 1)
    weights[:, :4] = 3.0
    thrice = torch.cat((points, points[:, :4], points[:, :4]), dim=1)
    given = {"entries": 1, "seeds": "mahalanobis", "rounds": 5}
    found = fit_tables(points, metric, weights=weights, **given)
    torch.testing.assert_close(found, fit_tables(thrice, metric, **given))


def test_dead_inputs_do_not_count():
    weight, hessian = problem(rows=8, columns=128)
    hessian[:, 7] = hessian[7] = 0.0
    poisoned = weight.clone()
    poisoned[:, 7] = 1e4
    found, same = (gptvq(w, hessian, "gptvq-2d-w2-g1024") for w in (poisoned, weight))
    assert torch.equal(found.dequantize(), same.dequantize())

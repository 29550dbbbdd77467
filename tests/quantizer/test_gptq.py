"""GPTQ against its closed form, against RTN, and on Hessians that do not factorize."""

import pytest
import torch

from quantizer.methods.gptq import inverse_factor
from quantizer.methods.grids import fit_groups
from quantizer.methods.matrix import Settings, SettingsError, Statistics
from quantizer.methods.registry import quantize_matrix


def problem(rows=24, columns=320, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    mixing = torch.randn(columns, columns, generator=generator)
    x = torch.randn(4 * columns, columns, generator=generator) @ mixing
    return weight, 2 * x.T @ x / x.shape[0]


def error(weight, quantized, hessian):
    change = (quantized - weight).double()
    return float((change @ hessian.double() * change).sum())


def damped(hessian, damping=0.01):
    return hessian.double() + damping * hessian.diagonal().double().mean() * torch.eye(len(hessian))


def gptq(weight, hessian, name, **options):
    return quantize_matrix(weight, Statistics(hessian=hessian), Settings(format=name, **options))


def by_the_book(weight, hessian, grids):
    """Algorithm 1 of the paper, column by column, with the inverse Hessian downdated each time."""
    left, inverse = weight.double().clone(), torch.linalg.inv(damped(hessian))
    out = torch.empty_like(left)
    for j in range(weight.shape[1]):
        scale, zero = grids[:, 0, 0].double(), grids[:, 0, 1].double()
        code = ((left[:, j] / scale).round() + zero).clamp(0, 15)
        out[:, j] = scale * (code - zero)
        pivot = inverse[j, j]
        left -= ((left[:, j] - out[:, j]) / pivot)[:, None] * inverse[j]
        inverse = inverse - inverse[:, j : j + 1] @ inverse[j : j + 1] / pivot
        inverse[j, j] = 1.0  # solved; its row and column are zero otherwise
    return out


def test_it_is_the_algorithm_of_the_paper():
    weight, hessian = problem(rows=8, columns=160)
    expected = by_the_book(weight, hessian, fit_groups(weight, 4, None))
    found = gptq(weight, hessian, "gptq-w4", act_order=False).dequantize()
    # Rounding of a float32 value next to the middle of two codes may differ.
    assert float((found.double() - expected).abs().gt(1e-4).double().mean()) < 0.002


@pytest.mark.parametrize("name", ["gptq-w3", "gptq-w3-g64", "gptq-w4-g64-act", "gptq-w4-g256"])
@pytest.mark.parametrize("static_groups", [True, False])
def test_its_error_is_the_closed_form(name, static_groups):
    """The sum of ((w_j - q_j) / U_jj)^2 is tr(dW H dW^T) under the damped Hessian."""
    weight, hessian = problem()
    matrix = gptq(weight, hessian, name, static_groups=static_groups)
    measured = error(weight, matrix.dequantize(), damped(hessian))
    assert measured == pytest.approx(matrix.notes["hessian_error"], rel=2e-3)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("group", ["", "-g64", "-g128"])
@pytest.mark.parametrize("static_groups", [True, False])
def test_it_beats_rtn_in_the_hessian_norm(bits, group, static_groups):
    weight, hessian = problem()
    name = f"w{bits}{group}"
    found = gptq(weight, hessian, f"gptq-{name}", static_groups=static_groups).dequantize()
    plain = quantize_matrix(weight, Statistics(), Settings(format=f"rtn-{name}")).dequantize()
    assert error(weight, found, hessian) < 0.7 * error(weight, plain, hessian)


def test_without_correlations_it_is_rtn():
    weight, _ = problem()
    found = gptq(weight, torch.eye(320), "gptq-w4-g64").dequantize()
    plain = quantize_matrix(weight, Statistics(), Settings(format="rtn-w4-g64")).dequantize()
    assert torch.equal(found, plain)


@pytest.mark.parametrize("name", ["gptq-w4-g64-act", "gptq-w3-g128-act"])
def test_both_forms_of_a_stored_order_are_the_same_weight(name):
    weight, hessian = problem(columns=256)
    fold = gptq(weight, hessian, name, act_order_form="fold")
    gather = gptq(weight, hessian, name, act_order_form="gather")
    assert torch.equal(fold.dequantize(), gather.dequantize())


def test_groups_narrower_than_a_block_see_updated_weights():
    """Column 64 starts a group in the middle of a block of 128: its grid spans w - e U."""
    weight, hessian = problem(rows=4, columns=128)
    first = gptq(weight, hessian, "gptq-w3-g64", static_groups=False)
    stale = fit_groups(weight, 3, 64)
    grids = first.weight.scale_zero.float()
    assert torch.equal(grids[:, 0], stale[:, 0])
    assert not torch.equal(grids[:, 1], stale[:, 1])


def test_dead_inputs_have_weight_zero():
    weight, hessian = problem()
    hessian[:, 7] = hessian[7] = 0.0
    found = gptq(weight, hessian, "gptq-w4").dequantize()
    assert found[:, 7].tolist() == [0.0] * 24


def test_the_factor_is_that_of_the_damped_inverse():
    _, hessian = problem(columns=40)
    factor, damping = inverse_factor(hessian.double(), 0.01)
    assert damping == 0.01
    assert torch.equal(factor, factor.triu())
    torch.testing.assert_close(factor.T @ factor, torch.linalg.inv(damped(hessian)))


def test_damping_is_raised_until_the_hessian_factorizes():
    indefinite = torch.diag(torch.tensor([1.0, 1.0, 1.0, -0.04], dtype=torch.float64))
    _, damping = inverse_factor(indefinite, 0.01)
    assert damping == 0.1  # 0.04 / mean 0.74 is above 0.05
    weight = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    hessian = torch.full((4, 4), 3.0) - torch.eye(4) * 0.05
    assert gptq(weight, hessian, "gptq-w4").notes["damping"] == pytest.approx(0.02)


def test_a_hopeless_hessian_is_an_error():
    with pytest.raises(SettingsError, match="not positive definite even with damping 1"):
        inverse_factor(-torch.eye(4, dtype=torch.float64), 0.01)

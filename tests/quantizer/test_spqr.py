"""SpQR: its loss in closed form, leave-one-out by hand, exact outliers, bilevel scales."""

import pytest
import torch

from quantizer.methods.matrix import Settings, Statistics
from quantizer.methods.registry import quantize_matrix
from quantizer.methods.spqr import _fit, leave_one_out
from tests.quantizer.test_gptq import damped, error, problem


def spqr(weight, hessian, name, **options):
    return quantize_matrix(weight, Statistics(hessian=hessian), Settings(format=name, **options))


def spiked(rows=48, columns=256):
    weight, hessian = problem(rows=rows, columns=columns)
    generator = torch.Generator().manual_seed(3)
    spikes = torch.rand(weight.shape, generator=generator) < 0.005
    return torch.where(spikes, 8 * weight, weight), hessian


@pytest.mark.parametrize("name", ["spqr-w3-g16", "spqr-w4-g16-act"])
def test_its_error_is_the_closed_form(name):
    weight, hessian = spiked()
    matrix = spqr(weight, hessian, name)
    measured = error(weight, matrix.dequantize(), damped(hessian))
    assert measured == pytest.approx(matrix.notes["hessian_error"], rel=2e-3)


def test_outliers_lower_the_error_and_are_exact():
    """With H = I nothing is handed on, so the weights kept apart are those of the matrix."""
    weight, _ = spiked()
    matrix = spqr(weight, torch.eye(256), "spqr-w3-g16-s1")
    rows = torch.repeat_interleave(torch.arange(48), matrix.sparse.row_pointers.diff())
    columns = matrix.sparse.columns.long()
    difference = (matrix.dequantize() - weight)[rows, columns].abs()
    assert bool((difference <= 2.0**-11 * matrix.sparse.values.float().abs()).all())
    plain = spqr(weight, torch.eye(256), "spqr-w3-g16").dequantize()
    left = (matrix.dequantize() - weight).square().sum()
    assert float(left) < 0.7 * float((plain - weight).square().sum())


@pytest.mark.parametrize("percent", [0.3, 1, 3])
@pytest.mark.parametrize("bits", [3, 4])
def test_the_share_of_outliers_is_the_one_asked_for(bits, percent):
    weight, hessian = spiked(rows=192)
    matrix = spqr(weight, hessian, f"spqr-w{bits}-g16-s{percent:g}")
    wanted = percent / 100 * weight.numel()
    assert matrix.sparse.nnz == pytest.approx(wanted, rel=0.02)


def test_some_rows_tell_the_threshold_of_all(monkeypatch):
    weight, hessian = spiked(rows=512, columns=256)
    monkeypatch.setattr("quantizer.methods.spqr.SAMPLE", 64 * 256)
    found = spqr(weight, hessian, "spqr-w3-g16-s1").sparse.nnz / weight.numel()
    assert found == pytest.approx(0.01, rel=0.15)  # 164 outliers in the sample: 8 % of noise


def test_leave_one_out_is_what_it_says():
    part = torch.tensor([[0.0, 1.0, 2.2, 9.0]])
    cost = torch.tensor([1.0, 2.0, 1.0, 1.0])
    # With 4 levels over 0..9 (step 3): errors 0, 1, 0.8, 0. Without the 9, over 0..2.2 (step
    # 2.2 / 3): 0, 1 - 0.7333, 0.
    gain = leave_one_out(part, cost, 3)
    whole = 2 * 1.0**2 + 0.8**2
    assert float(gain[0, 3]) == pytest.approx(whole - 2 * (1 - 2.2 / 3) ** 2, rel=1e-5)


def test_bilevel_grids_are_what_their_codes_say():
    weight, _ = problem(rows=35, columns=16)
    grids = _fit(weight, 7)
    block = torch.arange(35) // 16
    s1, z1, s2, z2 = grids.second.float()[block].unbind(dim=1)
    assert torch.equal(s1 * (grids.codes[:, 0].float() - z1), grids.scale[:, 0])
    assert torch.equal(s2 * (grids.codes[:, 1].float() - z2), grids.zero[:, 0])
    free = (weight.amax(1) - weight.amin(1)) / 7
    spread = free[:16].max() - free[:16].min()
    assert float((grids.scale[:16, 0] - free[:16]).abs().max()) < float(spread) / 14 * 1.01


@pytest.mark.parametrize("value", [0.0, 0.03])
def test_equal_rows_have_a_grid(value):
    weight, hessian = problem(rows=16, columns=128)
    weight[:, 64:] = value
    found = spqr(weight, hessian, "spqr-w3-g16").dequantize()
    assert bool(found.isfinite().all())
    assert spqr(torch.full((4, 128), value), torch.eye(128), "spqr-w3-g16").dequantize() == (
        pytest.approx(value, rel=1e-3)
    )


def test_small_groups_beat_gptq():
    weight, hessian = spiked()
    found = spqr(weight, hessian, "spqr-w3-g16-s1").dequantize()
    plain = spqr(weight, hessian, "gptq-w3-g64").dequantize()
    assert error(weight, found, hessian) < 0.5 * error(weight, plain, hessian)

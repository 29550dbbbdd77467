"""Kernels read nothing outside their arguments: the result is the same between poisoned bytes."""

from dataclasses import fields, is_dataclass, replace

import pytest
import torch

from kernels.csr_spmv import csr_spmm, csr_spmv
from kernels.dequantize import dequantize
from kernels.fp16_gemv import fp16_gemv
from kernels.lut_csr_fused import lut_csr_gemv
from kernels.lut_gemm import lut_gemm
from kernels.lut_gemv import lut_gemv
from kernels.uniform_gemv import uniform_gemv
from tests.kernels.samples import (
    EXACT,
    INT,
    activations,
    csr_weight,
    lut_weight,
    sparse_matrix,
    uniform_weight,
)

ROWS, COLUMNS = 5, 700  # two programs, the last with one row; K padded to 768


def poisoned(value):
    """The same tensor, or record of tensors, amid bytes 0x7E: NaN in FP16, a wild index."""
    if isinstance(value, torch.Tensor):
        margin = 4096
        data = value.contiguous().view(-1).view(torch.uint8)
        buffer = torch.full((data.numel() + 2 * margin,), 0x7E, dtype=torch.uint8)
        buffer[margin : margin + data.numel()] = data
        return buffer[margin : margin + data.numel()].view(value.dtype).view(value.shape)
    if is_dataclass(value):
        parts = {field.name: poisoned(getattr(value, field.name)) for field in fields(value)}
        return replace(value, **parts)
    return value


def check(run, x, *weights):
    expected = run(x, *weights)
    found = run(poisoned(x), *(poisoned(weight) for weight in weights))
    assert not found.isnan().any()
    assert torch.equal(found, expected)


@pytest.mark.parametrize(("kind", "bits"), [*EXACT, ("fp16", 5), ("fp16", 8)])
def test_lut_gemv(kind, bits):
    check(lut_gemv, activations(COLUMNS), lut_weight(kind, bits, ROWS, COLUMNS))


@pytest.mark.parametrize(("kind", "bits"), INT)
def test_lut_gemv_int(kind, bits):
    weight = lut_weight(kind, bits, ROWS, COLUMNS)
    check(lambda x, w: lut_gemv(x, w, path="int"), activations(COLUMNS), weight)


@pytest.mark.parametrize("form", ["rows", "hybrid"])
@pytest.mark.parametrize("path", ["exact", "int"])
def test_fused(path, form):
    weight = lut_weight("u7", 4, ROWS, COLUMNS)
    sparse = csr_weight(sparse_matrix(ROWS, COLUMNS), form)
    x = activations(COLUMNS)
    check(lambda x, w, s: lut_csr_gemv(x, w, s, path=path), x, weight, sparse)


@pytest.mark.parametrize("group_size", [None, 64, 128])
@pytest.mark.parametrize("act_order", [None, "gather", "fold"])
@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_uniform_gemv(bits, group_size, act_order):
    rows = 1 if act_order == "gather" else ROWS  # the baseline is slow here too
    weight = uniform_weight(bits, rows, COLUMNS, group_size=group_size, act_order=act_order)
    check(uniform_gemv, activations(COLUMNS), weight)


@pytest.mark.parametrize("form", ["rows", "hybrid", "balanced"])
def test_csr(form):
    weight = csr_weight(sparse_matrix(ROWS, COLUMNS), form)
    check(csr_spmv, activations(COLUMNS), weight)
    check(csr_spmm, activations(COLUMNS, tokens=2), weight)


def test_fp16_gemv():
    weight = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0)).half()
    check(fp16_gemv, activations(COLUMNS), weight)


@pytest.mark.parametrize(("kind", "bits"), [("fp16", 3), ("u7", 4)])
def test_gemm(kind, bits):
    x, weight = activations(COLUMNS, tokens=3), lut_weight(kind, bits, ROWS, COLUMNS)
    check(lut_gemm, x, weight)


@pytest.mark.parametrize(
    "weight",
    [
        lut_weight("fp16", 7, ROWS, COLUMNS),
        lut_weight("int8", 3, ROWS, COLUMNS),
        uniform_weight(4, ROWS, COLUMNS, group_size=64),
    ],
    ids=["7-bit", "int8", "groups"],
)
def test_dequantize(weight):
    check(lambda _x, w: dequantize(w), activations(COLUMNS), weight)

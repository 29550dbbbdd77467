"""Rows of several weights as one: the same numbers row by row, or None where formats differ."""

import pytest
import torch

from kernels.cpu import csr_gemv, fp16_gemv, lut_gemv, uniform_gemv
from kernels.layouts import LutWeight, pack_csr, pack_hybrid, pack_lut, pack_uniform
from kernels.layouts.codebook import dequantize_lut
from kernels.layouts.concat import concat_rows
from kernels.layouts.sparse import check_csr, csr_from_dense, dequantize_csr
from kernels.layouts.uniform import check_uniform, dequantize_uniform
from tests.kernels.tolerance import assert_within, fp32_sums

K = 384
ROWS = (12, 4, 8)


def lut(rows, bits=3, kind="fp16"):
    codes = torch.randint(0, 2**bits, (rows, K), dtype=torch.uint8)
    if kind == "u7":
        entries = torch.randint(0, 128, (rows, 16), dtype=torch.uint8)
        return pack_lut(codes, entries, bits=4, kind=kind, scale=torch.rand(rows, 2).half())
    return pack_lut(codes, torch.randn(rows, 2**bits).half(), bits=bits)


def uniform(rows, group_size=None, g_idx=None):
    codes = torch.randint(0, 16, (rows, K), dtype=torch.uint8)
    scales = torch.rand(rows, K // (group_size or K), 2).half()
    act_order = None if g_idx is None else "fold"
    return pack_uniform(
        codes, scales, bits=4, group_size=group_size, g_idx=g_idx, act_order=act_order
    )


def sparse(rows, pack=pack_csr, **options):
    matrix = torch.randn(rows, K) * (torch.rand(rows, K) < 0.05)
    return pack(*csr_from_dense(matrix), shape=(rows, K), **options)


@pytest.mark.parametrize("make", [lut, lambda n: lut(n, 4, "u7"), lambda n: lut(n, 5),
                                  uniform, lambda n: uniform(n, 128)])  # fmt: skip
def test_rows_are_stacked_and_cost_no_byte_more(make):
    torch.manual_seed(0)
    parts = [make(rows) for rows in ROWS]
    whole, apart = concat_rows(parts, [None] * 3)
    dequantize = dequantize_lut if isinstance(whole, LutWeight) else dequantize_uniform
    assert apart is None
    assert torch.equal(dequantize(whole), torch.cat([dequantize(part) for part in parts]))
    stored = [sum(weight.nbytes_by_item().values()) for weight in (whole, *parts)]
    assert stored[0] == sum(stored[1:])


@pytest.mark.parametrize("make", [lut, lambda n: uniform(n, 128)])
def test_the_twin_computes_the_same_numbers(make):
    torch.manual_seed(1)
    x, parts = torch.randn(K).half(), [make(rows) for rows in ROWS]
    gemv = lut_gemv if isinstance(parts[0], LutWeight) else uniform_gemv
    whole, _ = concat_rows(parts, [None] * 3)
    assert torch.equal(gemv(x, whole), torch.cat([gemv(x, part) for part in parts]))


@pytest.mark.parametrize(
    ("pack", "options"),
    [(pack_csr, {}), (pack_csr, {"chunk_nnz": 32}), (pack_hybrid, {"dense": 3})],
)
def test_sparse_parts_are_stacked(pack, options):
    torch.manual_seed(2)
    parts = [sparse(rows, pack, **options) for rows in ROWS]
    _, whole = concat_rows([lut(rows) for rows in ROWS], parts)
    check_csr(whole)
    assert torch.equal(dequantize_csr(whole), torch.cat([dequantize_csr(p) for p in parts]))
    x = torch.randn(K).half()
    assert torch.equal(csr_gemv(x, whole), torch.cat([csr_gemv(x, p) for p in parts]))
    if "chunk_nnz" in options:
        again = pack_csr(*csr_from_dense(dequantize_csr(whole)), shape=whole.shape, chunk_nnz=32)
        assert torch.equal(whole.start_rows, again.start_rows)


def test_one_order_of_columns_can_be_shared_and_two_cannot():
    torch.manual_seed(3)
    orders = [(torch.randperm(K) // 128).to(torch.int32) for _ in range(2)]
    same, _ = concat_rows([uniform(8, 128, orders[0]), uniform(4, 128, orders[0])], [None] * 2)
    check_uniform(same)
    assert concat_rows([uniform(8, 128, orders[0]), uniform(4, 128, orders[1])], [None] * 2) is None


def test_weights_of_different_formats_stay_apart():
    torch.manual_seed(4)
    for other in (lut(4, 4), uniform(4)):
        assert concat_rows([lut(8), other], [None] * 2) is None
    assert concat_rows([uniform(8), uniform(8, 128)], [None] * 2) is None
    assert concat_rows([lut(8), lut(4)], [sparse(8), None]) is None


@pytest.mark.parametrize("shape", [(5, 1), (3, 37), (16, 384)])
def test_the_fp16_twin_sums_in_fp32(shape):
    torch.manual_seed(5)
    weight, x = torch.randn(shape).half(), torch.randn(shape[1]).half()
    products = weight.double() * x.double()
    assert_within(fp16_gemv(x, weight), products.sum(-1), fp32_sums(products))

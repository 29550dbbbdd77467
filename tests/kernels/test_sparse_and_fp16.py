"""CSR three ways, several tokens, and the FP16 baseline, in the interpreter."""

import pytest
import torch

from kernels.checks import LayoutError
from kernels.csr_spmv import counters_needed, csr_spmm, csr_spmv, csr_spmv_ref
from kernels.fp16_gemv import fp16_gemv, fp16_gemv_ref
from kernels.launch import new_counters
from kernels.layouts import pack_csr
from kernels.layouts.sparse import csr_from_dense, dequantize_csr
from tests.kernels.samples import activations, csr_weight, generator, guarded, sparse_matrix
from tests.kernels.tolerance import assert_within, fp16_output, fp32_sums

FORMS = ["rows", "hybrid", "balanced"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("rows", "columns"), [(20, 300), (40, 200), (2, 65537)])
def test_csr(form, rows, columns):
    matrix = sparse_matrix(rows, columns, 0.02 if columns < 60000 else 0.002)
    weight, x = csr_weight(matrix, form), activations(columns)
    counters = torch.zeros(counters_needed(weight), dtype=torch.int32)
    with guarded(rows) as out:
        csr_spmv(x, weight, out=out, counters=counters)
    assert not counters.any()
    assert_within(out, csr_spmv_ref(x, weight), fp32_sums(matrix * x.float()))


@pytest.mark.parametrize(
    "counts",
    [
        [0, 0, 0],  # nothing at all: one chunk still writes the zeros
        [64, 64, 0, 0, 64],  # rows end where chunks end
        [1, 300, 1],  # one row over several chunks
        [0, 0, 32, 96, 0, 130, 0],
    ],
)
def test_balanced_chunks_share_rows_correctly(counts):
    matrix = torch.zeros(len(counts), 512)
    for row, count in enumerate(counts):
        matrix[row, :count] = torch.arange(1.0, count + 1) / 64
    weight, x = csr_weight(matrix, "balanced"), activations(512)
    with guarded(len(counts)) as out:
        csr_spmv(x, weight, out=out)
    assert_within(out, csr_spmv_ref(x, weight), fp32_sums(matrix * x.float()))


@pytest.mark.parametrize("form", ["rows", "hybrid"])
def test_several_tokens(form):
    matrix = sparse_matrix(18, 300)
    weight, x = csr_weight(matrix, form), activations(300, tokens=3)
    y = csr_spmm(x, weight)
    for token in range(3):
        expected = csr_spmv_ref(x[token], weight)
        tolerance = fp32_sums(matrix * x[token].float()) + fp16_output(expected)
        assert_within(y[token], expected, tolerance)


def test_a_wrong_number_of_counters_is_named():
    weight = csr_weight(torch.ones(3, 64), "balanced")
    with pytest.raises(LayoutError, match=r"shape of counters is \(1,\), expected \(3\)"):
        csr_spmv(activations(64), weight, counters=torch.zeros(1, dtype=torch.int32))


def test_a_column_beyond_the_matrix_never_reaches_a_kernel():
    pointers, columns, values = csr_from_dense(torch.ones(2, 8))
    with pytest.raises(LayoutError, match=r"range of columns is 0\.\.8, expected 0\.\.7"):
        pack_csr(pointers, columns + (columns == 7), values, shape=(2, 8))


def test_columns_above_32767_are_unsigned():
    matrix = torch.zeros(2, 65535)
    matrix[1, [0, 32768, 65534]] = torch.tensor([1.0, 2.0, 4.0])
    weight = csr_weight(matrix, "rows")
    assert weight.columns.dtype == torch.int16
    assert torch.equal(dequantize_csr(weight), matrix)
    assert csr_spmv(torch.ones(65535).half(), weight).tolist() == [0.0, 7.0]


@pytest.mark.parametrize(
    ("rows", "columns", "parts"), [(1, 1, 1), (5, 300, 1), (9, 1500, 2), (6, 1024, None)]
)
def test_fp16_gemv(rows, columns, parts):
    weight = torch.randn(rows, columns, generator=generator(rows)).half()
    x, counters = activations(columns), new_counters(rows, weight.device)
    with guarded(rows) as out:
        fp16_gemv(x, weight, out=out, parts=parts, counters=counters)
    assert not counters.any()
    assert_within(out, fp16_gemv_ref(x, weight), fp32_sums(weight.float() * x.float()))


@pytest.mark.parametrize(
    ("weight", "arguments", "message"),
    [
        (torch.zeros(2, 8), {}, "dtype of weight is torch.float32, expected torch.float16"),
        (torch.zeros(8, 2).half().T, {}, r"stride of weight is \(1, 2\), expected a contiguous"),
        (torch.zeros(2, 8).half(), {"parts": 2}, "parts is 2, expected a divisor of the 0 full"),
    ],
)
def test_bad_fp16_arguments_are_named(weight, arguments, message):
    with pytest.raises(LayoutError, match=message):
        fp16_gemv(activations(8), weight, **arguments)

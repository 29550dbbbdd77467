"""Dense and sparse in one launch, in the interpreter: values, canaries, counters, order."""

import pytest
import torch

from kernels.activations import activation_planes_ref
from kernels.checks import LayoutError
from kernels.launch import new_counters
from kernels.layouts import pack_csr
from kernels.layouts.sparse import csr_from_dense, dequantize_csr
from kernels.lut_csr_fused import lut_csr_gemv, lut_csr_gemv_ref
from tests.kernels.samples import activations, csr_weight, guarded, lut_weight, sparse_matrix
from tests.kernels.test_lut_gemv import exact_tolerance, int_tolerance
from tests.kernels.tolerance import assert_within, fp32_sums

CASES = [
    ("fp16", 2, "exact"),
    ("fp16", 3, "exact"),
    ("fp16", 4, "exact"),
    ("u7", 4, "exact"),
    ("sym", 4, "exact"),
    ("u7", 4, "int"),
    ("int8", 3, "int"),
    ("int16", 4, "int"),
]


def tolerance(weight, sparse, x, path):
    extra = 2 * fp32_sums(dequantize_csr(sparse) * x.float())
    if path == "exact":
        return exact_tolerance(weight, x) + extra
    _, block = activation_planes_ref(x, weight.codes)
    return int_tolerance(weight, x, block) + extra


@pytest.mark.parametrize("form", ["rows", "hybrid"])
@pytest.mark.parametrize(("kind", "bits", "path"), CASES)
def test_fused(kind, bits, path, form):
    rows, columns = 14, 300
    weight, x = lut_weight(kind, bits, rows, columns), activations(columns)
    sparse = csr_weight(sparse_matrix(rows, columns), form)
    counters = new_counters(rows, x.device)
    with guarded(rows) as out:
        lut_csr_gemv(x, weight, sparse, path=path, out=out, counters=counters)
    assert not counters.any()
    expected = lut_csr_gemv_ref(x, weight, sparse)
    assert_within(out, expected, tolerance(weight, sparse, x, path))


@pytest.mark.parametrize("form", ["rows", "hybrid"])
@pytest.mark.parametrize(("kind", "bits", "path"), [("fp16", 3, "exact"), ("u7", 4, "int")])
def test_fused_split_rows(kind, bits, path, form):
    rows, columns = 11, 4096 + 128
    weight, x = lut_weight(kind, bits, rows, columns), activations(columns)
    sparse = csr_weight(sparse_matrix(rows, columns), form)
    counters = new_counters(rows, x.device)
    with guarded(rows) as out:
        lut_csr_gemv(x, weight, sparse, path=path, out=out, parts=2, counters=counters)
    assert not counters.any()
    expected = lut_csr_gemv_ref(x, weight, sparse)
    assert_within(out, expected, tolerance(weight, sparse, x, path))


def test_two_dense_rows_of_one_group_are_both_added():
    weight, x = lut_weight("fp16", 4, 9, 200), activations(200)
    matrix = torch.zeros(9, 200)
    matrix[4:6] = 0.5
    matrix[0, 0] = 1
    sparse = csr_weight(matrix, "hybrid")
    assert sparse.dense_rows.rows.tolist() == [4, 5]
    with guarded(9) as out:
        lut_csr_gemv(x, weight, sparse, out=out)
    expected = lut_csr_gemv_ref(x, weight, sparse)
    assert_within(out, expected, tolerance(weight, sparse, x, "exact"))


def test_an_empty_sparse_part_adds_nothing():
    weight, x = lut_weight("fp16", 3, 5, 300), activations(300)
    sparse = pack_csr(*csr_from_dense(torch.zeros(5, 300)), shape=(5, 300))
    with guarded(5) as out:
        lut_csr_gemv(x, weight, sparse, out=out)
    assert_within(out, lut_csr_gemv_ref(x, weight, sparse), exact_tolerance(weight, x))


def test_8_bit_weights_are_refused():
    sparse = csr_weight(torch.ones(2, 8), "rows")
    with pytest.raises(LayoutError, match="bits of a fused weight is 8, expected one of 2, 3, 4"):
        lut_csr_gemv(torch.zeros(8).half(), lut_weight("fp16", 8, 2, 8), sparse)


def test_a_sparse_part_of_another_shape_is_named():
    sparse = csr_weight(torch.ones(2, 9), "rows")
    with pytest.raises(LayoutError, match=r"shape and device of sparse is \(\(2, 9\)"):
        lut_csr_gemv(torch.zeros(8).half(), lut_weight("fp16", 4, 2, 8), sparse)

"""GEMVs of vector codebooks and of SpQR in the interpreter: forms, ragged shapes, split rows."""

import pytest
import torch

from kernels.bilevel_gemv import bilevel_gemv, bilevel_gemv_ref
from kernels.checks import LayoutError
from kernels.layouts import dequantized
from kernels.layouts.bilevel import column_groups, scales_and_zeros
from kernels.layouts.vector import FORMS
from kernels.vector_gemv import vector_gemv, vector_gemv_ref
from tests.kernels.samples import (
    activations,
    bilevel_weight,
    csr_weight,
    guarded,
    sparse_matrix,
    vector_weight,
)
from tests.kernels.tolerance import assert_within, fp16_chains, fp32_sums


def check_vector(weight, **options):
    x = activations(weight.shape[1])
    with guarded(weight.shape[0]) as out:
        vector_gemv(x, weight, out=out, **options)
    products = dequantized(weight) * x.float()
    assert_within(out, vector_gemv_ref(x, weight), fp16_chains(products))


@pytest.mark.parametrize(("shape", "group"), [((5, 300), 512), ((3, 2348), 384)])
@pytest.mark.parametrize(("dim", "bits"), FORMS)
def test_vector_codebooks(dim, bits, shape, group):
    """Two and three rows to a table: a group of four rows has several."""
    check_vector(vector_weight(dim, bits, *shape, group=group))


@pytest.mark.parametrize(("dim", "bits"), [(1, 2), (2, 4), (2, 6), (4, 8)])
def test_four_rows_that_share_a_table(dim, bits):
    check_vector(vector_weight(dim, bits, 9, 1100, group=2048))


@pytest.mark.parametrize(("shape", "group"), [((5, 300), 512), ((3, 2348), 384), ((9, 1100), 2048)])
@pytest.mark.parametrize(
    ("dim", "bits", "subrow"),
    [(1, 2, 64), (1, 3, 32), (1, 4, 128), (2, 4, 16), (2, 4, 64), (2, 5, 64), (2, 8, 128),
     (4, 8, 32)],
)  # fmt: skip
def test_blockwise_scales(dim, bits, subrow, shape, group):
    """Sub-rows of one group of codes, of several, and of a tile; tables of odd rows."""
    check_vector(vector_weight(dim, bits, *shape, group=group, subrow=subrow))


def test_blockwise_scales_of_two_tiles():
    check_vector(vector_weight(2, 4, 6, 8448 + 130, group=2048, subrow=256), parts=2)


@pytest.mark.parametrize("column", [0, 15, 16, 131, 299])
@pytest.mark.parametrize(("dim", "bits"), [(1, 4), (2, 4), (4, 8)])
def test_an_activation_meets_its_own_blockwise_scale(dim, bits, column):
    weight = vector_weight(dim, bits, 5, 300, subrow=32)
    x = torch.zeros(300).half()
    x[column] = 1.0
    y = vector_gemv(x, weight, out=torch.empty(5))
    torch.testing.assert_close(y, dequantized(weight)[:, column], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("dim", "bits"), [(2, 4), (4, 8)])
def test_split_rows_of_vectors(dim, bits):
    weight = vector_weight(dim, bits, 6, 8448)  # four full steps and a smaller one
    check_vector(weight, parts=2)
    with pytest.raises(LayoutError, match="parts is 3, expected a divisor of the 4 full steps"):
        vector_gemv(activations(8448), weight, parts=3)


def bilevel_tolerance(weight, x):
    """Chains over (code - centre) * x and over x alone, the zero point apart from the codes."""
    scale, zero = scales_and_zeros(weight)
    group = column_groups(weight.shape[1])
    scale, zero = scale[:, group], zero[:, group]
    x = x if weight.order is None else x[weight.order.long()]
    values = dequantized(weight)
    values = values if weight.order is None else values[:, weight.order.long()]
    shift = scale * (zero - 2 ** (weight.codes.bits - 1))
    return fp16_chains((values + shift) * x.float()) + fp16_chains(shift * x.float())


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("shape", [(5, 300), (19, 2348)])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_bilevel_scales(bits, shape, sparse):
    """With outliers also in an order of its own, which they do not follow."""
    weight, x = bilevel_weight(bits, *shape, ordered=sparse), activations(shape[1])
    matrix = sparse_matrix(*shape)
    apart = csr_weight(matrix, "rows") if sparse else None
    with guarded(shape[0]) as out:
        bilevel_gemv(x, weight, apart, out=out)
    tolerance = bilevel_tolerance(weight, x) + fp32_sums(matrix * x.float())
    assert_within(out, bilevel_gemv_ref(x, weight, apart), tolerance)


def test_split_rows_of_bilevel_weights():
    weight, x = bilevel_weight(3, 6, 8448), activations(8448)
    apart = csr_weight(sparse_matrix(6, 8448), "rows")
    whole, split = (
        bilevel_gemv(x, weight, apart, parts=parts, out=torch.empty(6)) for parts in (1, 2)
    )
    assert_within(split, whole, bilevel_tolerance(weight, x))


@pytest.mark.parametrize("column", [0, 63, 64, 127, 299])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_single_activation_picks_its_column(bits, column):
    weight = bilevel_weight(bits, 4, 300, ordered=True)
    x = torch.zeros(300).half()
    x[column] = 1.0
    y = bilevel_gemv(x, weight, out=torch.empty(4))
    expected = dequantized(weight)[:, column]
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-6)


def test_dense_rows_are_refused():
    weight = bilevel_weight(3, 12, 300)
    hybrid = csr_weight(sparse_matrix(12, 300), "hybrid")
    with pytest.raises(LayoutError, match="dense rows of sparse is given"):
        bilevel_gemv(activations(300), weight, hybrid)

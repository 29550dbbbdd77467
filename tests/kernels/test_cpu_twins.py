"""The numba twins against the dequantized weight in FP64, with and without vector code.

Tolerance: a sum of K products in FP32 is off by at most K * 2**-24 times the sum of the terms'
magnitudes (Higham, "Accuracy and Stability of Numerical Algorithms", section 3.1); where a zero
point is taken out afterwards, the terms are those before.
"""

import pytest
import torch

from kernels.checks import LayoutError
from kernels.cpu import csr_gemv, lut_gemv, simd, tiles, uniform_gemv, vector_gemv
from kernels.layouts import pack_csr, pack_hybrid, pack_lut, pack_uniform
from kernels.layouts.codebook import dequantize_lut
from kernels.layouts.codes import BITS, PackedCodes, pack_codes
from kernels.layouts.sparse import csr_from_dense, dequantize_csr
from kernels.layouts.uniform import dequantize_uniform
from kernels.layouts.vector import FORMS
from kernels.layouts.weights import dequantized
from tests.kernels.samples import vector_weight

SHAPES = [(1, 1), (5, 100), (3, 4096), (2, 4224)]  # rows, columns


@pytest.fixture(params=["vector", "scalar"])
def code(request, monkeypatch):
    """Run a test with the machine's vector instructions and as if it had none."""
    if request.param == "vector" and not simd.available():
        pytest.skip("this machine has no AVX2, FMA and F16C")
    monkeypatch.setattr(simd, "available", lambda: request.param == "vector")
    tiles._row_plan.cache_clear()
    yield request.param
    tiles._row_plan.cache_clear()


def check(y: torch.Tensor, weight: torch.Tensor, x: torch.Tensor, terms: torch.Tensor) -> None:
    """terms: (N, K) or (N, 1) magnitudes of what is multiplied with x and summed in FP32."""
    bound = x.numel() * 2**-24 * (terms.double() * x.double().abs()).sum(dim=1)
    error = (y.double() - weight.double() @ x.double()).abs()
    assert y.dtype == torch.float32
    assert (error <= bound + 1e-30).all(), f"error / bound up to {(error / bound).max():.3g}"


def random_lut(kind: str, bits: int, shape: tuple[int, int], tile_codes: int | None = None):
    """A packed weight of random codes and the magnitudes of its terms."""
    rows = shape[0]
    codes = torch.randint(0, 2**bits, shape)
    scale, reach = None, 0.0
    if kind in ("int8", "u7"):
        low, high = (-128, 128) if kind == "int8" else (0, 128)
        dtype = torch.int8 if kind == "int8" else torch.uint8
        entries = torch.randint(low, high, (rows, 2**bits)).to(dtype)
        scale = (
            torch.rand(rows, 1 + (kind == "u7")).half()
            * torch.tensor([0.01, 100.0]).half()[: 1 + (kind == "u7")]
        )
        reach = 256 * scale[:, :1].float()
    else:
        entries = torch.randn(rows, 2**bits).half()
        entries = entries[:, :8].abs() if kind == "sym" else entries
    weight = pack_lut(codes, entries, bits=bits, kind=kind, scale=scale, tile_codes=tile_codes)
    return weight, dequantize_lut(weight).abs() + reach


@pytest.mark.usefixtures("code")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bits", BITS)
def test_lut_gemv_with_fp16_tables(bits, shape):
    torch.manual_seed(bits)
    weight, terms = random_lut("fp16", bits, shape)
    x = torch.randn(shape[1]).half()
    check(lut_gemv(x, weight), dequantize_lut(weight), x, terms)


@pytest.mark.usefixtures("code")
@pytest.mark.parametrize("group", [384, 2048])
@pytest.mark.parametrize(("dim", "bits"), FORMS)
def test_vector_gemv(dim, bits, group):
    """Rows of a table that a table ends in, and a last block of fewer columns."""
    weight = vector_weight(dim, bits, 11, 1100, group=group)
    x = torch.randn(1100, generator=torch.Generator().manual_seed(0)).half()
    values = dequantized(weight)
    terms = values.abs() + 128 * float(weight.scale.max())  # entries are biased bytes
    check(vector_gemv(x, weight), values, x, terms)


@pytest.mark.usefixtures("code")
@pytest.mark.parametrize("group", [384, 2048])
@pytest.mark.parametrize(("dim", "bits"), [form for form in FORMS if form != (2, 5)])
@pytest.mark.parametrize("subrow", [32, 64, 128])
def test_vector_gemv_with_blockwise_scales(dim, bits, group, subrow):
    weight = vector_weight(dim, bits, 11, 1100, group=group, subrow=subrow)
    x = torch.randn(1100, generator=torch.Generator().manual_seed(0)).half()
    values = dequantized(weight)
    terms = values.abs() + 14 * 128 * float(weight.scale.max())
    check(vector_gemv(x, weight), values, x, terms)


@pytest.mark.usefixtures("code")
@pytest.mark.parametrize(("kind", "bits"), [("int8", 2), ("int8", 3), ("int8", 4), ("u7", 4)])
def test_lut_gemv_with_byte_tables(kind, bits):
    torch.manual_seed(bits)
    weight, terms = random_lut(kind, bits, (6, 1000))
    x = torch.randn(1000).half()
    check(lut_gemv(x, weight), dequantize_lut(weight), x, terms)


def test_lut_gemv_with_a_sign_symmetric_table():
    torch.manual_seed(0)
    weight, terms = random_lut("sym", 4, (6, 1000))
    x = torch.randn(1000).half()
    check(lut_gemv(x, weight), dequantize_lut(weight), x, terms)


@pytest.mark.parametrize(("bits", "tile_codes"), [(3, 64), (3, 128), (4, 32), (4, 2048), (2, 64)])
def test_lut_gemv_with_other_tiles(bits, tile_codes):
    torch.manual_seed(1)
    weight, terms = random_lut("fp16", bits, (4, 640), tile_codes)
    x = torch.randn(640).half()
    check(lut_gemv(x, weight), dequantize_lut(weight), x, terms)


def random_uniform(bits: int, shape: tuple[int, int], group_size: int | None, act_order=None):
    rows, columns = shape
    codes = torch.randint(0, 2**bits, shape)
    groups = 1 if group_size is None else -(-columns // group_size)
    scale_zero = torch.rand(rows, groups, 2).half() * torch.tensor([0.1, 2.0**bits - 1]).half()
    g_idx = None
    if act_order:
        g_idx = (torch.arange(columns) // group_size)[torch.randperm(columns)].to(torch.int32)
    return pack_uniform(
        codes, scale_zero, bits=bits, group_size=group_size, g_idx=g_idx, act_order=act_order
    )


@pytest.mark.usefixtures("code")
@pytest.mark.parametrize(
    ("bits", "group_size"),
    [
        *((2, 128), (3, None), (3, 64), (3, 128), (4, None), (4, 128), (5, None), (5, 64)),
        *((6, 64), (7, 128), (7, None), (8, None), (8, 1024)),
    ],
)
def test_uniform_gemv(bits, group_size):
    torch.manual_seed(bits)
    weight = random_uniform(bits, (5, 2176), group_size)
    x = torch.randn(2176).half()
    terms = weight.scale_zero[:, :, 0].float().amax(dim=1, keepdim=True) * 2 ** (bits + 1)
    check(uniform_gemv(x, weight), dequantize_uniform(weight), x, terms)


@pytest.mark.parametrize("act_order", ["gather", "fold"])
def test_uniform_gemv_in_act_order(act_order):
    torch.manual_seed(3)
    weight = random_uniform(4, (5, 1000), 128, act_order)
    x = torch.randn(1000).half()
    terms = weight.scale_zero[:, :, 0].float().amax(dim=1, keepdim=True) * 32
    check(uniform_gemv(x, weight), dequantize_uniform(weight), x, terms)


@pytest.mark.parametrize("columns", [300, 70000], ids=["u16 columns", "int32 columns"])
@pytest.mark.parametrize("dense", [0, 3])
def test_csr_gemv(columns, dense):
    torch.manual_seed(5)
    matrix = torch.randn(40, columns) * (torch.rand(40, columns) < 0.02)
    matrix[7] = torch.randn(columns)  # one long row among rows that may be empty
    matrix[:3] = 0
    pack = pack_hybrid if dense else pack_csr
    options = {"dense": dense} if dense else {}
    weight = pack(*csr_from_dense(matrix), shape=(40, columns), **options)
    x = torch.randn(columns).half()
    full = dequantize_csr(weight)
    check(csr_gemv(x, weight), full, x, full.abs())


def test_csr_gemv_adds_to_the_dense_part():
    matrix = torch.eye(6)
    weight = pack_csr(*csr_from_dense(matrix), shape=(6, 6))
    x = torch.arange(6).half()
    out = torch.full((6,), 10.0)
    assert csr_gemv(x, weight, out=out) is out
    assert out.tolist() == [10, 11, 12, 13, 14, 15]


def test_csr_gemv_of_an_empty_matrix_is_zero():
    weight = pack_csr(*csr_from_dense(torch.zeros(4, 9)), shape=(4, 9))
    assert csr_gemv(torch.ones(9).half(), weight).tolist() == [0, 0, 0, 0]


@pytest.mark.usefixtures("code")
def test_the_order_of_decoding_is_a_permutation_of_the_columns():
    for bits in BITS:
        packed = pack_codes(torch.zeros((1, 4224), dtype=torch.uint8), bits)
        for plan in (tiles.vector_plan(packed, whole_row=True), tiles.scalar_plan(packed)):
            if plan is not None:
                assert sorted(plan.order.tolist()) == list(range(4224))


def test_a_sign_apart_or_a_tile_too_small_has_no_vector_plan():
    signed = PackedCodes(words=None, bits=4, columns=512, tile_codes=1024, order="signed")
    small = PackedCodes(words=None, bits=3, columns=512, tile_codes=64, order="selector")
    assert tiles.vector_plan(signed, whole_row=True) is None
    assert tiles.vector_plan(small, whole_row=True) is None


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(99).half(), r"shape of x is \(99,\), expected \(100\)"),
        (torch.zeros(100), "dtype of x is torch.float32, expected torch.float16"),
        (torch.zeros(200).half()[::2], "stride of x"),
    ],
)
def test_wrong_activations_are_refused(x, message):
    weight, _ = random_lut("fp16", 4, (2, 100))
    uniform = random_uniform(4, (2, 100), None)
    sparse = pack_csr(*csr_from_dense(torch.eye(100)), shape=(100, 100))
    for gemv, operand in ((lut_gemv, weight), (uniform_gemv, uniform), (csr_gemv, sparse)):
        with pytest.raises(LayoutError, match=message):
            gemv(x, operand)

"""GEMM for 2 to 16 tokens on matrix fragments, and dequantization, in the interpreter."""

from dataclasses import replace

import pytest
import torch

from kernels.checks import LayoutError
from kernels.dequantize import dequantize
from kernels.layouts.codebook import dequantize_lut
from kernels.layouts.codes import BITS
from kernels.layouts.sparse import dequantize_csr
from kernels.layouts.uniform import dequantize_uniform
from kernels.lut_gemm import lut_gemm
from tests.kernels.samples import (
    EXACT,
    WIDE,
    activations,
    csr_weight,
    guarded,
    lut_weight,
    sparse_matrix,
    uniform_weight,
)
from tests.kernels.tolerance import assert_within, fp16_output, fp32_sums


def check_gemm(weight, values, tokens, **arguments):
    rows, columns = weight.shape
    x = activations(columns, tokens=tokens)
    with guarded(tokens, rows) as out:
        lut_gemm(x, weight, out=out, **arguments)
    products = values.abs()[None] * x.float().abs()[:, None]  # (M, N, K)
    # Entries are added before their zero point is subtracted: up to four times the magnitude.
    assert_within(out, x.double() @ values.double().T, 4 * fp32_sums(products))
    return out


@pytest.mark.parametrize(("rows", "columns", "tokens"), [(5, 300, 3), (18, 1100, 8)])
@pytest.mark.parametrize(("kind", "bits"), EXACT)
def test_lut_gemm(kind, bits, rows, columns, tokens):
    weight = lut_weight(kind, bits, rows, columns)
    check_gemm(weight, dequantize_lut(weight), tokens)


@pytest.mark.parametrize("tokens", [1, 16])
@pytest.mark.parametrize("columns", [1, 2048])
def test_lut_gemm_at_the_edges(columns, tokens):
    weight = lut_weight("fp16", 3, 3, columns)
    check_gemm(weight, dequantize_lut(weight), tokens)


@pytest.mark.parametrize("bits", BITS)
def test_uniform_gemm(bits):
    weight = uniform_weight(bits, 17, 600)
    check_gemm(weight, dequantize_uniform(weight), 10)


@pytest.mark.parametrize(("kind", "bits", "tokens"), [("fp16", 3, 5), ("u7", 4, 12)])
def test_split_gemm_resets_its_counters_and_repeats_bit_for_bit(kind, bits, tokens):
    weight = lut_weight(kind, bits, 17, 2048 + 128)
    counters = torch.zeros(2, dtype=torch.int32)
    first = check_gemm(weight, dequantize_lut(weight), tokens, parts=4, counters=counters)
    second = check_gemm(weight, dequantize_lut(weight), tokens, parts=4, counters=counters)
    assert torch.equal(first, second)
    assert not counters.any()


@pytest.mark.parametrize(
    ("weight", "tokens", "message"),
    [
        (lut_weight("fp16", 4, 2, 300), 17, "tokens is 17, expected one of 1, 2"),
        (lut_weight("fp16", 5, 2, 300), 2, "bits of a LUT GEMM is 5, expected one of 2, 3, 4"),
        (lut_weight("int16", 3, 2, 300), 2, "codebook kind is 'int16', expected one of fp16"),
        (uniform_weight(4, 2, 300, group_size=128), 2, "tile_codes of a GEMM|group_size is 128"),
    ],
)
def test_what_the_gemm_cannot_do_is_named(weight, tokens, message):
    with pytest.raises(LayoutError, match=message):
        lut_gemm(activations(300, tokens=tokens), weight)


@pytest.mark.parametrize(("kind", "bits"), [*EXACT, *WIDE])
def test_dequantized_tables(kind, bits):
    weight = lut_weight(kind, bits, 2, 2348)
    expected = dequantize_lut(weight)
    found = dequantize(weight).float()
    if kind in ("fp16", "sym"):
        assert torch.equal(found, expected)
    assert_within(found, expected, 2 * fp16_output(expected))


def test_misaligned_activations_are_copied_and_words_refused():
    weight = lut_weight("fp16", 4, 5, 256)
    x = activations(256, tokens=2)
    moved = torch.cat((torch.zeros(2).half(), x.flatten()))[2:].view(2, 256)
    assert torch.equal(lut_gemm(moved, weight), lut_gemm(x, weight))
    words = weight.codes.words
    shifted = torch.cat((words.new_zeros(1), words.flatten()))[1:].view_as(words)
    with pytest.raises(LayoutError, match="offset of words is 4 bytes, expected a multiple of 16"):
        lut_gemm(x, replace(weight, codes=replace(weight.codes, words=shifted)))


@pytest.mark.parametrize("group_size", [None, 64, 128])
@pytest.mark.parametrize("bits", BITS)
def test_dequantized_grids(bits, group_size):
    weight = uniform_weight(bits, 3, 2348, group_size=group_size)
    expected = dequantize_uniform(weight)
    assert_within(dequantize(weight).float(), expected, 2 * fp16_output(expected))


@pytest.mark.parametrize("form", ["rows", "hybrid"])
def test_dequantized_with_its_sparse_part(form):
    weight, matrix = lut_weight("fp16", 4, 18, 300), sparse_matrix(18, 300)
    sparse = csr_weight(matrix, form)
    expected = dequantize_lut(weight) + dequantize_csr(sparse)
    assert_within(dequantize(weight, sparse).float(), expected, 2 * fp16_output(expected))

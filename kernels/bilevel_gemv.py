"""GEMV of SpQR weights with their outliers, in one launch: y = (W + S) x, batch 1.

An element is 32 codes of a row: two groups of 16 columns. Their scales and zeros are put together
from 3-bit codes, four rows of them in three 16-bit loads, and FP16 statistics that 16 rows share.
The row's owner adds the nonzeros of its four rows, as `lut_csr_fused` does.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.checks import check_tensor, fail
from kernels.device import four_rows, store_rows
from kernels.launch import (
    activation_words,
    check_aligned,
    fitting_parts,
    output,
    row_groups,
    start,
    workspace,
)
from kernels.layouts.bilevel import GROUP, BilevelWeight, check_bilevel
from kernels.layouts.codes import K_ALIGN
from kernels.layouts.sparse import CsrWeight, check_csr
from kernels.layouts.weights import dequantized
from kernels.plan import bilevel_constants
from kernels.sparse_device import SPARSE_BLOCK, sparse_rows
from kernels.uniform_gemv import load_planes

ELEMENT = 2 * GROUP  # codes
T = K_ALIGN // ELEMENT  # elements per tile


def bilevel_gemv_ref(x: Tensor, weight: BilevelWeight, sparse: CsrWeight | None = None) -> Tensor:
    """y = (W + S) x in FP64, plain PyTorch, any device. x (K,) -> (N,) float64."""
    return dequantized(weight, sparse).double() @ x.double()


@triton.jit
def _first_level(first_ptr, quad, index, inside, MASKED: tl.constexpr, TOTAL: tl.constexpr):
    """12 bits per row of four: 3-bit codes of scale, zero, scale, zero."""
    planes = ()
    for plane in tl.static_range(3):
        where = first_ptr + (quad * 3 + plane) * TOTAL + index
        if MASKED:
            word = tl.load(where, mask=inside, other=0)
        else:
            word = tl.load(where)
        planes = planes + (word.to(tl.int32) & 0xFFFF,)
    last = (planes[0] >> 12) | ((planes[1] >> 12) << 4) | ((planes[2] >> 12) << 8)
    return planes[0], planes[1], planes[2], last


@triton.jit
def _half(word, SIDE: tl.constexpr):
    return (word >> (16 * SIDE)).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _second_level(second_ptr, block, index, inside, MASKED: tl.constexpr, TOTAL: tl.constexpr):
    """s1, z1, s2, z2 of the first group of every element, then of the second."""
    words = ()
    for plane in tl.static_range(4):
        where = second_ptr + (block * 4 + plane) * TOTAL + index
        if MASKED:
            words = words + (tl.load(where, mask=inside, other=0),)
        else:
            words = words + (tl.load(where),)
    return (
        _half(words[0], 0), _half(words[1], 0), _half(words[2], 0), _half(words[3], 0),
        _half(words[0], 1), _half(words[1], 1), _half(words[2], 1), _half(words[3], 1),
    )  # fmt: skip


@triton.jit
def _scale_and_offset(
    codes, SHIFT: tl.constexpr, s1, z1, s2, z2, total, GAIN: tl.constexpr, CENTRE: tl.constexpr
):  # fmt: skip
    """What the chained products count, and what the group adds whatever its codes are."""
    scale = s1 * (((codes >> SHIFT) & 7).to(tl.float32) - z1)
    zero = s2 * (((codes >> (SHIFT + 3)) & 7).to(tl.float32) - z2)
    return scale * GAIN, scale * ((CENTRE - zero) * total)


@triton.jit
def _add_block(
    sums, words_ptr, codes_ptr, first_ptr, second_ptr, rows, quad, first,
    TOTAL: tl.constexpr, MASKED: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
    WORDS: tl.constexpr, TEXT: tl.constexpr, CONSTRAINTS: tl.constexpr,
    SUM_TEXT: tl.constexpr, SUM_CONSTRAINTS: tl.constexpr,
    GAIN: tl.constexpr, CENTRE: tl.constexpr,
):  # fmt: skip
    PACK: tl.constexpr = BLOCK // 32
    index = first + tl.arange(0, BLOCK)
    inside = index < TOTAL
    xs = load_planes(words_ptr, index, TILE, 16, inside, MASKED)
    total0 = tl.inline_asm_elementwise(
        SUM_TEXT, SUM_CONSTRAINTS, xs[:8], dtype=tl.float32, is_pure=True, pack=PACK
    )
    total1 = tl.inline_asm_elementwise(
        SUM_TEXT, SUM_CONSTRAINTS, xs[8:], dtype=tl.float32, is_pure=True, pack=PACK
    )
    level1 = _first_level(first_ptr, quad, index, inside, MASKED, TOTAL)
    level2 = _second_level(second_ptr, quad // 4, index, inside, MASKED, TOTAL)
    out = ()
    for row in tl.static_range(4):
        words = codes_ptr + rows[row] * (TOTAL * WORDS)
        codes = load_planes(words, index, TILE, WORDS, inside, MASKED)
        scale0, offset0 = _scale_and_offset(
            level1[row], 0, level2[0], level2[1], level2[2], level2[3], total0, GAIN, CENTRE
        )
        scale1, offset1 = _scale_and_offset(
            level1[row], 6, level2[4], level2[5], level2[6], level2[7], total1, GAIN, CENTRE
        )
        operands = codes + xs + (scale0, scale1, sums[row] + (offset0 + offset1))
        new = tl.inline_asm_elementwise(
            TEXT, CONSTRAINTS, operands, dtype=tl.float32, is_pure=True, pack=PACK
        )
        out = out + (new,)
    return out


@triton.jit
def bilevel_gemv_kernel(
    x_ptr, words_ptr, codes_ptr, first_ptr, second_ptr, pointers_ptr, columns_ptr, values_ptr,
    y_ptr, partials_ptr, counters_ptr, N,
    TOTAL: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr,
    WORDS: tl.constexpr, TEXT: tl.constexpr, CONSTRAINTS: tl.constexpr,
    SUM_TEXT: tl.constexpr, SUM_CONSTRAINTS: tl.constexpr,
    GAIN: tl.constexpr, CENTRE: tl.constexpr,
    SPARSE: tl.constexpr, SPARSE_BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (row groups, parts). x: FP16; words: pairs in the order of the codes, as int32."""
    group, part = tl.program_id(0), tl.program_id(1)
    rows = four_rows(group, N)
    STEPS: tl.constexpr = TOTAL // BLOCK
    PART: tl.constexpr = STEPS // PARTS
    zero = tl.zeros((BLOCK,), tl.float32)
    sums = (zero, zero, zero, zero)
    for step in range(PART):
        sums = _add_block(
            sums, words_ptr, codes_ptr, first_ptr, second_ptr, rows, group,
            (part * PART + step) * BLOCK, TOTAL, False, TILE, BLOCK, WORDS, TEXT, CONSTRAINTS,
            SUM_TEXT, SUM_CONSTRAINTS, GAIN, CENTRE,
        )  # fmt: skip
    if TOTAL % BLOCK > 0:
        if part == PARTS - 1:
            sums = _add_block(
                sums, words_ptr, codes_ptr, first_ptr, second_ptr, rows, group, STEPS * BLOCK,
                TOTAL, True, TILE, BLOCK, WORDS, TEXT, CONSTRAINTS, SUM_TEXT, SUM_CONSTRAINTS,
                GAIN, CENTRE,
            )  # fmt: skip
    a, b, c, d = tl.sum(sums[0], 0), tl.sum(sums[1], 0), tl.sum(sums[2], 0), tl.sum(sums[3], 0)
    if SPARSE:
        if part == 0:
            e, f, g, h = sparse_rows(
                x_ptr, pointers_ptr, columns_ptr, values_ptr, group, N, SPARSE_BLOCK
            )
            a, b, c, d = a + e, b + f, c + g, d + h
    store_rows((a, b, c, d), y_ptr, partials_ptr, counters_ptr, group, part, N, PARTS)


def bilevel_gemv(
    x: Tensor,
    weight: BilevelWeight,
    sparse: CsrWeight | None = None,
    *,
    out: Tensor | None = None,
    parts: int | None = None,
    counters: Tensor | None = None,
) -> Tensor:
    """Triton twin of `bilevel_gemv_ref`. x (K,) float16 -> (N,) float16, or into `out`.

    parts: of K, a divisor of a row's full steps; counters as in `lut_gemv`. The sparse part has no
    dense rows.

    Raises: LayoutError.
    """
    _check(x, weight, sparse)
    codes, rows = weight.codes, weight.shape[0]
    constants = bilevel_constants(codes.bits)
    elements, groups = codes.padded_columns // ELEMENT, row_groups(rows)
    steps = elements // int(str(constants["BLOCK"]))
    parts = fitting_parts(steps, groups, x.device) if parts is None else parts
    if parts != 1 and (parts < 1 or steps == 0 or steps % parts):
        raise fail("parts", parts, f"a divisor of the {steps} full steps of a row")
    y = output(out, rows, x)
    partials, counters = workspace(rows, parts, counters, codes.words)
    ordered = x if weight.order is None else x.index_select(0, weight.order)
    nothing = (codes.words, codes.words, x)  # stands in for what the kernel will not read
    apart = nothing if sparse is None else (sparse.row_pointers, sparse.columns, sparse.values)
    start(
        bilevel_gemv_kernel,
        (groups, parts),
        x,
        activation_words(ordered, codes),
        codes.words,
        weight.first,
        weight.second.view(torch.int32),
        *apart,
        y,
        partials,
        counters,
        rows,
        TOTAL=elements,
        TILE=T,
        PARTS=parts,
        SPARSE=sparse is not None,
        SPARSE_BLOCK=SPARSE_BLOCK,
        num_warps=1,
        **constants,
    )
    return y


def _check(x: Tensor, weight: BilevelWeight, sparse: CsrWeight | None) -> None:
    check_bilevel(weight)
    check_tensor("x", x, dtype=torch.float16, shape=(weight.shape[1],), device=weight.device)
    check_aligned("words", weight.codes.words)
    if sparse is None:
        return
    check_csr(sparse)
    if sparse.shape != weight.shape or sparse.device != weight.device:
        found = (sparse.shape, sparse.device)
        raise fail("shape and device of sparse", found, (weight.shape, weight.device))
    if sparse.dense_rows is not None:
        raise fail("dense rows of sparse", "given", "None with a bilevel weight")

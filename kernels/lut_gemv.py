"""LUT GEMV: y = W x, with W as codes and one table per row; batch 1.

`exact` decodes FP16 values and multiplies FP16 activations, in FP16 chains of 16 products promoted
to FP32. `int` multiplies table bytes with activations in two int8 planes (15 bits against the
largest of their tile), exactly, in 32-bit integers. 8-bit tables do not fit registers: their kernel
gathers entries from memory and adds in FP32.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.activations import activation_planes
from kernels.checks import check_choice, check_tensor
from kernels.configs import int_u7_step
from kernels.device import exact_rows, four_rows, int_rows, load_words, scale_rows, store_rows
from kernels.launch import (
    activation_words,
    check_parts,
    output,
    row_groups,
    split_parts,
    start,
    tiling,
    workspace,
)
from kernels.layouts.codebook import LutWeight, check_lut, dequantize_lut
from kernels.plan import exact_constants, int_constants

PATHS = ("exact", "int")
EXACT_KINDS = ("fp16", "int8", "u7", "sym")
INT_KINDS = ("int8", "u7", "int16")


def lut_gemv_ref(x: Tensor, weight: LutWeight) -> Tensor:
    """y = W x in FP64, plain PyTorch, any device. x (K,) -> (N,) float64."""
    return dequantize_lut(weight).double() @ x.double()


@triton.jit
def exact_gemv(
    words_ptr, codes_ptr, table_ptr, scale_ptr, y_ptr, partials_ptr, counters_ptr, N,
    FULL: tl.constexpr, TAIL: tl.constexpr, PARTS: tl.constexpr, T: tl.constexpr,
    WORDS: tl.constexpr, INPUTS: tl.constexpr, TABLE: tl.constexpr,
    TEXT: tl.constexpr, CONSTRAINTS: tl.constexpr,
    SUM_TEXT: tl.constexpr, SUM_CONSTRAINTS: tl.constexpr,
    SCALES: tl.constexpr, GAIN: tl.constexpr, CENTRE: tl.constexpr,
):  # fmt: skip
    """Grid (row groups, parts). words: FP16 activations, pairs of them as int32."""
    group, part = tl.program_id(0), tl.program_id(1)
    rows = four_rows(group, N)
    sums, total = exact_rows(
        words_ptr, codes_ptr, table_ptr, rows, part, FULL, TAIL, PARTS, T, WORDS, INPUTS, TABLE,
        TEXT, CONSTRAINTS, SUM_TEXT, SUM_CONSTRAINTS,
    )  # fmt: skip
    values = scale_rows(sums, total, rows, scale_ptr, SCALES, GAIN, CENTRE)
    store_rows(values, y_ptr, partials_ptr, counters_ptr, group, part, N, PARTS)


@triton.jit
def int_gemv(
    planes_ptr, block_ptr, codes_ptr, table_ptr, scale_ptr, y_ptr, partials_ptr, counters_ptr, N,
    FULL: tl.constexpr, TAIL: tl.constexpr, PARTS: tl.constexpr, T: tl.constexpr,
    WORDS: tl.constexpr, INPUTS: tl.constexpr, TABLE: tl.constexpr,
    TEXT: tl.constexpr, CONSTRAINTS: tl.constexpr,
    SCALES: tl.constexpr, GAIN: tl.constexpr, CENTRE: tl.constexpr,
):  # fmt: skip
    """Grid (row groups, parts). planes, block: see `activation_planes`."""
    group, part = tl.program_id(0), tl.program_id(1)
    rows = four_rows(group, N)
    sums, total = int_rows(
        planes_ptr, block_ptr, codes_ptr, table_ptr, rows, part, FULL, TAIL, PARTS, T, WORDS,
        INPUTS, TABLE, TEXT, CONSTRAINTS,
    )  # fmt: skip
    values = scale_rows(sums, total, rows, scale_ptr, SCALES, GAIN, CENTRE)
    store_rows(values, y_ptr, partials_ptr, counters_ptr, group, part, N, PARTS)


@triton.jit
def _gather_tile(
    acc, x_ptr, codes_ptr, table_ptr, lanes, LIMIT: tl.constexpr, T: tl.constexpr
):  # fmt: skip
    """Add one row's tile of 8-bit codes: four gathers and FP32 products per word."""
    word = load_words(codes_ptr, lanes, LIMIT, T, 1)[0]
    pairs = load_words(x_ptr, lanes, LIMIT, T, 2)
    for slot in tl.static_range(4):
        half = (pairs[slot // 2] >> (16 * (slot % 2))).to(tl.int16).to(tl.float16, bitcast=True)
        entry = tl.load(table_ptr + ((word >> (8 * slot)) & 0xFF))
        acc += entry.to(tl.float32) * half.to(tl.float32)
    return acc


@triton.jit
def gather_gemv(
    words_ptr, codes_ptr, table_ptr, y_ptr, partials_ptr, counters_ptr, N,
    FULL: tl.constexpr, TAIL: tl.constexpr, PARTS: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """Grid (row groups, parts). 8-bit codes, table (N, 256) FP16; no inline assembly."""
    group, part = tl.program_id(0), tl.program_id(1)
    r0, r1, r2, r3 = four_rows(group, N)
    ROW_WORDS: tl.constexpr = FULL * T + TAIL
    PART: tl.constexpr = FULL // PARTS
    lanes = tl.arange(0, T)
    a = tl.zeros((T,), tl.float32)
    b, c, d = a, a, a
    for step in range(PART):
        w = codes_ptr + (part * PART + step) * T
        x = words_ptr + (part * PART + step) * (2 * T)
        a = _gather_tile(a, x, w + r0 * ROW_WORDS, table_ptr + r0 * 256, lanes, T, T)
        b = _gather_tile(b, x, w + r1 * ROW_WORDS, table_ptr + r1 * 256, lanes, T, T)
        c = _gather_tile(c, x, w + r2 * ROW_WORDS, table_ptr + r2 * 256, lanes, T, T)
        d = _gather_tile(d, x, w + r3 * ROW_WORDS, table_ptr + r3 * 256, lanes, T, T)
    if TAIL > 0:
        if part == PARTS - 1:
            w = codes_ptr + FULL * T
            x = words_ptr + FULL * (2 * T)
            a = _gather_tile(a, x, w + r0 * ROW_WORDS, table_ptr + r0 * 256, lanes, TAIL, T)
            b = _gather_tile(b, x, w + r1 * ROW_WORDS, table_ptr + r1 * 256, lanes, TAIL, T)
            c = _gather_tile(c, x, w + r2 * ROW_WORDS, table_ptr + r2 * 256, lanes, TAIL, T)
            d = _gather_tile(d, x, w + r3 * ROW_WORDS, table_ptr + r3 * 256, lanes, TAIL, T)
    values = (tl.sum(a, 0), tl.sum(b, 0), tl.sum(c, 0), tl.sum(d, 0))
    store_rows(values, y_ptr, partials_ptr, counters_ptr, group, part, N, PARTS)


def lut_gemv(
    x: Tensor,
    weight: LutWeight,
    *,
    path: str = "exact",
    out: Tensor | None = None,
    parts: int | None = None,
    counters: Tensor | None = None,
) -> Tensor:
    """Triton twin of `lut_gemv_ref`. x (K,) float16 -> (N,) float16, or into `out`.

    parts: programs that share a row (a divisor of its full tiles); None asks the launch table.
    counters: from `new_counters`, for split rows; None allocates and clears them per call.

    Raises: LayoutError.
    """
    check_lut(weight)
    rows, columns = weight.shape
    codes, book = weight.codes, weight.codebook
    check_tensor("x", x, dtype=torch.float16, shape=(columns,), device=weight.device)
    groups = row_groups(rows)
    parts = split_parts(codes, groups, x.device) if parts is None else parts
    check_parts(parts, codes)
    constants = {**lut_constants(weight, path), **tiling(codes, parts), "num_warps": 1}
    y = output(out, rows, x)
    partials, counters = workspace(rows, parts, counters, book.table)
    scale = book.table if book.scale is None else book.scale
    common = (y, partials, counters, rows)
    grid = (groups, parts)
    if path == "int":
        planes, block = activation_planes(x, codes)
        args = (planes, block, codes.words, book.table, scale, *common)
        start(int_gemv, grid, *args, **constants)
    elif codes.bits == 8:
        args = (activation_words(x, codes), codes.words, book.table, *common)
        start(gather_gemv, grid, *args, **constants)
    else:
        args = (activation_words(x, codes), codes.words, book.table, scale, *common)
        start(exact_gemv, grid, *args, **constants)
    return y


def lut_constants(weight: LutWeight, path: str) -> dict[str, object]:
    """Compile-time constants of a LUT weight's decoding.

    Raises: LayoutError when the path does not exist for the codebook.
    """
    kind, codes = weight.codebook.kind, weight.codes
    check_choice("path", path, PATHS)
    if path == "int":
        check_choice("codebook kind of the int path", kind, INT_KINDS)
        step = int_u7_step(weight.device) if kind == "u7" else kind
        return int_constants(step, codes.bits, codes.tile_codes)
    check_choice("codebook kind of the exact path", kind, EXACT_KINDS)
    if codes.bits == 8:
        return {}
    return exact_constants(kind, codes.bits, codes.tile_codes)

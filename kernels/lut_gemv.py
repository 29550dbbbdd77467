"""LUT GEMV: y = W x, with W as codes and one table per row; batch 1.

`exact` decodes FP16 values and multiplies FP16 activations, in FP16 chains of 16 products promoted
to FP32. `int` multiplies table bytes with activations in two int8 planes (15 bits against the
largest of their tile), exactly, in 32-bit integers. Tables of 5 to 8 bits do not fit registers:
their kernel gathers entries from memory and adds in FP32.

Relative L2 error of y at K = 4096 against FP64 on the same table (24 rows, interpreter): `exact`
6e-4 to 9e-4; `int` 2e-5 to 3e-5 for N(0, 1) activations, 2e-4 to 3e-4 when eight of them are 100
times larger. The FP16 sums cost `exact` more than the integers cost `int`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.activations import activation_planes
from kernels.checks import check_choice, check_tensor
from kernels.configs import int_u7_step
from kernels.device import (
    byte_quad,
    exact_rows,
    four_rows,
    int_rows,
    load_words,
    scale_rows,
    store_rows,
)
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
from kernels.layouts.codebook import REGISTER_BITS, LutWeight, check_lut, dequantize_lut
from kernels.plan import exact_constants, gather_constants, int_constants

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
    sums, words_ptr, codes_ptr, table_ptr, rows, lanes, LIMIT: tl.constexpr, T: tl.constexpr,
    ROW_WORDS: tl.constexpr, BITS: tl.constexpr, WORDS: tl.constexpr, QUADS: tl.constexpr,
    SPLIT: tl.constexpr, FIELDS: tl.constexpr,
):  # fmt: skip
    """Add a tile of the four rows: a gather and an FP32 product per code."""
    pairs = load_words(words_ptr, lanes, LIMIT, T, 2 * QUADS)
    out = ()
    for row in tl.static_range(4):
        words = load_words(codes_ptr + rows[row] * ROW_WORDS, lanes, LIMIT, T, WORDS)
        table = table_ptr + (rows[row] << BITS)
        acc = sums[row]
        for quad in tl.static_range(QUADS):
            codes = byte_quad(words, quad, SPLIT, FIELDS)
            for byte in tl.static_range(4):
                pair = pairs[2 * quad + byte // 2] >> (16 * (byte % 2))
                half = pair.to(tl.int16).to(tl.float16, bitcast=True)
                entry = tl.load(table + ((codes >> (8 * byte)) & 0xFF))
                acc += entry.to(tl.float32) * half.to(tl.float32)
        out = out + (acc,)
    return out


@triton.jit
def gather_gemv(
    words_ptr, codes_ptr, table_ptr, y_ptr, partials_ptr, counters_ptr, N,
    FULL: tl.constexpr, TAIL: tl.constexpr, PARTS: tl.constexpr, T: tl.constexpr,
    BITS: tl.constexpr, WORDS: tl.constexpr, QUADS: tl.constexpr, SPLIT: tl.constexpr,
    FIELDS: tl.constexpr,
):  # fmt: skip
    """Grid (row groups, parts). Codes of 5 to 8 bits, table (N, 2**BITS) FP16; no assembly."""
    group, part = tl.program_id(0), tl.program_id(1)
    rows = four_rows(group, N)
    ROW_WORDS: tl.constexpr = (FULL * T + TAIL) * WORDS
    PART: tl.constexpr = FULL // PARTS
    lanes = tl.arange(0, T)
    zero = tl.zeros((T,), tl.float32)
    sums = (zero, zero, zero, zero)
    for step in range(PART):
        tile = part * PART + step
        sums = _gather_tile(
            sums, words_ptr + tile * (2 * QUADS * T), codes_ptr + tile * (WORDS * T), table_ptr,
            rows, lanes, T, T, ROW_WORDS, BITS, WORDS, QUADS, SPLIT, FIELDS,
        )  # fmt: skip
    if TAIL > 0:
        if part == PARTS - 1:
            sums = _gather_tile(
                sums, words_ptr + FULL * (2 * QUADS * T), codes_ptr + FULL * (WORDS * T), table_ptr,
                rows, lanes, TAIL, T, ROW_WORDS, BITS, WORDS, QUADS, SPLIT, FIELDS,
            )  # fmt: skip
    values = (tl.sum(sums[0], 0), tl.sum(sums[1], 0), tl.sum(sums[2], 0), tl.sum(sums[3], 0))
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
    constants = {**tiling(codes, parts), **lut_constants(weight, path), "num_warps": 1}
    y = output(out, rows, x)
    partials, counters = workspace(rows, parts, counters, book.table)
    scale = book.table if book.scale is None else book.scale
    common = (y, partials, counters, rows)
    grid = (groups, parts)
    if path == "int":
        planes, block = activation_planes(x, codes)
        args = (planes, block, codes.words, book.table, scale, *common)
        start(int_gemv, grid, *args, **constants)
    elif codes.bits not in REGISTER_BITS:
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
    if codes.bits not in REGISTER_BITS:
        return gather_constants(codes.bits)
    return exact_constants(kind, codes.bits, codes.tile_codes)

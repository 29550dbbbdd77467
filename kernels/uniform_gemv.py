"""Uniform GEMV for GPTQ, AWQ and RTN grids: y = W x, W = scale * (code - zero); batch 1.

One scale per row: the LUT kernels with a step that needs no table. Groups: the row's tiles lie
within groups, so that a thread's codes share a scale. Act-order: `gather` fetches the scale of
every decoded weight by g_idx, the slow baseline; `fold` permutes the activations once, then runs
grouped.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.activations import activation_planes
from kernels.checks import check_choice, check_tensor
from kernels.device import four, four_rows
from kernels.launch import (
    activation_words,
    check_aligned,
    check_parts,
    output,
    row_groups,
    split_parts,
    start,
    tiling,
    workspace,
)
from kernels.layouts.codes import codes_per_group, slot_fields, words_per_group
from kernels.layouts.uniform import UniformWeight, check_uniform, dequantize_uniform
from kernels.lut_gemv import PATHS, exact_gemv, int_gemv
from kernels.plan import exact_constants, grouped_constants, int_constants

GATHER_BLOCK = 128  # groups of codes per step of the baseline


def uniform_gemv_ref(x: Tensor, weight: UniformWeight) -> Tensor:
    """y = W x in FP64, plain PyTorch, any device. x (K,) -> (N,) float64."""
    return dequantize_uniform(weight).double() @ x.double()


@triton.jit
def load_planes(ptr, index, T: tl.constexpr, COUNT: tl.constexpr, inside, MASKED: tl.constexpr):
    """COUNT vectors: word `plane` of the groups `index`, in tiles of T groups."""
    base = ptr + (index // T) * (T * COUNT) + index % T
    vectors = ()
    for plane in tl.static_range(COUNT):
        if MASKED:
            vectors = vectors + (tl.load(base + plane * T, mask=inside, other=0),)
        else:
            vectors = vectors + (tl.load(base + plane * T),)
    return vectors


@triton.jit
def _add_block(
    sums, words_ptr, codes_ptr, scale_ptr, rows, index, first,
    TOTAL: tl.constexpr, MASKED: tl.constexpr, T: tl.constexpr, BLOCK: tl.constexpr,
    WORDS: tl.constexpr, INPUTS: tl.constexpr, ROW_SCALES: tl.constexpr,
    TILES_PER_SCALE: tl.constexpr, TEXT: tl.constexpr, CONSTRAINTS: tl.constexpr,
    SUM_TEXT: tl.constexpr, SUM_CONSTRAINTS: tl.constexpr,
):  # fmt: skip
    PACK: tl.constexpr = BLOCK // 32
    inside = index < TOTAL
    xs = load_planes(words_ptr, index, T, INPUTS, inside, MASKED)
    zero = tl.zeros((BLOCK,), tl.float32)
    total = tl.inline_asm_elementwise(
        SUM_TEXT, SUM_CONSTRAINTS, xs + (zero,), dtype=tl.float32, is_pure=True, pack=PACK
    )
    # One scale per lane: its PACK groups lie in one tile.
    lane_tile = (first + tl.arange(0, 32) * PACK) // T
    lane_scale = lane_tile // TILES_PER_SCALE
    if ROW_SCALES * TILES_PER_SCALE * T < TOTAL:  # whole tiles of padding have no scale
        lane_scale = tl.minimum(lane_scale, ROW_SCALES - 1)
    lane_scale_ptr = scale_ptr + lane_scale
    out = ()
    for row in tl.static_range(4):
        words = codes_ptr + rows[row] * (TOTAL * WORDS)
        codes = load_planes(words, index, T, WORDS, inside, MASKED)
        where = lane_scale_ptr + rows[row] * ROW_SCALES
        if MASKED:
            scale = tl.load(where, mask=lane_tile * T < TOTAL, other=0)
        else:
            scale = tl.load(where)
        scale = tl.reshape(tl.broadcast_to(scale[:, None], (32, PACK)), (BLOCK,))
        operands = codes + xs + (scale, total, sums[row])
        new = tl.inline_asm_elementwise(
            TEXT, CONSTRAINTS, operands, dtype=tl.float32, is_pure=True, pack=PACK
        )
        out = out + (new,)
    return out


@triton.jit
def grouped_gemv(
    words_ptr, codes_ptr, scale_ptr, y_ptr, N,
    TOTAL: tl.constexpr, T: tl.constexpr, BLOCK: tl.constexpr, WORDS: tl.constexpr,
    INPUTS: tl.constexpr, ROW_SCALES: tl.constexpr, TILES_PER_SCALE: tl.constexpr,
    TEXT: tl.constexpr, CONSTRAINTS: tl.constexpr,
    SUM_TEXT: tl.constexpr, SUM_CONSTRAINTS: tl.constexpr,
):  # fmt: skip
    """Grid (row groups,). scale: (N, ROW_SCALES) pairs (scale, zero) of FP16 as int32."""
    group = tl.program_id(0)
    rows = four_rows(group, N)
    lanes = tl.arange(0, BLOCK)
    zero = tl.zeros((BLOCK,), tl.float32)
    sums = (zero, zero, zero, zero)
    for step in range(TOTAL // BLOCK):
        sums = _add_block(
            sums, words_ptr, codes_ptr, scale_ptr, rows, step * BLOCK + lanes, step * BLOCK, TOTAL,
            False, T, BLOCK, WORDS, INPUTS, ROW_SCALES, TILES_PER_SCALE, TEXT, CONSTRAINTS,
            SUM_TEXT, SUM_CONSTRAINTS,
        )  # fmt: skip
    if TOTAL % BLOCK > 0:
        LAST: tl.constexpr = TOTAL // BLOCK * BLOCK
        sums = _add_block(
            sums, words_ptr, codes_ptr, scale_ptr, rows, LAST + lanes, LAST, TOTAL, True, T,
            BLOCK, WORDS, INPUTS, ROW_SCALES, TILES_PER_SCALE, TEXT, CONSTRAINTS, SUM_TEXT,
            SUM_CONSTRAINTS,
        )  # fmt: skip
    values = (tl.sum(sums[0], 0), tl.sum(sums[1], 0), tl.sum(sums[2], 0), tl.sum(sums[3], 0))
    out_rows = group * 4 + tl.arange(0, 4)
    tl.store(y_ptr + out_rows, four(values).to(y_ptr.dtype.element_ty), mask=out_rows < N)


@triton.jit
def _field(
    words, WORD: tl.constexpr, LOW: tl.constexpr, WIDTH: tl.constexpr, START: tl.constexpr
):  # fmt: skip
    """Bits of a code, where `slot_fields` says they stand."""
    return ((words[WORD] >> START) & ((1 << WIDTH) - 1)) << LOW


@triton.jit
def gather_order_gemv(
    x_ptr, codes_ptr, scale_ptr, order_ptr, y_ptr, K,
    TOTAL: tl.constexpr, T: tl.constexpr, BLOCK: tl.constexpr, WORDS: tl.constexpr,
    CODES: tl.constexpr, ROW_SCALES: tl.constexpr, FIELDS: tl.constexpr,
):  # fmt: skip
    """Grid (N,): the baseline of act-order, one row per program, one g_idx lookup per weight."""
    row = tl.program_id(0)
    lanes = tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), tl.float32)
    for step in range((TOTAL + BLOCK - 1) // BLOCK):
        index = step * BLOCK + lanes
        tile, local = index // T, index % T
        words = load_planes(codes_ptr + row * (TOTAL * WORDS), index, T, WORDS, index < TOTAL, True)
        for slot in tl.static_range(CODES):
            code = tl.zeros((BLOCK,), tl.int32)
            for field in tl.static_range(3):
                code |= _field(
                    words, FIELDS[12 * slot + 4 * field], FIELDS[12 * slot + 4 * field + 1],
                    FIELDS[12 * slot + 4 * field + 2], FIELDS[12 * slot + 4 * field + 3],
                )  # fmt: skip
            column = tile * (T * CODES) + 2 * ((slot // 2) * T + local) + slot % 2
            inside = (index < TOTAL) & (column < K)
            x = tl.load(x_ptr + column, mask=inside, other=0.0).to(tl.float32)
            scale_group = tl.load(order_ptr + column, mask=inside, other=0)
            where = scale_ptr + 2 * (row * ROW_SCALES + scale_group)
            scale = tl.load(where).to(tl.float32)
            zero = tl.load(where + 1).to(tl.float32)
            acc += scale * (code.to(tl.float32) - zero) * x
    tl.store(y_ptr + row, tl.sum(acc, 0).to(y_ptr.dtype.element_ty))


def uniform_gemv(
    x: Tensor,
    weight: UniformWeight,
    *,
    path: str = "exact",
    out: Tensor | None = None,
    parts: int | None = None,
    counters: Tensor | None = None,
) -> Tensor:
    """Triton twin of `uniform_gemv_ref`. x (K,) float16 -> (N,) float16, or into `out`.

    parts, counters: as in `lut_gemv`; only for one scale per row. path `int` likewise.

    Raises: LayoutError.
    """
    check_uniform(weight)
    rows, columns = weight.shape
    check_tensor("x", x, dtype=torch.float16, shape=(columns,), device=weight.device)
    per_row = weight.group_size >= columns
    check_choice("path", path, PATHS if per_row and weight.act_order != "gather" else PATHS[:1])
    y = output(out, rows, x)
    if weight.act_order == "gather":
        _start_gather(x, weight, y)
        return y
    if weight.act_order == "fold":
        x = x.index_select(0, weight.order)
    if not per_row:
        check_choice("parts of a grouped weight", parts, (None, 1))
        _start_grouped(x, weight, y)
        return y
    codes = weight.codes
    parts = split_parts(codes, row_groups(rows), x.device) if parts is None else parts
    check_parts(parts, codes)
    partials, counters = workspace(rows, parts, counters, codes.words)
    args = (codes.words, codes.words, weight.scale_zero, y, partials, counters, rows)
    grid = (row_groups(rows), parts)
    geometry = {**tiling(codes, parts), "num_warps": 1}
    if path == "int":
        constants = int_constants("uniform", codes.bits, codes.tile_codes)
        planes = activation_planes(x, codes)
        start(int_gemv, grid, *planes, *args, **geometry, **constants)
    else:
        constants = exact_constants("uniform", codes.bits, codes.tile_codes)
        start(exact_gemv, grid, activation_words(x, codes), *args, **geometry, **constants)
    return y


def _start_grouped(x: Tensor, weight: UniformWeight, y: Tensor) -> None:
    codes = weight.codes
    check_aligned("words", codes.words)
    start(
        grouped_gemv,
        (row_groups(codes.rows),),
        activation_words(x, codes),
        codes.words,
        weight.scale_zero.view(torch.int32),
        y,
        codes.rows,
        TOTAL=codes.padded_columns // codes_per_group(codes.bits),
        T=codes.tile_groups,
        ROW_SCALES=weight.scale_zero.shape[1],
        TILES_PER_SCALE=weight.group_size // codes.tile_codes,
        num_warps=1,
        **grouped_constants(codes.bits),
    )


def _start_gather(x: Tensor, weight: UniformWeight, y: Tensor) -> None:
    codes = weight.codes
    nothing = (0, 0, 0, 0)
    slots = slot_fields(codes.bits, codes.order)
    padded = [part for slot in slots for part in (*slot, nothing, nothing)[:3]]
    fields = [number for part in padded for number in part]
    start(
        gather_order_gemv,
        (codes.rows,),
        x,
        codes.words,
        weight.scale_zero,
        weight.order,
        y,
        codes.columns,
        TOTAL=codes.padded_columns // codes_per_group(codes.bits),
        T=codes.tile_groups,
        BLOCK=GATHER_BLOCK,
        WORDS=words_per_group(codes.bits),
        CODES=codes_per_group(codes.bits),
        ROW_SCALES=weight.scale_zero.shape[1],
        FIELDS=tuple(fields),
        num_warps=4,
    )

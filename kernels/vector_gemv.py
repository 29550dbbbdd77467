"""GEMV with vector codebooks (GPTVQ): y = W x, batch 1.

A table serves whole tiles of 128 columns, so that the groups of codes of a thread share one: its
entries (or their address) and its scale are fetched once per step. Tables of one component, or of
16 pairs, sit in registers and are looked up by byte permutes; larger ones are gathered, an entry of
two or four int8 components per load, from the L1 cache. Products in FP16 chains, as in `lut_gemv`.
A blockwise scale multiplies the sum of a lane's products: its code is the top of an FP32 pattern.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.checks import check_tensor, fail
from kernels.device import byte_quad, four_rows, store_rows
from kernels.launch import (
    activation_words,
    check_aligned,
    fitting_parts,
    output,
    row_groups,
    start,
    workspace,
)
from kernels.layouts.codes import K_ALIGN
from kernels.layouts.vector import VectorWeight, check_vector, dequantize_vector, table_block
from kernels.plan import vector_constants
from kernels.uniform_gemv import load_planes


def vector_gemv_ref(x: Tensor, weight: VectorWeight) -> Tensor:
    """y = W x in FP64, plain PyTorch, any device. x (K,) -> (N,) float64."""
    return dequantize_vector(weight).double() @ x.double()


@triton.jit
def _load_inputs(
    words_ptr, index, T: tl.constexpr, DIM: tl.constexpr, INPUTS: tl.constexpr, inside,
    MASKED: tl.constexpr,
):  # fmt: skip
    """INPUTS vectors of pairs; four columns of a code are one 64-bit load."""
    if DIM == 4:
        wide = load_planes(words_ptr, index, T, INPUTS // 2, inside, MASKED)
        pairs = ()
        for slot in tl.static_range(INPUTS // 2):
            pairs = pairs + (wide[slot].to(tl.int32), (wide[slot] >> 32).to(tl.int32))
    else:
        pairs = load_planes(words_ptr, index, T, INPUTS, inside, MASKED)
    return pairs


@triton.jit
def _spread(values, BLOCK: tl.constexpr):
    """One value per lane -> one per group of codes."""
    return tl.reshape(tl.broadcast_to(values[:, None], (32, BLOCK // 32)), (BLOCK,))


@triton.jit
def _table_words(table_ptr, table, inside, BLOCK: tl.constexpr, COUNT: tl.constexpr):
    words = ()
    for word in tl.static_range(COUNT):
        value = tl.load(table_ptr + table * COUNT + word, mask=inside, other=0)
        words = words + (_spread(value, BLOCK),)
    return words


@triton.jit
def _level(codes, ROW: tl.constexpr):
    """Twice the value of row ROW's code in words of four: two bits of exponent, two of mantissa."""
    pattern = (codes << (21 - 4 * ROW)) & (15 << 21)
    return (pattern | 0x40000000).to(tl.float32, bitcast=True)


@triton.jit
def _entries(
    table_ptr, base, codes, QUADS: tl.constexpr, SPLIT: tl.constexpr, FIELDS: tl.constexpr
):  # fmt: skip
    """The entry of every code of a group, gathered from the table at `base`."""
    entries = ()
    for number in tl.static_range(QUADS):
        quad = byte_quad(codes, number, SPLIT, FIELDS)
        for byte in tl.static_range(4):
            code = (quad >> (8 * byte)) & 0xFF
            entries = entries + (tl.load(table_ptr + base + code).to(tl.int32),)
    return entries


@triton.jit
def _add_block(
    sums, words_ptr, codes_ptr, table_ptr, scale_ptr, levels_ptr, rows, first,
    TOTAL: tl.constexpr, MASKED: tl.constexpr, T: tl.constexpr, BLOCK: tl.constexpr,
    DIM: tl.constexpr, WORDS: tl.constexpr, INPUTS: tl.constexpr, TABLE: tl.constexpr,
    BITS: tl.constexpr, SUBROW: tl.constexpr, QUADS: tl.constexpr, SPLIT: tl.constexpr,
    FIELDS: tl.constexpr, TABLE_ROWS: tl.constexpr, ROW_TABLES: tl.constexpr,
    TILES_PER_TABLE: tl.constexpr,
    TEXT: tl.constexpr, CONSTRAINTS: tl.constexpr, GAIN: tl.constexpr,
):  # fmt: skip
    PACK: tl.constexpr = BLOCK // 32
    SHARED: tl.constexpr = TABLE_ROWS % 4 == 0  # the four rows have one table
    index = first + tl.arange(0, BLOCK)
    inside = index < TOTAL
    xs = _load_inputs(words_ptr, index, T, DIM, INPUTS, inside, MASKED)
    lane_group = first + tl.arange(0, 32) * PACK
    lane_tile = lane_group // T
    lane_inside = lane_tile * T < TOTAL
    if SUBROW > 0:  # the blockwise scales of the four rows
        levels = tl.load(levels_ptr + lane_group // SUBROW, mask=lane_inside, other=0)
        levels = levels.to(tl.int32)
    out = ()
    for row in tl.static_range(4):
        codes = load_planes(
            codes_ptr + rows[row] * (TOTAL * WORDS), index, T, WORDS, inside, MASKED
        )
        if row == 0 or not SHARED:
            row_tables = rows[row] // TABLE_ROWS * ROW_TABLES
            table = row_tables + lane_tile // TILES_PER_TABLE
            factor = tl.load(scale_ptr + table, mask=lane_inside, other=0.0)
            factor = factor.to(tl.float32) * GAIN
            if TABLE > 0:
                words = _table_words(table_ptr, table, lane_inside, BLOCK, TABLE)
            else:
                base = (row_tables + index // T // TILES_PER_TABLE) << BITS
                if MASKED:
                    base = tl.where(inside, base, 0)
        if SUBROW > 0:
            scale = _spread(factor * _level(levels, row), BLOCK)
        else:
            scale = _spread(factor, BLOCK)
        if TABLE > 0:
            operands = codes + xs + words
        else:
            operands = _entries(table_ptr, base, codes, QUADS, SPLIT, FIELDS) + xs
        new = tl.inline_asm_elementwise(
            TEXT, CONSTRAINTS, operands + (scale, sums[row]), dtype=tl.float32, is_pure=True,
            pack=PACK,
        )  # fmt: skip
        out = out + (new,)
    return out


@triton.jit
def vector_gemv_kernel(
    words_ptr, codes_ptr, table_ptr, scale_ptr, levels_ptr, y_ptr, partials_ptr, counters_ptr, N,
    TOTAL: tl.constexpr, T: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr,
    DIM: tl.constexpr, WORDS: tl.constexpr, INPUTS: tl.constexpr, TABLE: tl.constexpr,
    BITS: tl.constexpr, SUBROW: tl.constexpr, ROW_SUBROWS: tl.constexpr,
    QUADS: tl.constexpr, SPLIT: tl.constexpr, FIELDS: tl.constexpr,
    TABLE_ROWS: tl.constexpr, ROW_TABLES: tl.constexpr, TILES_PER_TABLE: tl.constexpr,
    TEXT: tl.constexpr, CONSTRAINTS: tl.constexpr, GAIN: tl.constexpr,
):  # fmt: skip
    """Grid (row groups, parts). words: FP16 activations as int32 pairs, for DIM 4 as int64.

    SUBROW: groups of codes per blockwise scale, 0 without them.
    """
    group, part = tl.program_id(0), tl.program_id(1)
    rows = four_rows(group, N)
    levels_ptr += group * ROW_SUBROWS
    STEPS: tl.constexpr = TOTAL // BLOCK
    PART: tl.constexpr = STEPS // PARTS
    zero = tl.zeros((BLOCK,), tl.float32)
    sums = (zero, zero, zero, zero)
    for step in range(PART):
        sums = _add_block(
            sums, words_ptr, codes_ptr, table_ptr, scale_ptr, levels_ptr, rows,
            (part * PART + step) * BLOCK, TOTAL, False, T, BLOCK, DIM, WORDS, INPUTS, TABLE, BITS,
            SUBROW, QUADS, SPLIT, FIELDS, TABLE_ROWS, ROW_TABLES, TILES_PER_TABLE, TEXT,
            CONSTRAINTS, GAIN,
        )  # fmt: skip
    if TOTAL % BLOCK > 0:
        if part == PARTS - 1:
            sums = _add_block(
                sums, words_ptr, codes_ptr, table_ptr, scale_ptr, levels_ptr, rows, STEPS * BLOCK,
                TOTAL, True, T, BLOCK, DIM, WORDS, INPUTS, TABLE, BITS, SUBROW, QUADS, SPLIT,
                FIELDS, TABLE_ROWS, ROW_TABLES, TILES_PER_TABLE, TEXT, CONSTRAINTS, GAIN,
            )  # fmt: skip
    values = (tl.sum(sums[0], 0), tl.sum(sums[1], 0), tl.sum(sums[2], 0), tl.sum(sums[3], 0))
    store_rows(values, y_ptr, partials_ptr, counters_ptr, group, part, N, PARTS)


def vector_gemv(
    x: Tensor,
    weight: VectorWeight,
    *,
    out: Tensor | None = None,
    parts: int | None = None,
    counters: Tensor | None = None,
) -> Tensor:
    """Triton twin of `vector_gemv_ref`. x (K,) float16 -> (N,) float16, or into `out`.

    parts: of K, a divisor of a row's full steps; counters as in `lut_gemv`.

    Raises: LayoutError.
    """
    check_vector(weight)
    codes, (rows, columns) = weight.codes, weight.shape
    check_tensor("x", x, dtype=torch.float16, shape=(columns,), device=weight.device)
    check_aligned("words", codes.words)
    constants = vector_constants(*weight.form, weight.subrow)
    steps, groups = codes.groups // int(str(constants["BLOCK"])), row_groups(rows)
    parts = fitting_parts(steps, groups, x.device) if parts is None else parts
    if parts != 1 and (parts < 1 or steps == 0 or steps % parts):
        raise fail("parts", parts, f"a divisor of the {steps} full steps of a row")
    y = output(out, rows, x)
    partials, counters = workspace(rows, parts, counters, codes.words)
    words, table = activation_words(x, codes), weight.table
    block_rows, block_columns = table_block(weight.group)
    start(
        vector_gemv_kernel,
        (groups, parts),
        words.view(torch.int64) if codes.dim == 4 else words,
        codes.words,
        table if constants["TABLE"] or codes.dim == 4 else table.view(torch.int16),
        weight.scale,
        codes.words if weight.levels is None else weight.levels,
        y,
        partials,
        counters,
        rows,
        TOTAL=codes.groups,
        T=codes.tile_groups,
        PARTS=parts,
        TABLE_ROWS=block_rows,
        ROW_SUBROWS=0 if weight.levels is None else weight.levels.shape[1],
        ROW_TABLES=table.shape[1],
        TILES_PER_TABLE=block_columns // K_ALIGN,
        num_warps=1,
        **constants,
    )
    return y

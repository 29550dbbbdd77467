"""Unpack a weight to FP16 on its device, for more tokens than the fused kernels take.

One program writes one row of a block of groups: decode to pairs, undo the scaling, store the pairs
where they belong. Also for grouped weights, whose scale changes with the column.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.device import byte_quad
from kernels.launch import start
from kernels.layouts.codebook import REGISTER_BITS, LutWeight, check_lut
from kernels.layouts.codes import PackedCodes, words_per_group
from kernels.layouts.sparse import CsrWeight
from kernels.layouts.uniform import UniformWeight, check_uniform
from kernels.plan import decode_constants, gather_constants

BLOCK = 128  # groups per program


@triton.jit
def _decode(
    codes_ptr, table_ptr, row, index, inside, T: tl.constexpr, WORDS: tl.constexpr,
    PAIRS: tl.constexpr, TABLE: tl.constexpr, TEXT: tl.constexpr, CONSTRAINTS: tl.constexpr,
):  # fmt: skip
    """One half2 vector per pair of the groups `index`, tiles of T groups."""
    base = codes_ptr + index // T * (T * WORDS) + index % T
    operands = ()
    for plane in tl.static_range(WORDS):
        operands = operands + (tl.load(base + plane * T, mask=inside, other=0),)
    for word in tl.static_range(TABLE):
        operands = operands + (tl.load(table_ptr + row * TABLE + word),)
    return tl.inline_asm_elementwise(
        TEXT, CONSTRAINTS, operands, dtype=(tl.int32,) * PAIRS, is_pure=True, pack=1
    )


@triton.jit
def _rescale(pair, SHIFT: tl.constexpr, scale, offset, GAIN: tl.constexpr):
    value = (pair >> SHIFT).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    half = (scale * (value * GAIN + offset)).to(tl.float16)
    return half.to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF


@triton.jit
def dequantize_kernel(
    codes_ptr, table_ptr, scale_ptr, out_ptr,
    FULL: tl.constexpr, TAIL: tl.constexpr, T: tl.constexpr, WORDS: tl.constexpr,
    PAIRS: tl.constexpr, TABLE: tl.constexpr, TEXT: tl.constexpr, CONSTRAINTS: tl.constexpr,
    SCALES: tl.constexpr, GAIN: tl.constexpr, CENTRE: tl.constexpr,
    TILES_PER_SCALE: tl.constexpr, ROW_SCALES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (N, blocks of the full tiles [+ blocks of the tail]). out: (N, padded K / 2) int32."""
    TOTAL: tl.constexpr = FULL * T + TAIL
    FULL_BLOCKS: tl.constexpr = (FULL * T + BLOCK - 1) // BLOCK
    row, block = tl.program_id(0), tl.program_id(1)
    codes = codes_ptr + row * (TOTAL * WORDS)
    out = out_ptr + row.to(tl.int64) * (TOTAL * PAIRS)
    lanes = tl.arange(0, BLOCK)
    if block < FULL_BLOCKS:
        index = block * BLOCK + lanes
        inside = index < FULL * T
        pairs = _decode(
            codes, table_ptr, row, index, inside, T, WORDS, PAIRS, TABLE, TEXT, CONSTRAINTS
        )
        where = out + index // T * (T * PAIRS) + index % T
        # Whole tiles of padding have no scale of their own.
        scale_index = tl.minimum(index // T // TILES_PER_SCALE, ROW_SCALES - 1)
        scale_index += row * ROW_SCALES
        _store(pairs, where, T, scale_ptr, scale_index, inside, PAIRS, SCALES, GAIN, CENTRE)
    elif TAIL > 0:
        index = (block - FULL_BLOCKS) * BLOCK + lanes
        inside = index < TAIL
        codes += FULL * T * WORDS
        pairs = _decode(
            codes, table_ptr, row, index, inside, TAIL, WORDS, PAIRS, TABLE, TEXT, CONSTRAINTS
        )
        where = out + FULL * T * PAIRS + index
        scale_index = row * ROW_SCALES + 0 * index
        _store(pairs, where, TAIL, scale_ptr, scale_index, inside, PAIRS, SCALES, GAIN, CENTRE)


@triton.jit
def _store(
    pairs, where, T: tl.constexpr, scale_ptr, scale_index, inside, PAIRS: tl.constexpr,
    SCALES: tl.constexpr, GAIN: tl.constexpr, CENTRE: tl.constexpr,
):  # fmt: skip
    if SCALES > 0:
        scale = tl.load(scale_ptr + SCALES * scale_index, mask=inside, other=0.0).to(tl.float32)
        offset = tl.zeros_like(scale)
    if SCALES == 2:
        zero = tl.load(scale_ptr + 2 * scale_index + 1, mask=inside, other=0.0).to(tl.float32)
        offset = CENTRE - zero
    for pair in tl.static_range(PAIRS):
        both = pairs[pair]
        if SCALES > 0:
            low = _rescale(both, 0, scale, offset, GAIN)
            both = low | (_rescale(both, 16, scale, offset, GAIN) << 16)
        tl.store(where + pair * T, both, mask=inside)


@triton.jit
def gather_dequantize_kernel(
    codes_ptr, table_ptr, out_ptr, FULL: tl.constexpr, TAIL: tl.constexpr, T: tl.constexpr,
    BITS: tl.constexpr, WORDS: tl.constexpr, QUADS: tl.constexpr, SPLIT: tl.constexpr,
    FIELDS: tl.constexpr,
):  # fmt: skip
    """Grid (N, tiles). Codes of 5 to 8 bits, table (N, 2**BITS) FP16; out: (N, padded K) FP16."""
    TOTAL: tl.constexpr = FULL * T + TAIL
    row, tile = tl.program_id(0), tl.program_id(1)
    lanes = tl.arange(0, T)
    groups = T
    if tile == FULL:
        groups = TAIL
    inside = lanes < groups
    tile_codes = codes_ptr + row * (TOTAL * WORDS) + tile * (T * WORDS)
    words = ()
    for plane in tl.static_range(WORDS):
        word = tl.load(tile_codes + plane * groups + lanes, mask=inside, other=0)
        words = words + (word,)
    out = out_ptr + row.to(tl.int64) * (4 * QUADS * TOTAL) + tile * (4 * QUADS * T) + 2 * lanes
    for quad in tl.static_range(QUADS):
        codes = byte_quad(words, quad, SPLIT, FIELDS)
        for byte in tl.static_range(4):
            entry = tl.load(table_ptr + (row << BITS) + ((codes >> (8 * byte)) & 0xFF))
            where = out + 2 * (2 * quad + byte // 2) * groups + byte % 2
            tl.store(where, entry, mask=inside)


def dequantize(weight: LutWeight | UniformWeight, sparse: CsrWeight | None = None) -> Tensor:
    """The (N, K) FP16 weight, a view of rows padded to the layout's K, plus its sparse part.

    Columns of a weight with folded act-order stay in the folded order. Raises: LayoutError.
    """
    codes = weight.codes
    shape = (codes.rows, codes.padded_columns)
    out = torch.empty(shape, dtype=torch.float16, device=codes.words.device)
    if isinstance(weight, LutWeight):
        check_lut(weight)
        if codes.bits not in REGISTER_BITS:
            _start_gather(weight, out)
        else:
            book = weight.codebook
            scale = book.table if book.scale is None else book.scale
            _start(codes, book.kind, book.table, scale, out)
    else:
        check_uniform(weight)
        _start(codes, "uniform", codes.words, weight.scale_zero, out, weight.group_size)
    out = out[:, : codes.columns]
    return out if sparse is None else _add_sparse(out, sparse)


def _start(
    codes: PackedCodes, kind: str, table: Tensor, scale: Tensor, out: Tensor,
    group_size: int | None = None,
) -> None:  # fmt: skip
    full_blocks = -(-codes.full_tiles * codes.tile_groups // BLOCK)
    blocks = full_blocks + -(-codes.tail_groups // BLOCK)
    grouped = group_size is not None and group_size < codes.columns
    start(
        dequantize_kernel,
        (codes.rows, blocks),
        codes.words,
        table,
        scale,
        out.view(torch.int32),
        FULL=codes.full_tiles,
        TAIL=codes.tail_groups,
        T=codes.tile_groups,
        WORDS=words_per_group(codes.bits),
        TILES_PER_SCALE=group_size // codes.tile_codes if grouped else codes.full_tiles + 1,
        ROW_SCALES=scale.shape[1] if kind == "uniform" else 1,
        BLOCK=BLOCK,
        num_warps=4,
        **decode_constants(kind, codes.bits),
    )


def _start_gather(weight: LutWeight, out: Tensor) -> None:
    codes = weight.codes
    start(
        gather_dequantize_kernel,
        (codes.rows, codes.full_tiles + (codes.tail_groups > 0)),
        codes.words,
        weight.codebook.table,
        out,
        FULL=codes.full_tiles,
        TAIL=codes.tail_groups,
        T=codes.tile_groups,
        num_warps=1,
        **gather_constants(codes.bits),
    )


def _add_sparse(out: Tensor, sparse: CsrWeight) -> Tensor:
    """Add the nonzeros in place; every position occurs once, so the order does not matter."""
    counts = sparse.row_pointers.diff()
    rows = torch.arange(sparse.shape[0], device=out.device)
    row_of = torch.repeat_interleave(rows, counts, output_size=sparse.nnz)
    columns = sparse.columns.long()
    if sparse.columns.dtype == torch.int16:
        columns = columns & 0xFFFF
    out.index_put_((row_of, columns), sparse.values, accumulate=True)
    if sparse.dense_rows is not None:
        out.index_add_(0, sparse.dense_rows.rows, sparse.dense_rows.values)
    return out

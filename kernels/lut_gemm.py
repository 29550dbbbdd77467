"""LUT GEMM for 2 to 16 tokens: every code is decoded once, then multiplied with all tokens.

A program decodes a block of rows to FP16 and multiplies it with 16 activation vectors (the absent
ones are zero) on tensor cores, in FP32. Also for uniform weights with one scale per row.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.checks import check_choice, check_tensor, fail
from kernels.launch import start
from kernels.layouts.codebook import LutWeight, check_lut
from kernels.layouts.codes import words_per_group
from kernels.layouts.uniform import UniformWeight, check_uniform
from kernels.plan import GEMM_BLOCK, GEMM_ROWS, decode_constants

MAX_TOKENS = 16


@triton.jit
def _half(word, SHIFT: tl.constexpr):
    return (word >> SHIFT).to(tl.int16).to(tl.float16, bitcast=True)


@triton.jit
def _add_block(
    acc, total, x_ptr, codes_ptr, table, n_words, local, first_column, M, K,
    LIMIT: tl.constexpr, WORDS: tl.constexpr, PAIRS: tl.constexpr, TABLE: tl.constexpr,
    SCALES: tl.constexpr, TEXT: tl.constexpr, CONSTRAINTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Decode groups `local` of a tile of LIMIT groups for all rows of the program; one dot a pair.

    codes_ptr: first word of the tile in row 0; n_words: (rows, 1) offset of each row's words.
    """
    valid = local < LIMIT
    operands = ()
    for plane in tl.static_range(WORDS):
        where = codes_ptr + n_words + plane * LIMIT + local[None, :]
        operands = operands + (tl.load(where, mask=valid[None, :], other=0),)  # noqa: RUF005
    halves = tl.inline_asm_elementwise(
        TEXT, CONSTRAINTS, operands + table, dtype=(tl.int32,) * PAIRS, is_pure=True, pack=1
    )
    token = tl.arange(0, 16)
    lane = tl.arange(0, 2 * BLOCK)
    group = tl.min(local, 0) + lane // 2
    for pair in tl.static_range(PAIRS):
        both = tl.join(_half(halves[pair], 0), _half(halves[pair], 16))
        weight = tl.reshape(both, (both.shape[0], 2 * BLOCK))
        column = first_column + 2 * (pair * LIMIT + group) + lane % 2
        inside = (group < LIMIT) & (column < K)
        x = tl.load(
            x_ptr + token[None, :] * K + column[:, None],
            mask=inside[:, None] & (token[None, :] < M),
            other=0.0,
        )
        acc = tl.dot(weight, x, acc)
        if SCALES == 2:
            total += tl.sum(x.to(tl.float32), 0)
    return acc, total


@triton.jit
def lut_gemm_kernel(
    x_ptr, codes_ptr, table_ptr, scale_ptr, y_ptr, M, N, K,
    FULL: tl.constexpr, TAIL: tl.constexpr, T: tl.constexpr, WORDS: tl.constexpr,
    PAIRS: tl.constexpr, TABLE: tl.constexpr, TEXT: tl.constexpr, CONSTRAINTS: tl.constexpr,
    SCALES: tl.constexpr, GAIN: tl.constexpr, CENTRE: tl.constexpr,
    BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Grid (row blocks,). x (M, K) FP16, y (M, N)."""
    ROW_WORDS: tl.constexpr = (FULL * T + TAIL) * WORDS
    TILE: tl.constexpr = 2 * PAIRS * T
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row = tl.minimum(n, N - 1)
    table = ()
    for word in tl.static_range(TABLE):
        table = table + (tl.load(table_ptr + row * TABLE + word)[:, None],)  # noqa: RUF005
    n_words = (row * ROW_WORDS)[:, None]
    lanes = tl.arange(0, BLOCK)
    acc = tl.zeros((ROWS, 16), tl.float32)
    total = tl.zeros((16,), tl.float32)
    for step in range(FULL * (T // BLOCK)):
        tile, local = step // (T // BLOCK), step % (T // BLOCK) * BLOCK + lanes
        acc, total = _add_block(
            acc, total, x_ptr, codes_ptr + tile * (T * WORDS), table, n_words, local, tile * TILE,
            M, K, T, WORDS, PAIRS, TABLE, SCALES, TEXT, CONSTRAINTS, BLOCK,
        )  # fmt: skip
    for step in range((TAIL + BLOCK - 1) // BLOCK):
        acc, total = _add_block(
            acc, total, x_ptr, codes_ptr + FULL * (T * WORDS), table, n_words,
            step * BLOCK + lanes, FULL * TILE, M, K, TAIL, WORDS, PAIRS, TABLE, SCALES, TEXT,
            CONSTRAINTS, BLOCK,
        )  # fmt: skip
    acc = acc * GAIN
    if SCALES == 1:
        acc = acc * tl.load(scale_ptr + row).to(tl.float32)[:, None]
    if SCALES == 2:
        scale = tl.load(scale_ptr + 2 * row).to(tl.float32)[:, None]
        zero = tl.load(scale_ptr + 2 * row + 1).to(tl.float32)[:, None]
        acc = scale * (acc + (CENTRE - zero) * total[None, :])
    token = tl.arange(0, 16)
    where = y_ptr + token[None, :] * N + n[:, None]
    inside = (token[None, :] < M) & (n[:, None] < N)
    tl.store(where, acc.to(y_ptr.dtype.element_ty), mask=inside)


def lut_gemm(x: Tensor, weight: LutWeight | UniformWeight, *, out: Tensor | None = None) -> Tensor:
    """Y = X W^T. x (M, K) float16, M of 1..16 -> (M, N) float16, or into `out`.

    Tables of 2, 3 or 4 bits, or a uniform grid with one scale per row and no act-order gather.

    Raises: LayoutError.
    """
    codes = weight.codes
    rows, columns = weight.shape
    if isinstance(weight, UniformWeight):
        check_uniform(weight)
        if weight.group_size < columns or weight.act_order is not None:
            found = f"{weight.group_size} with act_order {weight.act_order}"
            raise fail("group_size", found, f"{columns} without act_order")
        kind, table, scale = "uniform", codes.words, weight.scale_zero
    else:
        check_lut(weight)
        check_choice("bits of a LUT GEMM", codes.bits, (2, 3, 4))
        kind, table = weight.codebook.kind, weight.codebook.table
        check_choice("codebook kind", kind, ("fp16", "int8", "u7", "sym"))
        scale = table if weight.codebook.scale is None else weight.codebook.scale
    check_tensor("x", x, dtype=torch.float16, shape=(None, columns), device=weight.device)
    tokens = x.shape[0]
    check_choice("tokens", tokens, range(1, MAX_TOKENS + 1))
    y = torch.empty((tokens, rows), dtype=x.dtype, device=x.device) if out is None else out
    dtypes = (torch.float16, torch.float32)
    check_tensor("out", y, dtype=dtypes, shape=(tokens, rows), device=x.device)
    start(
        lut_gemm_kernel,
        (-(-rows // GEMM_ROWS),),
        *(x, codes.words, table, scale, y, tokens, rows, columns),
        FULL=codes.full_tiles,
        TAIL=codes.tail_groups,
        T=codes.tile_groups,
        WORDS=words_per_group(codes.bits),
        ROWS=GEMM_ROWS,
        BLOCK=GEMM_BLOCK,
        num_warps=4,
        **decode_constants(kind, codes.bits),
    )
    return y

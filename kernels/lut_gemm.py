"""LUT GEMM for 2 to 16 tokens: every code is decoded once, then multiplied with all tokens.

The 1-D form again: a warp owns 16 rows, a lane decodes four groups of codes of two of them straight
into the fragments of a tensor-core product with 8 or 16 activation vectors, in FP32. No value
changes its lane, so decoding costs what it costs in the GEMV. Also for uniform weights with one
scale per row.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.checks import check_choice, check_tensor, fail
from kernels.device import arrive
from kernels.launch import activation_words, check_aligned, fitting_parts, start
from kernels.layouts.codebook import REGISTER_BITS, LutWeight, check_lut
from kernels.layouts.uniform import UniformWeight, check_uniform
from kernels.plan import GEMM_REGISTERS, GEMM_TOKENS, mma_constants

MAX_TOKENS = 16
ROWS = 16  # rows of the weight per program
STEP = 16  # neighbouring groups of codes per step


@triton.jit
def _lane_table(table_ptr, row, COUNT: tl.constexpr):
    """The table of each lane's row (32 rows given), the same for its four elements."""
    words = ()
    for word in tl.static_range(COUNT):
        entry = tl.load(table_ptr + row * COUNT + word)
        entry = tl.reshape(tl.broadcast_to(entry[:, None], (32, 4)), (128,))
        words = words + (entry,)
    return words


@triton.jit
def _load(ptr, inside, STRIDE: tl.constexpr, COUNT: tl.constexpr, MASKED: tl.constexpr):
    vectors = ()
    for plane in tl.static_range(COUNT):
        if MASKED:
            word = tl.load(ptr + plane * STRIDE, mask=inside, other=0)
        else:
            word = tl.load(ptr + plane * STRIDE)
        vectors = vectors + (word,)
    return vectors


@triton.jit
def _add_step(
    sums, upper_ptr, lower_ptr, x_ptr, tables, group, token, M,
    LIMIT: tl.constexpr, X_ROW: tl.constexpr, WORDS: tl.constexpr, PAIRS: tl.constexpr,
    TOKEN_BLOCKS: tl.constexpr, RESULTS: tl.constexpr, TEXT: tl.constexpr,
    CONSTRAINTS: tl.constexpr,
):  # fmt: skip
    """16 groups of a tile of LIMIT groups; pointers are those of group 0 of the tile."""
    RAGGED: tl.constexpr = LIMIT % 16 > 0
    inside = group < LIMIT
    operands = _load(upper_ptr + group, inside, LIMIT, WORDS, RAGGED)
    operands = operands + _load(lower_ptr + group, inside, LIMIT, WORDS, RAGGED)
    for block in tl.static_range(TOKEN_BLOCKS):
        mine = tl.minimum(token + 8 * block, M - 1)  # past the end: a product that is not stored
        operands = operands + _load(x_ptr + mine * X_ROW + group, inside, LIMIT, PAIRS, RAGGED)
    operands = operands + tables
    for result in tl.static_range(RESULTS):
        operands = operands + (sums[result],)
    return tl.inline_asm_elementwise(
        TEXT, CONSTRAINTS, operands, dtype=(tl.float32,) * RESULTS, is_pure=True, pack=4
    )


@triton.jit
def _finish(acc, total, row, scale_ptr, SCALES: tl.constexpr, GAIN: tl.constexpr,
            CENTRE: tl.constexpr):  # fmt: skip
    acc = acc * GAIN
    if SCALES == 1:
        acc = acc * tl.load(scale_ptr + row).to(tl.float32)
    if SCALES == 2:
        zero = tl.load(scale_ptr + 2 * row + 1).to(tl.float32)
        acc = tl.load(scale_ptr + 2 * row).to(tl.float32) * (acc + (CENTRE - zero) * total)
    return acc


@triton.jit
def _row_of(block, element):
    """Element e holds part e % 4 of its lane's result: parts 2 and 3 are eight rows further on."""
    return block * 16 + element // 16 + 8 * (element % 4 // 2)


@triton.jit
def _token_of(element):
    return 2 * (element // 4 % 4) + element % 2


@triton.jit
def _store(value, y_ptr, row, token, M, N):
    inside = (row < N) & (token < M)
    tl.store(y_ptr + token * N + row, value.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _collect(
    y_ptr, slots, row, token, M, N, PARTS: tl.constexpr, TOKEN_BLOCKS: tl.constexpr
):  # fmt: skip
    """The last program of a block adds all parts, in order."""
    for half in tl.static_range(TOKEN_BLOCKS):
        value = tl.zeros((128,), tl.float32)
        for part in tl.static_range(PARTS):
            where = slots + (part * TOKEN_BLOCKS + half) * 128
            value += tl.load(where, cache_modifier=".cg")
        _store(value, y_ptr, row, token + 8 * half, M, N)


@triton.jit
def lut_gemm_kernel(
    x_ptr, codes_ptr, table_ptr, scale_ptr, y_ptr, partials_ptr, counters_ptr, M, N,
    FULL: tl.constexpr, TAIL: tl.constexpr, PARTS: tl.constexpr, T: tl.constexpr,
    TOKEN_BLOCKS: tl.constexpr, WORDS: tl.constexpr, PAIRS: tl.constexpr, TABLE: tl.constexpr,
    TEXT: tl.constexpr, CONSTRAINTS: tl.constexpr,
    SCALES: tl.constexpr, GAIN: tl.constexpr, CENTRE: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of 16 rows, parts). x: (M, padded K / 2) pairs as int32; y: (M, N)."""
    ROW_WORDS: tl.constexpr = (FULL * T + TAIL) * WORDS
    X_ROW: tl.constexpr = (FULL * T + TAIL) * PAIRS
    SUMS: tl.constexpr = TOKEN_BLOCKS if SCALES == 2 else 0
    RESULTS: tl.constexpr = TOKEN_BLOCKS + SUMS
    STEPS: tl.constexpr = T // 16
    PART: tl.constexpr = FULL * STEPS // PARTS
    block, part = tl.program_id(0), tl.program_id(1)
    element = tl.arange(0, 128)  # four to a lane: lane = element // 4
    token, group = element // 16, element % 16
    upper = tl.minimum(block * 16 + token, N - 1)
    lower = tl.minimum(block * 16 + 8 + token, N - 1)
    lane_row = block * 16 + tl.arange(0, 32) // 4
    tables = _lane_table(table_ptr, tl.minimum(lane_row, N - 1), TABLE)
    tables = tables + _lane_table(table_ptr, tl.minimum(lane_row + 8, N - 1), TABLE)
    upper_ptr = codes_ptr + upper * ROW_WORDS
    lower_ptr = codes_ptr + lower * ROW_WORDS
    zero = tl.zeros((128,), tl.float32)
    sums = ()
    for _ in tl.static_range(RESULTS):
        sums = sums + (zero,)
    for index in range(PART):
        step = part * PART + index
        words = step // STEPS * (T * WORDS)
        sums = _add_step(
            sums, upper_ptr + words, lower_ptr + words, x_ptr + step // STEPS * (T * PAIRS),
            tables, step % STEPS * 16 + group, token, M, T, X_ROW, WORDS, PAIRS, TOKEN_BLOCKS,
            RESULTS, TEXT, CONSTRAINTS,
        )  # fmt: skip
    if TAIL > 0:
        if part == PARTS - 1:
            for step in range((TAIL + 15) // 16):
                words = FULL * T * WORDS
                sums = _add_step(
                    sums, upper_ptr + words, lower_ptr + words, x_ptr + FULL * T * PAIRS, tables,
                    step * 16 + group, token, M, TAIL, X_ROW, WORDS, PAIRS, TOKEN_BLOCKS,
                    RESULTS, TEXT, CONSTRAINTS,
                )  # fmt: skip
    row, column = _row_of(block, element), _token_of(element)
    slots = partials_ptr + block * (PARTS * TOKEN_BLOCKS * 128) + element
    for half in tl.static_range(TOKEN_BLOCKS):
        value = _finish(
            sums[half], sums[half + SUMS], tl.minimum(row, N - 1), scale_ptr, SCALES, GAIN, CENTRE
        )
        if PARTS == 1:
            _store(value, y_ptr, row, column + 8 * half, M, N)
        else:
            tl.store(slots + (part * TOKEN_BLOCKS + half) * 128, value)
    if PARTS > 1:
        if arrive(counters_ptr + block, PARTS):
            _collect(y_ptr, slots, row, column, M, N, PARTS, TOKEN_BLOCKS)


def lut_gemm(
    x: Tensor,
    weight: LutWeight | UniformWeight,
    *,
    out: Tensor | None = None,
    parts: int | None = None,
    counters: Tensor | None = None,
) -> Tensor:
    """Y = X W^T. x (M, K) float16, M of 1..16 -> (M, N) float16, or into `out`.

    Tables of 2, 3 or 4 bits, or a uniform grid with one scale per row and no act-order. parts
    divides the full tiles' steps of 16 groups; counters: ceil(N / 16) zeros, as in `lut_gemv`.

    Raises: LayoutError.
    """
    codes = weight.codes
    rows, columns = weight.shape
    kind, table, scale = _operands(weight)
    check_aligned("words", codes.words)
    check_tensor("x", x, dtype=torch.float16, shape=(None, columns), device=weight.device)
    tokens = x.shape[0]
    check_choice("tokens", tokens, range(1, MAX_TOKENS + 1))
    y = torch.empty((tokens, rows), dtype=x.dtype, device=x.device) if out is None else out
    dtypes = (torch.float16, torch.float32)
    check_tensor("out", y, dtype=dtypes, shape=(tokens, rows), device=x.device)
    most = GEMM_TOKENS.get(codes.bits, MAX_TOKENS)
    if tokens > most:
        for some, result in zip(x.split(most), y.split(most), strict=True):
            lut_gemm(some, weight, out=result, parts=parts, counters=counters)
        return y
    constants = mma_constants(kind, codes.bits, tokens)
    blocks, steps = -(-rows // ROWS), codes.full_tiles * (codes.tile_groups // STEP)
    parts = fitting_parts(steps, blocks, x.device) if parts is None else parts
    if parts != 1 and (parts < 1 or steps == 0 or steps % parts):
        raise fail("parts", parts, f"a divisor of the {steps} steps of a row")
    partials = table
    if parts > 1:
        partials = torch.empty(blocks * parts * constants["TOKEN_BLOCKS"] * 128, device=x.device)
        if counters is None:
            counters = torch.zeros(blocks, dtype=torch.int32, device=x.device)
        check_tensor("counters", counters, dtype=torch.int32, shape=(blocks,), device=x.device)
    start(
        lut_gemm_kernel,
        (blocks, parts),
        *(activation_words(x, codes), codes.words, table, scale, y, partials),
        *(table if counters is None else counters, tokens, rows),
        FULL=codes.full_tiles,
        TAIL=codes.tail_groups,
        PARTS=parts,
        T=codes.tile_groups,
        num_warps=1,
        maxnreg=GEMM_REGISTERS,
        **constants,
    )
    return y


def _operands(weight: LutWeight | UniformWeight) -> tuple[str, Tensor, Tensor]:
    """Kind, table and scales; tensors that the kernel will not read stand in for none."""
    codes = weight.codes
    check_choice("tile_codes of a GEMM", codes.tile_groups, [STEP << k for k in range(8)])
    if isinstance(weight, UniformWeight):
        check_uniform(weight)
        if weight.group_size < codes.columns or weight.act_order is not None:
            found = f"{weight.group_size} with act_order {weight.act_order}"
            raise fail("group_size", found, f"{codes.columns} without act_order")
        return "uniform", codes.words, weight.scale_zero
    check_lut(weight)
    book = weight.codebook
    check_choice("bits of a LUT GEMM", codes.bits, REGISTER_BITS)
    check_choice("codebook kind", book.kind, ("fp16", "int8", "u7", "sym"))
    return book.kind, book.table, book.table if book.scale is None else book.scale

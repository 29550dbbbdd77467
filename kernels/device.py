"""Device functions that the GEMV kernels share: four rows of one weight against one activation.

One program is one warp and owns four rows. Tensors run over the groups of a tile only, so that no
value changes its thread inside the loop: no barrier, no shared memory, 128-bit loads. The rows are
unrolled by hand and share every activation they load.
"""

import triton
import triton.language as tl

from kernels.ptx import HIDE_UNIFORMITY

_HIDE = tl.constexpr(HIDE_UNIFORMITY)


@triton.jit
def load_words(ptr, lanes, LIMIT: tl.constexpr, T: tl.constexpr, COUNT: tl.constexpr):
    """COUNT vectors of LIMIT consecutive words each; lanes LIMIT..T-1 read zero."""
    vectors = ()
    for plane in tl.static_range(COUNT):
        if LIMIT == T:
            vectors = vectors + (tl.load(ptr + plane * LIMIT + lanes),)
        else:
            word = tl.load(ptr + plane * LIMIT + lanes, mask=lanes < LIMIT, other=0)
            vectors = vectors + (word,)
    return vectors


@triton.jit
def _part(
    words, WORD: tl.constexpr, LOW: tl.constexpr, WIDTH: tl.constexpr, BIT: tl.constexpr
):  # fmt: skip
    """WIDTH bits of four codes, in the place that they have in a code."""
    MASK: tl.constexpr = ((1 << WIDTH) - 1) * 0x01010101
    return ((words[WORD] >> BIT) & MASK) << LOW


@triton.jit
def byte_quad(words, QUAD: tl.constexpr, SPLIT: tl.constexpr, FIELDS: tl.constexpr):
    """Four codes of 5 to 8 bits as the bytes of a word; SPLIT, FIELDS: `plan.gather_constants`."""
    if SPLIT == 1:  # whole bytes
        quad = words[QUAD]
    else:
        quad = tl.zeros_like(words[0])
        for part in tl.static_range(QUAD * SPLIT, (QUAD + 1) * SPLIT):
            quad |= _part(
                words, FIELDS[4 * part], FIELDS[4 * part + 1], FIELDS[4 * part + 2],
                FIELDS[4 * part + 3],
            )  # fmt: skip
    return quad


@triton.jit
def load_table(table_ptr, row, COUNT: tl.constexpr):
    """The COUNT words of a row's table, in vector registers (see HIDE_UNIFORMITY)."""
    words = ()
    if COUNT > 0:
        row = tl.inline_asm_elementwise(_HIDE, "=r,r", [row], dtype=tl.int32, is_pure=True, pack=1)
        for word in tl.static_range(COUNT):
            words = words + (tl.load(table_ptr + row * COUNT + word),)
    return words


@triton.jit
def four_rows(group, N):
    """Row numbers of a program; past the end they repeat the last row, which is not stored."""
    row = group * 4
    last = N - 1
    return row, tl.minimum(row + 1, last), tl.minimum(row + 2, last), tl.minimum(row + 3, last)


@triton.jit
def four_tables(table_ptr, rows, COUNT: tl.constexpr):
    return (
        load_table(table_ptr, rows[0], COUNT),
        load_table(table_ptr, rows[1], COUNT),
        load_table(table_ptr, rows[2], COUNT),
        load_table(table_ptr, rows[3], COUNT),
    )


@triton.jit
def _step(operands, TEXT: tl.constexpr, CONSTRAINTS: tl.constexpr, PACK: tl.constexpr):
    return tl.inline_asm_elementwise(
        TEXT, CONSTRAINTS, operands, dtype=tl.float32, is_pure=True, pack=PACK
    )


@triton.jit
def add_tile(
    sums, xs, codes_ptr, rows, tables, scale, lanes,
    LIMIT: tl.constexpr, T: tl.constexpr, WORDS: tl.constexpr, ROW_WORDS: tl.constexpr,
    TEXT: tl.constexpr, CONSTRAINTS: tl.constexpr,
):  # fmt: skip
    """Add one tile's products to the sums of the four rows; `scale` is () or (block scale,)."""
    PACK: tl.constexpr = T // 32
    w0 = load_words(codes_ptr + rows[0] * ROW_WORDS, lanes, LIMIT, T, WORDS)
    w1 = load_words(codes_ptr + rows[1] * ROW_WORDS, lanes, LIMIT, T, WORDS)
    w2 = load_words(codes_ptr + rows[2] * ROW_WORDS, lanes, LIMIT, T, WORDS)
    w3 = load_words(codes_ptr + rows[3] * ROW_WORDS, lanes, LIMIT, T, WORDS)
    return (
        _step(w0 + xs + tables[0] + scale + (sums[0],), TEXT, CONSTRAINTS, PACK),
        _step(w1 + xs + tables[1] + scale + (sums[1],), TEXT, CONSTRAINTS, PACK),
        _step(w2 + xs + tables[2] + scale + (sums[2],), TEXT, CONSTRAINTS, PACK),
        _step(w3 + xs + tables[3] + scale + (sums[3],), TEXT, CONSTRAINTS, PACK),
    )


@triton.jit
def exact_rows(
    x_ptr, codes_ptr, table_ptr, rows, part,
    FULL: tl.constexpr, TAIL: tl.constexpr, PARTS: tl.constexpr, T: tl.constexpr,
    WORDS: tl.constexpr, INPUTS: tl.constexpr, TABLE: tl.constexpr,
    TEXT: tl.constexpr, CONSTRAINTS: tl.constexpr,
    SUM_TEXT: tl.constexpr, SUM_CONSTRAINTS: tl.constexpr,
):  # fmt: skip
    """Sums of (entry * activation) of four rows over the tiles of a part, and of the activations.

    The last element stays zero where SUM_TEXT is empty: the codebook has no zero point.
    """
    ROW_WORDS: tl.constexpr = (FULL * T + TAIL) * WORDS
    PART: tl.constexpr = FULL // PARTS
    lanes = tl.arange(0, T)
    tables = four_tables(table_ptr, rows, TABLE)
    zero = tl.zeros((T,), tl.float32)
    sums = (zero, zero, zero, zero)
    total = zero
    for step in range(PART):
        tile = part * PART + step
        xs = load_words(x_ptr + tile * (T * INPUTS), lanes, T, T, INPUTS)
        words = codes_ptr + tile * (T * WORDS)
        sums = add_tile(
            sums, xs, words, rows, tables, (), lanes, T, T, WORDS, ROW_WORDS, TEXT, CONSTRAINTS
        )
        if SUM_TEXT != "":
            total = _step(xs + (total,), SUM_TEXT, SUM_CONSTRAINTS, T // 32)
    if TAIL > 0:
        if part == PARTS - 1:
            xs = load_words(x_ptr + FULL * (T * INPUTS), lanes, TAIL, T, INPUTS)
            words = codes_ptr + FULL * (T * WORDS)
            sums = add_tile(
                sums, xs, words, rows, tables, (), lanes, TAIL, T, WORDS, ROW_WORDS, TEXT,
                CONSTRAINTS,
            )  # fmt: skip
            if SUM_TEXT != "":
                total = _step(xs + (total,), SUM_TEXT, SUM_CONSTRAINTS, T // 32)
    return _reduce(sums), tl.sum(total, 0)


@triton.jit
def int_rows(
    planes_ptr, block_ptr, codes_ptr, table_ptr, rows, part,
    FULL: tl.constexpr, TAIL: tl.constexpr, PARTS: tl.constexpr, T: tl.constexpr,
    WORDS: tl.constexpr, INPUTS: tl.constexpr, TABLE: tl.constexpr,
    TEXT: tl.constexpr, CONSTRAINTS: tl.constexpr,
):  # fmt: skip
    """As `exact_rows`, with activations as two int8 planes, a scale and a sum per tile.

    planes: int32, as `activation_planes` writes them; block: (tiles, 2) FP32.
    """
    ROW_WORDS: tl.constexpr = (FULL * T + TAIL) * WORDS
    PART: tl.constexpr = FULL // PARTS
    lanes = tl.arange(0, T)
    tables = four_tables(table_ptr, rows, TABLE)
    zero = tl.zeros((T,), tl.float32)
    sums = (zero, zero, zero, zero)
    total = 0.0
    for step in range(PART):
        tile = part * PART + step
        xs = load_words(planes_ptr + tile * (T * INPUTS), lanes, T, T, INPUTS)
        scale = (tl.load(block_ptr + 2 * tile),)
        words = codes_ptr + tile * (T * WORDS)
        sums = add_tile(
            sums, xs, words, rows, tables, scale, lanes, T, T, WORDS, ROW_WORDS, TEXT, CONSTRAINTS
        )
        total += tl.load(block_ptr + 2 * tile + 1)
    if TAIL > 0:
        if part == PARTS - 1:
            xs = load_words(planes_ptr + FULL * (T * INPUTS), lanes, TAIL, T, INPUTS)
            scale = (tl.load(block_ptr + 2 * FULL),)
            words = codes_ptr + FULL * (T * WORDS)
            sums = add_tile(
                sums, xs, words, rows, tables, scale, lanes, TAIL, T, WORDS, ROW_WORDS, TEXT,
                CONSTRAINTS,
            )  # fmt: skip
            total += tl.load(block_ptr + 2 * FULL + 1)
    return _reduce(sums), total


@triton.jit
def _reduce(sums):
    return tl.sum(sums[0], 0), tl.sum(sums[1], 0), tl.sum(sums[2], 0), tl.sum(sums[3], 0)


@triton.jit
def scale_row(
    value, total, row, scale_ptr,
    SCALES: tl.constexpr, GAIN: tl.constexpr, CENTRE: tl.constexpr,
):  # fmt: skip
    """The row's output: scale * (GAIN * value + (CENTRE - zero) * sum of the activations).

    GAIN undoes the decoder's power of two, CENTRE is what it subtracted from every entry. A row
    has SCALES = 0, 1 (scale) or 2 (scale and zero) numbers.
    """
    value = value * GAIN
    if SCALES == 1:
        value = tl.load(scale_ptr + row).to(tl.float32) * (value + CENTRE * total)
    if SCALES == 2:
        scale = tl.load(scale_ptr + 2 * row).to(tl.float32)
        zero = tl.load(scale_ptr + 2 * row + 1).to(tl.float32)
        value = scale * (value + (CENTRE - zero) * total)
    return value


@triton.jit
def scale_rows(
    sums, total, rows, scale_ptr,
    SCALES: tl.constexpr, GAIN: tl.constexpr, CENTRE: tl.constexpr,
):  # fmt: skip
    return (
        scale_row(sums[0], total, rows[0], scale_ptr, SCALES, GAIN, CENTRE),
        scale_row(sums[1], total, rows[1], scale_ptr, SCALES, GAIN, CENTRE),
        scale_row(sums[2], total, rows[2], scale_ptr, SCALES, GAIN, CENTRE),
        scale_row(sums[3], total, rows[3], scale_ptr, SCALES, GAIN, CENTRE),
    )


@triton.jit
def four(values):
    """Four scalars as one vector of four."""
    lane = tl.arange(0, 4)
    low = tl.where(lane == 0, values[0], values[1])
    high = tl.where(lane == 2, values[2], values[3])
    return tl.where(lane < 2, low, high)


@triton.jit
def store_rows(values, y_ptr, partials_ptr, counters_ptr, group, part, N, PARTS: tl.constexpr):
    """Store four outputs; with PARTS > 1 the last program to arrive adds all parts, in order.

    The result does not depend on who is last. The counter is zero again afterwards, so a CUDA
    graph can replay the launch.
    """
    rows = group * 4 + tl.arange(0, 4)
    if PARTS == 1:
        tl.store(y_ptr + rows, four(values).to(y_ptr.dtype.element_ty), mask=rows < N)
    else:
        slots = partials_ptr + group * (4 * PARTS) + tl.arange(0, 4)
        tl.store(slots + part * 4, four(values))
        if arrive(counters_ptr + group, PARTS):
            total = tl.zeros((4,), tl.float32)
            for other in tl.static_range(PARTS):
                total += tl.load(slots + other * 4, cache_modifier=".cg")
            tl.store(y_ptr + rows, total.to(y_ptr.dtype.element_ty), mask=rows < N)


@triton.jit
def arrive(counter_ptr, expected):
    """True for the last of `expected` programs, which also resets the counter to zero.

    The barrier orders this program's stores before its release; the acquire makes those of the
    others visible, to loads that pass the L1 cache by.
    """
    tl.debug_barrier()
    is_last = tl.atomic_add(counter_ptr, 1, sem="acq_rel", scope="gpu") == expected - 1
    if is_last:
        tl.store(counter_ptr, 0)
    tl.debug_barrier()
    return is_last

"""Device functions of the sparse part that several kernels share."""

import triton
import triton.language as tl

from kernels.device import arrive, four

SPARSE_BLOCK = 128  # nonzeros of four rows per step: 0.45 % of 4096 columns are 74


@triton.jit
def load_columns(columns_ptr, index, inside):
    """Column numbers of nonzeros; a 16-bit pattern is an unsigned number."""
    column = tl.load(columns_ptr + index, mask=inside, other=0)
    if columns_ptr.dtype.element_ty == tl.int16:
        column = column.to(tl.int32) & 0xFFFF
    return column


@triton.jit
def products(x_ptr, columns_ptr, values_ptr, index, inside):
    """FP32 products value * activation of the nonzeros `index`; zero where not inside."""
    column = load_columns(columns_ptr, index, inside)
    value = tl.load(values_ptr + index, mask=inside, other=0.0).to(tl.float32)
    return value * tl.load(x_ptr + column, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def sparse_rows(x_ptr, pointers_ptr, columns_ptr, values_ptr, group, N, BLOCK: tl.constexpr):
    """Sums of the nonzeros of four neighbouring rows, read as one range of the CSR arrays."""
    row = group * 4
    begin = tl.load(pointers_ptr + row)
    end0 = tl.load(pointers_ptr + tl.minimum(row + 1, N))
    end1 = tl.load(pointers_ptr + tl.minimum(row + 2, N))
    end2 = tl.load(pointers_ptr + tl.minimum(row + 3, N))
    end3 = tl.load(pointers_ptr + tl.minimum(row + 4, N))
    lanes = tl.arange(0, BLOCK)
    a = tl.zeros((BLOCK,), tl.float32)
    b, c, d = a, a, a
    while begin < end3:
        index = begin + lanes
        product = products(x_ptr, columns_ptr, values_ptr, index, index < end3)
        a += tl.where(index < end0, product, 0.0)
        b += tl.where((index >= end0) & (index < end1), product, 0.0)
        c += tl.where((index >= end1) & (index < end2), product, 0.0)
        d += tl.where(index >= end2, product, 0.0)
        begin += BLOCK
    return tl.sum(a, 0), tl.sum(b, 0), tl.sum(c, 0), tl.sum(d, 0)


@triton.jit
def dense_dot(x_ptr, values_ptr, slice_, K: tl.constexpr, SLICE: tl.constexpr, BLOCK: tl.constexpr):
    """Dot product of columns slice * SLICE ... of one dense row with the activations."""
    lanes = tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), tl.float32)
    first = slice_ * SLICE
    for start in range(0, SLICE, BLOCK):
        inside = (start + lanes < SLICE) & (first + start + lanes < K)
        value = tl.load(values_ptr + first + start + lanes, mask=inside, other=0.0)
        x = tl.load(x_ptr + first + start + lanes, mask=inside, other=0.0)
        acc += value.to(tl.float32) * x.to(tl.float32)
    return tl.sum(acc, 0)


@triton.jit
def dense_rows_in(dense_rows_ptr, group, DENSE: tl.constexpr, SLOTS: tl.constexpr):
    """How many of the DENSE rows kept apart belong to a group of four rows."""
    slot = tl.arange(0, SLOTS)
    row = tl.load(dense_rows_ptr + slot, mask=slot < DENSE, other=-4)
    return tl.sum((row // 4 == group).to(tl.int32), 0)


@triton.jit
def finish_group(
    y_ptr, partials_ptr, dense_partials_ptr, dense_rows_ptr, counters_ptr, group, expected, N,
    PARTS: tl.constexpr, DENSE: tl.constexpr, SLICES: tl.constexpr,
):  # fmt: skip
    """After `expected` arrivals: add a group's parts, then its dense rows' slices, in order."""
    if arrive(counters_ptr + group, expected):
        lane = tl.arange(0, 4)
        total = tl.zeros((4,), tl.float32)
        for part in tl.static_range(PARTS):
            slots = partials_ptr + (group * PARTS + part) * 4 + lane
            total += tl.load(slots, cache_modifier=".cg")
        for dense in range(DENSE):
            row = tl.load(dense_rows_ptr + dense)
            if row // 4 == group:
                extra = 0.0
                for slice_ in range(SLICES):
                    slot = dense_partials_ptr + dense * SLICES + slice_
                    extra += tl.load(slot, cache_modifier=".cg")
                total += tl.where(lane == row % 4, extra, 0.0)
        rows = group * 4 + lane
        tl.store(y_ptr + rows, total.to(y_ptr.dtype.element_ty), mask=rows < N)


@triton.jit
def dense_program(
    x_ptr, dense_ptr, dense_rows_ptr, y_ptr, partials_ptr, dense_partials_ptr, counters_ptr,
    program, N, PARTS: tl.constexpr, DENSE: tl.constexpr, DENSE_SLOTS: tl.constexpr,
    SLICES: tl.constexpr, SLICE: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One slice of one dense row; it may be the last arriver of the row's group."""
    dense, slice_ = program // SLICES, program % SLICES
    value = dense_dot(x_ptr, dense_ptr + dense * K, slice_, K, SLICE, BLOCK)
    tl.store(dense_partials_ptr + program, value)
    group = tl.load(dense_rows_ptr + dense) // 4
    expected = PARTS + SLICES * dense_rows_in(dense_rows_ptr, group, DENSE, DENSE_SLOTS)
    finish_group(
        y_ptr, partials_ptr, dense_partials_ptr, dense_rows_ptr, counters_ptr, group, expected, N,
        PARTS, DENSE, SLICES,
    )  # fmt: skip


@triton.jit
def store_group(
    values, y_ptr, partials_ptr, dense_partials_ptr, dense_rows_ptr, counters_ptr,
    group, part, N, PARTS: tl.constexpr, DENSE: tl.constexpr, DENSE_SLOTS: tl.constexpr,
    SLICES: tl.constexpr,
):  # fmt: skip
    """Store four outputs at once where nobody else contributes, else as the last arriver."""
    rows = group * 4 + tl.arange(0, 4)
    expected = PARTS
    if DENSE > 0:
        expected += SLICES * dense_rows_in(dense_rows_ptr, group, DENSE, DENSE_SLOTS)
    if expected == 1:
        tl.store(y_ptr + rows, four(values).to(y_ptr.dtype.element_ty), mask=rows < N)
    else:
        tl.store(partials_ptr + (group * PARTS + part) * 4 + tl.arange(0, 4), four(values))
        finish_group(
            y_ptr, partials_ptr, dense_partials_ptr, dense_rows_ptr, counters_ptr, group,
            expected, N, PARTS, DENSE, SLICES,
        )  # fmt: skip

"""Sparse matrix times vector in CSR, three ways: y = S x; FP32 sums, no atomics on the output.

rows       one thread per row: the baseline, as slow as the longest row
hybrid     the densest rows apart: dense, sliced over K; one thread per row for the rest
balanced   every program takes the same number of nonzeros, whatever the rows are

The record says which: `dense_rows` makes it hybrid, `start_rows` balanced.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.checks import check_tensor
from kernels.device import arrive, four
from kernels.launch import output, row_groups, start
from kernels.layouts.sparse import CsrWeight, check_csr, dequantize_csr
from kernels.sparse_device import SPARSE_BLOCK, dense_dot, products, sparse_rows

ROW_BLOCK = 32  # rows per program of one thread each
DENSE_SLICE = 1024  # columns of a dense row per program
DENSE_BLOCK = 256


def csr_spmv_ref(x: Tensor, weight: CsrWeight) -> Tensor:
    """y = S x in FP64, plain PyTorch, any device. x (K,) -> (N,) float64."""
    return dequantize_csr(weight).double() @ x.double()


@triton.jit
def _thread_per_row(x_ptr, pointers_ptr, columns_ptr, values_ptr, row, N):
    """Sums of the rows `row`, one per thread; all threads walk to the end of the longest."""
    index = tl.load(pointers_ptr + row, mask=row < N, other=0)
    end = tl.load(pointers_ptr + row + 1, mask=row < N, other=0)
    left = tl.max(end - index, 0)
    acc = tl.zeros_like(index).to(tl.float32)
    while left > 0:
        acc += products(x_ptr, columns_ptr, values_ptr, index, index < end)
        index += 1
        left -= 1
    return acc


@triton.jit
def rows_spmv(
    x_ptr, pointers_ptr, columns_ptr, values_ptr, y_ptr, N, ROW_BLOCK: tl.constexpr
):  # fmt: skip
    """Grid (row blocks,)."""
    row = tl.program_id(0) * ROW_BLOCK + tl.arange(0, ROW_BLOCK)
    acc = _thread_per_row(x_ptr, pointers_ptr, columns_ptr, values_ptr, row, N)
    tl.store(y_ptr + row, acc.to(y_ptr.dtype.element_ty), mask=row < N)


@triton.jit
def hybrid_spmv(
    x_ptr, pointers_ptr, columns_ptr, values_ptr, dense_ptr, dense_rows_ptr, y_ptr, partials_ptr,
    counters_ptr, N, K: tl.constexpr, DENSE: tl.constexpr, SLICES: tl.constexpr,
    SLICE: tl.constexpr, BLOCK: tl.constexpr, ROW_BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (DENSE * SLICES + row blocks,); the last slice to arrive adds a dense row's slices."""
    program = tl.program_id(0)
    if program < DENSE * SLICES:
        dense, slice_ = program // SLICES, program % SLICES
        value = dense_dot(x_ptr, dense_ptr + dense * K, slice_, K, SLICE, BLOCK)
        tl.store(partials_ptr + program, value)
        if arrive(counters_ptr + dense, SLICES):
            total = 0.0
            for other in range(SLICES):
                where = partials_ptr + dense * SLICES + other
                total += tl.load(where, cache_modifier=".cg")
            out = y_ptr + tl.load(dense_rows_ptr + dense)
            tl.store(out, total.to(y_ptr.dtype.element_ty))
    else:
        row = (program - DENSE * SLICES) * ROW_BLOCK + tl.arange(0, ROW_BLOCK)
        acc = _thread_per_row(x_ptr, pointers_ptr, columns_ptr, values_ptr, row, N)
        mine = row < N
        for dense in range(DENSE):
            mine = mine & (row != tl.load(dense_rows_ptr + dense))
        tl.store(y_ptr + row, acc.to(y_ptr.dtype.element_ty), mask=mine)


@triton.jit
def _share_row(
    value, row, begin, end, chunk, y_ptr, partials_ptr, counters_ptr, CHUNK: tl.constexpr
):  # fmt: skip
    """A row that spans chunks owner..last: the last of them to arrive adds their parts in order.

    A chunk's second part is the row that starts in it and goes on; its first part is the row that
    started before. Only one row can start in a chunk and go on, so the owner's counter is its own.
    """
    owner, last = begin // CHUNK, (end - 1) // CHUNK
    tl.store(partials_ptr + 2 * chunk + (owner == chunk).to(tl.int32), value)
    if arrive(counters_ptr + owner, last - owner + 1):
        total = tl.load(partials_ptr + 2 * owner + 1, cache_modifier=".cg")
        other = owner + 1
        while other <= last:
            total += tl.load(partials_ptr + 2 * other, cache_modifier=".cg")
            other += 1
        tl.store(y_ptr + row, total.to(y_ptr.dtype.element_ty))


@triton.jit
def balanced_spmv(
    x_ptr, pointers_ptr, columns_ptr, values_ptr, start_rows_ptr, y_ptr, partials_ptr,
    counters_ptr, N, nnz, CHUNK: tl.constexpr,
):  # fmt: skip
    """Grid (chunks,): CHUNK nonzeros, then one masked sum per row that has some of them."""
    chunk, chunks = tl.program_id(0), tl.num_programs(0)
    first = chunk * CHUNK
    last = tl.minimum(first + CHUNK, nnz)
    index = first + tl.arange(0, CHUNK)
    product = products(x_ptr, columns_ptr, values_ptr, index, index < last)
    row = tl.load(start_rows_ptr + chunk)
    stop = N
    if chunk + 1 < chunks:
        following = tl.load(start_rows_ptr + chunk + 1)
        stop = following + (tl.load(pointers_ptr + following) < last).to(tl.int32)
    while row < stop:
        begin = tl.load(pointers_ptr + row)
        end = tl.load(pointers_ptr + row + 1)
        value = tl.sum(tl.where((index >= begin) & (index < end), product, 0.0), 0)
        if (begin >= first) & (end <= last):
            tl.store(y_ptr + row, value.to(y_ptr.dtype.element_ty))
        else:
            _share_row(
                value, row, begin, end, chunk, y_ptr, partials_ptr, counters_ptr, CHUNK
            )  # fmt: skip
        row += 1


def csr_spmv(
    x: Tensor,
    weight: CsrWeight,
    *,
    out: Tensor | None = None,
    counters: Tensor | None = None,
) -> Tensor:
    """Triton twin of `csr_spmv_ref`. x (K,) float16 -> (N,) float16, or into `out`.

    counters: zeroed int32, `counters_needed` of them; None allocates and clears them per call.

    Raises: LayoutError.
    """
    check_csr(weight)
    rows, columns = weight.shape
    check_tensor("x", x, dtype=torch.float16, shape=(columns,), device=weight.device)
    y = output(out, rows, x)
    needed = counters_needed(weight)
    if counters is None:
        counters = torch.zeros(needed, dtype=torch.int32, device=x.device)
    check_tensor("counters", counters, dtype=torch.int32, shape=(needed,), device=x.device)
    arrays = (x, weight.row_pointers, weight.columns, weight.values)
    row_blocks = -(-rows // ROW_BLOCK)
    if weight.start_rows is not None:
        chunks = weight.start_rows.numel()
        partials = torch.empty(2 * chunks, device=x.device)
        args = (*arrays, weight.start_rows, y, partials, counters, rows, weight.nnz)
        start(balanced_spmv, (chunks,), *args, CHUNK=weight.chunk_nnz, num_warps=1)
    elif weight.dense_rows is not None:
        dense = weight.dense_rows
        constants = hybrid_constants(columns, dense.rows.numel())
        programs = constants["DENSE"] * constants["SLICES"]
        partials = torch.empty(programs, device=x.device)
        args = (*arrays, dense.values, dense.rows, y, partials, counters, rows)
        start(hybrid_spmv, (programs + row_blocks,), *args, **constants, num_warps=1)
    else:
        start(rows_spmv, (row_blocks,), *arrays, y, rows, ROW_BLOCK=ROW_BLOCK, num_warps=1)
    return y


@triton.jit
def tokens_spmm(
    x_ptr, pointers_ptr, columns_ptr, values_ptr, y_ptr, N, K, BLOCK: tl.constexpr
):  # fmt: skip
    """Grid (row groups, tokens): four rows of the CSR part times one of M activations."""
    group, token = tl.program_id(0), tl.program_id(1)
    values = sparse_rows(
        x_ptr + token * K, pointers_ptr, columns_ptr, values_ptr, group, N, BLOCK
    )  # fmt: skip
    row = group * 4 + tl.arange(0, 4)
    where = y_ptr + token * N + row
    tl.store(where, four(values).to(y_ptr.dtype.element_ty), mask=row < N)


def csr_spmm(x: Tensor, weight: CsrWeight) -> Tensor:
    """Y = X S^T for a few tokens. x (M, K) float16 -> (M, N) float32, dense rows included.

    Raises: LayoutError.
    """
    check_csr(weight)
    rows, columns = weight.shape
    check_tensor("x", x, dtype=torch.float16, shape=(None, columns), device=weight.device)
    y = torch.empty((x.shape[0], rows), dtype=torch.float32, device=x.device)
    arrays = (x, weight.row_pointers, weight.columns, weight.values)
    grid = (row_groups(rows), x.shape[0])
    start(tokens_spmm, grid, *arrays, y, rows, columns, BLOCK=SPARSE_BLOCK, num_warps=1)
    if weight.dense_rows is not None:
        dense = weight.dense_rows
        y.index_copy_(1, dense.rows.long(), (x @ dense.values.T).float())
    return y


def counters_needed(weight: CsrWeight) -> int:
    """Arrival counters of a launch: one per chunk, or per dense row."""
    if weight.start_rows is not None:
        return weight.start_rows.numel()
    return 0 if weight.dense_rows is None else weight.dense_rows.rows.numel()


def hybrid_constants(columns: int, dense: int) -> dict[str, int]:
    return {
        "K": columns,
        "DENSE": dense,
        "SLICES": -(-columns // DENSE_SLICE),
        "SLICE": DENSE_SLICE,
        "BLOCK": DENSE_BLOCK,
        "ROW_BLOCK": ROW_BLOCK,
    }

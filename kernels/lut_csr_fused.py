"""LUT GEMV with its sparse part and its dense rows in one launch; batch 1.

The program that owns four rows adds their nonzeros before it stores them: no second launch, no
atomics on the output, no zeroed output, 4 bytes per nonzero. Rows kept dense (the ten densest) are
sliced over K by programs at the front of the grid, so that the longest work starts first; the last
program to arrive at a group of rows adds all contributions in a fixed order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.activations import activation_planes
from kernels.checks import check_choice, check_tensor, fail
from kernels.device import exact_rows, four_rows, int_rows, scale_rows
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
from kernels.layouts.sparse import CsrWeight, check_csr, dequantize_csr
from kernels.lut_gemv import lut_constants
from kernels.sparse_device import DENSE_SLICE, SPARSE_BLOCK, dense_program, sparse_rows, store_group


def lut_csr_gemv_ref(x: Tensor, weight: LutWeight, sparse: CsrWeight) -> Tensor:
    """y = (W + S) x in FP64, plain PyTorch, any device. x (K,) -> (N,) float64."""
    return (dequantize_lut(weight).double() + dequantize_csr(sparse).double()) @ x.double()


@triton.jit
def _add(values, extra):
    return values[0] + extra[0], values[1] + extra[1], values[2] + extra[2], values[3] + extra[3]


@triton.jit
def exact_csr_gemv(
    x_ptr, words_ptr, codes_ptr, table_ptr, scale_ptr, pointers_ptr, columns_ptr, values_ptr,
    dense_ptr, dense_rows_ptr, y_ptr, partials_ptr, dense_partials_ptr, counters_ptr, N,
    FULL: tl.constexpr, TAIL: tl.constexpr, PARTS: tl.constexpr, T: tl.constexpr,
    WORDS: tl.constexpr, INPUTS: tl.constexpr, TABLE: tl.constexpr,
    TEXT: tl.constexpr, CONSTRAINTS: tl.constexpr,
    SUM_TEXT: tl.constexpr, SUM_CONSTRAINTS: tl.constexpr,
    SCALES: tl.constexpr, GAIN: tl.constexpr, CENTRE: tl.constexpr,
    K: tl.constexpr, DENSE: tl.constexpr, DENSE_SLOTS: tl.constexpr, SLICES: tl.constexpr,
    SLICE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (DENSE * SLICES + row groups * PARTS,). x: FP16; words: the same as int32 pairs."""
    program = tl.program_id(0)
    if program < DENSE * SLICES:
        dense_program(
            x_ptr, dense_ptr, dense_rows_ptr, y_ptr, partials_ptr, dense_partials_ptr,
            counters_ptr, program, N, PARTS, DENSE, DENSE_SLOTS, SLICES, SLICE, K, BLOCK,
        )  # fmt: skip
    else:
        owner = program - DENSE * SLICES
        group, part = owner // PARTS, owner % PARTS
        rows = four_rows(group, N)
        sums, total = exact_rows(
            words_ptr, codes_ptr, table_ptr, rows, part, FULL, TAIL, PARTS, T, WORDS, INPUTS,
            TABLE, TEXT, CONSTRAINTS, SUM_TEXT, SUM_CONSTRAINTS,
        )  # fmt: skip
        values = scale_rows(sums, total, rows, scale_ptr, SCALES, GAIN, CENTRE)
        if part == 0:
            extra = sparse_rows(x_ptr, pointers_ptr, columns_ptr, values_ptr, group, N, BLOCK)
            values = _add(values, extra)
        store_group(
            values, y_ptr, partials_ptr, dense_partials_ptr, dense_rows_ptr, counters_ptr, group,
            part, N, PARTS, DENSE, DENSE_SLOTS, SLICES,
        )  # fmt: skip


@triton.jit
def int_csr_gemv(
    x_ptr, planes_ptr, block_ptr, codes_ptr, table_ptr, scale_ptr, pointers_ptr, columns_ptr,
    values_ptr, dense_ptr, dense_rows_ptr, y_ptr, partials_ptr, dense_partials_ptr, counters_ptr,
    N, FULL: tl.constexpr, TAIL: tl.constexpr, PARTS: tl.constexpr, T: tl.constexpr,
    WORDS: tl.constexpr, INPUTS: tl.constexpr, TABLE: tl.constexpr,
    TEXT: tl.constexpr, CONSTRAINTS: tl.constexpr,
    SCALES: tl.constexpr, GAIN: tl.constexpr, CENTRE: tl.constexpr,
    K: tl.constexpr, DENSE: tl.constexpr, DENSE_SLOTS: tl.constexpr, SLICES: tl.constexpr,
    SLICE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid as `exact_csr_gemv`; the sparse part multiplies the FP16 activations."""
    program = tl.program_id(0)
    if program < DENSE * SLICES:
        dense_program(
            x_ptr, dense_ptr, dense_rows_ptr, y_ptr, partials_ptr, dense_partials_ptr,
            counters_ptr, program, N, PARTS, DENSE, DENSE_SLOTS, SLICES, SLICE, K, BLOCK,
        )  # fmt: skip
    else:
        owner = program - DENSE * SLICES
        group, part = owner // PARTS, owner % PARTS
        rows = four_rows(group, N)
        sums, total = int_rows(
            planes_ptr, block_ptr, codes_ptr, table_ptr, rows, part, FULL, TAIL, PARTS, T, WORDS,
            INPUTS, TABLE, TEXT, CONSTRAINTS,
        )  # fmt: skip
        values = scale_rows(sums, total, rows, scale_ptr, SCALES, GAIN, CENTRE)
        if part == 0:
            extra = sparse_rows(x_ptr, pointers_ptr, columns_ptr, values_ptr, group, N, BLOCK)
            values = _add(values, extra)
        store_group(
            values, y_ptr, partials_ptr, dense_partials_ptr, dense_rows_ptr, counters_ptr, group,
            part, N, PARTS, DENSE, DENSE_SLOTS, SLICES,
        )  # fmt: skip


def sparse_constants(columns: int, dense: int) -> dict[str, int]:
    """Compile-time constants of the sparse part; `dense` rows kept apart."""
    slices = -(-columns // DENSE_SLICE) if dense else 0
    return {
        "K": columns,
        "DENSE": dense,
        "DENSE_SLOTS": max(1, 1 << (dense - 1).bit_length()) if dense else 1,
        "SLICES": slices,
        "SLICE": DENSE_SLICE,
        "BLOCK": SPARSE_BLOCK,
    }


def lut_csr_gemv(
    x: Tensor,
    weight: LutWeight,
    sparse: CsrWeight,
    *,
    path: str = "exact",
    out: Tensor | None = None,
    parts: int | None = None,
    counters: Tensor | None = None,
) -> Tensor:
    """Triton twin of `lut_csr_gemv_ref`. x (K,) float16 -> (N,) float16, or into `out`.

    Codes of 2, 3 or 4 bits; `parts` and `counters` as in `lut_gemv`.

    Raises: LayoutError.
    """
    _check_pair(x, weight, sparse)
    rows, columns = weight.shape
    codes, dense = weight.codes, sparse.dense_rows
    groups = row_groups(rows)
    parts = split_parts(codes, groups, x.device) if parts is None else parts
    check_parts(parts, codes)
    constants = sparse_constants(columns, 0 if dense is None else dense.rows.numel())
    constants |= {**tiling(codes, parts), **lut_constants(weight, path), "num_warps": 1}
    y = output(out, rows, x)
    dense_programs = constants["DENSE"] * constants["SLICES"]
    shared = parts > 1 or dense is not None
    partials, counters = workspace(rows, parts, counters, weight.codebook.table, shared=shared)
    args = (
        *_weight_tensors(weight, sparse),
        y,
        partials,
        torch.empty(dense_programs, device=x.device),
        counters,
        rows,
    )
    grid = (dense_programs + groups * parts,)
    if path == "int":
        planes, block = activation_planes(x, codes)
        start(int_csr_gemv, grid, x, planes, block, *args, **constants)
    else:
        start(exact_csr_gemv, grid, x, activation_words(x, codes), *args, **constants)
    return y


def _check_pair(x: Tensor, weight: LutWeight, sparse: CsrWeight) -> None:
    check_lut(weight)
    check_csr(sparse)
    check_choice("bits of a fused weight", weight.codes.bits, REGISTER_BITS)
    shape = (weight.shape[1],)
    check_tensor("x", x, dtype=torch.float16, shape=shape, device=weight.device)
    if sparse.shape != weight.shape or sparse.device != weight.device:
        found = (sparse.shape, sparse.device)
        raise fail("shape and device of sparse", found, (weight.shape, weight.device))


def _weight_tensors(weight: LutWeight, sparse: CsrWeight) -> tuple[Tensor, ...]:
    """Kernel arguments of the weight; tensors that a kernel will not read stand in for none."""
    book, dense = weight.codebook, sparse.dense_rows
    return (
        weight.codes.words,
        book.table,
        book.table if book.scale is None else book.scale,
        sparse.row_pointers,
        sparse.columns,
        sparse.values,
        sparse.values if dense is None else dense.values,
        sparse.row_pointers if dense is None else dense.rows,
    )

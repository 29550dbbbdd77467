"""numba twins of the LUT and uniform GEMV kernels, on the same packed bytes.

Rows are shared out over all cores. Where the machine has AVX2 and the layout allows it, codes are
decoded by `simd.tile_dot`; otherwise code by code. Products and sums are FP32; the sums of a row
are taken in another order than on a GPU.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from kernels.checks import check_tensor
from kernels.cpu.simd import ENTRIES, half_to_float, tile_dot
from kernels.cpu.tiles import RowPlan, scalar_plan, vector_plan
from kernels.layouts.codebook import LutWeight, check_lut, table_values
from kernels.layouts.codes import PackedCodes, codes_per_group
from kernels.layouts.uniform import UniformWeight, check_uniform

_NO_SCALES = np.zeros((1, 1, 2), np.uint16)
_NO_TABLE = np.zeros((1, 0), np.uint8)
_NO_VALUES = np.zeros((0, 0), np.float32)
_NO_GROUPS = np.zeros(0, np.int64)


@njit(nogil=True)
def _reorder(x, order, tiles, slots, out, sums):
    """x in the order of decoding, zero beyond K; and the sum of each tile's activations."""
    position = 0
    for tile in range(tiles.shape[0]):
        total = np.float32(0)
        for _ in range(tiles[tile, 1] * slots):
            column = order[position]
            value = half_to_float(x[column]) if column < x.shape[0] else np.float32(0)
            out[position] = value
            total += value
            position += 1
        sums[tile] = total


@cache
def _vector_gemv(entries: str, bits: int, block: int, *, scaled: bool) -> Callable:
    """y[n] = sum over tiles of scale * (dot - zero * sum of x); without scales, of dot."""
    dot = tile_dot(entries, bits, block)

    @njit(parallel=True, nogil=True)
    def run(words, tiles, x, sums, group_of_tile, table, scale_zero, y):  # noqa: PLR0913 - numba takes arrays, not records
        row_words, row_table = words.shape[1], table.shape[1]
        for n in prange(words.shape[0]):
            total = np.float32(0)
            for tile in range(tiles.shape[0]):
                word = n * row_words + tiles[tile, 0]
                part = dot(words, word, tiles[tile, 1], x, tiles[tile, 2], table, n * row_table)
                if scaled:
                    group = group_of_tile[tile]
                    scale = half_to_float(scale_zero[n, group, 0])
                    zero = half_to_float(scale_zero[n, group, 1])
                    part = scale * (part - zero * sums[tile])
                total += part
            y[n] = total

    return run


@njit(nogil=True)
def _code(words, n, word, groups, group, parts):
    """One code, put together from its parts in up to three word planes."""
    code = 0
    for plane, low, width, start in parts:
        bits = words[n, word + plane * groups + group] >> start & ((1 << width) - 1)
        code |= bits << low
    return code


@njit(parallel=True, nogil=True)
def _scalar_gemv(words, tiles, fields, x, values, scale_zero, group_of_column, y):  # noqa: PLR0913 - numba takes arrays, not records
    """Code by code. values: (N, 2**bits) FP32, or empty: then scale * (code - zero) per group."""
    slots = fields.shape[0]
    for n in prange(words.shape[0]):
        total = np.float32(0)
        for tile in range(tiles.shape[0]):
            word, groups, first = tiles[tile]
            for offset in range(min(groups * slots, x.shape[0] - first)):
                slot = offset // (2 * groups) * 2 + offset % 2
                group = offset % (2 * groups) // 2
                code = _code(words, n, word, groups, group, fields[slot])
                if values.shape[0]:
                    value = values[n, code]
                else:
                    entry = group_of_column[first + offset]
                    zero = half_to_float(scale_zero[n, entry, 1])
                    value = half_to_float(scale_zero[n, entry, 0]) * (np.float32(code) - zero)
                total += value * half_to_float(x[first + offset])
        y[n] = total


@njit(parallel=True, nogil=True)
def _byte_gemv(codes, x, table, y):
    """8-bit codes, one byte each in the order of x; table (N, 256) FP16 bits."""
    for n in prange(codes.shape[0]):
        entries = np.empty(256, np.float32)
        for code in range(256):
            entries[code] = half_to_float(table[n, code])
        sums = np.zeros(4, np.float32)  # independent, to hide the latency of the additions
        for k in range(0, x.shape[0], 4):
            for lane in range(4):
                sums[lane] += entries[codes[n, k + lane]] * x[k + lane]
        y[n] = sums[0] + sums[1] + (sums[2] + sums[3])


def lut_gemv(x: Tensor, weight: LutWeight) -> Tensor:
    """y = W x for W[n, k] = table[n, code[n, k]]. x (K,) FP16 -> (N,) FP32, on the CPU.

    Raises: LayoutError.
    """
    check_lut(weight)
    check_tensor("x", x, dtype=torch.float16, shape=(weight.shape[1],), device=weight.device)
    codes, book = weight.codes, weight.codebook
    if codes.bits == 8:
        return _lut8_gemv(x, weight)
    plan = vector_plan(codes, whole_row=True)
    if plan is None or book.kind not in ENTRIES:
        return _run_scalar(x, codes, values=table_values(book).numpy())
    scales = _NO_SCALES
    if book.scale is not None:
        zero = book.scale[:, 1:] if book.kind == "u7" else torch.zeros_like(book.scale)
        scales = _half_bits(torch.stack((book.scale[:, :1], zero), dim=2))
    run = _vector_gemv(book.kind, codes.bits, plan.block, scaled=book.scale is not None)
    table = book.table.numpy().view(np.uint8)
    groups = np.zeros(len(plan.tiles), np.int64)
    return _run_vector(run, x, codes, plan, (groups, table, scales))


def uniform_gemv(x: Tensor, weight: UniformWeight) -> Tensor:
    """y = W x for W[n, k] = scale * (code - zero). x (K,) FP16 -> (N,) FP32, on the CPU.

    Act-order as in the record: `fold` permutes x, `gather` fetches a scale per column.
    Raises: LayoutError.
    """
    check_uniform(weight)
    check_tensor("x", x, dtype=torch.float16, shape=(weight.shape[1],), device=weight.device)
    codes, scales = weight.codes, _half_bits(weight.scale_zero)
    plan = vector_plan(codes, whole_row=scales.shape[1] == 1)
    if weight.act_order == "fold":
        x = x[weight.order.long()]
    if weight.act_order == "gather":
        groups = weight.order.numpy().astype(np.int64)
        return _run_scalar(x, codes, scale_zero=scales, groups=groups)
    if plan is None:
        groups = np.arange(codes.columns) // weight.group_size
        return _run_scalar(x, codes, scale_zero=scales, groups=groups)
    run = _vector_gemv("grid", codes.bits, plan.block, scaled=True)
    groups = plan.tiles[:, 2] // weight.group_size
    return _run_vector(run, x, codes, plan, (groups, _NO_TABLE, scales))


def _half_bits(tensor: Tensor) -> np.ndarray:
    return tensor.contiguous().view(torch.int16).numpy().view(np.uint16)


def _ordered(x: Tensor, plan: RowPlan, codes: PackedCodes) -> tuple[np.ndarray, np.ndarray]:
    """Activations in the order of decoding, and their sum per tile."""
    out = np.empty(len(plan.order), np.float32)
    sums = np.empty(len(plan.tiles), np.float32)
    slots = codes_per_group(codes.bits)
    _reorder(_half_bits(x), plan.order, plan.tiles, slots, out, sums)
    return out, sums


def _run_vector(
    run: Callable, x: Tensor, codes: PackedCodes, plan: RowPlan, rows: tuple[np.ndarray, ...]
) -> Tensor:
    """rows: scale group of each tile, tables, scales and zeros, as `_vector_gemv` takes them."""
    ordered, sums = _ordered(x, plan, codes)
    y = torch.empty(codes.rows, dtype=torch.float32)
    run(codes.words.numpy(), plan.tiles, ordered, sums, *rows, y.numpy())
    return y


def _run_scalar(
    x: Tensor,
    codes: PackedCodes,
    *,
    values: np.ndarray = _NO_VALUES,
    scale_zero: np.ndarray = _NO_SCALES,
    groups: np.ndarray = _NO_GROUPS,
) -> Tensor:
    plan = scalar_plan(codes)
    y = torch.empty(codes.rows, dtype=torch.float32)
    words, halves = codes.words.numpy(), _half_bits(x)
    _scalar_gemv(words, plan.tiles, plan.fields, halves, values, scale_zero, groups, y.numpy())
    return y


def _lut8_gemv(x: Tensor, weight: LutWeight) -> Tensor:
    codes = weight.codes
    ordered, _ = _ordered(x, scalar_plan(codes), codes)
    y = torch.empty(codes.rows, dtype=torch.float32)
    table = _half_bits(weight.codebook.table)
    _byte_gemv(codes.words.numpy().view(np.uint8), ordered, table, y.numpy())
    return y

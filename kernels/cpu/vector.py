"""numba twin of the vector-codebook GEMV, on the same packed bytes.

Tables of one component, or of 16 pairs, are looked up in registers (`simd.tile_dot`, AVX2). Codes
of a byte load two or four int8 entries each from a table in the L1 cache. Other forms, machines and
narrow blockwise scales dequantize and multiply.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from kernels.checks import check_tensor
from kernels.cpu import simd
from kernels.cpu.simd import half_to_float, tile_dot
from kernels.cpu.tiles import tile_order
from kernels.layouts.codes import K_ALIGN, codes_per_group, words_per_group
from kernels.layouts.vector import (
    IN_REGISTERS,
    LEVELS,
    QUAD,
    VectorWeight,
    check_vector,
    dequantize_vector,
    subrow_groups,
    table_block,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Runs:
    """Stretches of a row that have one table and one blockwise scale."""

    tiles: np.ndarray  # (runs, 3) int64: first word, groups, first position of x
    tables: np.ndarray  # (runs,) int64: column block
    levels: np.ndarray  # (runs,) int64: blockwise scale
    order: np.ndarray  # (padded K,) int64: column at each position of x
    block: int  # words that vector code decodes together


@lru_cache(maxsize=64)
def _runs(
    dim: int, bits: int, columns: int, table_columns: int, subrow: int | None
) -> _Runs | None:
    """None where vector code decodes more words together than have one scale."""
    tile, words = K_ALIGN // dim // codes_per_group(bits), words_per_group(bits)
    count = -(-columns // K_ALIGN)
    joined = table_columns // K_ALIGN if words == 1 else 1  # tiles that follow without a seam
    scaled = subrow_groups(dim, bits, subrow) if subrow else joined * tile
    size = min(joined * tile, scaled)
    block = _block(dim, bits, size)
    if block is None or (words > 1 and size < tile):
        return None
    first = np.arange(0, count * tile, size)
    start = first * (K_ALIGN // tile)
    tiles = np.stack((first * words, np.minimum(size, count * tile - first), start), axis=1)
    order = (np.arange(count)[:, None] * K_ALIGN + _tile_order(dim, bits, tile, block)).flatten()
    return _Runs(
        tiles=tiles,
        tables=start // table_columns,
        levels=first // scaled if subrow else 0 * first,
        order=order,
        block=block,
    )


def _block(dim: int, bits: int, groups: int) -> int | None:
    """The widest vectors whose words divide so many."""
    per_word = 1 if (dim, bits) in IN_REGISTERS else dim  # a gathered word is codes, not entries
    return next((block for block in (8, 4) if groups % (block // per_word) == 0), None)


def _tile_order(dim: int, bits: int, groups: int, block: int) -> np.ndarray:
    """Column within a tile of every activation, in the order in which codes are decoded."""
    if dim == 1:
        return tile_order(groups, bits, "selector", block)
    if (dim, bits) not in IN_REGISTERS:  # byte by byte: slot s of word i is vector s * groups + i
        word, slot = np.divmod(np.arange(4 * groups), 4)
        return (dim * (slot * groups + word)[:, None] + np.arange(dim)).flatten()
    lanes = np.array(
        [
            (bit // bits, start + word)
            for start in range(0, groups, block)
            for _, word, bit in simd.vector_slots(bits, block)
        ]
    )
    vector = lanes[:, 0] * groups + lanes[:, 1]
    halves = vector.reshape(-1, 1, 4 * block) * dim + np.arange(dim)[None, :, None]
    return halves.flatten()


@cache
def _gemv(entries: str, bits: int, block: int) -> Callable:
    dot, steps = tile_dot(entries, bits, block), np.array(LEVELS, np.float32)

    @njit(parallel=True, nogil=True)
    def run(words, tiles, tables_of, levels_of, x, tables, scales, levels, height, y):
        row_words, blocks, size = words.shape[1], tables.shape[1], tables.shape[2]
        for n in prange(words.shape[0]):
            total = np.float32(0)
            for tile in range(tiles.shape[0]):
                table = n // height * blocks + tables_of[tile]
                word, groups, first = tiles[tile]
                part = dot(words, n * row_words + word, groups, x, first, tables, table * size)
                level = steps[levels[n // QUAD, levels_of[tile]] >> 4 * (n % QUAD) & 15]
                total += level * half_to_float(scales[n // height, tables_of[tile]]) * part
            y[n] = total

    return run


def vector_gemv(x: Tensor, weight: VectorWeight) -> Tensor:
    """y = W x. x (K,) FP16 -> (N,) FP32, on the CPU.

    Raises: LayoutError.
    """
    check_vector(weight)
    check_tensor("x", x, dtype=torch.float16, shape=(weight.shape[1],), device=weight.device)
    dim, bits = weight.form
    rows, columns = weight.shape
    height, width = table_block(weight.group)
    in_registers, runs = weight.form in IN_REGISTERS, None
    if simd.available() and (in_registers or bits == 8):
        runs = _runs(dim, bits, columns, width, weight.subrow)
    if runs is None:
        return dequantize_vector(weight) @ x.float()
    padded = np.zeros(weight.codes.padded_columns, np.float32)
    padded[:columns] = x.float().numpy()
    ordered, words = padded[runs.order], weight.codes.words.numpy()
    entries = f"gathered{dim}"
    if in_registers:
        entries = "int8" if dim == 1 else simd.PAIRS
    run = _gemv(entries, bits, runs.block)
    scales = weight.scale.view(torch.int16).numpy().view(np.uint16)
    tables = weight.table.numpy().view(np.uint8)
    levels = np.zeros((-(-rows // QUAD), 1), np.int16)  # all 1
    if weight.levels is not None:
        levels = weight.levels.numpy()
    y = torch.empty(rows, dtype=torch.float32)
    run(
        words, runs.tiles, runs.tables, runs.levels, ordered, tables, scales, levels, height,
        y.numpy(),
    )  # fmt: skip
    return y

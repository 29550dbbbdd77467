"""How a CPU walks a packed row: its tiles, and the activations in the order of decoding."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from kernels.cpu import simd
from kernels.layouts.codes import PackedCodes, codes_per_group, slot_fields, words_per_group


@dataclass(frozen=True, slots=True, kw_only=True)
class RowPlan:
    """Everything about a row of packed codes that does not depend on its words."""

    tiles: np.ndarray  # (tiles, 3) int64: first word, groups, first column
    fields: np.ndarray  # (slots, parts, 4) int64: word, low bit of the code, width, bit in the word
    block: int | None  # words per vector block; None: a plan for scalar code
    order: np.ndarray  # (padded K,) int64: column of each activation in the order of decoding


def vector_plan(codes: PackedCodes, *, whole_row: bool) -> RowPlan | None:
    """Plan of a record's rows for vector code; None where this machine or the layout has none.

    `whole_row` joins tiles that follow each other in memory without a seam.
    """
    plan = _row_plan(codes.bits, codes.columns, codes.tile_codes, codes.order, whole_row)
    return plan if plan.block else None


def scalar_plan(codes: PackedCodes) -> RowPlan:
    """Plan of a record's rows for scalar code, which decodes group by group."""
    return _row_plan(codes.bits, codes.columns, codes.tile_codes, codes.order, None)


@lru_cache(maxsize=256)
def _row_plan(
    bits: int, columns: int, tile_codes: int, order: str, whole_row: bool | None
) -> RowPlan:
    codes = PackedCodes(words=None, bits=bits, columns=columns, tile_codes=tile_codes, order=order)
    slots, words = codes_per_group(bits), words_per_group(bits)
    sizes = [codes.tile_groups] * codes.full_tiles + [codes.tail_groups]
    sizes = np.array([size for size in sizes if size], np.int64)
    starts = np.cumsum(sizes) - sizes
    tiles = np.stack((starts * words, sizes, starts * slots), axis=1)
    block = None if whole_row is None else _block(sizes, order)
    pieces = [tile_order(int(g), bits, order, block) + first for _, g, first in tiles]
    if whole_row and words == 1:
        tiles = np.array([(0, sizes.sum(), 0)], np.int64)
    return RowPlan(
        tiles=tiles, fields=_fields(bits, order), block=block, order=np.concatenate(pieces)
    )


def _block(sizes: np.ndarray, order: str) -> int | None:
    """The largest vector block that divides every tile, if this machine has vector code."""
    if order == "signed" or not simd.available():
        return None
    return next((block for block in (8, 4) if not (sizes % block).any()), None)


def tile_order(groups: int, bits: int, order: str, block: int | None) -> np.ndarray:
    """Column within the tile of every activation, in the order in which the codes are decoded."""
    slots = codes_per_group(bits)
    if block is None:  # group by group, slot by slot
        group, slot = np.divmod(np.arange(groups * slots), slots)
    else:
        slot_at = _slot_positions(bits, order)
        lanes = [(word, slot_at[plane, bit]) for plane, word, bit in simd.vector_slots(bits, block)]
        word, slot = np.tile(np.array(lanes), (groups // block, 1)).T
        group = word + np.repeat(np.arange(0, groups, block), block * slots)
    return 2 * (slot // 2 * groups + group) + slot % 2


def _slot_positions(bits: int, order: str) -> dict[tuple[int, int], int]:
    """(word plane, lowest bit) -> slot, as `simd.vector_slots` numbers the planes."""
    if bits > 4:  # a plane is a quad of bytes
        return {(slot // 4, 8 * (slot % 4)): slot for slot in range(codes_per_group(bits))}
    out = {}
    for slot, parts in enumerate(slot_fields(bits, order)):
        word, _, _, start = parts[0]
        out[(word, start) if len(parts) == 1 else (3, start - 3)] = slot
    return out


def _fields(bits: int, order: str) -> np.ndarray:
    """`slot_fields` as an array; a part of no bits fills up slots that have fewer parts."""
    slots = slot_fields(bits, order)
    longest = max(len(parts) for parts in slots)
    nothing = (0, 0, 0, 0)
    return np.array([[*parts, *[nothing] * (longest - len(parts))] for parts in slots], np.int64)

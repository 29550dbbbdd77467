"""Activations of the `int` path: two int8 planes, one scale and one sum per tile of K.

x = scale * (256 * high + low) to within scale / 2, where scale = largest magnitude of the tile /
32512: 15 bits and a sign. Quads of bytes are in the order in which the codes of a layout decode,
so that a quad of the planes meets the quad of table bytes of the same columns.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.launch import start
from kernels.layouts.codes import PackedCodes, codes_per_group, quad_slots

STEPS = 127 * 256  # largest value of 256 * high + low


def activation_planes_ref(x: Tensor, codes: PackedCodes) -> tuple[Tensor, Tensor]:
    """Plain PyTorch twin of `activation_planes`."""
    slots = torch.tensor(quad_slots(codes.bits, codes.order), device=x.device)  # (Q, 4)
    wide = torch.nn.functional.pad(x.float(), (0, codes.padded_columns - codes.columns))
    planes, blocks = [], []
    for tile in wide.split(codes.tile_codes):
        largest = tile.abs().max()
        inverse = torch.where(largest > 0, STEPS / largest, torch.zeros_like(largest))
        steps = torch.floor(tile * inverse + 0.5).to(torch.int32)
        high = (steps + 128) >> 8
        groups = tile.numel() // codes_per_group(codes.bits)
        by_plane = []
        for plane in (high, steps - 256 * high):
            cells = plane.view(-1, groups, 2)  # (pair, group, 2)
            quads = cells[slots // 2, :, slots % 2].permute(0, 2, 1)  # (Q, group, 4)
            by_plane.append(quads.to(torch.int8).contiguous().view(torch.int32).flatten())
        planes.append(torch.cat(by_plane))
        scale = largest / STEPS
        blocks.append(torch.stack((scale, scale * steps.sum())))
    return torch.cat(planes), torch.stack(blocks)


@triton.jit
def _quantize_tile(
    x_ptr, planes_ptr, block_ptr, K, first,
    GROUPS: tl.constexpr, T: tl.constexpr, CODES: tl.constexpr, SLOTS: tl.constexpr,
    STEPS: tl.constexpr,
):  # fmt: skip
    """One tile of GROUPS groups from column `first`; T is GROUPS of a full tile."""
    column = tl.arange(0, T * CODES)
    inside = (column < GROUPS * CODES) & (first + column < K)
    x = tl.load(x_ptr + first + column, mask=inside, other=0.0).to(tl.float32)
    largest = tl.max(tl.abs(x), 0)
    scale = largest / STEPS
    inverse = tl.where(largest > 0, STEPS / largest, 0.0)
    total = tl.sum(tl.floor(x * inverse + 0.5), 0)
    tl.store(block_ptr, scale)
    tl.store(block_ptr + 1, scale * total)
    group = tl.arange(0, T)
    for quad in tl.static_range(CODES // 4):
        high_word = tl.zeros((T,), tl.int32)
        low_word = tl.zeros((T,), tl.int32)
        for byte in tl.static_range(4):
            slot: tl.constexpr = SLOTS[4 * quad + byte]
            local = 2 * ((slot // 2) * GROUPS + group) + slot % 2
            valid = (group < GROUPS) & (first + local < K)
            value = tl.load(x_ptr + first + local, mask=valid, other=0.0).to(tl.float32)
            steps = tl.floor(value * inverse + 0.5).to(tl.int32)
            high = (steps + 128) >> 8
            high_word |= (high & 0xFF) << (8 * byte)
            low_word |= ((steps - 256 * high) & 0xFF) << (8 * byte)
        where = planes_ptr + quad * GROUPS + group
        tl.store(where, high_word, mask=group < GROUPS)
        tl.store(where + GROUPS * (CODES // 4), low_word, mask=group < GROUPS)


@triton.jit
def quantize_activations(
    x_ptr, planes_ptr, block_ptr, K,
    FULL: tl.constexpr, TAIL: tl.constexpr, T: tl.constexpr, CODES: tl.constexpr,
    SLOTS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Grid (tiles,): planes and block scale of one tile, the last one perhaps smaller."""
    tile = tl.program_id(0)
    first = tile * (T * CODES)
    planes = planes_ptr + tile * (T * CODES // 2)
    block = block_ptr + 2 * tile
    if TAIL == 0:
        _quantize_tile(x_ptr, planes, block, K, first, T, T, CODES, SLOTS, STEPS)
    elif tile < FULL:
        _quantize_tile(x_ptr, planes, block, K, first, T, T, CODES, SLOTS, STEPS)
    else:
        _quantize_tile(x_ptr, planes, block, K, first, TAIL, T, CODES, SLOTS, STEPS)


def activation_planes(x: Tensor, codes: PackedCodes) -> tuple[Tensor, Tensor]:
    """Planes and blocks of x (K,) float16 for the tiles of `codes`, in one launch.

    Returns int32 planes (padded K / 2,), per tile the quads of the high plane, then of the low
    one; and FP32 blocks (tiles, 2): scale, and sum of the quantized activations.
    """
    tiles = codes.full_tiles + (codes.tail_groups > 0)
    planes = torch.empty(codes.padded_columns // 2, dtype=torch.int32, device=x.device)
    block = torch.empty((tiles, 2), dtype=torch.float32, device=x.device)
    slots = tuple(slot for quad in quad_slots(codes.bits, codes.order) for slot in quad)
    start(
        quantize_activations,
        (tiles,),
        x,
        planes,
        block,
        codes.columns,
        FULL=codes.full_tiles,
        TAIL=codes.tail_groups,
        T=codes.tile_groups,
        CODES=codes_per_group(codes.bits),
        SLOTS=slots,
        STEPS=STEPS,
    )
    return planes, block

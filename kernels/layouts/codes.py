"""Codes of 2 to 8 bits in 32-bit words, interleaved in tiles along K.

A *group* is the smallest unit that a thread decodes: one word of 32 / bits codes at 2, 4 and 8
bits; at 3 bits three words of 32 codes (24 in nibbles; the other eight as bit planes in the
nibbles' spare bits); at 5, 6 and 7 bits the fewest words that a whole number of codes fills.
A row holds K codes, padded with zeros to a multiple of 128, cut into tiles of `tile_codes`; the
last tile may be smaller. A tile of T groups is stored word plane by word plane, T words each.
Slots 2p and 2p+1 of group i are columns 2(pT + i) and 2(pT + i) + 1 of the tile: neighbouring
threads read neighbouring words, and neighbouring pairs of activations in their natural order.

Where a slot's bits stand in its group depends on who decodes it (`order`):
`selector` feeds byte-permute selectors, `signed` too but with the sign bit of a sign-symmetric
codebook apart, `field` feeds bit-field extraction of uniform codes. From 5 bits on there is one
order: a code is cut into parts of 4, 2 and 1 bits (5 = 4 + 1, 6 = 4 + 2, 7 = 4 + 2 + 1), each with
word planes of its own, so that shifts and masks leave a quad of codes as the bytes of a word.

With `dim` > 1 a code stands for that many neighbouring columns (vector quantization): slot s of
group i is vector sT + i of the tile.
"""

from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from kernels.checks import check_choice, check_range, check_tensor, fail

BITS = (2, 3, 4, 5, 6, 7, 8)
ORDERS = ("selector", "signed", "field")
K_ALIGN = 128  # codes; every word plane of a tile is then a multiple of 16 bytes
# One warp reads a tile: 128 groups, or 64 of 32 codes.
DEFAULT_TILE_CODES = {2: 2048, 3: 2048, 4: 1024, 5: 2048, 6: 2048, 7: 2048, 8: 512}
PART_BITS = {5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,)}  # parts of a code, lowest bits first

# (word, lowest bit of the code, number of bits, lowest bit in the word)
Field = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedCodes:
    """Codes of an (N, K) matrix; module docstring for the layout."""

    words: Tensor  # (N, row_words) int32
    bits: int
    columns: int  # K, before padding
    tile_codes: int
    order: str
    dim: int = 1  # columns per code

    @property
    def rows(self) -> int:
        return self.words.shape[0]

    @property
    def padded_columns(self) -> int:
        return padded(self.columns)

    @property
    def padded_codes(self) -> int:
        """Codes of a row, with those of the padding."""
        return self.padded_columns // self.dim

    @property
    def groups(self) -> int:
        """Groups of a row."""
        return self.padded_codes // codes_per_group(self.bits)

    @property
    def tile_groups(self) -> int:
        return self.tile_codes // codes_per_group(self.bits)

    @property
    def full_tiles(self) -> int:
        return self.padded_codes // self.tile_codes

    @property
    def tail_groups(self) -> int:
        """Groups of the last, smaller tile; 0 when the tiles divide the row."""
        return self.padded_codes % self.tile_codes // codes_per_group(self.bits)

    def nbytes_by_item(self) -> dict[str, int]:
        return {"codes": self.words.nbytes}


def codes_per_group(bits: int) -> int:
    return {3: 32, 5: 32, 6: 16, 7: 32}.get(bits) or 32 // bits


def words_per_group(bits: int) -> int:
    return codes_per_group(bits) * bits // 32


def least_tile(bits: int) -> int:
    """Codes of the smallest tile: two groups of 32 codes, or four."""
    codes = codes_per_group(bits)
    return (2 if codes == 32 else 4) * codes


def padded(columns: int) -> int:
    return -(-columns // K_ALIGN) * K_ALIGN


@cache
def slot_fields(bits: int, order: str) -> tuple[tuple[Field, ...], ...]:
    """Per slot of a group, where the bits of its code stand."""
    check_choice("bits", bits, BITS)
    check_choice("order", order, ORDERS if bits == 4 else ("selector", "field"))
    if order == "signed":  # first quad: sign in bit 7 of each byte; second quad: bit 3
        signs = (7, 15, 23, 31, 3, 11, 19, 27)
        return tuple(((0, 0, 3, 4 * i), (0, 3, 1, signs[i])) for i in range(8))
    if bits in PART_BITS:
        return tuple(
            tuple((word, low, width, 8 * byte + bit) for word, low, width, bit in parts)
            for parts in quad_parts(bits)
            for byte in range(4)
        )
    starts = _slot_starts(bits, order)
    if bits != 3:
        return tuple(((0, 0, bits, start),) for start in starts)
    nibbles = [((word, 0, 3, start),) for word in range(3) for start in starts]
    spare = [tuple((word, word, 1, start + 3) for word in range(3)) for start in starts]
    return (*nibbles, *spare)


@cache
def quad_parts(bits: int) -> tuple[tuple[Field, ...], ...]:
    """Per quad (slots 4q .. 4q + 3), where its codes stand: as a `Field` with a bit of a byte.

    From 5 bits on: code j of a quad has this bit of byte j of the word.
    """
    codes, quads = codes_per_group(bits), []
    for quad in range(codes // 4):
        parts, word, low = [], 0, 0
        for width in PART_BITS[bits]:
            planes, bit = divmod(width * quad, 8)
            parts.append((word + planes, low, width, bit))
            word, low = word + codes * width // 32, low + width
        quads.append(tuple(parts))
    return tuple(quads)


def _slot_starts(bits: int, order: str) -> list[int]:
    """Lowest bit of each slot of one word of 2, 3 or 4 bit codes."""
    step = 4 if bits == 3 else bits
    if order == "field":  # a pair is one field of each 16-bit half
        return [start for low in range(0, 16, step) for start in (low, low + 16)]
    if bits == 2:  # four codes of equal position in the four bytes
        return [low + 8 * byte for low in range(0, 8, 2) for byte in range(4)]
    return list(range(0, 32, step))


@cache
def quad_slots(bits: int, order: str) -> tuple[tuple[int, int, int, int], ...]:
    """Per quad of the `int` path, the slots whose codes are its bytes 0..3."""
    check_choice("order", order, ("selector", "field"))
    if bits in PART_BITS:
        return tuple((s, s + 1, s + 2, s + 3) for s in range(0, codes_per_group(bits), 4))
    starts = _slot_starts(bits, order)
    if order == "field":  # (word >> shift) & mask, byte by byte
        quads = [
            tuple(shift + 8 * byte for byte in range(4))
            for shift in range(0, 8, 4 if bits == 3 else bits)
        ]
    else:  # four neighbouring nibbles of (word >> shift) & mask
        quads = [
            tuple(shift + half + 4 * nibble for nibble in range(4))
            for shift in ((0, 2) if bits == 2 else (0,))
            for half in (0, 16)
        ]
    per_word = [tuple(starts.index(bit) for bit in quad) for quad in quads]
    words = 4 if bits == 3 else 1  # at 3 bits the spare codes act as a fourth word
    return tuple(
        tuple(slot + word * len(starts) for slot in quad)
        for word in range(words)
        for quad in per_word
    )


def pack_codes(
    codes: Tensor,
    bits: int,
    *,
    tile_codes: int | None = None,
    order: str = "selector",
    dim: int = 1,
    columns: int | None = None,
) -> PackedCodes:
    """Pack (N, K / dim) integer codes, each below 2**bits.

    columns: K, where it is no multiple of `dim`: the last code's spare columns do not count.

    Raises: LayoutError on a wrong shape, dtype, range, tile or order.
    """
    check_choice("bits", bits, BITS)
    check_codes(codes)
    check_range("codes", codes, 0, 2**bits)
    tile_codes = DEFAULT_TILE_CODES[bits] if tile_codes is None else tile_codes
    _check_tile(bits, tile_codes)
    columns = codes.shape[1] * dim if columns is None else columns
    if -(-columns // dim) != codes.shape[1]:
        raise fail("columns", columns, f"those of {codes.shape[1]} codes of {dim} columns")
    missing = padded(columns) // dim - codes.shape[1]
    wide = torch.nn.functional.pad(codes.to(torch.int32), (0, missing))
    packed = PackedCodes(
        words=wide, bits=bits, columns=columns, tile_codes=tile_codes, order=order, dim=dim
    )
    parts = [_pack_tiles(part, tile, packed) for part, tile in _tiles(wide, tile_codes)]
    return replace(packed, words=torch.cat(parts, dim=1))


def unpack_codes(packed: PackedCodes) -> Tensor:
    """The (N, K / dim) uint8 codes of a packed matrix: plain PyTorch, any device."""
    check_tensor("words", packed.words, dtype=torch.int32, shape=(None, row_words(packed)))
    full = packed.full_tiles * packed.tile_codes * packed.bits // 32
    tail_codes = packed.tail_groups * codes_per_group(packed.bits)
    parts = []
    if full:
        parts.append(_unpack_tiles(packed.words[:, :full], packed.tile_codes, packed))
    if tail_codes:
        parts.append(_unpack_tiles(packed.words[:, full:], tail_codes, packed))
    codes = -(-packed.columns // packed.dim)
    return torch.cat(parts, dim=1)[:, :codes].contiguous()


def check_codes(codes: Tensor) -> None:
    """Raises: LayoutError unless codes is an (N, K) integer matrix that is not empty."""
    dtypes = (torch.uint8, torch.int32, torch.int64)
    check_tensor("codes", codes, dtype=dtypes, shape=(None, None), contiguous=False)
    if codes.numel() == 0:
        raise fail("shape of codes", tuple(codes.shape), "at least one row and one column")


def row_words(packed: PackedCodes) -> int:
    return packed.padded_codes * packed.bits // 32


def _check_tile(bits: int, tile_codes: int) -> None:
    """Powers of two, up to 256 groups (128 of 32 codes)."""
    check_choice("tile_codes", tile_codes, [least_tile(bits) << k for k in range(7)])


def _tiles(wide: Tensor, tile_codes: int) -> list[tuple[Tensor, int]]:
    """The columns of the full tiles and those of the smaller last one, with their tile sizes."""
    full = wide.shape[1] // tile_codes * tile_codes
    parts = [(wide[:, :full], tile_codes), (wide[:, full:], wide.shape[1] - full)]
    return [(part, tile) for part, tile in parts if part.shape[1]]


def _pack_tiles(codes: Tensor, tile: int, packed: PackedCodes) -> Tensor:
    bits, rows, slots = packed.bits, codes.shape[0], codes_per_group(packed.bits)
    groups, tiles, side = tile // slots, codes.shape[1] // tile, _side(packed)
    # (N, tile, pair, group, 2): a slot is a pair and a position in it; a vector is a pair alone
    cells = codes.reshape(rows, tiles, slots // side, groups, side)
    words = codes.new_zeros((rows, tiles, words_per_group(bits), groups))
    for slot, parts in enumerate(slot_fields(bits, packed.order)):
        code = cells[:, :, slot // side, :, slot % side]
        for word, low, width, start in parts:
            words[:, :, word] |= (code >> low & (1 << width) - 1) << start
    return words.reshape(rows, -1)


def _unpack_tiles(words: Tensor, tile: int, packed: PackedCodes) -> Tensor:
    bits, rows, slots = packed.bits, words.shape[0], codes_per_group(packed.bits)
    groups, side = tile // slots, _side(packed)
    planes = words.reshape(rows, -1, words_per_group(bits), groups)
    shape = (rows, planes.shape[1], slots // side, groups, side)
    cells = torch.zeros(shape, dtype=torch.int32, device=words.device)
    for slot, parts in enumerate(slot_fields(bits, packed.order)):
        for word, low, width, start in parts:
            bits_here = planes[:, :, word] >> start & (1 << width) - 1
            cells[:, :, slot // side, :, slot % side] |= bits_here << low
    return cells.reshape(rows, -1).to(torch.uint8)


def _side(packed: PackedCodes) -> int:
    """Neighbouring slots that are neighbouring columns of one pair of activations."""
    return 2 if packed.dim == 1 else 1

"""Vector codebooks (GPTVQ, arXiv 2402.15319): an index per `dim` neighbouring columns of a row.

A table of 2**bits vectors serves a block of rows x columns of the weight. Entries are int8, times
one FP16 scale per table; they are stored as the byte entry + 128. Tables that fit registers (one
byte per entry, or 16 pairs) lie in planes, all first components and then all second ones, for a
byte permute; the others vector by vector, so that one load fetches a vector.

Blockwise scales: `subrow` columns of a row share a 4-bit code c, a float of two exponent and two
mantissa bits that multiplies their entries: 2**(c / 4) but for a few percent, 1 to 14. Which of the
columns form a sub-row follows the layout of the codes (`column_subrows`): neighbouring groups of a
tile, so that a thread's codes have one scale. The codes of four rows are one 16-bit word.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.checks import LayoutError, check_choice, check_range, check_tensor, fail
from kernels.layouts.codes import (
    K_ALIGN,
    PackedCodes,
    codes_per_group,
    pack_codes,
    row_words,
    unpack_codes,
)

FORMS = ((1, 2), (1, 3), (1, 4), (2, 4), (2, 5), (2, 6), (2, 8), (4, 8))  # (dim, index bits)
IN_REGISTERS = ((1, 2), (1, 3), (1, 4), (2, 4))
WIDEST_TABLE = 2 * K_ALIGN  # columns; GPTVQ, section 3.2: at most 256
ENTRY_MAX = 127
BIAS = 128  # of a stored byte
LEVELS = tuple((1 + code % 4 / 4) * 2.0 ** (code // 4) for code in range(16))  # blockwise scales
SUBROWS = (16, 32, 64, 128, 256)
QUAD = 4  # rows whose scale codes are stored together


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorWeight:
    """An (N, K) weight as indices into tables of vectors."""

    codes: PackedCodes
    table: Tensor  # (row blocks, column blocks, 2**bits * dim / 4) int32
    scale: Tensor  # (row blocks, column blocks) float16
    group: int  # weights per table
    subrow: int | None = None  # columns per blockwise scale
    levels: Tensor | None = None  # (ceil(N / 4), ceil(padded K / subrow)) int16: their codes

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.rows, self.codes.columns

    @property
    def device(self) -> torch.device:
        return self.codes.words.device

    @property
    def form(self) -> tuple[int, int]:
        return self.codes.dim, self.codes.bits

    def nbytes_by_item(self) -> dict[str, int]:
        scales = self.scale.nbytes + (0 if self.levels is None else self.levels.nbytes)
        tables = {"codebook": self.table.nbytes, "scales": scales}
        return {**self.codes.nbytes_by_item(), **tables}


def code_order(dim: int, bits: int) -> str:
    """Where codes stand in their words: for byte permutes, or for one lookup at a time."""
    return "selector" if (dim, bits) in IN_REGISTERS else "field"


def table_block(group: int) -> tuple[int, int]:
    """Rows and columns that a table of `group` weights serves: 256 columns if they divide it.

    Raises: LayoutError.
    """
    if group < K_ALIGN or group % K_ALIGN:
        raise fail("group", group, f"a multiple of {K_ALIGN}")
    columns = WIDEST_TABLE if group % WIDEST_TABLE == 0 else K_ALIGN
    return group // columns, columns


def table_grid(rows: int, columns: int, group: int) -> tuple[int, int]:
    """Row blocks and column blocks of an (N, K) weight."""
    block_rows, block_columns = table_block(group)
    return -(-rows // block_rows), -(-columns // block_columns)


def subrow_groups(dim: int, bits: int, subrow: int | None) -> int:
    """Groups of codes that share a blockwise scale.

    Raises: LayoutError for sub-rows narrower than a group.
    """
    columns = codes_per_group(bits) * dim  # of a group
    check_choice("subrow", subrow, [size for size in SUBROWS if size >= columns])
    return subrow // columns


def column_subrows(dim: int, bits: int, columns: int, subrow: int) -> Tensor:
    """(K,) int64: the blockwise scale of each column.

    Raises: LayoutError.
    """
    joined, column = subrow_groups(dim, bits, subrow), torch.arange(columns)
    groups = K_ALIGN // (codes_per_group(bits) * dim)  # of a tile
    unit = max(dim, 2)  # neighbouring columns of a group
    return (column // K_ALIGN * groups + column // unit % groups) // joined


def pack_levels(codes: Tensor) -> Tensor:
    """(N, S) codes of blockwise scales, 0..15 -> (ceil(N / 4), S) int16."""
    check_range("levels", codes, 0, len(LEVELS))
    rows = torch.nn.functional.pad(codes.to(torch.int32), (0, 0, 0, -len(codes) % QUAD))
    shifts = torch.arange(0, 16, 4, device=codes.device)[:, None]
    return (rows.unflatten(0, (-1, QUAD)) << shifts).sum(dim=1).to(torch.int16)


def subrow_scales(weight: VectorWeight) -> Tensor:
    """(N, S) FP32 blockwise scales of a weight that has them."""
    shifts = torch.arange(0, 16, 4, device=weight.device)[:, None]
    codes = (weight.levels.to(torch.int32)[:, None] >> shifts & 15).flatten(0, 1)
    return torch.tensor(LEVELS, device=weight.device)[codes[: weight.shape[0]].long()]


def pack_vector(
    codes: Tensor,
    entries: Tensor,
    scale: Tensor,
    *,
    group: int,
    columns: int | None = None,
    subrow: int | None = None,
    levels: Tensor | None = None,
) -> VectorWeight:
    """Pack (N, K / dim) indices and the tables of their blocks.

    entries: (row blocks, column blocks, 2**bits, dim) int8, -127..127; scale: (row blocks, column
    blocks) float16. columns: K, where it is no multiple of dim. levels: (N, ceil(padded K /
    subrow)) codes 0..15 of the blockwise scales of `subrow` columns each.

    Raises: LayoutError.
    """
    check_tensor("entries", entries, dtype=torch.int8, shape=(None,) * 4, device=codes.device)
    count, dim = entries.shape[2:]
    bits = count.bit_length() - 1
    check_choice("dim and index bits", (dim, bits), FORMS)
    check_range("entries", entries, -ENTRY_MAX, ENTRY_MAX + 1)
    order, tile = code_order(dim, bits), K_ALIGN // dim
    packed = pack_codes(codes, bits, tile_codes=tile, order=order, dim=dim, columns=columns)
    stored = (entries.to(torch.int16) + BIAS).to(torch.uint8)
    if (dim, bits) in IN_REGISTERS:
        stored = stored.transpose(2, 3)
    table = stored.contiguous().flatten(2).view(torch.int32)
    weight = VectorWeight(
        codes=packed,
        table=table,
        scale=scale,
        group=group,
        subrow=subrow,
        levels=None if levels is None else pack_levels(levels),
    )
    check_vector(weight)
    return weight


def table_vectors(weight: VectorWeight) -> Tensor:
    """(row blocks, column blocks, 2**bits, dim) FP32: the value of every index."""
    dim, bits = weight.form
    stored = weight.table.view(torch.uint8)
    if weight.form in IN_REGISTERS:
        stored = stored.unflatten(2, (dim, 2**bits)).transpose(2, 3)
    else:
        stored = stored.unflatten(2, (2**bits, dim))
    return (stored.float() - BIAS) * weight.scale.float()[:, :, None, None]


def dequantize_vector(weight: VectorWeight) -> Tensor:
    """The (N, K) FP32 weight: plain PyTorch, any device."""
    dim, bits = weight.form
    rows, columns = weight.shape
    block_rows, block_columns = table_block(weight.group)
    codes = unpack_codes(weight.codes).long()  # (N, K / dim)
    row_block = torch.arange(rows, device=codes.device)[:, None] // block_rows
    column_block = torch.arange(codes.shape[1], device=codes.device) * dim // block_columns
    table = row_block * weight.table.shape[1] + column_block
    vectors = table_vectors(weight).reshape(-1, dim)[table * 2**bits + codes]
    values = vectors.flatten(1)[:, :columns]
    if weight.subrow is None:
        return values
    place = column_subrows(dim, bits, columns, weight.subrow).to(weight.device)
    return values * subrow_scales(weight)[:, place]


def check_vector(weight: VectorWeight) -> None:
    """Check a record built by hand or loaded; shapes and dtypes, not the codes' values.

    Raises: LayoutError.
    """
    codes = weight.codes
    dim, bits = weight.form
    check_choice("dim and index bits", weight.form, FORMS)
    check_tensor("words", codes.words, dtype=torch.int32, shape=(None, row_words(codes)))
    if codes.tile_codes * dim != K_ALIGN:
        raise fail("tile_codes", codes.tile_codes, K_ALIGN // dim)
    blocks = table_grid(*weight.shape, weight.group)
    shape, device = (*blocks, 2**bits * dim // 4), weight.device
    check_tensor("table", weight.table, dtype=torch.int32, shape=shape, device=device)
    check_tensor("scale", weight.scale, dtype=torch.float16, shape=blocks, device=device)
    if not isinstance(weight.group, int):
        raise LayoutError(f"group is {weight.group!r}, expected a whole number")
    if weight.subrow is not None or weight.levels is not None:
        subrow_groups(dim, bits, weight.subrow)
        if weight.subrow > table_block(weight.group)[1]:
            raise fail("subrow", weight.subrow, "no more columns than a table has")
        shape = (-(-weight.shape[0] // QUAD), -(-codes.padded_columns // weight.subrow))
        check_tensor("levels", weight.levels, dtype=torch.int16, shape=shape, device=device)

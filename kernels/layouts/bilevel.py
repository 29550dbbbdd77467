"""SpQR (arXiv 2306.03078): uniform codes in groups of 16 columns whose scales are codes themselves.

value = s (code - z), with s = s1 (p - z1) and z = s2 (q - z2): p and q are 3-bit codes of a row and
group; s1, z1, s2, z2 are FP16 and serve 16 rows of a group.

Which 16 columns form a group follows the layout of the codes: in a tile of 128 columns, column c
is in group 2 (c / 2 mod 4) + c / 64. A thread's 32 codes then have two scales, and neighbouring
threads still read neighbouring words and activations.

First-level codes are 12 bits (p, q of two groups) per row and 32 columns. Four rows share three
16-bit planes: the first three rows their low 12 bits, the fourth row a nibble of each.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.checks import check_choice, check_range, check_tensor, fail
from kernels.layouts.codes import (
    K_ALIGN,
    PackedCodes,
    check_codes,
    pack_codes,
    padded,
    row_words,
    unpack_codes,
)

BITS = (2, 3, 4)
GROUP = 16  # columns
BLOCK_ROWS = 16  # rows that share second-level statistics
STATISTICS_BITS = 3
QUAD = 4  # rows whose first-level codes are stored together
PLANES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class BilevelWeight:
    """An (N, K) weight with quantized scales and zeros."""

    codes: PackedCodes  # of the permuted columns when there is an order
    first: Tensor  # (ceil(N / 4), 3, padded K / 32) int16
    second: Tensor  # (ceil(N / 16), 4, padded K / 16) float16: s1, z1, s2, z2
    order: Tensor | None = None  # (K,) int32: column of each position

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.rows, self.codes.columns

    @property
    def device(self) -> torch.device:
        return self.codes.words.device

    def nbytes_by_item(self) -> dict[str, int]:
        order = {} if self.order is None else {"order": self.order.nbytes}
        scales = self.first.nbytes + self.second.nbytes
        return {**self.codes.nbytes_by_item(), "scales": scales, **order}


def column_groups(columns: int, device: torch.device | None = None) -> Tensor:
    """(K,) int64: the group of each column, in the order in which positions are stored."""
    column = torch.arange(columns, device=device)
    place = column % K_ALIGN
    return column // K_ALIGN * (K_ALIGN // GROUP) + 2 * (place // 2 % 4) + place // (K_ALIGN // 2)


def pack_bilevel(
    codes: Tensor,
    statistics: Tensor,
    second: Tensor,
    *,
    bits: int,
    order: Tensor | None = None,
) -> BilevelWeight:
    """Pack (N, K) codes; with an order, those of column order[j] at position j.

    statistics: (N, padded K / 16, 2) uint8 codes of scale and zero; second: (ceil(N / 16),
    padded K / 16, 4) float16 s1, z1, s2, z2. Groups as `column_groups` says.

    Raises: LayoutError.
    """
    check_choice("bits", bits, BITS)
    check_codes(codes)
    rows, columns = codes.shape
    groups, device = padded(columns) // GROUP, codes.device
    check_tensor(
        "statistics", statistics, dtype=torch.uint8, shape=(rows, groups, 2), device=device
    )
    check_range("statistics", statistics, 0, 2**STATISTICS_BITS)
    shape = (-(-rows // BLOCK_ROWS), groups, 4)
    check_tensor("second", second, dtype=torch.float16, shape=shape, device=device)
    if order is not None:
        check_tensor("order", order, dtype=torch.int32, shape=(columns,), device=device)
        everyone = torch.arange(columns, dtype=torch.int32, device=device)
        if not torch.equal(order.sort().values, everyone):
            raise fail("order", "no permutation", f"each of 0..{columns - 1} once")
        codes = codes[:, order.long()]
    return BilevelWeight(
        codes=pack_codes(codes, bits, tile_codes=K_ALIGN, order="field"),
        first=_pack_first(statistics),
        second=second.transpose(1, 2).contiguous(),
        order=order,
    )


def scales_and_zeros(weight: BilevelWeight) -> tuple[Tensor, Tensor]:
    """(N, padded K / 16) FP32 scale and zero of every group."""
    rows = weight.shape[0]
    codes = _unpack_first(weight.first)[:rows].float()  # (N, G, 2)
    block = torch.arange(rows, device=weight.device) // BLOCK_ROWS
    s1, z1, s2, z2 = weight.second.float()[block].unbind(dim=1)
    return s1 * (codes[..., 0] - z1), s2 * (codes[..., 1] - z2)


def dequantize_bilevel(weight: BilevelWeight) -> Tensor:
    """The (N, K) FP32 weight, columns in their original order: plain PyTorch, any device."""
    group = column_groups(weight.codes.columns, weight.device)
    scale, zero = (values[:, group] for values in scales_and_zeros(weight))
    values = scale * (unpack_codes(weight.codes).float() - zero)
    if weight.order is None:
        return values
    out = torch.empty_like(values)
    out[:, weight.order.long()] = values
    return out


def check_bilevel(weight: BilevelWeight) -> None:
    """Check a record built by hand or loaded; shapes and dtypes, not the values.

    Raises: LayoutError.
    """
    codes, device = weight.codes, weight.device
    check_choice("bits", codes.bits, BITS)
    check_choice("order of codes", codes.order, ("field",))
    check_choice("tile_codes", codes.tile_codes, (K_ALIGN,))
    check_tensor("words", codes.words, dtype=torch.int32, shape=(None, row_words(codes)))
    groups = codes.padded_columns // GROUP
    shape = (-(-codes.rows // QUAD), PLANES, groups // 2)
    check_tensor("first", weight.first, dtype=torch.int16, shape=shape, device=device)
    shape = (-(-codes.rows // BLOCK_ROWS), 4, groups)
    check_tensor("second", weight.second, dtype=torch.float16, shape=shape, device=device)
    if weight.order is not None:
        shape = (codes.columns,)
        check_tensor("order", weight.order, dtype=torch.int32, shape=shape, device=device)


def _pack_first(statistics: Tensor) -> Tensor:
    """(N, G, 2) codes -> (ceil(N / 4), 3, G / 2) int16."""
    rows, groups, _ = statistics.shape
    pairs = statistics.to(torch.int32).reshape(rows, groups // 2, 4)  # p, q of two groups
    shifts = torch.arange(0, 12, STATISTICS_BITS, device=statistics.device)
    fields = (pairs << shifts).sum(dim=2)
    fields = torch.nn.functional.pad(fields, (0, 0, 0, -rows % QUAD)).unflatten(0, (-1, QUAD))
    planes = [fields[:, k] | (fields[:, 3] >> 4 * k & 15) << 12 for k in range(PLANES)]
    return torch.stack(planes, dim=1).to(torch.int16)


def _unpack_first(first: Tensor) -> Tensor:
    """Inverse of `_pack_first`, for whole quads of rows: (4 quads, G, 2) int32."""
    planes = first.to(torch.int32) & 0xFFFF
    last = sum((planes[:, k] >> 12) << 4 * k for k in range(PLANES))
    fields = torch.stack((*(planes[:, k] & 0xFFF for k in range(PLANES)), last), dim=1).flatten(
        0, 1
    )
    shifts = torch.arange(0, 12, STATISTICS_BITS, device=first.device)
    return (fields[..., None] >> shifts & 7).reshape(fields.shape[0], -1, 2)

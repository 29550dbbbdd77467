"""Codebooks: 2**bits entries per row of the weight, in the byte order that the kernels look up.

kind    value of a code             stored per row
fp16    entry                       2**bits FP16 entries
int8    scale * entry               2**bits int8 entries, FP16 scale
u7      scale * (entry - zero)      16 entries of 0..127, FP16 scale and zero
sym     +-magnitude, sign in bit 3  8 FP16 magnitudes
int16   scale * entry               2**bits int16 entries, FP32 scale

int8 entries are stored as the byte entry + 128: both paths look up unsigned bytes.
`int16` is not a storage format: `to_fixed_point` derives it from an `fp16` table for the `int`
path. Two-byte entries of 2, 3 and 4 bits are stored as a plane of low bytes, then one of high
bytes, four bytes to a word: a byte permute looks up four codes in one plane at once. Wider tables
do not fit registers: one of 5 to 8 bits holds its FP16 entries in order, and codes index it.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kernels.checks import LayoutError, check_choice, check_range, check_tensor, fail
from kernels.layouts.codes import BITS, PackedCodes, pack_codes, row_words, unpack_codes

KINDS = ("fp16", "int8", "u7", "sym", "int16")
REGISTER_BITS = (2, 3, 4)  # of tables that registers hold; wider ones stay in memory
_BITS_OF_KIND = {"fp16": BITS, "int8": REGISTER_BITS, "u7": (4,), "sym": (4,)}
_INT16_MAX = 32767


@dataclass(frozen=True, slots=True, kw_only=True)
class Codebook:
    """Tables of all rows; the module docstring lists the kinds."""

    kind: str
    bits: int
    table: Tensor  # (N, words) int32: bytes as looked up; in memory: (N, 2**bits) float16
    scale: Tensor | None = None  # (N, 1) float16: int8; (N, 2): u7 (scale, zero); (N, 1) float32

    def nbytes_by_item(self) -> dict[str, int]:
        scales = {} if self.scale is None else {"scales": self.scale.nbytes}
        return {"codebook": self.table.nbytes, **scales}


@dataclass(frozen=True, slots=True, kw_only=True)
class LutWeight:
    """An (N, K) weight as codes and one table per row."""

    codes: PackedCodes
    codebook: Codebook

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.rows, self.codes.columns

    @property
    def device(self) -> torch.device:
        return self.codes.words.device

    def nbytes_by_item(self) -> dict[str, int]:
        return {**self.codes.nbytes_by_item(), **self.codebook.nbytes_by_item()}


def pack_lut(
    codes: Tensor,
    entries: Tensor,
    *,
    bits: int,
    kind: str = "fp16",
    scale: Tensor | None = None,
    tile_codes: int | None = None,
) -> LutWeight:
    """Pack (N, K) codes and their tables.

    entries: (N, 2**bits) FP16 for `fp16`, int8 for `int8`, uint8 below 128 for `u7`; (N, 8) FP16
    magnitudes >= 0 for `sym`. scale: FP16, (N, 1) for `int8`, (N, 2) scale and zero for `u7`.

    Raises: LayoutError.
    """
    check_choice("kind", kind, tuple(_BITS_OF_KIND))
    check_choice(f"bits of kind {kind}", bits, _BITS_OF_KIND[kind])
    order = "signed" if kind == "sym" else "selector"
    packed = pack_codes(codes, bits, tile_codes=tile_codes, order=order)
    rows, device = packed.rows, codes.device
    dtype = {"int8": torch.int8, "u7": torch.uint8}.get(kind, torch.float16)
    width = 2 ** (bits - (kind == "sym"))
    check_tensor("entries", entries, dtype=dtype, shape=(rows, width), device=device)
    if kind == "u7":
        check_range("entries", entries, 0, 128)
    elif dtype == torch.float16:
        _check_finite("entries", entries)
    if kind == "sym" and bool((entries < 0).any()):
        raise fail("range of entries", f"least {float(entries.min())}", "magnitudes >= 0")
    if dtype == torch.float16:
        table = to_planes(entries, bits)
    else:
        offset = 128 if kind == "int8" else 0
        table = (entries.to(torch.int16) + offset).to(torch.uint8).view(torch.int32)
    codebook = Codebook(kind=kind, bits=bits, table=table, scale=scale)
    weight = LutWeight(codes=packed, codebook=codebook)
    check_lut(weight)
    return weight


def table_values(codebook: Codebook) -> Tensor:
    """(N, 2**bits) FP32: the value of every code of every row; plain PyTorch, any device."""
    kind, bits, table = codebook.kind, codebook.bits, codebook.table
    if kind in ("int8", "u7"):
        zero = codebook.scale[:, 1:].float() if kind == "u7" else 128.0
        return (table.view(torch.uint8).float() - zero) * codebook.scale[:, :1].float()
    halves = _from_planes(table) if bits in REGISTER_BITS else table
    if kind == "int16":
        return halves.view(torch.int16).float() * codebook.scale
    values = halves.view(torch.float16).float()
    return torch.cat((values, -values), dim=1) if kind == "sym" else values


def to_fixed_point(weight: LutWeight) -> LutWeight:
    """The same codes with the FP16 table as 16-bit fixed point per row, for the `int` path.

    The error of an entry is at most half a step: the row's largest magnitude / 65534.

    Raises: LayoutError unless the codebook is `fp16` with 2, 3 or 4 bits.
    """
    book = weight.codebook
    check_choice("kind", book.kind, ("fp16",))
    check_choice("bits", book.bits, REGISTER_BITS)
    values = table_values(book)
    scale = values.abs().amax(dim=1, keepdim=True) / _INT16_MAX
    steps = torch.where(scale > 0, values / scale, 0.0).round().to(torch.int16)
    table = to_planes(steps.view(torch.float16), book.bits)
    codebook = Codebook(kind="int16", bits=book.bits, table=table, scale=scale)
    return replace(weight, codebook=codebook)


def check_lut(weight: LutWeight) -> None:
    """Check a record built by hand or loaded; shapes and dtypes, not the codes' values.

    Raises: LayoutError.
    """
    codes, book = weight.codes, weight.codebook
    check_choice("codebook kind", book.kind, KINDS)
    if codes.bits != book.bits:
        raise fail("bits of codebook", book.bits, f"{codes.bits}, as the codes")
    words = codes.words
    check_tensor("words", words, dtype=torch.int32, shape=(None, row_words(codes)))
    entry_bytes = 1 if book.kind in ("int8", "u7") else 2
    width = (entry_bytes << codes.bits) // (8 if book.kind == "sym" else 4)
    dtype = torch.int32
    if codes.bits not in REGISTER_BITS:
        dtype, width = torch.float16, 2**codes.bits
    check_tensor("table", book.table, dtype=dtype, shape=(codes.rows, width), device=words.device)
    scales = {"int8": 1, "u7": 2, "int16": 1}.get(book.kind, 0)
    if scales:
        dtype = torch.float32 if book.kind == "int16" else torch.float16
        shape = (codes.rows, scales)
        check_tensor("scale", book.scale, dtype=dtype, shape=shape, device=words.device)
    elif book.scale is not None:
        raise LayoutError(f"scale is a tensor, expected None for kind {book.kind}")


def dequantize_lut(weight: LutWeight) -> Tensor:
    """The (N, K) FP32 weight: plain PyTorch, any device."""
    codes = unpack_codes(weight.codes).long()
    return table_values(weight.codebook).gather(1, codes)


def _check_finite(argument: str, tensor: Tensor) -> None:
    if not bool(tensor.isfinite().all()):
        raise fail(f"range of {argument}", "not finite", "finite numbers")


def to_planes(entries: Tensor, bits: int) -> Tensor:
    """(N, E) two-byte entries as (N, E / 2) int32: low bytes of all entries, then high bytes."""
    if bits not in REGISTER_BITS:  # looked up one by one in memory
        return entries.contiguous()
    pairs = entries.contiguous().view(torch.uint8).reshape(entries.shape[0], -1, 2)
    return pairs.transpose(1, 2).contiguous().view(torch.int32).reshape(entries.shape[0], -1)


def _from_planes(table: Tensor) -> Tensor:
    """Inverse of `to_planes`, as (N, E) int16 patterns."""
    planes = table.contiguous().view(torch.uint8).reshape(table.shape[0], 2, -1)
    return planes.transpose(1, 2).contiguous().view(torch.int16).reshape(table.shape[0], -1)

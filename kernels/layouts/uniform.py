"""Uniform grids of GPTQ, AWQ and RTN: value = scale * (code - zero), per row or group of columns.

Act-order (GPTQ's `desc_act`) assigns columns to groups in an arbitrary order. Two forms:
`gather` keeps the columns where they are and stores the group of each (`g_idx`): every decoded
weight fetches its own scale. `fold` sorts the columns by group once, when packing, and stores the
permutation: the activations are permuted instead, and groups are contiguous again.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.checks import check_choice, check_range, check_tensor, fail
from kernels.layouts.codes import (
    K_ALIGN,
    PackedCodes,
    check_codes,
    least_tile,
    pack_codes,
    row_words,
    unpack_codes,
)

ACT_ORDERS = (None, "gather", "fold")


@dataclass(frozen=True, slots=True, kw_only=True)
class UniformWeight:
    """An (N, K) weight on a uniform grid."""

    codes: PackedCodes  # of the permuted columns when act_order is "fold"
    scale_zero: Tensor  # (N, groups, 2) float16
    group_size: int  # columns per group; K when there is one group per row
    act_order: str | None = None
    order: Tensor | None = None  # (K,) int32: group of each column, or column of each position

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.rows, self.codes.columns

    @property
    def device(self) -> torch.device:
        return self.codes.words.device

    def nbytes_by_item(self) -> dict[str, int]:
        order = {} if self.order is None else {"order": self.order.nbytes}
        return {**self.codes.nbytes_by_item(), "scales": self.scale_zero.nbytes, **order}


def pack_uniform(
    codes: Tensor,
    scale_zero: Tensor,
    *,
    bits: int,
    group_size: int | None = None,
    g_idx: Tensor | None = None,
    act_order: str | None = None,
) -> UniformWeight:
    """Pack (N, K) codes with (N, groups, 2) FP16 scales and zeros, groups = ceil(K / group_size).

    g_idx: (K,) int32, the group of each column; with it, `act_order` says which form to build.
    Group sizes are those of `group_sizes`, or K.

    Raises: LayoutError.
    """
    check_choice("act_order", act_order, ACT_ORDERS)
    check_codes(codes)
    rows, columns = codes.shape
    group_size = columns if group_size is None else group_size
    _check_group_size(bits, group_size, columns)
    group_size = min(group_size, columns)
    groups = -(-columns // group_size)
    shape = (rows, groups, 2)
    check_tensor("scale_zero", scale_zero, dtype=torch.float16, shape=shape, device=codes.device)
    if (g_idx is None) != (act_order is None):
        raise fail("g_idx", "given" if g_idx is not None else "None", f"to match {act_order=}")
    order = None
    if g_idx is not None:
        check_tensor("g_idx", g_idx, dtype=torch.int32, shape=(columns,), device=codes.device)
        check_range("g_idx", g_idx, 0, groups)
        order = g_idx if act_order == "gather" else _fold(g_idx, group_size)
        codes = codes if act_order == "gather" else codes[:, order.long()]
    tile_codes = group_tile(bits, group_size, columns, act_order)
    return UniformWeight(
        codes=pack_codes(codes, bits, tile_codes=tile_codes, order="field"),
        scale_zero=scale_zero,
        group_size=group_size,
        act_order=act_order,
        order=order,
    )


def dequantize_uniform(weight: UniformWeight) -> Tensor:
    """The (N, K) FP32 weight, columns in their original order: plain PyTorch, any device."""
    columns = weight.codes.columns
    position = torch.arange(columns, device=weight.device)
    group = position // weight.group_size
    if weight.act_order == "gather":
        group = weight.order.long()
    scale, zero = weight.scale_zero.float()[:, group].unbind(dim=2)
    values = scale * (unpack_codes(weight.codes).float() - zero)
    if weight.act_order != "fold":
        return values
    out = torch.empty_like(values)
    out[:, weight.order.long()] = values
    return out


def check_uniform(weight: UniformWeight) -> None:
    """Check a record built by hand or loaded; shapes and dtypes, not the values.

    Raises: LayoutError.
    """
    codes, device = weight.codes, weight.device
    check_choice("order of codes", codes.order, ("field",))
    check_choice("act_order", weight.act_order, ACT_ORDERS)
    check_tensor("words", codes.words, dtype=torch.int32, shape=(None, row_words(codes)))
    groups = -(-codes.columns // weight.group_size)
    shape = (codes.rows, groups, 2)
    check_tensor("scale_zero", weight.scale_zero, dtype=torch.float16, shape=shape, device=device)
    if weight.act_order is not None:
        shape = (codes.columns,)
        check_tensor("order", weight.order, dtype=torch.int32, shape=shape, device=device)
    elif weight.order is not None:
        raise fail("order", "a tensor", "None without act_order")


def group_sizes(bits: int) -> tuple[int, ...]:
    """Weights per scale that whole tiles hold; besides these, a row may have one scale."""
    return tuple(size for size in (32, 64, 128, 256, 512, 1024) if size >= least_tile(bits))


def _check_group_size(bits: int, group_size: int, columns: int) -> None:
    if group_size != columns:
        check_choice("group_size", group_size, [*group_sizes(bits), columns])


def group_tile(bits: int, group_size: int, columns: int, act_order: str | None) -> int | None:
    """Whole tiles per group, so that a thread's group of codes has one scale; else the default."""
    if act_order == "gather":
        return K_ALIGN
    if group_size == columns:
        return None
    return max(min(group_size, K_ALIGN), least_tile(bits))


def _fold(g_idx: Tensor, group_size: int) -> Tensor:
    """The columns sorted by group; group j must have the columns of positions j * group_size..."""
    order = torch.argsort(g_idx, stable=True)
    expected = torch.arange(g_idx.numel(), device=g_idx.device) // group_size
    if not torch.equal(g_idx[order].long(), expected):
        counts = torch.bincount(g_idx.long()).tolist()
        raise fail("columns per group of g_idx", counts, f"{group_size} each, the last may be less")
    return order.to(torch.int32)

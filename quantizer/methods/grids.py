"""Uniform grids: value = scale * (code - zero), per row or per group of neighbouring columns."""

import torch
from torch import Tensor

LEAST_SCALE = 2.0**-24  # smallest positive FP16


def fit_grid(weight: Tensor, bits: int) -> Tensor:
    """(N, 2) float32 scale and zero that span each row of (N, C), and 0; FP16 values.

    s = (max(w, 0) - min(w, 0)) / (2^b - 1), z = round(-min(w, 0) / s): asymmetric min-max, as in
    GPTQ, arXiv 2210.17323, section 5. The scale is rounded to FP16 before the zero is found.
    """
    return grid_of_range(
        weight.amin(dim=1).clamp_max(0.0), weight.amax(dim=1).clamp_min(0.0), bits=bits
    )


def grid_of_range(low: Tensor, high: Tensor, *, bits: int) -> Tensor:
    """(..., 2) float32 scale and zero of the grids over low..high, which hold 0."""
    levels = 2**bits - 1
    scale = ((high - low) / levels).to(torch.float16).float().clamp_min(LEAST_SCALE)
    zero = (-low / scale).round().clamp(0, levels)
    return torch.stack((scale, zero), dim=-1)


def fit_groups(weight: Tensor, bits: int, group: int | None) -> Tensor:
    """(N, groups, 2) float32 grids of an (N, K) weight; the last group may be narrower."""
    rows, columns = weight.shape
    group = group or columns
    padding = -columns % group  # zeros, which are in every range anyway
    cells = torch.nn.functional.pad(weight, (0, padding)).reshape(rows, -1, group)
    return grid_of_range(
        cells.amin(dim=2).clamp_max(0.0), cells.amax(dim=2).clamp_min(0.0), bits=bits
    )


def group_of_column(columns: int, group: int | None, device: torch.device) -> Tensor:
    """(K,) int64 group of each column."""
    return torch.arange(columns, device=device) // (group or columns)


def to_codes(values: Tensor, grid: Tensor, bits: int) -> Tensor:
    """Nearest codes, float32, of values (...,) on grids (..., 2) that broadcast."""
    return ((values / grid[..., 0]).round() + grid[..., 1]).clamp(0, 2**bits - 1)


def from_codes(codes: Tensor, grid: Tensor) -> Tensor:
    return grid[..., 0] * (codes - grid[..., 1])

"""Tables of a codebook under the constraint of their storage, each optimised under it.

kind    entries of a row                          how they are found
fp16    2^b FP16 values                           global optimum, rounded
sym     +-8 FP16 magnitudes                       global optimum of |w| (the sign is free), rounded
int8    scale x int8                              descent from the global optimum
u7      scale x (0..127 - zero)                   descent from the global optimum

A descent alternates, for every row: nearest codes; the entries rounded to the grid; the grid's
scale (and zero) by weighted least squares, rounded to FP16. It starts from the best of a list of
scales and keeps the best table it has seen, so it never ends above its start.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from quantizer.clustering.kmeans import cluster_rows, nearest_codes, objective

STRETCHES = torch.linspace(0.90, 1.40, 26)  # scales tried, relative to the one that just spans
PHASES = (0.0, 0.25, 0.5, 0.75)  # zeros tried, in steps of the grid
ROUNDS = 6  # of the descent
LEAST_SCALE = 2.0**-24  # smallest positive FP16
SYM_MAGNITUDES = 8
GRIDS = {"int8": (-128, 127), "u7": (0, 127)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Codebooks of all rows as `kernels.layouts.pack_lut` takes them, and their codes."""

    entries: Tensor  # (N, 2^b): float16 (fp16), int8 or uint8; (N, 8) float16 magnitudes (sym)
    scale: Tensor | None  # float16: (N, 1) int8; (N, 2) u7
    values: Tensor  # (N, 2^b) float32: value of each code
    codes: Tensor  # (N, K) uint8
    error: float  # weighted error of all rows
    cost_over_free: float  # error / error of the free optimum, 1 if both are 0
    gap: float  # of the clustering, 0 when exact


def fit_table(
    values: Tensor, weights: Tensor, *, bits: int, kind: str, mode: str = "exact"
) -> Table:
    """Fit the tables of (N, K) float32 values under (N, K) weights >= 0.

    Raises: ClusteringError.
    """
    free = cluster_rows(values, weights, 2**bits, mode=mode)
    if kind == "sym":
        magnitudes = cluster_rows(values.abs(), weights, SYM_MAGNITUDES, mode=mode).centroids
        entries = magnitudes.to(torch.float16)
        table = torch.cat((entries, -entries), dim=1).float()
        codes = nearest_codes(values.abs(), entries.float()) + 8 * (values < 0).to(torch.uint8)
        scale = None
    elif kind == "fp16":
        entries, scale = free.centroids.to(torch.float16), None
        table = entries.float()
        codes = nearest_codes(values, table)
    else:
        entries, scale = _descend(values, weights, free.centroids, kind)
        table = _grid_values(entries, scale)
        codes = nearest_codes(values, table)
        entries = entries.to(torch.int8 if kind == "int8" else torch.uint8)
        scale = scale.to(torch.float16)
        scale = scale[:, :1].contiguous() if kind == "int8" else scale
    found = table.gather(1, codes.long())
    error = float((weights.double() * (values.double() - found.double()).square()).sum())
    least = float(objective(values, weights, free.centroids).sum())
    return Table(
        entries=entries,
        scale=scale,
        values=table,
        codes=codes,
        error=error,
        cost_over_free=error / least if least > 0 else 1.0,
        gap=free.gap,
    )


def _descend(
    values: Tensor, weights: Tensor, centroids: Tensor, kind: str
) -> tuple[Tensor, Tensor]:
    """Entries (N, E) and grid (N, 2) of scale and zero (0 for int8), float32 holding FP16."""
    squares = (weights.double() * values.double().square()).sum(dim=1)
    entries, grid = _best_start(*_cells(values, weights, centroids.float()), kind)
    best_error = torch.full_like(squares, torch.inf)
    best_entries, best_grid = entries, grid
    for _ in range(ROUNDS):
        table = _grid_values(entries, grid)
        mass, mean = _cells(values, weights, table)
        wide = table.double()
        error = squares + (mass * wide * (wide - 2 * mean)).sum(dim=1)
        better = (error < best_error)[:, None]
        best_error = torch.minimum(error, best_error)
        best_entries = torch.where(better, entries, best_entries)
        best_grid = torch.where(better, grid, best_grid)
        grid = _least_squares(mass, mean, entries, kind, grid)
        entries = _rounded(mean, grid, kind)
    return best_entries, best_grid


def _cells(values: Tensor, weights: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Mass and mean (N, E) float64 of the values nearest each entry; empty cells: the entry."""
    codes = nearest_codes(values, table).long()
    wide = weights.double()
    mass = torch.zeros_like(table, dtype=torch.float64).scatter_add_(1, codes, wide)
    moment = torch.zeros_like(mass).scatter_add_(1, codes, wide * values)
    return mass, torch.where(mass > 0, moment / mass, table.double())


def _best_start(mass: Tensor, mean: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """The grid whose rounding of the free centroids costs least, of a list per row."""
    low, high = GRIDS[kind]
    span = mean.abs().amax(dim=1, keepdim=True) / high
    if kind == "u7":  # a floor for rows far from zero: the FP16 zero counts whole steps up to 2048
        span = torch.maximum((mean[:, -1:] - mean[:, :1]) / high, span / 4)
    best_cost = torch.full_like(span, torch.inf)
    best_grid = torch.zeros((mean.shape[0], 2))
    for stretch in STRETCHES.tolist():
        for phase in PHASES if kind == "u7" else (0.0,):
            scale = (stretch * span).clamp_min(LEAST_SCALE)
            middle = (mean[:, -1:] + mean[:, :1]) / 2
            zero = (low + high + 1) // 2 - middle / scale + phase
            grid = _half(torch.cat((scale, zero if kind == "u7" else 0 * scale), dim=1))
            rounding = (mean - _grid_values(_rounded(mean, grid, kind), grid)).square()
            cost = (mass * rounding).sum(dim=1, keepdim=True)
            better = cost < best_cost
            best_cost = torch.where(better, cost, best_cost)
            best_grid = torch.where(better, grid, best_grid)
    return _rounded(mean, best_grid, kind), best_grid


def _least_squares(mass: Tensor, mean: Tensor, entries: Tensor, kind: str, grid: Tensor) -> Tensor:
    """Scale (and zero) that fit scale (entry - zero) to the cell means under the cell masses."""
    e = entries.double()
    total = mass.sum(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    centre = mean_centre = torch.zeros_like(total)
    if kind == "u7":
        centre = (mass * e).sum(dim=1, keepdim=True) / total
        mean_centre = (mass * mean).sum(dim=1, keepdim=True) / total
    spread = (mass * (e - centre).square()).sum(dim=1, keepdim=True)
    joint = (mass * (e - centre) * (mean - mean_centre)).sum(dim=1, keepdim=True)
    scale = torch.where(spread > 0, joint / spread.clamp_min(1e-300), grid[:, :1].double())
    scale = scale.clamp_min(LEAST_SCALE)
    zero = centre - mean_centre / scale
    return _half(torch.cat((scale, zero if kind == "u7" else 0 * scale), dim=1))


def _half(grid: Tensor) -> Tensor:
    """As stored: rounded to FP16 (finite), a scale above zero; as float32."""
    limit = torch.finfo(torch.float16).max
    stored = grid.clamp(-limit, limit).to(torch.float16).float()
    stored[:, 0].clamp_min_(LEAST_SCALE)
    return stored


def _rounded(mean: Tensor, grid: Tensor, kind: str) -> Tensor:
    low, high = GRIDS[kind]
    steps = mean / grid[:, :1].double() + grid[:, 1:].double()
    return steps.round().clamp(low, high).float()


def _grid_values(entries: Tensor, grid: Tensor) -> Tensor:
    """(N, E) float32, with the arithmetic of `kernels.layouts.table_values`."""
    return (entries - grid[:, 1:]) * grid[:, :1]

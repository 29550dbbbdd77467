"""GPTVQ: GPTQ with vectors of neighbouring columns, and codebooks that know the Hessian.

van Baalen et al., arXiv 2402.15319, Algorithm 1. Blocks of up to 256 columns: fit the codebooks of
all row blocks to the weights as updated so far; then for d columns at a time take the nearest
entries, and let all later columns make up for the error. In the end the entries are optimised with
the codes fixed (`codebook_update`), and rounded to int8.
With H the damped Hessian and U the upper Cholesky factor of H^-1, column t alone costs
(w_t - q_t)^2 / U_tt^2, and d columns together || (w - q) U_BB^-1 ||^2. What the metrics are:

metric     codebook             nearest entry        error handed on
paper      1 / U_tt^2           1 / U_tt^2           (w_t - q_t) / U_tt, column by column
released   U_tt                 1 / U_tt             the same
joint      (U_BB^T U_BB)^-1     the same             (w - q) U_BB^-1, exact

Blockwise scales (section 3.2): before the codebook is fitted each sub-row is divided by its size,
rounded to a 4-bit code: its root mean square, or as in the paper its largest magnitude
(`subrow_size`). A normalised point weighs its scale squared.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.layouts import pack_vector
from kernels.layouts.codes import padded
from kernels.layouts.vector import ENTRY_MAX, LEVELS, column_subrows, table_block, table_grid
from quantizer.clustering.vector_kmeans import fit_tables, nearest
from quantizer.methods.codebook_update import update_tables
from quantizer.methods.gptq import inverse_factor
from quantizer.methods.matrix import QuantizedMatrix, Settings, Statistics, required

LEAST_SCALE = 2.0**-24  # smallest positive FP16


class VectorFit(NamedTuple):
    """Codes and tables before they are rounded and packed."""

    codes: Tensor  # (N, K' / d) int64
    entries: Tensor  # (N, K' / d) int64: which vector of all tables that is
    tables: Tensor  # (row blocks, column blocks, E, d) float32
    levels: Tensor  # (N, sub-rows) int64: codes of the blockwise scales; without them zero, for 1
    scales: Tensor  # (N, K' / d) float32: their values at each vector
    weight: Tensor  # (N, K') float32: columns padded to whole vectors
    hessian: Tensor  # (K', K') float32, damped
    damping: float
    error: float  # tr(dW H dW^T) before the codebooks are updated


class _Found(NamedTuple):
    """What the loop over columns leaves, in its order."""

    codes: Tensor
    tables: Tensor
    levels: Tensor  # columns as the layout has them
    error: float


class _Metrics(NamedTuple):
    """Per vector of d columns, (K / d, d, d) each."""

    codebook: Tensor
    assignment: Tensor
    error: Tensor  # times (w - q): what the later columns have to make up for


def quantize_gptvq(weight: Tensor, statistics: Statistics, settings: Settings) -> QuantizedMatrix:
    """Quantize the (N, K) weight under its (K, K) input Hessian."""
    fit = fit_vectors(weight, statistics, settings)
    notes: dict[str, float | int | str] = {"damping": fit.damping, "before_update": fit.error}
    if settings.update_codebook:
        fit = updated(fit)
    entries, scale = rounded(fit.tables)
    values = entries.float() * scale.float()[..., None, None]
    notes["hessian_error"] = hessian_error(fit._replace(tables=values))
    packed = pack_vector(
        fit.codes.to(torch.uint8),
        entries,
        scale,
        group=settings.table_group,
        columns=weight.shape[1],
        subrow=settings.subrow,
        levels=fit.levels if settings.subrow else None,
    )
    return QuantizedMatrix(weight=packed, notes=notes)


def fit_vectors(weight: Tensor, statistics: Statistics, settings: Settings) -> VectorFit:
    """Codes and codebooks of an (N, K) weight, entries as the EM algorithm left them."""
    rows, columns = weight.shape
    dim, group = settings.dim, settings.table_group
    hessian = required(statistics, "hessian", (columns, columns)).double()
    dead = hessian.diagonal() <= 0
    block_rows, block_columns = table_block(group)
    blocks, _ = table_grid(rows, columns, group)
    wide = weight.float().masked_fill(dead, 0.0)
    spare = -columns % dim  # columns that nobody reads
    wide = torch.nn.functional.pad(wide, (0, spare))
    hessian = torch.nn.functional.pad(hessian + torch.diag(dead.double()), (0, spare, 0, spare))
    hessian.diagonal()[columns:] = 1.0
    turns = _turns(hessian.diagonal(), dim, block_columns, by_size=settings.act_order)
    order = (turns[:, None] * dim + torch.arange(dim, device=wide.device)).flatten()
    factor, damping = inverse_factor(hessian[order][:, order], settings.damping)
    damped = hessian + damping * hessian.diagonal().mean() * torch.eye(len(hessian)).to(hessian)
    damped[columns:] = damped[:, columns:] = 0.0
    tall = torch.nn.functional.pad(wide[:, order], (0, 0, 0, blocks * block_rows - rows))
    subrows = _subrows(len(hessian), settings).to(wide.device)
    found = _loop(tall, factor.float(), subrows[turns], settings, rows)
    codes = found.codes[:, torch.argsort(turns)]
    tables = found.tables[:, torch.argsort(turns[:: block_columns // dim])]
    return VectorFit(
        codes=codes,
        entries=_entries(codes, tables, (block_rows, block_columns // dim)),
        tables=tables,
        levels=found.levels,
        scales=level_values(found.levels)[:, subrows],
        weight=wide,
        hessian=damped.float(),
        damping=damping,
        error=found.error,
    )


def updated(fit: VectorFit) -> VectorFit:
    """The same codes with the best entries for them."""
    tables = update_tables(fit.weight, fit.hessian, fit.entries, fit.scales, fit.tables)
    return fit._replace(tables=tables)


def rounded(tables: Tensor) -> tuple[Tensor, Tensor]:
    """int8 entries -127..127, and the FP16 scale of every table."""
    scale = (tables.abs().amax(dim=(2, 3)) / ENTRY_MAX).to(torch.float16)
    scale = scale.clamp_min(LEAST_SCALE)
    entries = (tables / scale.float()[..., None, None]).round().clamp(-ENTRY_MAX, ENTRY_MAX)
    return entries.to(torch.int8), scale


def hessian_error(fit: VectorFit) -> float:
    """tr(dW H dW^T) under the damped Hessian."""
    change = fit.weight - values_of(fit)
    return float(((change @ fit.hessian) * change).sum(dtype=torch.float64))


def values_of(fit: VectorFit) -> Tensor:
    """(N, K') float32: the entries that the codes name, scaled."""
    return (fit.tables.flatten(0, 2)[fit.entries] * fit.scales[..., None]).flatten(1)


def vector_metrics(factor: Tensor, dim: int, kind: str) -> _Metrics:
    """Metrics of the vectors of `dim` neighbouring columns, as the module docstring says."""
    starts = torch.arange(0, len(factor), dim, device=factor.device)
    within = torch.arange(dim, device=factor.device)
    places = starts[:, None] + within
    block = factor[places[:, :, None], places[:, None]]  # (K / d, d, d) upper
    if kind == "joint":
        inverse = torch.linalg.inv(block)
        metric = inverse @ inverse.transpose(1, 2)
        return _Metrics(metric, metric, inverse)
    own = block.diagonal(dim1=1, dim2=2)
    error = torch.diag_embed(1 / own)
    if kind == "released":
        return _Metrics(torch.diag_embed(own), error, error)
    metric = torch.diag_embed(own**-2)
    return _Metrics(metric, metric, error)


def _loop(weight: Tensor, factor: Tensor, subrows: Tensor, settings: Settings, rows: int) -> _Found:
    """Everything in the order of the columns; the weight is used up.

    subrows: (K' / d,) blockwise scale of each vector; rows: those that are no padding.
    """
    dim, columns = settings.dim, weight.shape[1]
    block_rows, width = table_block(settings.table_group)
    metrics = vector_metrics(factor, dim, settings.vector_metric)
    codes = torch.empty((len(weight), columns // dim), dtype=torch.int64, device=weight.device)
    count = -(-padded(columns) // settings.subrow) if settings.subrow else 1
    levels = codes.new_zeros((len(weight), count))
    tables, loss = [], 0.0
    for start in range(0, columns, width):
        end = min(start + width, columns)
        vectors = slice(start // dim, end // dim)
        part = weight[:, start:end].unflatten(0, (-1, block_rows)).unflatten(2, (-1, dim))
        if settings.subrow:
            own, place = subrows[vectors].unique(return_inverse=True)
            levels[:, own] = block_levels(part, place, settings.subrow_size).flatten(0, 1)
        scale = level_values(levels)[:, subrows[vectors]].unflatten(0, (-1, block_rows))
        table = _fit_block(part, scale, metrics.codebook[vectors], settings, rows)
        errors = weight.new_empty((len(weight), end - start))
        for column in range(start, end, dim):
            vector, after = column // dim, column + dim
            here, factors = weight[:, column:after], scale[:, :, vector - start // dim, None]
            points = here.unflatten(0, (-1, block_rows)) / factors
            metric = metrics.assignment[vector : vector + 1]
            chosen = nearest(points[:, :, None], metric, table)[:, :, 0]
            codes[:, vector] = chosen.flatten()
            value = table.gather(1, chosen[..., None].expand(-1, -1, dim)) * factors
            error = (here - value.flatten(0, 1)) @ metrics.error[vector]
            errors[:, column - start : after - start] = error
            weight[:, after:end] -= error @ factor[column:after, after:end]
        weight[:, end:] -= errors @ factor[start:end, end:]
        loss += float(errors[:rows].double().square().sum())
        tables.append(table)
    return _Found(codes[:rows], torch.stack(tables, dim=1), levels[:rows], loss)


def _turns(diagonal: Tensor, dim: int, width: int, *, by_size: bool) -> Tensor:
    """(K' / d,) the vectors in the order of quantization: blocks of `width` columns stay together.

    By falling diagonal of the Hessian, blocks and the vectors of each; a narrower last block stays
    last. Indices are stored by place and tables by block, so that the order is free.
    """
    mass = diagonal.unflatten(0, (-1, dim)).sum(dim=1)
    turns = torch.arange(len(mass), device=mass.device)
    if not by_size:
        return turns
    parts = [
        part[mass[part].argsort(descending=True, stable=True)] for part in turns.split(width // dim)
    ]
    whole, last = parts, []
    if len(mass) % (width // dim):
        whole, last = parts[:-1], parts[-1:]
    whole = sorted(whole, key=lambda part: -float(mass[part].sum()))
    return torch.cat([*whole, *last])


def _entries(codes: Tensor, tables: Tensor, block: tuple[int, int]) -> Tensor:
    """Codes numbered through all tables, each of which serves a block of rows and vectors."""
    _, blocks, per_table, _ = tables.shape
    row_block = torch.arange(codes.shape[0], device=codes.device)[:, None] // block[0]
    column_block = torch.arange(codes.shape[1], device=codes.device) // block[1]
    return (row_block * blocks + column_block) * per_table + codes


def _fit_block(
    part: Tensor, scale: Tensor, metric: Tensor, settings: Settings, rows: int
) -> Tensor:
    """(T, E, d) tables of (T, r, V, d) weights with blockwise scales (T, r, V).

    The last row block may be partly padding.
    """
    options = {"seeds": settings.table_seeds, "rounds": settings.em_rounds}
    entries, points = settings.table_entries, part / scale[..., None]
    weights = scale.square() if settings.subrow else None
    whole, left = divmod(rows, points.shape[1])
    parts = []
    for tables, height in ((slice(whole), None), (slice(whole, None), left)):
        own = points[tables, :height]
        if own.numel():
            mass = None if weights is None else weights[tables, :height]
            parts.append(fit_tables(own, metric, entries, weights=mass, **options))
    return torch.cat(parts)


def _subrows(columns: int, settings: Settings) -> Tensor:
    """(K' / d,) int64: the blockwise scale of each vector; all 0 without them."""
    dim, bits = settings.dim, settings.table_entries.bit_length() - 1
    if settings.subrow is None:
        return torch.zeros(columns // dim, dtype=torch.int64)
    return column_subrows(dim, bits, columns, settings.subrow)[::dim]


def level_values(levels: Tensor) -> Tensor:
    """float32 blockwise scales of codes 0..15."""
    return torch.tensor(LEVELS, device=levels.device)[levels]


def block_levels(part: Tensor, place: Tensor, kind: str) -> Tensor:
    """(T, r, S) codes of the blockwise scales of (T, r, V, d) weights; place: (V,) which of the S.

    The root mean square, or the largest magnitude, of a sub-row over the table's largest, to the
    nearest code in log2.
    """
    sizes = part.new_zeros((*part.shape[:2], int(place.max()) + 1))
    if kind == "max":
        own = part.abs().amax(dim=3)
        sizes.scatter_reduce_(2, place.expand_as(own), own, "amax")
    else:
        squares = sizes.index_add_(2, place, part.square().mean(dim=3)) / place.bincount()
        sizes = squares.sqrt()
    most = sizes.amax(dim=(1, 2), keepdim=True).clamp_min(LEAST_SCALE)
    wanted = (sizes / most * LEVELS[-1]).clamp_min(LEVELS[0]).log2()
    steps = torch.tensor(LEVELS, device=part.device).log2()
    return (wanted[..., None] - steps).abs().argmin(dim=3)

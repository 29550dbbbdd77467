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
"""

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.layouts import pack_vector
from kernels.layouts.vector import ENTRY_MAX, table_block, table_grid
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
    weight: Tensor  # (N, K') float32: columns padded to whole vectors
    hessian: Tensor  # (K', K') float32, damped
    damping: float
    error: float  # tr(dW H dW^T) before the codebooks are updated


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
    padded = torch.nn.functional.pad(wide[:, order], (0, 0, 0, blocks * block_rows - rows))
    codes, tables, error = _loop(padded, factor.float(), settings, rows)
    codes = codes[:, torch.argsort(turns)]
    tables = tables[:, torch.argsort(turns[:: block_columns // dim])]
    entries = _entries(codes, tables, (block_rows, block_columns // dim))
    return VectorFit(codes, entries, tables, wide, damped.float(), damping, error)


def updated(fit: VectorFit) -> VectorFit:
    """The same codes with the best entries for them."""
    return fit._replace(tables=update_tables(fit.weight, fit.hessian, fit.entries, fit.tables))


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
    """(N, K') float32: the entries that the codes name."""
    return fit.tables.flatten(0, 2)[fit.entries].flatten(1)


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


def _loop(
    weight: Tensor, factor: Tensor, settings: Settings, rows: int
) -> tuple[Tensor, Tensor, float]:
    """Codes, tables and loss; the weight is used up. rows: those that are no padding."""
    dim, columns = settings.dim, weight.shape[1]
    block_rows, width = table_block(settings.table_group)
    metrics = vector_metrics(factor, dim, settings.vector_metric)
    codes = torch.empty((len(weight), columns // dim), dtype=torch.int64, device=weight.device)
    tables, loss = [], 0.0
    for start in range(0, columns, width):
        end = min(start + width, columns)
        part = weight[:, start:end].unflatten(0, (-1, block_rows)).unflatten(2, (-1, dim))
        table = _fit_block(part, metrics.codebook[start // dim : end // dim], settings, rows)
        errors = weight.new_empty((len(weight), end - start))
        for column in range(start, end, dim):
            vector, after = column // dim, column + dim
            here = weight[:, column:after]
            points = here.reshape(-1, block_rows, 1, dim)
            chosen = nearest(points, metrics.assignment[vector : vector + 1], table)[:, :, 0]
            codes[:, vector] = chosen.flatten()
            value = table.gather(1, chosen[..., None].expand(-1, -1, dim)).flatten(0, 1)
            error = (here - value) @ metrics.error[vector]
            errors[:, column - start : after - start] = error
            weight[:, after:end] -= error @ factor[column:after, after:end]
        weight[:, end:] -= errors @ factor[start:end, end:]
        loss += float(errors[:rows].double().square().sum())
        tables.append(table)
    return codes[:rows], torch.stack(tables, dim=1), loss


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


def _fit_block(points: Tensor, metric: Tensor, settings: Settings, rows: int) -> Tensor:
    """(T, E, d) tables of (T, r, V, d) points; the last row block may be partly padding."""
    options = {"seeds": settings.table_seeds, "rounds": settings.em_rounds}
    entries = settings.table_entries
    whole, left = divmod(rows, points.shape[1])
    parts = []
    if whole:
        parts.append(fit_tables(points[:whole], metric, entries, **options))
    if left:
        parts.append(fit_tables(points[whole:, :left], metric, entries, **options))
    return torch.cat(parts)

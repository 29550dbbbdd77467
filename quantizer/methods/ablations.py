"""What papers compare their methods with, for evaluation only: no kernel reads these.

Groups that have a codebook of their own, and no sparse part. SqueezeLLM, arXiv 2306.07629,
section 5 and appendix: groups of 1024 or 512 weights cost about as many bits as 0.05 and 0.1 % of
sparse values. Its other ablations are settings: `weighting="activation"`, and
`selection="sensitive"` or `"outliers"`.

Codebooks of fewer numbers than entries. GPTVQ, arXiv 2402.15319, section 3.3: the sorted 1-D
codebooks of a matrix are a matrix of low rank.
"""

import msgspec
import torch
from torch import Tensor

from quantizer.methods.codebooks import fit_table
from quantizer.methods.gptvq import fit_vectors, hessian_error, updated, values_of
from quantizer.methods.matrix import Settings, SettingsError, Statistics, check_matrix

ENTRY_BITS = 16


class GroupedWeight(msgspec.Struct, frozen=True, kw_only=True):
    """An (N, K) weight after quantization, and what storing it would take."""

    values: Tensor  # (N, K) float32
    bits_per_weight: float  # codes and tables
    error: float  # sum of importance x squared change, or tr(dW H dW^T)


def grouped_codebook(weight: Tensor, importance: Tensor, *, bits: int, group: int) -> GroupedWeight:
    """A codebook of 2^bits FP16 entries per `group` neighbouring weights of a row.

    importance: (N, K) weights of the clustering, the Fisher diagonal for SqueezeLLM.

    Raises: SettingsError unless the group divides K; ClusteringError for bad importance.
    """
    check_matrix(weight)
    rows, columns = weight.shape
    if group < 1 or columns % group:
        raise SettingsError(f"group is {group}, expected a divisor of {columns} columns")
    cells = weight.detach().float().reshape(-1, group)
    table = fit_table(cells, importance.float().reshape(-1, group), bits=bits, kind="fp16")
    values = table.values.gather(1, table.codes.long())
    return GroupedWeight(
        values=values.reshape(rows, columns),
        bits_per_weight=bits + ENTRY_BITS * 2**bits / group,
        error=table.error,
    )


def unrounded_codebooks(
    weight: Tensor, statistics: Statistics, settings: Settings
) -> GroupedWeight:
    """GPTVQ with FP16 entries instead of int8 ones and a scale: twice the bytes per table.

    Raises: SettingsError.
    """
    check_matrix(weight)
    fit = fit_vectors(weight.detach(), statistics, settings)
    fit = updated(fit) if settings.update_codebook else fit
    fit = fit._replace(tables=fit.tables.half().float())
    codes = settings.weight_format.itemised_bytes(*weight.shape)
    stored = codes["codes"] + 2 * fit.tables.numel()
    if settings.subrow:
        stored += codes["scales"] - 2 * fit.tables[..., 0, 0].numel()
    return GroupedWeight(
        values=values_of(fit)[:, : weight.shape[1]],
        bits_per_weight=8 * stored / weight.numel(),
        error=hessian_error(fit),
    )


def low_rank_codebooks(
    weight: Tensor, statistics: Statistics, settings: Settings, *, rank: int
) -> GroupedWeight:
    """GPTVQ's 1-D codebooks as products of `rank` numbers per codebook with common curves.

    Truncated singular values of the sorted, updated codebooks, one byte per number; the paper then
    trains both factors, which this does not: its error is an upper bound.

    Raises: SettingsError unless the format is 1-D and 1 <= rank <= entries.
    """
    check_matrix(weight)
    entries = settings.table_entries
    if settings.dim != 1 or not 1 <= rank <= entries:
        found = f"{settings.format} and rank {rank}"
        raise SettingsError(f"found {found}, expected a 1-D format and a rank of 1..{entries}")
    fit = updated(fit_vectors(weight.detach(), statistics, settings))
    ordered, order = fit.tables.flatten(0, 1).flatten(1).sort(dim=1)  # (tables, E)
    left, sizes, curves = torch.linalg.svd(ordered, full_matrices=False)
    short = (left[:, :rank] * sizes[:rank]) @ curves[:rank]
    tables = torch.empty_like(short).scatter_(1, order, short).view(fit.tables.shape)
    fit = fit._replace(tables=tables)
    numbers = rank * (len(ordered) + entries)
    return GroupedWeight(
        values=values_of(fit),
        bits_per_weight=settings.bits + 8 * numbers / weight.numel(),
        error=hessian_error(fit),
    )

"""SqueezeLLM and plain k-means: a codebook per output channel, and a sparse part.

SqueezeLLM, arXiv 2306.07629: the weights of a row are clustered under the diagonal of the Fisher
information, min sum_i F_ii (w_i - Q(w_i))^2. `kmeans` is its sensitivity-agnostic baseline.
Differences from the released code: the clustering is optimal, not a local optimum from one start;
removed values are known by a mask, not by being zero; tables and sparse values are FP16.
"""

import torch
from torch import Tensor

from kernels.layouts import pack_lut
from quantizer.methods.codebooks import Table, fit_table
from quantizer.methods.dense_sparse import pack_sparse, split_off, widen_dense_rows
from quantizer.methods.matrix import QuantizedMatrix, Settings, Statistics, required
from quantizer.methods.outliers import largest, sensitive_then_large


def quantize_codebook(
    weight: Tensor, statistics: Statistics, settings: Settings
) -> QuantizedMatrix:
    """Cluster the rows of the (N, K) weight; keep the chosen values exactly."""
    wide = weight.float()
    importance = _importance(wide, statistics, settings)
    mask = _chosen(wide, importance, settings)
    table = _fit(wide, importance, mask, settings)
    codes, sparse, inexact = table.codes, None, 0
    if settings.share:
        codes, remainders, inexact = split_off(wide, mask, table)
        sparse = pack_sparse(mask, remainders, settings.layout)
    packed = pack_lut(
        codes, table.entries, bits=settings.bits, kind=settings.entry, scale=table.scale
    )
    notes: dict[str, float | int | str] = {
        "weighted_error": table.error,
        "cost_over_free": table.cost_over_free,
        "nonzeros": int(mask.sum()),
        "inexact_nonzeros": inexact,
    }
    if settings.clustering == "fast":
        notes["gap_to_optimum"] = table.gap
    return QuantizedMatrix(weight=packed, sparse=sparse, notes=notes)


def weighting_of(settings: Settings) -> str:
    """fisher for SqueezeLLM and none for k-means, unless the settings say otherwise."""
    return settings.weighting or ("fisher" if settings.method == "squeezellm" else "none")


def _importance(weight: Tensor, statistics: Statistics, settings: Settings) -> Tensor:
    """(N, K) weights of the clustering.

    `activation` is the diagonal of the Hessian of the layer's own output error (optimal brain
    surgeon, as in SqueezeLLM's ablation), the same for all rows.
    """
    weighting = weighting_of(settings)
    columns = weight.shape[1]
    if weighting == "fisher":
        return required(statistics, "fisher", tuple(weight.shape))
    if weighting == "activation":
        hessian = required(statistics, "hessian", (columns, columns))
        return hessian.diagonal().clamp_min(0.0).expand_as(weight)
    return torch.ones_like(weight)


def _chosen(weight: Tensor, importance: Tensor, settings: Settings) -> Tensor:
    """(N, K) bool: the values of the sparse part."""
    share, count = settings.share, round(settings.share * weight.numel())
    if not share:
        return torch.zeros_like(weight, dtype=torch.bool)
    selection = settings.selection
    if selection == "paper" and weighting_of(settings) == "none":
        selection = "outliers"  # nothing is known about sensitivity
    if selection == "gain":
        table = _fit(weight, importance, torch.zeros_like(weight, dtype=torch.bool), settings)
        quantized = table.values.gather(1, table.codes.long())
        mask = largest(importance * (weight - quantized).square(), count)
    else:
        sensitive = {"paper": settings.sensitive_share, "sensitive": 1.0, "outliers": 0.0}
        mask = sensitive_then_large(
            weight,
            importance,
            share=share,
            sensitive_share=sensitive[selection],
            iqr_range=settings.iqr_range,
        )
    return widen_dense_rows(mask) if settings.layout == "hybrid" else mask


def _fit(weight: Tensor, importance: Tensor, mask: Tensor, settings: Settings) -> Table:
    """Tables under the importance of what stays; rows without any count all that stays.

    A row that is stored in full has a table of zeros, and so its own values as remainders.
    """
    weight = weight.masked_fill(mask.all(dim=1, keepdim=True), 0.0)
    kept = importance * ~mask
    blank = ~(kept > 0).any(dim=1, keepdim=True)
    kept = torch.where(blank, (~mask).to(kept.dtype), kept)
    return fit_table(
        weight, kept, bits=settings.bits, kind=settings.entry, mode=settings.clustering
    )

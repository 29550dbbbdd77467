"""AWQ: scale the input channels that matter, clip the range, round to nearest.

Lin et al., arXiv 2306.00978. The error of a linear layer on its calibration inputs,
|| (Q(W) - W) X^T ||^2 = n/2 tr(dW H dW^T), needs only the Hessian H = 2/n X^T X. The scale of input
channel k is mean |x_k|^alpha, folded into the layer before; alpha comes from a grid (equation 4 and
section 3.2 of the paper). Difference from the released code: it measures the error behind the
whole attention or MLP module; here it is the sum over the linear layers that share the input.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from quantizer.methods.grids import fit_groups, from_codes, grid_of_range, group_of_column, to_codes
from quantizer.methods.matrix import QuantizedMatrix, Settings, Statistics, required
from quantizer.methods.rtn import packed_uniform

ALPHAS = tuple(step / 20 for step in range(20))
LEAST_SCALE = 1e-4
SHRINKS = tuple(1 - step / 20 for step in range(10))  # of the clipping range: 1.00 .. 0.55


def quantize_awq(weight: Tensor, statistics: Statistics, settings: Settings) -> QuantizedMatrix:
    """Clip and round an (N, K) weight whose input scales are folded in already."""
    wide = weight.float()
    columns = wide.shape[1]
    grids = fit_groups(wide, settings.bits, settings.group)
    if settings.clip:
        hessian = required(statistics, "hessian", (columns, columns))
        grids = _clipped(wide, hessian, settings)
    group = group_of_column(columns, settings.group, wide.device)
    return packed_uniform(to_codes(wide, grids[:, group], settings.bits), grids, settings)


def search_scale(
    layers: Sequence[tuple[Tensor, Settings]], statistics: Statistics
) -> tuple[Tensor, float]:
    """(K,) scale of the input channels of layers (N_i, K) with a common input, and its alpha.

    Minimises sum_i tr(dW_i H dW_i^T) with dW = Q(W diag(s)) diag(s)^-1 - W over the grid of alpha.
    """
    columns = layers[0][0].shape[1]
    hessian = required(statistics, "hessian", (columns, columns))
    magnitude = required(statistics, "mean_abs", (columns,))
    wide = [(weight.float(), settings) for weight, settings in layers]
    best = (torch.inf, torch.ones_like(magnitude), 0.0)
    for alpha in ALPHAS:
        scale = magnitude.pow(alpha).clamp_min(LEAST_SCALE)
        scale = scale / (scale.max() * scale.min()).sqrt()
        error = 0.0
        for weight, settings in wide:
            error += hessian_error(_rounded(weight * scale, settings) / scale - weight, hessian)
        if error < best[0]:
            best = (error, scale, alpha)
    return best[1], best[2]


def hessian_error(change: Tensor, hessian: Tensor) -> float:
    """tr(dW H dW^T) of an (N, K) change of the weight."""
    return float(((change @ hessian) * change).sum(dtype=torch.float64))


def _rounded(weight: Tensor, settings: Settings) -> Tensor:
    grids = fit_groups(weight, settings.bits, settings.group)
    grids = grids[:, group_of_column(weight.shape[1], settings.group, weight.device)]
    return from_codes(to_codes(weight, grids, settings.bits), grids)


def _clipped(weight: Tensor, hessian: Tensor, settings: Settings) -> Tensor:
    """(N, groups, 2) grids: per row and group the shrink of +-max |w| with the least error.

    The error of a group is that of its own part of the output, dw H_gg dw^T.
    """
    group = settings.group or weight.shape[1]
    grids = []
    for start in range(0, weight.shape[1], group):
        part = weight[:, start : start + group]  # (N, G)
        own = hessian[start : start + group, start : start + group]
        limit = part.abs().amax(dim=1, keepdim=True)
        best_error = torch.full_like(limit, torch.inf)
        best_grid = part.new_zeros((part.shape[0], 2))
        for shrink in SHRINKS:
            clamped = part.clamp(-shrink * limit, shrink * limit)
            low, high = clamped.amin(dim=1).clamp_max(0.0), clamped.amax(dim=1).clamp_min(0.0)
            grid = grid_of_range(low, high, bits=settings.bits)
            change = from_codes(to_codes(part, grid[:, None], settings.bits), grid[:, None]) - part
            error = ((change @ own) * change).sum(dim=1, keepdim=True)
            better = error < best_error
            best_error = torch.where(better, error, best_error)
            best_grid = torch.where(better, grid, best_grid)
        grids.append(best_grid)
    return torch.stack(grids, dim=1)

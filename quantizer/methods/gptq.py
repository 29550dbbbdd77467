"""GPTQ: quantize column by column, and let the columns to come make up for each error.

Frantar, Ashkboos, Hoefler, Alistarh, arXiv 2210.17323. With H = 2/n X^T X, damped, and U the upper
Cholesky factor of H^-1, column j leaves the error e = (w_j - q_j) / U_jj, and every later column k
loses e U_jk. Differences from the released code: the grid of a group is fitted on the weights as
updated, also in the middle of a block; U comes from one factorization in float64.
"""

import torch
from torch import Tensor

from kernels.layouts import pack_uniform
from quantizer.methods.grids import fit_grid, fit_groups, from_codes, group_of_column, to_codes
from quantizer.methods.matrix import (
    QuantizedMatrix,
    Settings,
    SettingsError,
    Statistics,
    required,
)

BLOCK_COLUMNS = 128
ESCALATION = (1, 2, 5, 10, 20, 50, 100)  # times the damping, until the Hessian factorizes


def quantize_gptq(weight: Tensor, statistics: Statistics, settings: Settings) -> QuantizedMatrix:
    """Quantize the (N, K) weight under its (K, K) input Hessian.

    A name with -act has groups of columns in the order of quantization, and stores that order.
    Without it act-order needs static groups: with dynamic ones columns keep their order.
    """
    columns = weight.shape[1]
    hessian = required(statistics, "hessian", (columns, columns)).double()
    wide = weight.float().clone()
    dead = hessian.diagonal() <= 0
    hessian = hessian + torch.diag(dead.double())
    wide[:, dead] = 0.0
    dynamic = settings.stores_order or not settings.static_groups
    order = torch.arange(columns, device=weight.device)
    if settings.stores_order or (settings.act_order and not (dynamic and settings.group)):
        order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    factor, damping = inverse_factor(hessian[order][:, order], settings.damping)
    group = group_of_column(columns, settings.group, weight.device)
    if dynamic:
        codes, grids, loss = _quantize(wide[:, order], factor.float(), settings.bits, group, None)
    else:
        grids = fit_groups(wide, settings.bits, settings.group)
        codes, grids, loss = _quantize(
            wide[:, order], factor.float(), settings.bits, group[order], grids
        )
    back = torch.argsort(order)
    packed = pack_uniform(
        codes[:, back].to(torch.uint8),
        grids.to(torch.float16),
        bits=settings.bits,
        group_size=settings.group,
        g_idx=group[back].to(torch.int32) if settings.stores_order else None,
        act_order=settings.act_order_form if settings.stores_order else None,
    )
    notes: dict[str, float | int | str] = {"hessian_error": loss, "damping": damping}
    return QuantizedMatrix(weight=packed, notes=notes)


def inverse_factor(hessian: Tensor, damping: float) -> tuple[Tensor, float]:
    """Upper U with U^T U = (H + d mean(diag H) I)^-1, float64, and the d that was needed.

    H = V V^T with V upper comes from the Cholesky factor of H with rows and columns reversed; then
    U = V^-1. `damping` is raised step by step while H does not factorize.

    Raises: SettingsError if the largest damping is not enough.
    """
    mean = hessian.diagonal().mean()
    identity = torch.eye(hessian.shape[0], dtype=hessian.dtype, device=hessian.device)
    for times in ESCALATION:
        damped = hessian + identity * (times * damping * mean)
        lower, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
        if not int(failed) and bool(lower.isfinite().all()):
            upper = lower.flip(0, 1)
            inverse = torch.linalg.solve_triangular(upper, identity, upper=True)
            return inverse, times * damping
    most = ESCALATION[-1] * damping
    raise SettingsError(f"Hessian is not positive definite even with damping {most:g}; raise it")


def _quantize(
    weight: Tensor, factor: Tensor, bits: int, group: Tensor, grids: Tensor | None
) -> tuple[Tensor, Tensor, float]:
    """Codes (N, K), grids (N, groups, 2) and the error tr(dW H dW^T) under the damped H.

    group: (K,) group of each column; grids: None to fit each where its first column comes.
    """
    rows, columns = weight.shape
    codes = torch.empty_like(weight)
    fit = grids is None
    if grids is None:
        grids = weight.new_empty((rows, int(group[-1]) + 1, 2))
    groups = group.tolist()
    loss = 0.0
    for start in range(0, columns, BLOCK_COLUMNS):
        end = min(start + BLOCK_COLUMNS, columns)
        errors = weight.new_empty((rows, end - start))
        for j in range(start, end):
            index = groups[j]
            if fit and (j == 0 or groups[j - 1] != index):
                last = j + groups[j:].count(index)
                grids[:, index] = fit_grid(weight[:, j:last], bits)
            grid = grids[:, index]
            codes[:, j] = to_codes(weight[:, j], grid, bits)
            error = (weight[:, j] - from_codes(codes[:, j], grid)) / factor[j, j]
            weight[:, j:end] -= error[:, None] * factor[j, j:end]
            errors[:, j - start] = error
        weight[:, end:] -= errors @ factor[start:end, end:]
        loss += float(errors.double().square().sum())
    return codes, grids, loss

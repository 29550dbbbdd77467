"""SpQR: GPTQ with groups of 16 columns, scales that are quantized too, and outliers kept in FP16.

Dettmers et al., arXiv 2306.03078, Algorithm 1. A group's grids are fitted when it is reached. A
weight whose absence lowers its group's error by more than a threshold is an outlier and does not
count in the grid; so is any weight that still errs by more when its turn comes. Outliers are
exact and hand on no error. Scales and zeros are 3-bit codes over 16 rows of a group.
Differences from the released code: the threshold is searched for the share of outliers asked for;
groups hold the columns that the layout says (`layouts.bilevel`), and come by falling diagonal of
the Hessian, which nothing has to store.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.layouts import pack_bilevel
from kernels.layouts.bilevel import BLOCK_ROWS, GROUP, STATISTICS_BITS, column_groups
from kernels.layouts.codes import padded
from quantizer.methods.dense_sparse import pack_sparse
from quantizer.methods.gptq import inverse_factor
from quantizer.methods.grids import LEAST_SCALE
from quantizer.methods.matrix import QuantizedMatrix, Settings, Statistics, required

SAMPLE = 1 << 20  # weights, of which one in a hundred is ten thousand outliers: known to 1 %
CLOSE = 0.01  # relative, of the share of outliers
TRIALS = 8
TYPICAL_SLOPE = -1.4  # of the outliers over the threshold, both as logarithms
TINY = 1e-30


class _Grids(NamedTuple):
    """Bilevel statistics of one group of columns; scale and zero as a kernel computes them."""

    codes: Tensor  # (N, 2) uint8
    second: Tensor  # (ceil(N / 16), 4) float16
    scale: Tensor  # (N, 1) float32
    zero: Tensor  # (N, 1) float32


class _Result(NamedTuple):
    """The (N, K) weight in the order of quantization, and what its groups have in common."""

    codes: Tensor  # (N, K) float32
    outliers: Tensor  # (N, K) bool
    remainders: Tensor  # (N, K) float16: of the outliers, over their quantized values
    statistics: Tensor  # (N, padded K / 16, 2) uint8
    second: Tensor  # (ceil(N / 16), padded K / 16, 4) float16
    error: float


def quantize_spqr(weight: Tensor, statistics: Statistics, settings: Settings) -> QuantizedMatrix:
    """Quantize the (N, K) weight under its (K, K) input Hessian.

    A name with -act has groups of columns by falling diagonal of the Hessian, and stores the order.
    """
    columns = weight.shape[1]
    hessian = required(statistics, "hessian", (columns, columns)).double()
    wide = weight.float().clone()
    dead = hessian.diagonal() <= 0
    hessian = hessian + torch.diag(dead.double())
    wide[:, dead] = 0.0
    stored = torch.arange(columns, device=weight.device)  # column of each position
    if settings.stores_order:
        stored = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    groups = column_groups(columns, weight.device)
    turn = _turns(hessian.diagonal()[stored], groups, by_size=settings.act_order)
    order = stored[turn]
    factor, damping = inverse_factor(hessian[order][:, order], settings.damping)
    ordered, levels = wide[:, order], 2**settings.bits - 1
    threshold = torch.inf
    if settings.share:
        threshold = find_threshold(ordered, factor.float(), groups[turn], levels, settings.share)
    result = _quantize(ordered, factor.float(), groups[turn], levels, threshold)
    back = torch.argsort(order)
    packed = pack_bilevel(
        result.codes[:, back].to(torch.uint8),
        result.statistics,
        result.second,
        bits=settings.bits,
        order=stored.to(torch.int32) if settings.stores_order else None,
    )
    mask = result.outliers[:, back]
    sparse = None
    if settings.share:
        sparse = pack_sparse(mask, result.remainders[:, back][mask], "csr")
    notes: dict[str, float | int | str] = {
        "hessian_error": result.error,
        "damping": damping,
        "nonzeros": int(mask.sum()),
    }
    return QuantizedMatrix(weight=packed, sparse=sparse, notes=notes)


def _turns(diagonal: Tensor, groups: Tensor, *, by_size: bool) -> Tensor:
    """(K,) positions group by group; groups by falling mean of the diagonal, or as they are."""
    rank = groups
    if by_size:
        sums = torch.zeros(int(groups.max()) + 1, dtype=diagonal.dtype, device=diagonal.device)
        mean = sums.index_add(0, groups, diagonal) / groups.bincount().clamp_min(1)
        rank = torch.argsort(torch.argsort(mean, descending=True, stable=True))[groups]
    return torch.argsort(rank, stable=True)


def find_threshold(
    weight: Tensor, factor: Tensor, groups: Tensor, levels: int, share: float
) -> float:
    """The gain beyond which so large a share of the weights are outliers in the end.

    Updates and refitted grids leave fewer than the gains before them say. So the loop runs on some
    of the rows, which do not depend on one another, until the share is within `CLOSE`.
    """
    sample = _sample(weight)
    wanted = max(1.0, share * sample.numel())
    threshold = max(_first_threshold(sample, factor, groups, levels, wanted), TINY)
    tried: list[tuple[float, float]] = []  # logarithms of thresholds and of their outliers
    while True:
        outliers = _quantize(sample.clone(), factor, groups, levels, threshold).outliers
        tried.append((math.log(threshold), math.log(max(1, int(outliers.sum())))))
        best = min(tried, key=lambda one: abs(one[1] - math.log(wanted)))
        if len(tried) == TRIALS or abs(best[1] - math.log(wanted)) < CLOSE:
            return math.exp(best[0])
        threshold = math.exp(_next(tried, math.log(wanted)))


def _sample(weight: Tensor) -> Tensor:
    """Evenly spaced blocks of rows with some `SAMPLE` weights."""
    blocks = -(-len(weight) // BLOCK_ROWS)
    wanted = max(1, min(blocks, SAMPLE // (BLOCK_ROWS * weight.shape[1])))
    chosen = torch.arange(wanted, device=weight.device) * blocks // wanted
    rows = (chosen[:, None] * BLOCK_ROWS + torch.arange(BLOCK_ROWS, device=weight.device)).flatten()
    return weight[rows[rows < len(weight)]]


def _next(tried: list[tuple[float, float]], wanted: float) -> float:
    """Logarithm of the next threshold: between the nearest trials on both sides, or one step on."""
    nearest = sorted(tried, key=lambda one: abs(one[1] - wanted))
    fewer, more = ([one for one in nearest if (one[1] < wanted) == low] for low in (True, False))
    if not fewer or not more:
        x, y = nearest[0]
        return x + (wanted - y) / TYPICAL_SLOPE
    (x, y), (x1, y1) = fewer[0], more[0]
    return x + (x1 - x) * min(max((wanted - y) / (y1 - y), 0.1), 0.9)


def _quantize(
    weight: Tensor, factor: Tensor, groups: Tensor, levels: int, threshold: float
) -> _Result:
    """groups: (K,) group of each column, equal ones side by side. The weight is used up."""
    rows, columns = weight.shape
    cost = factor.diagonal() ** -2  # (K,): of a squared error
    runs = _runs(groups)
    codes = torch.empty_like(weight)
    outliers = torch.zeros_like(weight, dtype=torch.bool)
    remainders = torch.zeros_like(weight, dtype=torch.float16)
    count = padded(columns) // GROUP
    statistics = weight.new_zeros((rows, count, 2), dtype=torch.uint8)
    second = weight.new_zeros((-(-rows // BLOCK_ROWS), count, 4), dtype=torch.float16)
    loss = 0.0
    for start, end in runs:
        part = weight[:, start:end]
        unlikely = leave_one_out(part, cost[start:end], levels) > threshold
        grids = _fit(_without(part, unlikely), levels)
        statistics[:, groups[start]], second[:, groups[start]] = grids.codes, grids.second
        errors = torch.empty_like(part)
        for column in range(start, end):
            here = weight[:, column : column + 1]
            step = grids.scale.clamp_min(LEAST_SCALE)
            code = (here / step + grids.zero).round().clamp(0, levels)
            change = here - grids.scale * (code - grids.zero)
            outlier = change.square() * cost[column] > threshold
            codes[:, column], outliers[:, column] = code[:, 0], outlier[:, 0]
            remainders[:, column] = change[:, 0].to(torch.float16)
            error = change.masked_fill(outlier, 0.0) / factor[column, column]
            errors[:, column - start] = error[:, 0]
            weight[:, column + 1 : end] -= error * factor[column, column + 1 : end]
        weight[:, end:] -= errors @ factor[start:end, end:]
        loss += float(errors.double().square().sum())
    return _Result(codes, outliers, remainders, statistics, second, loss)


def leave_one_out(part: Tensor, cost: Tensor, levels: int) -> Tensor:
    """(N, C): how much less a row of (N, C) errs without each of its weights, and its own error.

    cost: (C,) of a squared error. The grids here are not rounded.
    """
    count = part.shape[1]
    everyone = part[:, None].expand(-1, count, -1)  # (N, left out, C)
    own = torch.eye(count, dtype=torch.bool, device=part.device)
    without = _squares(everyone.masked_fill(own, 0.0), levels) * cost  # 0 is in every grid
    whole = _squares(part[:, None], levels) * cost
    return whole.sum(dim=2) - without.masked_fill(own, 0.0).sum(dim=2)


def _squares(values: Tensor, levels: int) -> Tensor:
    """Squared errors of (N, L, C) values on the grids over each C of them, and 0."""
    low = values.amin(dim=2, keepdim=True).clamp_max(0.0)
    high = values.amax(dim=2, keepdim=True).clamp_min(0.0)
    step = ((high - low) / levels).clamp_min(LEAST_SCALE)
    code = ((values - low) / step).round().clamp(0, levels)
    return (values - low - code * step).square()


def _first_threshold(
    weight: Tensor, factor: Tensor, groups: Tensor, levels: int, count: float
) -> float:
    """The leave-one-out gain that so many weights exceed before any update."""
    cost = factor.diagonal() ** -2
    gains = [leave_one_out(weight[:, a:b], cost[a:b], levels).flatten() for a, b in _runs(groups)]
    return float(torch.cat(gains).topk(round(count)).values[-1])


def _runs(groups: Tensor) -> list[tuple[int, int]]:
    """First and last column of every group."""
    ends = [*(groups.diff().nonzero()[:, 0] + 1).tolist(), len(groups)]
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _without(part: Tensor, left_out: Tensor) -> Tensor:
    """(N, C) with the weights left out replaced by the mean of the others."""
    kept = (~left_out).sum(dim=1, keepdim=True)
    mean = part.masked_fill(left_out, 0.0).sum(dim=1, keepdim=True) / kept.clamp_min(1)
    return torch.where(left_out, mean, part)


def _fit(part: Tensor, levels: int) -> _Grids:
    """Bilevel grids over each row of (N, C), and 0: the scale first, the zero in its units."""
    low, high = part.amin(dim=1).clamp_max(0.0), part.amax(dim=1).clamp_min(0.0)
    p, first_scale, scale = _second_level(((high - low) / levels).clamp_min(LEAST_SCALE))
    q, second_scale, zero = _second_level(-low / scale.clamp_min(LEAST_SCALE))
    return _Grids(
        codes=torch.stack((p, q), dim=1).to(torch.uint8),
        second=torch.cat((first_scale, second_scale), dim=1),
        scale=scale[:, None],
        zero=zero[:, None],
    )


def _second_level(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """3-bit codes (N,) of values, FP16 (ceil(N / 16), 2) scale and zero, and the values rounded."""
    rows, most = len(values), 2**STATISTICS_BITS - 1
    blocks = -(-rows // BLOCK_ROWS)
    last = values[-1:].expand(blocks * BLOCK_ROWS - rows)
    cells = torch.cat((values, last)).view(blocks, BLOCK_ROWS)
    low, high = cells.amin(dim=1, keepdim=True), cells.amax(dim=1, keepdim=True)
    # Equal values take code 0 of a grid whose only use is that value: v (0 + 1).
    span = (high - low) / most
    flat = span <= low.abs() * 2.0**-11  # less than FP16 can tell apart
    scale = torch.where(flat, low, span).to(torch.float16)
    safe = torch.where(scale.float().abs() > LEAST_SCALE, scale.float(), LEAST_SCALE)
    zero = torch.where(flat, -1.0, (-low / safe).clamp(-65504, 65504)).to(torch.float16)
    codes = (cells / safe + zero.float()).round().clamp(0, most)
    rounded = scale.float() * (codes - zero.float())
    pair = torch.cat((scale, zero), dim=1)
    return codes.flatten()[:rows], pair, rounded.flatten()[:rows]

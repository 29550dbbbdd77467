"""The optimal weighted 1-D k-means in plain torch, all rows at once: for a GPU.

The same objective as `kmeans_dp` by the dynamic program over the number of clusters. A layer is
filled by divide and conquer, one level of the recursion of all rows at a time: columns of a level
have disjoint search windows, whose (row, column, left bound) triples are laid out flat. A level is
then a few elementwise operations and a segmented maximum over about N (m + columns) triples.
"""

import torch
from torch import Tensor

ROW_ELEMENTS = 1 << 24  # triples at a time, float64


def solve_batch(values: Tensor, weights: Tensor, entries: int) -> Tensor:
    """(N, entries) float64 optimal centroids of (N, C) values under (N, C) weights."""
    rows_at_once = max(1, ROW_ELEMENTS // (2 * values.shape[1]))
    pairs = zip(values.split(rows_at_once), weights.split(rows_at_once), strict=True)
    return torch.cat([_solve(v.double(), w.double(), entries) for v, w in pairs])


def _solve(values: Tensor, weights: Tensor, entries: int) -> Tensor:
    x, w, count = _merged(values, weights)
    total = w.sum(dim=1, keepdim=True)
    centre = (x * w).sum(dim=1, keepdim=True) / total
    s0 = torch.nn.functional.pad(w.cumsum(dim=1), (1, 0))
    s1 = torch.nn.functional.pad((w * (x - centre)).cumsum(dim=1), (1, 0))
    bounds = _bounds(s0, s1, count, entries)
    mass = s0.gather(1, bounds).diff(dim=1)
    means = centre + s1.gather(1, bounds).diff(dim=1) / mass
    # Inside its interval whatever the rounding. Rows with fewer points than entries have empty
    # intervals, which come last, and whose centroids repeat the largest value.
    first = x.gather(1, bounds[:, :-1].clamp_max(x.shape[1] - 1))
    last = x.gather(1, (bounds[:, 1:] - 1).clamp_min(0))
    means = torch.where(mass > 0, means, first).clamp(min=first, max=last)
    return torch.where(bounds.diff(dim=1) > 0, means, x.gather(1, (count - 1)[:, None]))


def _merged(values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distinct values of positive weight, ascending from the left, weights, and their number.

    Columns beyond the number hold weight 0. A row without positive weight counts every value once.
    """
    plain = (weights > 0).any(dim=1, keepdim=True)
    weights = torch.where(plain, weights, torch.ones_like(weights))
    x, order = torch.where(weights > 0, values, torch.inf).sort(dim=1)
    w = weights.gather(1, order)
    new = torch.ones_like(x, dtype=torch.bool)
    new[:, 1:] = x[:, 1:] != x[:, :-1]
    new &= x.isfinite()
    slot = new.long().cumsum(dim=1) - 1
    w = torch.zeros_like(w).scatter_add_(1, slot, torch.where(x.isfinite(), w, 0.0))
    count = new.sum(dim=1)
    # Later writes of a slot are equal values, or padding that goes to the last column.
    last = x.shape[1]
    padded = x.new_zeros((x.shape[0], last + 1))
    padded.scatter_(1, torch.where(new, slot, last), x)
    return torch.where(w > 0, padded[:, :last], 0.0), w, count


def _bounds(s0: Tensor, s1: Tensor, count: Tensor, entries: int) -> Tensor:
    """(N, entries + 1) int64 bounds; rows with fewer points get empty intervals at the end."""
    best = _gain(s0, s1)
    parents = []
    for _ in range(1, entries):
        best, parent = _layer(s0, s1, best)
        parents.append(parent)
    at = count[:, None]
    bounds = [at]
    for parent in reversed(parents):
        at = parent.gather(1, at)
        bounds.append(at)
    bounds.append(torch.zeros_like(at))
    return _empty_last(torch.cat(bounds[::-1], dim=1))


def _empty_last(bounds: Tensor) -> Tensor:
    """The same bounds with repeated ones moved to the end."""
    repeated = torch.nn.functional.pad(bounds.diff(dim=1) == 0, (1, 0))
    return torch.where(repeated, bounds[:, -1:], bounds).sort(dim=1).values


def _gain(mass: Tensor, moment: Tensor) -> Tensor:
    """What an interval saves: moment^2 / mass, 0 for an empty one."""
    return torch.where(mass > 0, moment.square() / torch.where(mass > 0, mass, 1.0), 0.0)


def _layer(s0: Tensor, s1: Tensor, best: Tensor) -> tuple[Tensor, Tensor]:
    """best'[j] = max over i <= j of best[i] + gain(i, j), and the least such i, for all j."""
    rows, columns = s0.shape
    value = torch.zeros_like(best)
    parent = torch.zeros_like(best, dtype=torch.long)
    levels = columns.bit_length()
    stride = 1 << levels
    while stride > 1:
        half = stride // 2
        right = torch.arange(half, columns + 1, stride, device=s0.device)
        right = right[right < columns].expand(rows, -1)
        if right.shape[1]:
            low, high = _windows(parent, right, half)
            top, at = _segment_best(s0, s1, best, right, low, high)
            value.scatter_(1, right, top)
            parent.scatter_(1, right, at)
        stride = half
    return value, parent


def _windows(parent: Tensor, right: Tensor, half: int) -> tuple[Tensor, Tensor]:
    """Least and greatest left bound of the columns `right`, from the solved ones half away."""
    columns = parent.shape[1]
    low = parent.gather(1, right - half)
    after = right + half
    high = parent.gather(1, after.clamp_max(columns - 1))
    return low, torch.where(after < columns, torch.minimum(high, right), right)


def _segment_best(
    s0: Tensor, s1: Tensor, best: Tensor, right: Tensor, low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor]:
    """Per (row, column), the greatest best[i] + gain(i, column) over i in low..high, and its i."""
    rows, columns = s0.shape
    lengths = (high - low + 1).flatten()
    starts = lengths.cumsum(0) - lengths
    segment = torch.repeat_interleave(torch.arange(lengths.numel(), device=s0.device), lengths)
    inside = torch.arange(segment.numel(), device=s0.device) - starts[segment]
    row_start = torch.arange(rows, device=s0.device)[:, None] * columns
    left = (low + row_start).flatten()[segment] + inside
    ends = (right + row_start).flatten()[segment]
    mass = s0.flatten()[ends] - s0.flatten()[left]
    moment = s1.flatten()[ends] - s1.flatten()[left]
    score = best.flatten()[left] + _gain(mass, moment)
    top = s0.new_full(lengths.shape, -torch.inf).scatter_reduce_(0, segment, score, "amax")
    wins = torch.where(score == top[segment], inside, columns)
    first = torch.full_like(lengths, columns).scatter_reduce_(0, segment, wins, "amin")
    return top.view_as(low), low + first.view_as(low)

"""Which values leave the codebook for the sparse part.

SqueezeLLM (arXiv 2306.07629, section 4.2): first the most sensitive values by Fisher information,
then the largest magnitudes. Its paper says a percentile; its code moves everything beyond a range
of quartiles, with one range for the whole model, so that matrices with heavy tails give more. Both
are here. `gain` chooses by what a value costs in the codebook, F (w - Q(w))^2.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

QUARTILE_SAMPLE = 1 << 22  # torch.quantile refuses more than 2^24 values
_BIN_SHIFT = 8  # low bits of a float32 that are dropped: 15 of 23 stay
_BINS = 2 ** (31 - _BIN_SHIFT)  # a positive float's bits, as an integer, order as it does
WIDEST_RANGE = 1024.0


def largest(scores: Tensor, count: int) -> Tensor:
    """(N, K) bool: the `count` largest scores; among equal ones, those that come first."""
    mask = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    if count > 0:
        flat = scores.flatten()
        threshold = flat.topk(count).values[-1]
        above = flat > threshold
        equal = (flat == threshold).nonzero().flatten()
        mask |= above
        mask[equal[: count - int(above.sum())]] = True
    return mask.view(scores.shape)


def sensitive_then_large(
    weight: Tensor,
    fisher: Tensor,
    *,
    share: float,
    sensitive_share: float,
    iqr_range: float | None = None,
) -> Tensor:
    """(N, K) bool: the paper's rule. Sensitive values first, outliers among the rest.

    Without `iqr_range` exactly round(share N K) values; with it as many as lie beyond the range.
    """
    total = round(share * weight.numel())
    sensitive = largest(fisher, min(total, int(sensitive_share * weight.numel())))
    rest = weight.abs().masked_fill(sensitive, -1.0)
    if iqr_range is not None:
        return sensitive | (rest >= magnitude_bound(weight, iqr_range))
    return sensitive | largest(rest, total - int(sensitive.sum()))


def magnitude_bound(weight: Tensor, iqr_range: float) -> float:
    """max(|Q1 - r (Q3 - Q1)|, |Q3 + r (Q3 - Q1)|) with the quartiles of the weight."""
    first, third = _quartiles(weight)
    reach = iqr_range * (third - first)
    return max(abs(first - reach), abs(third + reach))


def global_iqr_range(weights: Iterable[Tensor], share: float) -> float:
    """The range r beyond which `share` of all values of the model lie, at most.

    Values are counted by the r at which they stop being outliers, in bins of 2**-15 of it, so that
    the memory is that of one matrix.

    Raises: ValueError if there are no weights.
    """
    total, counts = 0, torch.zeros(_BINS, dtype=torch.int64)
    for weight in weights:
        total += weight.numel()
        limits = _range_of_values(weight).abs().clamp_max(WIDEST_RANGE)  # no -0.0
        bins = limits.view(torch.int32).bitwise_right_shift_(_BIN_SHIFT)
        counts += torch.bincount(bins, minlength=_BINS).cpu()
    if not total:
        raise ValueError("no weights given, expected at least one matrix")
    beyond = counts.flip(0).cumsum(0).flip(0)  # values in this bin or a higher one
    first = torch.searchsorted(-beyond.double(), -share * total)  # the lowest with few enough
    return float((first << _BIN_SHIFT).to(torch.int32).view(torch.float32))


def _range_of_values(weight: Tensor) -> Tensor:
    """The r >= 0 at which each value of the tails stops being an outlier, float32.

    |w| >= max(|Q1 - r d|, |Q3 + r d|) with d = Q3 - Q1 holds for r up to
    min((|w| + Q1) / d, (|w| - Q3) / d).
    """
    first, third = _quartiles(weight)
    spread = max(third - first, torch.finfo(torch.float32).tiny)
    magnitude = weight.float().abs().flatten()
    limits = torch.minimum(magnitude + first, magnitude - third) / spread
    return limits[limits >= 0]


def _quartiles(weight: Tensor) -> tuple[float, float]:
    """First and third quartile; of an evenly spaced sample where the matrix is large."""
    flat = weight.float().flatten()
    flat = flat[:: -(-flat.numel() // QUARTILE_SAMPLE)]
    first, third = torch.quantile(flat, torch.tensor([0.25, 0.75], device=flat.device)).tolist()
    return first, third

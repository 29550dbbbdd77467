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
BISECTIONS = 60
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
    """The range r beyond which `share` of all values of the model lie, found by bisection.

    Only sorted tails are kept: a value beyond some range r >= 0 is as large as a quartile.

    Raises: ValueError if there are no weights.
    """
    ranges = [_range_of_values(weight) for weight in weights]
    if not ranges:
        raise ValueError("no weights given, expected at least one matrix")
    total = sum(weight_values for weight_values, _ in ranges)
    pooled = torch.cat([tail for _, tail in ranges])
    low, high = 0.0, WIDEST_RANGE
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if int((pooled >= middle).sum()) > share * total:
            low = middle
        else:
            high = middle
    return high


def _range_of_values(weight: Tensor) -> tuple[int, Tensor]:
    """Number of values, and the r at which each value of the tails stops being an outlier.

    |w| >= max(|Q1 - r d|, |Q3 + r d|) with d = Q3 - Q1 holds for r up to
    min((|w| + Q1) / d, (|w| - Q3) / d).
    """
    first, third = _quartiles(weight)
    spread = max(third - first, torch.finfo(torch.float32).tiny)
    magnitude = weight.float().abs().flatten()
    limits = torch.minimum(magnitude + first, magnitude - third) / spread
    return weight.numel(), limits[limits >= 0]


def _quartiles(weight: Tensor) -> tuple[float, float]:
    """First and third quartile; of an evenly spaced sample where the matrix is large."""
    flat = weight.float().flatten()
    flat = flat[:: -(-flat.numel() // QUARTILE_SAMPLE)]
    first, third = torch.quantile(flat, torch.tensor([0.25, 0.75], device=flat.device)).tolist()
    return first, third

"""Predicted against measured: signed errors, their summary, and bars that they must keep."""

from collections.abc import Callable, Sequence
from math import ceil
from statistics import correlation, fmean, median
from typing import TypeVar

import msgspec

Key = TypeVar("Key")


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """One prediction beside its measurement."""

    label: str
    device: str
    group: str  # what belongs together in a table: a stack, a kernel family
    predicted_s: float
    measured_s: float
    steps: int = 1  # tokens of each sequence in that time
    interval_s: tuple[float, float | None] | None = None  # 80 % of measurements lie inside
    held_out: bool = False  # not seen by the fit that made the prediction

    @property
    def error(self) -> float:
        """Signed relative error: +0.1 means predicted 10 % slower than measured."""
        return self.predicted_s / self.measured_s - 1

    @property
    def inside(self) -> bool | None:
        """Whether the measurement lies in the stated interval; None without a full one."""
        if self.interval_s is None or self.interval_s[1] is None:
            return None
        return self.interval_s[0] <= self.measured_s <= self.interval_s[1]


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """How far a set of predictions is off; errors are relative."""

    count: int
    bias: float  # mean of the signed errors
    mape: float  # mean of the absolute errors
    median: float
    p90: float  # nine of ten absolute errors are at most this
    worst: float  # signed
    worst_label: str
    rank_correlation: float | None  # Spearman's; None below three pairs
    inside_interval: float | None  # share; None if no pair has an interval


def summarise(pairs: Sequence[Pair]) -> Summary:
    """Summary of at least one pair."""
    sizes = sorted(abs(pair.error) for pair in pairs)
    worst = max(pairs, key=lambda pair: abs(pair.error))
    inside = [pair.inside for pair in pairs if pair.inside is not None]
    return Summary(
        count=len(pairs),
        bias=fmean(pair.error for pair in pairs),
        mape=fmean(sizes),
        median=median(sizes),
        p90=sizes[ceil(0.9 * len(sizes)) - 1],
        worst=worst.error,
        worst_label=worst.label,
        rank_correlation=rank_correlation(
            [pair.predicted_s for pair in pairs], [pair.measured_s for pair in pairs]
        ),
        inside_interval=fmean(inside) if inside else None,
    )


def grouped(pairs: Sequence[Pair], key: Callable[[Pair], Key]) -> dict[Key, list[Pair]]:
    """Pairs by what `key` says of them, in order of appearance."""
    groups: dict[Key, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(key(pair), []).append(pair)
    return groups


def rank_correlation(left: Sequence[float], right: Sequence[float]) -> float | None:
    """Spearman's; None below three values or if all on one side are equal."""
    if len(left) < 3 or len(set(left)) == 1 or len(set(right)) == 1:
        return None
    return correlation(_ranks(left), _ranks(right))


def _ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 1; equal values share the mean of theirs."""
    order = sorted(values)
    first = {value: order.index(value) for value in set(values)}
    return [first[value] + (order.count(value) + 1) / 2 for value in values]


class Bars(msgspec.Struct, frozen=True, kw_only=True):
    """Largest errors that a check lets pass, relative; None is no bar."""

    mape: float | None = None
    worst: float | None = None

    def missed(self, summary: Summary) -> list[str]:
        """One sentence per bar that the summary misses."""
        found = {"mean": (summary.mape, self.mape), "worst": (abs(summary.worst), self.worst)}
        return [
            f"{name} absolute error is {100 * error:.1f} %, the bar is {100 * bar:g} %"
            for name, (error, bar) in found.items()
            if bar is not None and error > bar
        ]

"""Whether a benchmark became slower: pure functions of samples.

A run is held against a reference by effect size and significance; a series of runs is cut into
levels, so that a small step that lasts is seen too. Between runs, medians scatter more than the
samples of one run tell (another process, another placement in memory), so no significance test
alone decides.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import exp, log
from statistics import median

import msgspec
import numpy as np

Samples = Sequence[float]
LEAST_FOR_SCATTER = 4  # runs; fewer tell nothing of how medians scatter
LEAST_IN_LEVEL = 3  # runs that a level lasts for: a process each
LEAST_FOR_LEVELS = 2 * LEAST_IN_LEVEL
LEAST_SPREAD = 0.002  # of log medians: few runs can agree by chance
GAUSS = 1.4826  # standard deviation over median absolute deviation
PRICE = 4.0  # of a cut, in variances per log(runs): from tests/bench/detector_rates.py


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """When a benchmark counts as slower."""

    effect: float = 0.03  # least slow-down over the reference ...
    scatters: float = 3.0  # ... and so many times the scatter between earlier runs
    p: float = 0.01  # Mann-Whitney, after Benjamini-Hochberg over the benchmarks of a run
    window: int = 10  # earlier runs whose median is the second reference
    fresh: int = 3  # processes that have to show it again
    step: float = 0.02  # least change between two lasting levels


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """What the samples of one benchmark are held against."""

    median_s: float
    samples_s: tuple[float, ...]
    scatter: float  # relative, between runs


class Slowdown(msgspec.Struct, frozen=True, kw_only=True):
    """One benchmark that is slower than its reference by more than chance."""

    reference_s: float
    ratio: float
    limit: float  # that the ratio exceeds
    p: float  # adjusted for the number of benchmarks


class Level(msgspec.Struct, frozen=True, kw_only=True):
    """Runs start ... stop-1 of a series, between which nothing changed."""

    start: int
    stop: int
    median_s: float


def reference_of(runs: Sequence[Samples], scatter: float) -> Reference:
    """Several runs of one benchmark as one reference: the median of their medians."""
    return Reference(
        median_s=median(median(samples) for samples in runs),
        samples_s=tuple(sample for samples in runs for sample in samples),
        scatter=scatter,
    )


def scatter_between(medians_s: Sequence[float]) -> float:
    """Relative standard deviation of a benchmark's medians from run to run, outliers apart.

    From differences of neighbours, which a step in the series leaves alone: a regression that
    stays must not hide itself by what it adds to the scatter. 0 for fewer than four runs.
    """
    if len(medians_s) < LEAST_FOR_SCATTER:
        return 0.0
    logs = [log(m) for m in medians_s]
    differences = [abs(b - a) for a, b in pairwise(logs)]
    return GAUSS * median(differences) / 2**0.5


def slowdowns(
    now: Mapping[str, Samples], references: Mapping[str, Reference], rules: Rules
) -> dict[str, Slowdown]:
    """Benchmarks of a run that are slower than their references.

    The significance is only computed where the effect is large enough; elsewhere it counts as 1,
    which makes the correction for many benchmarks stricter, never weaker.
    Source: Benjamini, Hochberg, J. R. Statist. Soc. B 57 (1995) 289, through scipy.
    """
    from scipy.stats import false_discovery_control, mannwhitneyu  # a second to import

    keys = [key for key in now if key in references]
    effects = {key: effect(now[key], references[key], rules) for key in keys}
    p = [
        mannwhitneyu(now[key], references[key].samples_s, alternative="greater").pvalue
        if ratio > limit
        else 1.0
        for key, (ratio, limit) in effects.items()
    ]
    adjusted = false_discovery_control(p) if p else p
    return {
        key: Slowdown(
            reference_s=references[key].median_s,
            ratio=effects[key][0],
            limit=effects[key][1],
            p=float(q),
        )
        for key, q in zip(keys, adjusted, strict=True)
        if q < rules.p
    }


def effect(samples_s: Samples, reference: Reference, rules: Rules) -> tuple[float, float]:
    """(ratio to the reference, the ratio from which on it counts)."""
    limit = 1 + max(rules.effect, rules.scatters * reference.scatter)
    return median(samples_s) / reference.median_s, limit


def is_repeated(slowdown: Slowdown, fresh: Sequence[Samples]) -> bool:
    """Whether the median of fresh processes is above the limit too."""
    fresh_s = median(median(samples) for samples in fresh)
    return fresh_s / slowdown.reference_s > slowdown.limit


def levels(medians_s: Sequence[float]) -> list[Level]:
    """The series cut where it changes for good: least squares of the logs with a price per cut.

    A single outlying run makes no level: levels last three runs or more, and each median is
    first replaced by that of itself and its neighbours.
    Source: optimal partitioning, Jackson et al., IEEE Signal Process. Lett. 12 (2005) 105.
    """
    logs = np.log(np.asarray(medians_s, dtype=float))
    if len(logs) < LEAST_FOR_LEVELS:
        return [_level(medians_s, 0, len(logs))] if len(logs) else []
    few = 1 + 4 / len(logs)  # the scatter of a short series is easily found too small
    spread = max(LEAST_SPREAD, few * scatter_between(medians_s))
    cuts = _cuts(_smooth(logs), price=PRICE * spread**2 * log(len(logs)))
    return [_level(medians_s, a, b) for a, b in pairwise(cuts)]


def steps(medians_s: Sequence[float], rules: Rules) -> list[int]:
    """Runs at which the series steps up or down to another level by more than `rules.step`."""
    cut = levels(medians_s)
    least = log(1 + rules.step)
    return [b.start for a, b in pairwise(cut) if abs(log(b.median_s / a.median_s)) > least]


def lasting_rise(medians_s: Sequence[float], rules: Rules) -> tuple[Level, float] | None:
    """The last level and its ratio to the best earlier one, where that is a step up.

    It does not heal with time: only a new start of the series (a promotion) makes it the norm.
    """
    cut = levels(medians_s)
    if len(cut) < 2:
        return None
    best = min(level.median_s for level in cut[:-1])
    ratio = cut[-1].median_s / best
    limit = 1 + max(rules.step, rules.scatters * scatter_between(medians_s))
    return (cut[-1], ratio) if ratio > limit else None


def _smooth(logs: np.ndarray) -> np.ndarray:
    """Median of each run and its neighbours; the first and the last stay."""
    inner = np.median(np.stack([logs[:-2], logs[1:-1], logs[2:]]), axis=0)
    return np.concatenate([logs[:1], inner, logs[-1:]])


def _cuts(values: np.ndarray, price: float) -> list[int]:
    """Borders 0 ... len(values) of the levels with the least squared error plus price per cut."""
    n = len(values)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    squares = np.concatenate([[0.0], np.cumsum(values**2)])
    best = np.full(n + 1, np.inf)
    best[0] = -price
    before = np.zeros(n + 1, dtype=int)
    for stop in range(LEAST_IN_LEVEL, n + 1):
        start = np.arange(stop - LEAST_IN_LEVEL + 1)
        total = sums[stop] - sums[start]
        errors = squares[stop] - squares[start] - total**2 / (stop - start)
        costs = best[start] + errors + price
        before[stop] = int(np.argmin(costs))
        best[stop] = costs[before[stop]]
    cuts = [n]
    while cuts[0]:
        cuts.insert(0, int(before[cuts[0]]))
    return cuts


def _level(medians_s: Sequence[float], start: int, stop: int) -> Level:
    middle = exp(median(log(m) for m in medians_s[start:stop]))
    return Level(start=start, stop=stop, median_s=middle)

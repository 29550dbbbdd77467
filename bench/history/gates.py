"""Whether a run may pass: slower benchmarks, vanished ones, refused ones."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Literal

import msgspec

from bench.history.detect import (
    Reference,
    Rules,
    Samples,
    Slowdown,
    effect,
    is_repeated,
    lasting_rise,
    reference_of,
    scatter_between,
    slowdowns,
)
from bench.history.store import Run

Kind = Literal[
    "no baseline", "regression", "suspect", "vanished", "refused", "not repeated", "new", "faster"
]
BASELINE = "the baseline"
PASSING = ("not repeated", "new", "faster")  # worth a line, no reason to fail


class Past(msgspec.Struct, frozen=True, kw_only=True):
    """What a run is held against, all of one device."""

    baseline: Sequence[Run]  # promoted; empty: none yet
    earlier: Sequence[Run]  # before the run, oldest first
    fresh: Sequence[Run]  # that repeat it in fresh processes


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a verdict."""

    kind: Kind
    key: str  # of the benchmark
    text: str
    ratio: float | None = None  # to what it is held against

    @property
    def fails(self) -> bool:
        return self.kind not in PASSING


def past_of(run: Run, runs: Sequence[Run], baseline: Sequence[Run]) -> Past:
    """The runs of a device as seen from one of them."""
    before = runs[: [other.id for other in runs].index(run.id)]
    return Past(
        baseline=baseline,
        earlier=[other for other in before if other.confirms is None],
        fresh=[other for other in runs if other.confirms == run.id],
    )


def check(run: Run, past: Past, rules: Rules, *, allow_missing: bool = False) -> list[Finding]:
    """Everything worth saying about a run, reasons to fail first."""
    references = _references(past, rules)
    findings = [
        *_slower(run, past, references, rules),
        *_present(run, past, allow_missing=allow_missing),
        *(
            Finding(kind="refused", key=m.key, text=m.refused)
            for m in run.measurements
            if m.refused is not None
        ),
        *_faster(run, references[BASELINE], rules),
    ]
    return sorted(findings, key=lambda finding: not finding.fails)


def valid_samples(run: Run) -> dict[str, Samples]:
    """Samples by key, without those that were refused when they were taken."""
    return {m.key: m.samples_s for m in run.measurements if m.refused is None}


def pooled(runs: Sequence[Run]) -> dict[str, list[Samples]]:
    """Valid samples of each run in turn, by key."""
    by_key: dict[str, list[Samples]] = {}
    for run in runs:
        for key, samples in valid_samples(run).items():
            by_key.setdefault(key, []).append(samples)
    return by_key


def _references(past: Past, rules: Rules) -> dict[str, dict[str, Reference]]:
    """What a run is held against: by name of the reference, then by benchmark."""
    earlier = pooled(past.earlier)
    scatter = {key: scatter_between(list(map(median, s))) for key, s in earlier.items()}
    last = {key: samples[-rules.window :] for key, samples in earlier.items()}
    named = {BASELINE: pooled(past.baseline), f"the last {rules.window} runs": last}
    return {
        name: {key: reference_of(samples, scatter.get(key, 0.0)) for key, samples in by_key.items()}
        for name, by_key in named.items()
    }


def _slower(
    run: Run, past: Past, references: Mapping[str, Mapping[str, Reference]], rules: Rules
) -> list[Finding]:
    """Lasting rises first: they are repeated already. Then what is slower than a reference."""
    found = {finding.key: finding for finding in _lasting(run, past, rules)}
    now, fresh = valid_samples(run), pooled(past.fresh)
    for name, by_key in references.items():
        for key, slowdown in slowdowns(now, by_key, rules).items():
            if key not in found:
                found[key] = _judged(key, name, slowdown, fresh.get(key, ()), rules)
    return list(found.values())


def _judged(
    key: str, name: str, slowdown: Slowdown, fresh: Sequence[Samples], rules: Rules
) -> Finding:
    """A slow-down is a suspicion until fresh processes show it too."""
    kind: Kind
    if len(fresh) < rules.fresh:
        kind, repeated = "suspect", f"{len(fresh)} of {rules.fresh} fresh processes measured"
    elif is_repeated(slowdown, fresh):
        kind, repeated = "regression", f"so is the median of {len(fresh)} fresh processes"
    else:
        kind, repeated = "not repeated", f"the median of {len(fresh)} fresh processes is not"
    limit = f"limit {slowdown.limit - 1:+.1%}, p {slowdown.p:.1g}"
    text = f"{slowdown.ratio - 1:+.1%} over {name} ({limit}); {repeated}"
    return Finding(kind=kind, key=key, text=text, ratio=slowdown.ratio)


def _lasting(run: Run, past: Past, rules: Rules) -> list[Finding]:
    """Benchmarks that stepped up since the baseline and stayed there for three runs or more."""
    first = min((b.environment.date_utc for b in past.baseline), default="")
    since = [other for other in past.earlier if other.environment.date_utc >= first]
    series: dict[str, list[tuple[float, str]]] = {key: [] for key in valid_samples(run)}
    for other in (*since, run):
        for key, samples in valid_samples(other).items():
            if key in series:
                series[key].append((median(samples), other.commit))
    return [
        finding
        for key, points in series.items()
        if (finding := _lasting_of(key, points, rules)) is not None
    ]


def _lasting_of(key: str, points: Sequence[tuple[float, str]], rules: Rules) -> Finding | None:
    rise = lasting_rise([median_s for median_s, _ in points], rules)
    if rise is None:
        return None
    level, ratio = rise
    count, commit = level.stop - level.start, points[level.start][1]
    text = f"{ratio - 1:+.1%} over its best level for {count} runs, since {commit}"
    return Finding(kind="regression", key=key, text=text, ratio=ratio)


def _present(run: Run, past: Past, *, allow_missing: bool) -> list[Finding]:
    """Benchmarks that the baseline has and the run lacks, and the other way round."""
    if not past.baseline:
        text = f"nothing is promoted on this device; python -m bench promote {run.id}"
        return [Finding(kind="no baseline", key=run.environment.device, text=text)]
    promoted = {m.key for baseline in past.baseline for m in baseline.measurements}
    missing = [] if allow_missing else sorted(promoted - set(run.by_key))
    added = sorted(set(valid_samples(run)) - set(pooled(past.baseline)))
    absent = "in the baseline, not in this run"
    return [
        *(Finding(kind="vanished", key=key, text=absent) for key in missing),
        *(Finding(kind="new", key=key, text="no valid samples in the baseline") for key in added),
    ]


def _faster(run: Run, baseline: Mapping[str, Reference], rules: Rules) -> list[Finding]:
    findings = []
    for key, samples in valid_samples(run).items():
        if key in baseline:
            ratio, limit = effect(samples, baseline[key], rules)
            if ratio < 1 / limit:
                text = f"{ratio - 1:+.1%} against the baseline; promote to hold it"
                findings.append(Finding(kind="faster", key=key, text=text, ratio=ratio))
    return findings


def count_by_kind(findings: Sequence[Finding]) -> dict[Kind, int]:
    """How many findings of each kind."""
    counts: dict[Kind, int] = {}
    for finding in findings:
        counts[finding.kind] = counts.get(finding.kind, 0) + 1
    return counts

"""Runs and verdicts as tables."""

from collections.abc import Sequence

from bench.environment import Environment
from bench.history.gates import Finding, count_by_kind
from bench.history.store import Baseline, Run
from perfmodel.output import Output
from perfmodel.show.tables import Column, Table


def label(key: str) -> str:
    """A key without its device and modes, which the head of a table or figure names once."""
    return key.rpartition("@")[0]


def changes(before: Environment, now: Environment) -> list[str]:
    """What differs in driver, packages and Python: "torch 2.12.0 -> 2.13.0"."""
    old = {**before.driver, **before.packages, "python": before.python}
    new = {**now.driver, **now.packages, "python": now.python}
    return [
        f"{name} {old.get(name, 'none')} -> {new.get(name, 'none')}"
        for name in sorted(old | new)
        if old.get(name) != new.get(name)
    ]


def runs_output(runs: Sequence[Run], baselines: Sequence[Baseline]) -> Output:
    """All runs, oldest first."""
    promoted = {run_id for baseline in baselines for run_id in baseline.runs}
    rows = [
        {
            "run": run.id,
            "device": run.environment.device,
            "date_utc": run.environment.date_utc,
            "commit": run.environment.commit,
            "dirty": run.environment.dirty,
            "shown_commit": run.commit,
            "measurements": len(run.measurements),
            "refused": sum(m.refused is not None for m in run.measurements),
            "role": _role(run, promoted),
        }
        for run in runs
    ]
    columns = [
        Column(key="run", heading="run", right=False),
        Column(key="device", heading="device", right=False),
        Column(key="date_utc", heading="date", show=lambda v: v[:16].replace("T", " ")),
        Column(key="shown_commit", heading="commit", right=False),
        Column(key="measurements", heading="measurements"),
        Column(key="refused", heading="refused"),
        Column(key="role", heading="", right=False),
    ]
    foot = ["* measured with files that differ from the commit"]
    dirty = any(run.environment.dirty for run in runs)
    table = Table(columns=columns, rows=rows, foot=foot if dirty else ())
    return Output(document=lambda: rows, rows=lambda: rows, tables=lambda: [table])


def verdict_output(run: Run, baseline: Sequence[Run], findings: Sequence[Finding]) -> Output:
    """What `check` found in a run."""
    rows = [
        {"kind": f.kind, "benchmark": f.key, "ratio": f.ratio, "what": f.text, "fails": f.fails}
        for f in findings
    ]
    columns = [
        Column(key="kind", heading="", right=False),
        Column(key="benchmark", heading="benchmark", right=False, show=_benchmark),
        Column(key="what", heading="what", right=False),
    ]
    document = {
        "schema": "memwall.verdict/1",
        "run": run.id,
        "device": run.environment.device,
        "baseline": [other.id for other in baseline],
        "ok": not any(f.fails for f in findings),
        "findings": rows,
    }
    head, foot = _verdict_head(run, baseline), _verdict_foot(run, findings)
    return Output(
        document=lambda: document,
        rows=lambda: rows,
        tables=lambda: [Table(head=head, columns=columns if rows else (), rows=rows, foot=foot)],
    )


def _role(run: Run, promoted: set[str]) -> str:
    if run.confirms is not None:
        return f"repeats {run.confirms}"
    return "baseline" if run.id in promoted else ""


def _benchmark(key: str) -> str:
    return label(key) or key


def _verdict_head(run: Run, baseline: Sequence[Run]) -> list[str]:
    environment = run.environment
    held = ", ".join(f"{b.id} ({b.commit})" for b in baseline) or "nothing"
    head = [
        f"run {run.id} of {environment.date_utc[:10]}, commit {run.commit}, "
        f"{len(run.measurements)} measurements on {environment.device_name}",
        f"against {held}",
    ]
    if baseline and (differences := changes(baseline[0].environment, environment)):
        head.append(f"since then: {', '.join(differences)}")
    return [*head, ""]


def _verdict_foot(run: Run, findings: Sequence[Finding]) -> list[str]:
    counts = count_by_kind(findings)
    if not any(finding.fails for finding in findings):
        foot = ["ok: nothing slower, vanished or refused"]
    else:
        foot = ["not ok: " + ", ".join(f"{n} {kind}" for kind, n in counts.items())]
    if "suspect" in counts:
        foot.append(f"next: history check {run.id} --confirm measures them in fresh processes")
    return foot

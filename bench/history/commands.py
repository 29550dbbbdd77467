"""What `history` and `promote` do: arguments into records, one call, the result handed on."""

import argparse
import subprocess
import sys

from bench.history.detect import Rules
from bench.history.gates import Past, check, past_of
from bench.history.sources import runs_of
from bench.history.store import History, Run, check_repeats
from bench.history.views import runs_output, verdict_output
from perfmodel.errors import UsageError
from perfmodel.output import save_figure, write_output

RULES = Rules()
FAILED_EXIT = 1
TESTS_FAILED = 1  # pytest's exit code when it ran to its end


def cmd_list(args: argparse.Namespace) -> int:
    """All runs, oldest first."""
    history = History(args.history)
    devices = [args.device] if args.device else history.devices()
    runs = [run for device in devices for run in history.runs(device)]
    if not runs:
        raise UsageError(f"no runs in {args.history}; pytest bench --history {args.history}")
    baselines = [b for b in map(history.baseline, devices) if b is not None]
    write_output(runs_output(runs, baselines), args.rendering, args.output)
    return 0


def cmd_add(args: argparse.Namespace) -> int:
    """Results of other commands become runs; adding them twice changes nothing."""
    history = History(args.history)
    repeated = history.find(args.confirms) if args.confirms else None
    for path in args.paths:
        for run in runs_of(path, repeated.id if repeated else None):
            if repeated:
                check_repeats(repeated, run.environment)
            file, is_new = history.add(run)
            found = f"{len(run.measurements)} measurements: {file}"
            sys.stdout.write(f"run {run.id}, {'' if is_new else 'known already, '}{found}\n")
    return 0


def cmd_check(args: argparse.Namespace) -> int:
    """Exit code 1 if the run is slower than its past, or lacks or refused a benchmark."""
    history = History(args.history)
    run = history.find(args.name) if args.name else _latest(history, args.device)
    past = _past(history, run)
    findings = check(run, past, RULES, allow_missing=args.allow_missing)
    suspects = {finding.key for finding in findings if finding.kind == "suspect"}
    if suspects and args.confirm:
        _measure_again(history, run, suspects)
        findings = check(run, _past(history, run), RULES, allow_missing=args.allow_missing)
    write_output(verdict_output(run, past.baseline, findings), args.rendering, args.output)
    return FAILED_EXIT if any(finding.fails for finding in findings) else 0


def cmd_plot(args: argparse.Namespace) -> int:
    from bench.history import plot  # matplotlib: only where a picture is wanted

    history = History(args.history)
    device = args.device or _only_device(history)
    runs = history.runs(device)
    promoted = [run.id for run in history.promoted(device, runs)]
    shown = [run for run in runs if run.confirms is None]
    save_figure(args.output, lambda: plot.history_figure(shown, promoted, args.match))
    return 0


def cmd_promote(args: argparse.Namespace) -> int:
    """A run that fails its check is promoted only with a reason, which is kept."""
    history = History(args.history)
    runs = [history.find(name) for name in args.runs]
    failing = [
        (run, finding)
        for run in runs
        for finding in check(run, _past(history, run), RULES)
        if finding.fails and finding.kind != "no baseline"
    ]
    if failing and not args.accept:
        for run, finding in failing:
            sys.stderr.write(f"{run.id}: {finding.kind}: {finding.key}: {finding.text}\n")
        raise UsageError('the check fails, see above; --accept "REASON" promotes all the same')
    path = history.promote(runs, args.accept)
    sys.stdout.write(f"baseline of {runs[0].environment.device}: {path}\n")
    return 0


def _past(history: History, run: Run) -> Past:
    device = run.environment.device
    runs = history.runs(device)
    return past_of(run, runs, history.promoted(device, runs))


def _only_device(history: History) -> str:
    devices = history.devices()
    if len(devices) == 1:
        return devices[0]
    if not devices:
        raise UsageError(f"no runs in {history.root}; pytest bench --history {history.root}")
    raise UsageError(f"runs of several devices; --device {' or '.join(devices)}")


def _latest(history: History, device: str | None) -> Run:
    runs = [run for run in history.runs(device or _only_device(history)) if run.confirms is None]
    if not runs:
        raise UsageError(f"no runs of {device} in {history.root}")
    return runs[-1]


def _measure_again(history: History, run: Run, keys: set[str]) -> None:
    """Run the tests that made these measurements, each time in a fresh process.

    Raises: UsageError for measurements that no test made, or a process that could not measure.
    """
    by_key = run.by_key
    tests = {by_key[key].facts.get("test") for key in keys}
    if None in tests:
        problem = "--confirm can repeat what `pytest bench` measured; repeat the rest yourself"
        raise UsageError(f"{problem}, and: history add RESULTS --confirms {run.id}")
    command = [sys.executable, "-m", "pytest", "-q", *sorted(map(str, tests))]
    command += ["--history", str(history.root), "--confirms", run.id]
    command += ["--device", run.environment.kind]
    if run.environment.kind == "cpu":
        command += ["--threads", str(run.environment.threads)]
    for _ in range(RULES.fresh):
        done = subprocess.run(command, stdout=sys.stderr, check=False)
        if done.returncode not in (0, TESTS_FAILED):
            raise UsageError(f"a fresh process failed (exit code {done.returncode}), see above")

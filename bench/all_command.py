"""`python -m bench all`: the jobs, and at the end the tables and the report."""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bench import everything
from bench.account import account, failures
from bench.aims import aim_rows, aims_table, facts_of
from bench.cli import RESUMABLE_EXIT
from bench.environment import default_kind
from bench.folder import LINES, ResultsFolder, read_lines, read_measurements
from bench.kernels.predicted import devices_in
from bench.kernels.tables import kernels_output
from bench.kernels.validate import judge, verdict_output
from bench.plan import plan
from bench.report.command import WRITERS, read_report
from perfmodel.errors import UsageError
from perfmodel.output import render, text_sink
from perfmodel.show.tables import as_text

OK, CHECK_FAILED = 0, 1


def cmd_all(args: argparse.Namespace) -> int:
    """Everything within the time given; 1 if a kernel is wrong or a job failed.

    75 if time ran out before everything was done: the same command goes on.
    """
    started = time.monotonic()
    kind = args.device or default_kind()
    stages = plan(kind, threads=args.threads)
    if args.plan:
        for stage in stages:
            for job in stage.jobs:
                print(f"{job.name} (at most {job.limit_s:.0f} s, {stage.width} side by side)")
        return OK
    results = ResultsFolder(args.out)
    command = f"python -m bench all --minutes {args.minutes:g}"
    results.add_line({"kind": "command", "command": command})
    everything.run(stages, results, started + 60 * args.minutes - everything.SPARE_S)
    lines = read_lines(args.out / LINES)
    text = "\n".join(
        [*_kernel_texts(args.out), as_text(account(lines, read_measurements(args.out)))]
    )
    (args.out / "table.txt").write_text(text, encoding="utf-8")
    print(text, end="")
    wrong = failures(lines)
    for line in wrong:
        print(f"bench all: {line}", file=sys.stderr)
    again = ResultsFolder(args.out)
    left = [job for stage in stages for job in stage.jobs if not again.is_done(job.key)]
    return CHECK_FAILED if wrong else RESUMABLE_EXIT if left else OK


def _kernel_texts(folder: Path) -> Iterator[str]:
    """The tables of `kernels` and `validate`; a report per device is written on the way."""
    try:
        for device in devices_in(folder):
            yield render(kernels_output(device.compared, device.hardware), "text")
            verdict = judge(device.compared, device.measurements)
            name = device.environment.device_name
            yield render(verdict_output(verdict, device.compared, name), "text")
            if device.environment.kind == "cuda":
                yield as_text([aims_table(aim_rows(facts_of(folder)))])
            _write_report(folder, device.environment.device)
    except UsageError as error:
        yield f"no verdict: {error}\n"


def _write_report(folder: Path, device: str) -> None:
    """One page, Markdown and JSON, beside the results."""
    report = read_report(folder, history=None, device=device)
    for suffix in (".html", ".md", ".json"):
        with text_sink(folder / f"report-{device}{suffix}") as stream:
            stream.write(WRITERS[suffix](report))

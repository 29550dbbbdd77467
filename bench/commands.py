"""What the measuring commands do; imported when one of them runs."""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

from bench import everything
from bench.account import account, failures
from bench.cli import RESUMABLE_EXIT
from bench.contest import Bench
from bench.environment import default_kind
from bench.folder import LINES, ResultsFolder, read_environments, read_lines, read_measurements
from bench.host import device_file, hardware_of, write_host
from bench.kernel_tables import kernels_output
from bench.kernels import measure_layer
from bench.peers import PEERS
from bench.predicted import compare
from bench.probe import probe
from bench.probe_tables import probe_output
from bench.report.command import WRITERS, read_report
from bench.session import measurements_of, open_bench
from bench.subjects import Subject, default_subjects, subject
from bench.suite import choose_layers, default_layers
from bench.validate import judge, verdict_output
from bench.validation_plot import validation_figure
from perfmodel.errors import UsageError
from perfmodel.hardware import host_path, read_device
from perfmodel.output import render, save_figure, text_sink, write_output
from perfmodel.tables import as_text

OK, CHECK_FAILED = 0, 1


def cmd_probe(args: argparse.Namespace) -> int:
    """Measure the device's roofs, write its device file, show them."""
    bench = open_bench(args)
    probe(bench)
    environment = bench.environment
    file = device_file(environment, measurements_of(args.out, environment.device))
    path = args.output or host_path()
    write_host(path, file)
    print(
        render(probe_output(read_device(path, source=str(path))), args.rendering or "text"), end=""
    )
    print(f"written: {path}", file=sys.stderr)
    return OK


def cmd_kernels(args: argparse.Namespace) -> int:
    """Check and time the kernels; 1 if one of them is wrong or a layer was never undisturbed."""
    bench = open_bench(args)
    subjects = chosen_subjects(args, bench.environment.kind)
    layers = choose_layers(args.layers) if args.layers else default_layers(bench.environment.kind)
    peers = () if args.no_peers else PEERS
    for layer in layers:
        measure_layer(bench, layer, subjects, peers=peers)
    return show_kernels(args, bench)


def show_kernels(args: argparse.Namespace, bench: Bench) -> int:
    environment = bench.environment
    measurements = measurements_of(args.out, environment.device)
    hardware = hardware_of(environment, measurements)
    output = kernels_output(compare(measurements, hardware), hardware)
    write_output(output, args.rendering, args.output)
    return OK


def chosen_subjects(args: argparse.Namespace, kind: str) -> list[Subject]:
    """The subjects named, or the default ones, at the batch sizes asked for.

    Raises: UsageError.
    """
    names = args.subjects or default_subjects(kind)
    found = [subject(name) for name in names]
    if args.batch:
        single = dict.fromkeys(replace(s, batch=1) for s in found)
        found = [replace(s, batch=batch) for batch in args.batch for s in single]
    return found


def cmd_validate(args: argparse.Namespace) -> int:
    """Hold what a folder holds against its predictions; 1 above a roof or beyond the bar.

    Raises: UsageError for a folder without kernels; SpecError for a broken one.
    """
    environments = read_environments(args.out)
    measurements = read_measurements(args.out)
    devices = dict.fromkeys(m.device for m in measurements if m.suite == "kernels")
    if not devices:
        raise UsageError(f"{args.out}: no kernels were measured; run `python -m bench kernels`")
    code = OK
    for device in devices:
        environment = next(e for e in environments.values() if e.device == device)
        mine = [m for m in measurements if m.device == device]
        compared = compare(mine, hardware_of(environment, mine))
        verdict = judge(compared, mine)
        output = verdict_output(verdict, compared, environment.device_name)
        write_output(output, args.rendering, args.output)
        if args.plot:
            save_figure(
                args.plot, lambda v=verdict, d=environment: validation_figure(v, d.device_name)
            )
        held = verdict.summaries.get("and fitted, on held-out shapes")
        missed = args.bar is not None and (held is None or held.median > args.bar / 100)
        code = CHECK_FAILED if verdict.above_roof or missed else code
    return code


def cmd_all(args: argparse.Namespace) -> int:
    """Everything within the time given; 1 if a kernel is wrong, a job failed or a roof was broken.

    75 if time ran out before everything was done: the same command goes on.
    """
    started = time.monotonic()
    kind = args.device or default_kind()
    stages = everything.plan(kind, threads=args.threads)
    if args.plan:
        for stage in stages:
            for job in stage.jobs:
                print(f"{job.name} (at most {job.limit_s:.0f} s, {stage.width} side by side)")
        return OK
    results = ResultsFolder(args.out)
    everything.run(stages, results, started + 60 * args.minutes - everything.SPARE_S)
    lines, measurements = read_lines(args.out / LINES), read_measurements(args.out)
    text = as_text(account(lines, measurements))
    if any(m.suite == "kernels" for m in measurements):
        text = f"{_kernels_text(args.out)}\n{text}"
        _write_reports(args.out)
    (args.out / "table.txt").write_text(text, encoding="utf-8")
    print(text, end="")
    wrong = failures(lines)
    for line in wrong:
        print(f"bench all: {line}", file=sys.stderr)
    again = ResultsFolder(args.out)
    left = [job for stage in stages for job in stage.jobs if not again.is_done(job.key)]
    return CHECK_FAILED if wrong else RESUMABLE_EXIT if left else OK


def _kernels_text(folder: Path) -> str:
    """The tables of `kernels` and `validate` of a folder."""
    environments, measurements = read_environments(folder), read_measurements(folder)
    texts = []
    for device in dict.fromkeys(m.device for m in measurements if m.suite == "kernels"):
        environment = next(e for e in environments.values() if e.device == device)
        mine = [m for m in measurements if m.device == device]
        hardware = hardware_of(environment, mine)
        compared = compare(mine, hardware)
        texts.append(render(kernels_output(compared, hardware), "text"))
        verdict = judge(compared, mine)
        texts.append(render(verdict_output(verdict, compared, environment.device_name), "text"))
    return "\n".join(texts)


def _write_reports(folder: Path) -> None:
    """One page, Markdown and CSV per device, beside the results."""
    for device in dict.fromkeys(e.device for e in read_environments(folder).values()):
        report = read_report(folder, history=None, device=device)
        for suffix, write in WRITERS.items():
            with text_sink(folder / f"report-{device}{suffix}") as stream:
                stream.write(write(report))

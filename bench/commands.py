"""What the measuring commands do; imported when one of them runs."""

import argparse
import sys
from dataclasses import replace

from bench.account import failures
from bench.folder import LINES, read_lines
from bench.kernels.measure import measure_layer
from bench.kernels.predicted import compare
from bench.kernels.subjects import Subject, default_subjects, subject
from bench.kernels.suite import choose_layers, default_layers
from bench.kernels.tables import kernels_output
from bench.peers.table import PEERS
from bench.probe.host import device_file, hardware_of, write_host
from bench.probe.measure import probe
from bench.probe.tables import probe_output
from bench.session import measurements_of, open_bench
from perfmodel.hardware import host_path, read_device
from perfmodel.output import render, write_output

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
    """Check and time the kernels; 1 if one of them is wrong.

    Raises: UsageError before anything is measured where the device has no file and no probe.
    """
    bench = open_bench(args)
    subjects = chosen_subjects(args, bench.environment.kind)
    layers = choose_layers(args.layers) if args.layers else default_layers(bench.environment.kind)
    peers = () if args.no_peers else PEERS
    hardware_of(bench.environment, measurements_of(args.out, bench.environment.device))
    for layer in layers:
        measure_layer(bench, layer, subjects, peers=peers)
    environment = bench.environment
    measurements = measurements_of(args.out, environment.device)
    hardware = hardware_of(environment, measurements)
    output = kernels_output(compare(measurements, hardware), hardware)
    write_output(output, args.rendering, args.output)
    asked = {layer.name for layer in layers}
    wrong = failures([x for x in read_lines(args.out / LINES) if x.get("layer") in asked])
    for line in wrong:
        print(f"bench kernels: {line}", file=sys.stderr)
    return CHECK_FAILED if wrong else OK


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

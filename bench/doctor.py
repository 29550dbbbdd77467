"""What this machine can measure and what it cannot, before anything is run."""

import argparse
import importlib.util
import os
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import msgspec

from bench.environment import cpu_threads, nvidia_smi, this_environment, throttle_reasons
from perfmodel.hardware import host_path
from perfmodel.output import Output, write_output
from perfmodel.show.tables import Column, Table
from perfmodel.units import GIGA, MIB, si

State = Literal["yes", "no", "care"]
LEAST_FREE_BYTES = 2 * GIGA  # a results folder is small; a generated checkpoint is not
SCHEMA = "memwall.doctor/1"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at."""

    what: str
    state: State
    found: str
    means: str = ""  # for the user: what is skipped, or what to do


def cmd_doctor(args: argparse.Namespace) -> int:
    """Print the findings; 1 where nothing at all can be measured."""
    findings = list(examine())
    write_output(doctor_output(findings), args.rendering, args.output)
    return 1 if any(f.what == "torch" and f.state == "no" for f in findings) else 0


def examine() -> Iterator[Finding]:
    """Every finding, the devices first."""
    if importlib.util.find_spec("torch") is None:
        means = "nothing can be measured; pip install -e '.[bench,quantizer]'"
        yield Finding(what="torch", state="no", found="not installed", means=means)
        return
    yield _gpu()
    yield _cpu()
    yield _load()
    yield _probe_file()
    yield from _packages()
    yield from _tools()
    yield _disk()
    yield from _peers("cuda" if _has_gpu() else "cpu")


def doctor_output(findings: list[Finding]) -> Output:
    """The findings as a table, as rows and as JSON."""
    rows = [msgspec.structs.asdict(finding) for finding in findings]
    columns = [
        Column(key=key, heading=key, right=False) for key in ("what", "state", "found", "means")
    ]
    return Output(
        document=lambda: {"schema": SCHEMA, "findings": rows},
        rows=lambda: rows,
        tables=lambda: [Table(columns=columns, rows=rows)],
    )


def _has_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def _gpu() -> Finding:
    if not _has_gpu():
        means = "GPU kernels are skipped; the numba twins run on the CPU"
        return Finding(what="GPU", state="no", found="no CUDA device", means=means)
    environment = this_environment("cuda")
    clock = nvidia_smi().get("clocks.max.sm", "unknown")
    found = f"{environment.device_name}, {environment.cores} SMs, at most {clock} MHz"
    reasons = throttle_reasons()
    if reasons:
        means = f"now {', '.join(reasons)}: timings would be refused"
        return Finding(what="GPU", state="care", found=found, means=means)
    return Finding(what="GPU", state="yes", found=found)


def _cpu() -> Finding:
    environment = this_environment("cpu")
    cache = f"{environment.cache_bytes / MIB:g} MiB of cache"
    found = f"{environment.device_name}, {cpu_threads()} threads used, {cache}"
    return Finding(what="CPU", state="yes", found=found)


def _load() -> Finding:
    """Waiting processes per core: CPU timings of a machine that others use are refused."""
    load, cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    found = f"{load:.1f} processes on {cores} cores in the last minute"
    if load > cores / 2:
        means = "disturbed samples are discarded: expect CPU runs to take longer"
        return Finding(what="load", state="care", found=found, means=means)
    return Finding(what="load", state="yes", found=found)


def _probe_file() -> Finding:
    path = host_path()
    if path.exists():
        return Finding(what="probe of this machine", state="yes", found=str(path))
    means = "python -m bench probe writes it; until then predictions are not calibrated"
    return Finding(what="probe of this machine", state="no", found=f"no {path}", means=means)


def _packages() -> Iterator[Finding]:
    skipped = {
        "triton": "GPU kernels are skipped",
        "numba": "CPU kernels are skipped",
        "transformers": "checkpoints and --stack hf-eager are skipped",
        "scipy": "history check is skipped",
        "matplotlib": "figures are skipped",
    }
    for name in ("torch", *skipped):
        try:
            yield Finding(what=name, state="yes", found=version(name))
        except PackageNotFoundError:
            yield Finding(what=name, state="no", found="not installed", means=skipped[name])


def _tools() -> Iterator[Finding]:
    if not _has_gpu():
        return
    skipped = {
        "nvidia-smi": "clocks and throttling are not watched",
        "compute-sanitizer": "memory errors and races are not looked for",
        "ncu": "our timing is not held against the profiler's",
    }
    for name, means in skipped.items():
        path = shutil.which(name)
        if path:
            yield Finding(what=name, state="yes", found=path)
        else:
            yield Finding(what=name, state="no", found="not on PATH", means=means)


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    found = f"{si(free, 'B')} free here"
    if free < LEAST_FREE_BYTES:
        means = "results may not fit"
        return Finding(what="disk", state="care", found=found, means=means)
    return Finding(what="disk", state="yes", found=found)


def _peers(kind: str) -> Iterator[Finding]:
    """Kernels of other projects that are timed beside ours."""
    from bench.peers.table import PEERS, problem  # needs torch, which may be what is missing

    for peer in PEERS:
        reason = problem(peer, kind)
        if reason:
            means = "skipped where kernels are compared"
            yield Finding(what=f"peer {peer.name}", state="no", found=reason, means=means)
        else:
            yield Finding(what=f"peer {peer.name}", state="yes", found="runs here")

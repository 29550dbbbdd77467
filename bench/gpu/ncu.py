"""Hardware counters of one call of a kernel, by Nsight Compute, as the text that it prints."""

import os
import shutil
import subprocess
import sys
import tempfile

import torch

from bench.cli import JOB_VARIABLE
from bench.environment import Environment
from bench.gpu.stages import shape_of
from bench.kernels.contest import Results
from bench.kernels.prepare import prepare, rotation
from bench.kernels.subjects import subject

SECTIONS = (
    "SpeedOfLight",
    "MemoryWorkloadAnalysis",
    "Occupancy",
    "SchedulerStats",
    "WarpStateStats",
)
MOST_TEXT = 20_000  # characters kept, the last ones
SPARE_S = 5.0  # of the job, for its last line


def once(environment: Environment, _results: Results, name: str, shape: str) -> None:
    """Load, run twice, and once more where the profiler looks."""
    call = rotation(prepare(subject(name), shape_of(shape), environment.kind), 3)
    call(0), call(1)
    torch.cuda.synchronize()
    with torch.cuda.profiler.profile():
        call(2)
        torch.cuda.synchronize()


def profile(_environment: Environment, results: Results, name: str, shape: str) -> None:
    """`once` under ncu, which leaves the clocks as they are."""
    line = {"kind": "ncu", "name": name, "shape": shape}
    program = shutil.which("ncu")
    if program is None:
        results.add_line({**line, "exit_code": None, "text": "ncu is not installed"})
        return
    options = ["--clock-control", "none", "--profile-from-start", "off"]
    options += [word for section in SECTIONS for word in ("--section", section)]
    limit_s = float(os.environ.get(JOB_VARIABLE, "60")) - SPARE_S
    with tempfile.TemporaryDirectory() as scratch:
        worker = [sys.executable, "-m", "bench.gpu", "once", name, shape, "--out", scratch]
        try:
            done = subprocess.run(
                [program, *options, *worker], capture_output=True, text=True, timeout=limit_s,
                check=False,
            )  # fmt: skip
            found = {"exit_code": done.returncode, "text": done.stdout[-MOST_TEXT:]}
        except subprocess.TimeoutExpired:
            found = {"exit_code": None, "text": f"stopped after {limit_s:.0f} s"}
    results.add_line({**line, **found})

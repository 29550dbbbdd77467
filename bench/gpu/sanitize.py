"""Every kernel once under compute-sanitizer: memory errors and races."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile

from bench.cli import JOB_VARIABLE
from bench.environment import Environment
from bench.gpu.stages import CHECK_SHAPES, check_subject
from bench.kernels.contest import Results
from bench.kernels.subjects import default_subjects, subject

SPARE_S = 10.0  # of them kept back, to read what the tool has said
TOUCH_SHAPES = CHECK_SHAPES[:3:2]  # compiled and cached by the check already


def touch(environment: Environment, results: Results) -> None:
    """Run every kernel once on small odd shapes: what the tool watches."""
    for name in default_subjects(environment.kind):
        if not subject(name).library:
            check_subject(environment, results, name, shapes=TOUCH_SHAPES, repeats=0)
            print(f"touched {name}", flush=True)


def sanitize(_environment: Environment, results: Results, tool: str) -> None:
    """`touch` under one tool of compute-sanitizer, with the caching allocator out of the way."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        found = {"errors": None, "detail": "compute-sanitizer is not installed", "touched": 0}
        results.add_line({"kind": "sanitizer", "tool": tool, **found})
        return
    with tempfile.TemporaryDirectory() as scratch:
        worker = [sys.executable, "-m", "bench.gpu", "touch", "--out", scratch]
        child = subprocess.Popen(
            [program, "--tool", tool, *worker],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
            start_new_session=True,
        )
        try:
            limit_s = float(os.environ.get(JOB_VARIABLE, "60")) - SPARE_S
            text, _ = child.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            text, _ = child.communicate()
    results.add_line({"kind": "sanitizer", "tool": tool, **sanitizer_result(text)})


def sanitizer_result(text: str) -> dict[str, object]:
    """Errors (None where the tool did not come to its summary), their first lines, kernels run."""
    found = re.search(r"ERROR SUMMARY: (\d+) error", text)
    problems = [line for line in text.splitlines() if line.startswith("=========     ")]
    detail = " / ".join(line.strip("= ") for line in problems[:4])[:400]
    touched = text.count("touched ")
    if found is None:
        detail = f"stopped after {touched} kernels; {detail}"
    return {"errors": int(found[1]) if found else None, "detail": detail, "touched": touched}

"""One command for a CUDA machine: check every kernel, measure, tune; most important first.

The work is done by worker processes (`bench.gpu_worker`), so that a kernel that crashes or hangs
costs its own job only. This process imports neither torch nor triton: it plans, watches the clock
and writes what the workers print, line by line, to results.jsonl; table.txt is made from those
lines after every stage.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from bench.gpu_subjects import SUBJECTS
from bench.gpu_table import as_table

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("probe", "check", "cold", "sanitize", "tune", "isolated", "rest")
SPARE_S = 10.0  # kept back at the end for the last table
LEAST_S = 15.0  # a job that would get less is not started
CHECK_WORKERS = 8
# Rows x columns, most telling first: LLaMA-7B gate-up, Marlin's published shape, attention, down,
# MLP, qkv, and one that shows the asymptote.
SHAPES = ("22016x4096", "8192x8192", "4096x4096", "4096x11008", "11008x4096", "12288x4096",
          "28672x8192")  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One worker process: its arguments and the most seconds it may take."""

    arguments: tuple[str, ...]
    limit_s: float

    @property
    def name(self) -> str:
        return " ".join(self.arguments)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Jobs of one kind, `width` of them side by side (timing jobs run alone)."""

    name: str
    jobs: tuple[Job, ...]
    width: int = 1


def plan(stages: Sequence[str], kernels: Sequence[str], shapes: Sequence[str]) -> list[Stage]:
    """What runs, in order. Correctness is cut by kernel, timing by shape."""

    def jobs(stage: str, limit_s: float, names: Sequence[str]) -> tuple[Job, ...]:
        return tuple(Job(arguments=(stage, name), limit_s=limit_s) for name in names)

    everything = {
        "probe": Stage(name="probe", jobs=(Job(arguments=("probe",), limit_s=60),)),
        "check": Stage(name="check", jobs=jobs("check", 120, kernels), width=CHECK_WORKERS),
        "cold": Stage(name="cold", jobs=jobs("cold", 75, shapes[:4])),
        "sanitize": Stage(name="sanitize", jobs=jobs("sanitize", 75, ("memcheck", "racecheck"))),
        "tune": Stage(name="tune", jobs=jobs("tune", 60, shapes[:2])),
        "isolated": Stage(name="isolated", jobs=jobs("isolated", 45, shapes[:2])),
        "rest": Stage(name="rest", jobs=jobs("cold", 75, shapes[4:])),
    }
    return [everything[name] for name in STAGES if name in stages]


class Results:
    """Lines of results.jsonl: kept, and on disk as soon as they are known."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.lines: list[dict] = []
        self.lock = threading.Lock()
        (folder / "results.jsonl").write_text("")

    def add(self, line: dict) -> None:
        with self.lock:
            self.lines.append(line)
            with (self.folder / "results.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")

    def write_table(self) -> str:
        text = as_table(self.lines)
        (self.folder / "table.txt").write_text(text)
        return text


def run_job(
    job: Job, results: Results, seconds_left: Callable[[], float], command: Sequence[str]
) -> None:
    """Run one worker until it ends or its time is up; its lines are kept either way."""
    limit_s = min(job.limit_s, seconds_left())
    if limit_s < LEAST_S:
        results.add({"kind": "skipped", "job": job.name, "reason": "no time left"})
        return
    start = time.monotonic()
    code = _follow([*command, *job.arguments], results, limit_s)
    seconds = time.monotonic() - start
    line = {"kind": "job", "job": job.name, "seconds": round(seconds, 1), "exit_code": code}
    if code:
        line["reason"] = f"stopped after {limit_s:.0f} s" if seconds >= limit_s else "failed"
    results.add(line)


def _follow(command: Sequence[str], results: Results, limit_s: float) -> int:
    """Keep a worker's JSON lines, end it after `limit_s` seconds; its exit code."""
    with (
        (results.folder / "workers.log").open("a") as log,
        subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,  # so that what the worker starts ends with it
        ) as worker,
    ):
        killer = threading.Timer(limit_s, _end, (worker,))
        killer.start()
        for text in worker.stdout:
            if text.startswith("{"):
                results.add(json.loads(text))
        code = worker.wait()
        killer.cancel()
    return code


def _end(worker: subprocess.Popen) -> None:
    if worker.poll() is None:
        os.killpg(worker.pid, signal.SIGKILL)


def run(stages: Sequence[Stage], results: Results, seconds: float, command: Sequence[str]) -> None:
    """All stages within `seconds`; the table is rewritten after each."""
    end = time.monotonic() + seconds - SPARE_S

    def seconds_left() -> float:
        return end - time.monotonic()

    for stage in stages:
        with ThreadPoolExecutor(stage.width) as pool:
            running = [
                pool.submit(run_job, job, results, seconds_left, command) for job in stage.jobs
            ]
            for job in running:
                job.result()
        results.write_table()


def cuda_problem() -> str | None:
    """Why nothing can run here; None on a machine with a CUDA device."""
    code = "import torch, triton; raise SystemExit(0 if torch.cuda.is_available() else 3)"
    probe = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    if probe.returncode == 3:
        return "no CUDA device"
    return probe.stderr.strip().splitlines()[-1] if probe.returncode else None


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(prog="bench/gpu.sh", description=__doc__.split("\n")[0])
    default = os.environ.get("OUT", str(ROOT / "out" / "gpu"))
    out.add_argument("folder", nargs="?", type=Path, default=Path(default), help="for results")
    out.add_argument("--minutes", type=float, default=9.0, help="stop by then (default 9)")
    out.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    out.add_argument("--kernels", nargs="+", help="check these only (default: all)")
    out.add_argument("--shapes", nargs="+", default=SHAPES, metavar="ROWSxCOLUMNS")
    out.add_argument("--plan", action="store_true", help="print the jobs and stop")
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 ok or skipped, 1 a kernel is wrong or a job failed, 2 usage."""
    options = parser().parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET", "0") == "1":
        print("TRITON_INTERPRET=1 is set: unset it to run on a GPU", file=sys.stderr)
        return 2
    unknown = sorted(set(options.kernels or ()) - set(SUBJECTS))
    if unknown:
        print(f"no kernel {', '.join(unknown)}; have: {', '.join(SUBJECTS)}", file=sys.stderr)
        return 2
    stages = plan(options.stages, options.kernels or tuple(SUBJECTS), options.shapes)
    if options.plan:
        for stage in stages:
            for job in stage.jobs:
                print(f"{job.name} (at most {job.limit_s:.0f} s, {stage.width} side by side)")
        return 0
    problem = cuda_problem()
    if problem:
        print(f"skipped: {problem}")
        return 0
    results = Results(options.folder)
    run(stages, results, 60 * options.minutes, (sys.executable, "-m", "bench.gpu_worker"))
    print(results.write_table(), end="")
    wrong = [line for line in results.lines if line["kind"] == "check" and not line["ok"]]
    failed = [line for line in results.lines if line["kind"] == "job" and line["exit_code"]]
    return 1 if wrong or failed else 0


if __name__ == "__main__":
    sys.exit(main())

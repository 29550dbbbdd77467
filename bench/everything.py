"""Jobs within one budget of time, most important first, resumable: the engine of `bench all`.

Every job is one of our commands in a process of its own, so that a kernel that crashes or hangs
costs its own job alone. Jobs write to the folder of results themselves, line by line; what is there
is not measured again. This process only watches the clock and keeps an account of the jobs. Which
jobs there are: `bench.plan`.
"""

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

from bench.cli import JOB_VARIABLE
from bench.folder import ResultsFolder

ROOT = Path(__file__).resolve().parents[1]
SPARE_S = 25.0  # kept back at the end for the verdict and the report
LEAST_S = 10.0  # a job that would get less is not started


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One process: the module that runs, its arguments, and the most seconds it may take."""

    arguments: tuple[str, ...]
    limit_s: float
    module: str = "bench"

    @property
    def name(self) -> str:
        return " ".join(self.arguments)

    @property
    def key(self) -> str:
        return f"job:{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Jobs of one kind, `width` of them side by side (timing jobs run alone)."""

    name: str
    jobs: tuple[Job, ...]
    width: int = 1


def run(stages: Sequence[Stage], results: ResultsFolder, end: float) -> None:
    """All stages until `end` (of time.monotonic); a job that was done before is left out."""
    for stage in stages:
        waiting = [job for job in stage.jobs if not results.is_done(job.key)]
        with ThreadPoolExecutor(stage.width) as pool:
            running = [
                pool.submit(run_job, job, results, lambda: end - time.monotonic())
                for job in waiting
            ]
            for job in running:
                job.result()


def run_job(
    job: Job,
    results: ResultsFolder,
    seconds_left: Callable[[], float],
    command: Sequence[str] | None = None,
) -> None:
    """Run one job until it ends or its time is up; what it wrote is kept either way."""
    limit_s = min(job.limit_s, seconds_left())
    if limit_s < LEAST_S:
        results.add_line({"kind": "skipped", "name": job.name, "reason": "no time left"})
        return
    print(f"[{seconds_left():4.0f} s left] {job.name}", file=sys.stderr, flush=True)
    start = time.monotonic()
    given = command or (sys.executable, "-m", job.module)
    code = _follow(
        [*given, *job.arguments, "--out", str(results.path.resolve())], results.path, limit_s
    )
    seconds = time.monotonic() - start
    line = {"kind": "job", "name": job.name, "seconds": round(seconds, 1), "exit_code": code}
    if code == 0:
        line["key"] = job.key
    else:
        line["reason"] = f"stopped after {limit_s:.0f} s" if seconds >= limit_s else "failed"
    results.add_line(line)


def _follow(command: Sequence[str], folder: Path, limit_s: float) -> int:
    """Run a command with its output in jobs.log, end it after `limit_s` seconds; its exit code."""
    environment = {**os.environ, JOB_VARIABLE: str(limit_s), "MEMWALL_HOST": _host(folder)}
    with (folder / "jobs.log").open("a") as log:
        log.write(f"\n$ {' '.join(command)}\n")
        log.flush()
        job = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,  # so that what the job starts ends with it
        )
        killer = threading.Timer(limit_s, _end, (job,))
        killer.start()
        try:
            return job.wait()
        finally:  # an interrupt ends the job too
            killer.cancel()
            _end(job)


def _host(folder: Path) -> str:
    """The device file of this run stays in its folder."""
    return str(folder.resolve() / "host.yaml")


def _end(job: subprocess.Popen) -> None:
    if job.poll() is None:
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()

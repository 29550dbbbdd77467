"""Everything within one budget of time, most important first, resumable.

Every job is one of our commands in a process of its own, so that a kernel that crashes or hangs
costs its own job alone. Jobs write to the folder of results themselves, line by line; what is there
is not measured again. This process only plans, watches the clock and keeps an account of the jobs.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from bench.cli import JOB_VARIABLE
from bench.folder import ResultsFolder
from bench.kernels.subjects import default_subjects
from bench.kernels.suite import default_layers

ROOT = Path(__file__).resolve().parents[1]
SPARE_S = 15.0  # kept back at the end for the verdict and the report
LEAST_S = 10.0  # a job that would get less is not started
SIDE_BY_SIDE = 12  # kernels checked at a time on a GPU, 4 GB each
GPU_SHAPES = ("22016x4096", "8192x8192")  # LLaMA-7B gate-up; the shape that Marlin published
FIRST_LAYERS = 4  # of LLaMA-7B, before text is generated


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


def plan(kind: str, *, threads: int | None = None) -> list[Stage]:
    """What runs on a kind of device ("cuda" or "cpu"), in order of importance."""
    device = ("--device", kind) + (() if threads is None else ("--threads", str(threads)))

    def jobs(limit_s: float, *each: tuple[str, ...]) -> tuple[Job, ...]:
        return tuple(Job(arguments=(*words, *device), limit_s=limit_s) for words in each)

    layers = [("kernels", "--layers", layer.name) for layer in default_layers(kind)]
    probe = Stage(name="probe", jobs=jobs(120, ("probe",)))
    if kind == "cpu":
        return [
            probe,
            Stage(name="kernels", jobs=jobs(120, *layers)),
            Stage(name="generate", jobs=jobs(120, ("generate", *_TWO_BLOCKS))),
        ]
    text = [("generate", "--model", model, "--new", "128") for model in _GENERATED]
    return [
        probe,
        Stage(name="check", jobs=_gpu(120, "check", default_subjects(kind)), width=SIDE_BY_SIDE),
        Stage(name="kernels", jobs=jobs(60, *layers[:FIRST_LAYERS])),
        Stage(name="generate", jobs=jobs(150, text[0])),
        Stage(name="sanitize", jobs=_gpu(70, "sanitize", ("memcheck", "racecheck"))),
        Stage(name="rates", jobs=_gpu(60, "rates", ("",))),
        Stage(name="isolated", jobs=_gpu(45, "isolated", GPU_SHAPES)),
        Stage(name="tune", jobs=_gpu(45, "tune", GPU_SHAPES)),
        Stage(name="more kernels", jobs=jobs(60, *layers[FIRST_LAYERS:])),
        Stage(name="more text", jobs=jobs(300, *text[1:])),
    ]


_GENERATED = ("llama-7b", "llama-13b", "llama-30b")
# A CPU shows a step of LLaMA-7B on two of its blocks.
_TWO_BLOCKS = ("--layers", "2", "--new", "16", "--weights", "fp16,gptq-w4,squeezellm-w3")


def _gpu(limit_s: float, stage: str, each: Iterable[str]) -> tuple[Job, ...]:
    return tuple(
        Job(module="bench.gpu", arguments=tuple(filter(None, (stage, word))), limit_s=limit_s)
        for word in each
    )


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

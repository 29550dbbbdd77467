"""Started by test_crash.py: kill runs at random moments, let several write at once.

The parent imports everything once and starts each run by fork, so that a run takes milliseconds
and most of it is work, not imports.
"""

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import torch

from quantizer.checkpoints.checkpoint import open_checkpoint
from quantizer.checkpoints.checkpoint_model import load_model
from quantizer.evaluation.calibration import load_calibration
from quantizer.methods.matrix import Settings
from quantizer.run.pipeline import Job, quantize
from quantizer.sensitivity.choose import uniform_settings


def start(job: Job) -> int:
    """A run in a process of its own."""
    pid = os.fork()
    if pid == 0:
        try:
            quantize(job)
        except BaseException as error:
            print(error, file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return pid


def ended_well(pid: int) -> bool:
    """False if the run was killed; one that fails by itself ends everything."""
    _, status = os.waitpid(pid, 0)
    if not os.WIFSIGNALED(status) and os.WEXITSTATUS(status):
        raise SystemExit("a run failed")
    return not os.WIFSIGNALED(status)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def check_same(job: Job, whole: dict[str, bytes]) -> None:
    found = contents(job.out)
    if found != whole:
        names = [name for name in {*found, *whole} if found.get(name) != whole.get(name)]
        raise SystemExit(f"{job.out}: differs from a whole run in {names}")


def kill_at_random(job: Job, whole: dict[str, bytes], whole_s: float, kills: int) -> None:
    """Kill so many runs; one that ends before its kill is checked, and work starts anew."""
    moments = random.Random(0)  # noqa: S311
    for _ in range(kills):
        while True:
            pid = start(job)
            time.sleep(moments.uniform(0, whole_s))
            os.kill(pid, signal.SIGKILL)
            if not ended_well(pid):
                break
            check_same(job, whole)
            shutil.rmtree(job.out)
    ended_well(start(job))
    check_same(job, whole)


def main(model: Path, ids: Path, folder: Path, kills: int) -> None:
    torch.set_num_threads(1)
    checkpoint = open_checkpoint(model)
    load_model(model)  # imports what the runs need
    calibration = load_calibration(ids, model, "c4-100x512", longest=32, vocabulary=64)
    for name in ("rtn-w4", "gptq-w4"):
        settings = uniform_settings(checkpoint, Settings(format=name))
        job = Job(source=model, out=folder / name, settings=settings, calibration=calibration)
        begin = time.perf_counter()
        ended_well(start(job))
        whole_s = time.perf_counter() - begin
        whole = contents(job.out)
        shutil.rmtree(job.out)
        kill_at_random(job, whole, whole_s, kills)
        shutil.rmtree(job.out)
        for pid in [start(job) for _ in range(3)]:
            ended_well(pid)
        check_same(job, whole)
        print(name, "killed", kills)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))

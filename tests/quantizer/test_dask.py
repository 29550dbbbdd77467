"""A real scheduler and two workers on loopback: a worker and the driver die, the bytes do not."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from quantizer.run.pipeline import quantize
from tests.quantizer.models import write_model
from tests.quantizer.test_pipeline import contents, job_of

pytest.importorskip("distributed", reason="needs the extra `dist`")

ROOT = Path(__file__).parents[2]
BLOCKS = 24
PATIENCE_S = 120


def start(stack: ExitStack, *command: str) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", *command], cwd=ROOT, env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    stack.callback(process.wait)
    stack.callback(process.kill)
    return process


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(condition, what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"no {what} after {PATIENCE_S} s"
        time.sleep(0.01)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_cluster_that_loses_a_worker_and_its_driver_writes_the_same_bytes(tmp_path):
    source = write_model(tmp_path / "model", num_hidden_layers=BLOCKS)
    out, port = tmp_path / "out", free_port()
    address = f"127.0.0.1:{port}"
    command = ["quantizer", "quantize", str(source), "--method", "rtn", "--bits", "4"]
    command += ["--out", str(out), "--executor", f"dask://{address}"]
    with ExitStack() as stack:
        start(stack, "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(port),
              "--no-dashboard", "--no-show")  # fmt: skip
        wait_for(lambda: listens(port), "scheduler")
        workers = [
            start(stack, "distributed.cli.dask_worker", f"tcp://{address}", "--no-dashboard",
                  "--host", "127.0.0.1", "--nthreads", "1", "--no-nanny",
                  "--local-directory", str(tmp_path))
            for _ in range(2)
        ]  # fmt: skip
        driver = start(stack, *command)
        wait_for(lambda: len(list(out.glob("ledger/*.json"))) >= 2, "finished block")
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        workers[0].send_signal(signal.SIGKILL)
        assert not (out / "config.json").exists()
        resumed = start(stack, *command)
        assert resumed.wait(PATIENCE_S) == 0
    quantize(job_of(source, tmp_path / "serial", "rtn-w4"))
    assert contents(out) == contents(tmp_path / "serial")

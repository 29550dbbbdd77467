"""Executors: results, retries, processes that die, requests to stop."""

import os
import signal
from pathlib import Path

import pytest

from quantizer.errors import OutputError, UsageError
from quantizer.run.executors import ATTEMPTS, run_tasks


def count_attempt(folder: str, name: str) -> int:
    """Attempts at a task so far, kept in files: the processes share nothing else."""
    attempts = len(list(Path(folder).glob(f"{name}.*")))
    (Path(folder) / f"{name}.{attempts}.{os.getpid()}").touch()
    return attempts + 1


def work(task: tuple[str, str, str]) -> str:
    """ok: a result. raise, kill: always so. raise-once, kill-once: at the first attempt."""
    folder, name, what = task
    attempt = count_attempt(folder, name)
    if what == "kill" or (what == "kill-once" and attempt == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "raise" or (what == "raise-once" and attempt == 1):
        raise RuntimeError(f"{name} fails")
    if what == "full":
        raise OutputError("disk is full")
    return name


def run(spec, folder, kinds, stopping=bool):
    seen = []
    tasks = [(str(folder), f"t{index}", kind) for index, kind in enumerate(kinds)]
    outcome = run_tasks(spec, work, tasks, on_result=seen.append, stopping=stopping)
    assert seen == outcome.results
    return outcome


def test_a_serial_run_retries_and_then_goes_on(tmp_path):
    outcome = run("serial", tmp_path, ["ok", "raise-once", "raise", "ok"])
    assert outcome.results == ["t0", "t1", "t3"]
    assert [(f.task[1], f.reason) for f in outcome.failures] == [("t2", "RuntimeError: t2 fails")]
    assert len(list(tmp_path.glob("t2.*"))) == ATTEMPTS


def test_processes_that_die_cost_a_retry_and_not_the_run(tmp_path):
    outcome = run("local:2", tmp_path, ["ok", "kill-once", "raise-once", "kill", "ok"])
    assert sorted(outcome.results) == ["t0", "t1", "t2", "t4"]
    assert [failure.task[1] for failure in outcome.failures] == ["t3"]
    assert "BrokenProcessPool" in outcome.failures[0].reason
    assert len(list(tmp_path.glob("t3.*"))) == ATTEMPTS


def test_an_error_that_no_retry_mends_ends_the_run(tmp_path):
    with pytest.raises(OutputError, match="disk is full"):
        run("serial", tmp_path, ["ok", "full", "ok"])
    assert not list(tmp_path.glob("t2.*"))


def test_a_request_to_stop_finishes_what_is_in_work(tmp_path):
    begun = tmp_path.iterdir
    outcome = run("serial", tmp_path, ["ok"] * 3, stopping=lambda: len(list(begun())) >= 2)
    assert (outcome.results, outcome.stopped) == (["t0", "t1"], True)


@pytest.mark.parametrize("spec", ["", "locl", "local:0", "local:x", "dask://", "dask://h", "ray"])
def test_unknown_executors_are_refused(spec, tmp_path):
    with pytest.raises(UsageError, match="no executor"):
        run(spec, tmp_path, ["ok"])


def test_a_scheduler_that_is_not_there_is_said_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("quantizer.run.executors.WAIT_S", 0.5)
    with pytest.raises(UsageError, match="no scheduler answers"):
        run("dask://127.0.0.1:1", tmp_path, ["ok"])

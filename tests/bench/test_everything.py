"""`bench all`: the plan, the clock, jobs that crash or hang, and starting again."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import everything
from bench.account import account, failures
from bench.cli import main
from bench.cores import cores_allowed
from bench.everything import Job, Stage, run, run_job
from bench.folder import LINES, ResultsFolder, read_lines
from bench.plan import plan
from perfmodel.errors import UsageError
from perfmodel.show.tables import as_text

JOB = """
import json, sys, time
from pathlib import Path
from bench.folder import ResultsFolder
action, number, _, out = sys.argv[1:]
results = ResultsFolder(Path(out))
for step in range(3):
    key = f"{number}/{step}"
    if not results.is_done(key):
        results.add_line({"kind": "step", "key": key})
    if action == "hang" and step == 1: time.sleep(60)
    if action == "crash" and step == 1: sys.exit(3)
"""
COMMAND = (sys.executable, "-c", JOB)


def a_job(*arguments, limit_s=60.0):
    return Job(arguments=arguments, limit_s=limit_s)


def run_one(folder, job, *, seconds_left=100.0):
    run_job(job, ResultsFolder(folder), lambda: seconds_left, COMMAND)
    return read_lines(folder / LINES)


def test_lines_of_a_job_are_kept_and_the_job_is_done(tmp_path):
    *steps, line = run_one(tmp_path, a_job("fine", "1"))
    assert [step["key"] for step in steps] == ["1/0", "1/1", "1/2"]
    assert (line["key"], line["exit_code"]) == ("job:fine 1", 0)


def test_a_job_that_crashes_keeps_its_lines_and_goes_on_where_it_was(tmp_path):
    *steps, line = run_one(tmp_path, a_job("crash", "1"))
    assert [step["key"] for step in steps] == ["1/0", "1/1"]
    assert (line["exit_code"], line["reason"], "key" in line) == (3, "failed", False)
    assert failures([line]) == ["crash 1: exit code 3"]
    lines = run_one(tmp_path, a_job("fine", "1"))
    keys = [line["key"] for line in lines if line["kind"] == "step"]
    assert keys == ["1/0", "1/1", "1/2"]  # nothing twice, nothing lost


def test_a_job_that_hangs_is_ended_in_time(tmp_path, monkeypatch):
    monkeypatch.setattr(everything, "LEAST_S", 0.1)
    start = time.monotonic()
    *steps, line = run_one(tmp_path, a_job("hang", "1", limit_s=2))
    assert time.monotonic() - start < 30
    assert (line["exit_code"], line["reason"]) == (-9, "stopped after 2 s")
    assert len(steps) <= 2
    assert failures([line]) == []  # it may go on next time


def test_a_job_without_time_is_skipped(tmp_path):
    (line,) = run_one(tmp_path, a_job("fine", "1"), seconds_left=3)
    assert line == {"kind": "skipped", "name": "fine 1", "reason": "no time left"}
    assert "no time left" in as_text(account([line], []))


def test_jobs_that_are_done_are_not_run_again(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(everything, "run_job", lambda job, *_: ran.append(job.name))
    results = ResultsFolder(tmp_path)
    results.add_line({"kind": "job", "key": a_job("fine", "1").key})
    stages = [
        Stage(name="a", jobs=(a_job("fine", "1"), a_job("fine", "2")), width=2),
        Stage(name="b", jobs=(a_job("fine", "3"),)),
    ]
    run(stages, results, time.monotonic() + 100)
    assert ran == ["fine 2", "fine 3"]


CHILD = """
import time
from bench.cli import die_with_parent
die_with_parent()
print("ready", flush=True)
time.sleep(60)
"""
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
print(child.pid, flush=True)
child.wait()
"""


def is_gone(stat):
    """Whether a process has ended, by its file in /proc; a zombie has."""
    try:
        return ") Z " in stat.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux tells a process of its parent's end"
)
def test_killing_the_run_ends_its_job():
    command = [sys.executable, "-c", PARENT, CHILD]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        child = Path("/proc") / parent.stdout.readline().strip() / "stat"
        assert parent.stdout.readline() == "ready\n"
        parent.kill()
    deadline = time.monotonic() + 10
    while not is_gone(child):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_interrupt_ends_the_job_too(tmp_path, monkeypatch):
    waits = []
    really_wait = everything.subprocess.Popen.wait

    def interrupted(job, *rest, **options):
        waits.append(job)
        if len(waits) == 1:
            raise KeyboardInterrupt
        return really_wait(job, *rest, **options)

    monkeypatch.setattr(everything.subprocess.Popen, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_one(tmp_path, a_job("hang", "1"))
    assert waits[0].returncode == -9


@pytest.mark.parametrize(("kind", "first"), [("cpu", "probe --device cpu"), ("cuda", "rates")])
def test_the_plan_begins_with_the_roofs_and_names_no_job_twice(kind, first):
    names = [job.name for stage in plan(kind) for job in stage.jobs]
    assert names[0] == first
    assert len(set(names)) == len(names)


def test_timing_jobs_run_alone():
    assert [stage.name for stage in plan("cuda") if stage.width > 1] == ["check", "sanitize"]


def test_the_plan_can_be_read_beforehand(capsys):
    assert main(["all", "--plan", "--device", "cpu", "--threads", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "probe --device cpu --threads 1 (at most 120 s, 1 side by side)"


def test_every_command_of_the_plan_is_one_that_the_command_line_knows():
    from bench.cli import build_parser
    from bench.gpu.__main__ import STAGES
    from bench.kernels.subjects import subject
    from bench.kernels.suite import choose_layers

    for stage in (*plan("cpu", threads=1), *plan("cuda")):
        for job in stage.jobs:
            if job.module == "bench":
                args = build_parser().parse_args([*job.arguments, "--out", "x"])
                if job.arguments[0] == "kernels":
                    assert choose_layers(args.layers)
                    assert all(subject(name).weights for name in args.subjects or ())
            else:
                assert job.arguments[0] in STAGES


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["all", "--minutes", "-1"], "found -1, expected minutes above 0"),
        (["kernels", "--device", "cpu", "--out", "/dev/null/x"], "cannot hold results"),
        (["kernels", "--device", "cpu", "--subjects", "foo"], "no weight format 'foo'"),
        (["probe", "--device", "cpu", "--threads", "999"], "this process may use"),
    ],
)
def test_wrong_arguments_end_in_one_line(arguments, problem, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bench.cores.use_threads", _refuse_too_many)
    try:
        code = main(arguments)
    except SystemExit as ended:
        code = ended.code
    captured = capsys.readouterr()
    assert code == 2
    assert problem in captured.err
    assert len(captured.err.splitlines()) == 1


def _refuse_too_many(threads):
    """`use_threads` without its effect on the process of the tests."""
    if threads and threads > len(cores_allowed()):
        raise UsageError(f"--threads {threads}: this process may use {len(cores_allowed())} cores")

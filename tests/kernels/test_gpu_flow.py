"""The commands of `bench all` on a GPU, run for their control flow on a CPU that plays one."""

import sys
from types import SimpleNamespace

import pytest
import torch

from bench import all_command, timing
from bench.cli import main
from bench.folder import LINES, read_environments, read_lines, read_measurements
from bench.gpu import __main__ as gpu_main
from bench.gpu import ncu, rates, sanitize, stages
from bench.probe import measure as probe
from bench.timing import cuda_graph_sampler
from tests.kernels.fake_cuda import fake_cuda

SUBJECTS = "fp16:library,fp16,squeezellm-w3"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A results folder of a GPU that is this CPU; small roofs, few decoders, no launch overlap."""
    monkeypatch.setattr("bench.session.os", SimpleNamespace(environ={}))  # interpreted: wanted here
    monkeypatch.setenv("MEMWALL_HOST", str(tmp_path / "results" / "host.yaml"))
    monkeypatch.setattr("shutil.which", lambda _name: None)  # no nvidia-smi, ncu, sanitizer
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr(rates, "nothing", {(1,): lambda *_, **__: None})
    monkeypatch.setattr(
        rates, "instruction_seconds", lambda name: 2e-12 if name == "PRMT" else 1e-12
    )
    monkeypatch.setattr(stages, "instruction_seconds", rates.instruction_seconds)
    monkeypatch.setattr(stages, "REPEATS", 2)
    monkeypatch.setattr(stages, "CHECK_SHAPES", ((3, 100),))
    monkeypatch.setattr(probe, "CUDA_READ_MIB", (0.25, 0.5))
    monkeypatch.setattr(probe, "CUDA_MATMUL", {"fp32": 16, "fp16": 16})
    monkeypatch.setattr(probe, "AIMED", ("squeezellm-w3", "fp16:library:batch4"))
    monkeypatch.setattr(probe, "COLUMNS", 256)
    monkeypatch.setattr(probe, "MOST_ROWS", 4)
    monkeypatch.setattr(probe, "FEWEST_ROWS", 4)
    monkeypatch.setattr(timing, "LEAST_LAUNCHES", 1)  # the interpreter is slow
    with fake_cuda(monkeypatch):
        yield tmp_path / "results"


def run_gpu(folder, *words, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["bench.gpu", *words, "--out", str(folder)])
    return gpu_main.main()


def test_the_commands_of_a_run_leave_a_report_and_say_what_is_missing(folder, monkeypatch, capsys):
    assert main(["probe", "--device", "cuda", "--out", str(folder)]) == 0
    (environment,) = read_environments(folder).values()
    assert (environment.kind, environment.device) == ("cuda", "h200")
    probed = {m.params.get("mode") for m in read_measurements(folder) if m.name == "launch"}
    assert probed == {"graph", "eager", "graph-triton", "graph-overlapped"}

    layers = ["--layers", "4x256,8x256", "--subjects", SUBJECTS]
    assert main(["kernels", "--device", "cuda", "--out", str(folder), *layers]) == 0
    found = {m.name for m in read_measurements(folder) if m.suite == "kernels"}
    assert found == {"fp16", "squeezellm-w3"}
    refused = {m.refused for m in read_measurements(folder)}
    assert refused == {None}
    reasons = {
        line["name"]: line["reason"] for line in read_lines(folder / LINES) if "reason" in line
    }
    assert reasons["marlin-int4"] == "marlin is not installed"

    for words in (("rates",), ("check", "squeezellm-w3"), ("isolated", "4x256")):
        monkeypatch.setattr(stages, "AIMED", ("squeezellm-w3",))
        monkeypatch.setattr(stages, "isolated_s", lambda *_, repeats: [1e-6] * repeats)
        assert run_gpu(folder, *words, monkeypatch=monkeypatch) == 0

    monkeypatch.setattr(all_command, "plan", lambda *_, **__: [])
    code = main(["all", "--minutes", "1", "--device", "cuda", "--out", str(folder)])
    table = " ".join((folder / "table.txt").read_text().split())
    assert code == 0, table
    assert "correctness against FP64: 1 right, 0 wrong" in table
    assert "PRMT 64.0 64" in table
    assert "graph-overlapped" in table
    assert "missing" in table
    names = {path.name for path in folder.iterdir()}
    report = {"report-h200.html", "report-h200.md", "report-h200.json"}
    assert names == {"results.jsonl", "host.yaml", "table.txt", *report}
    assert (
        '"command": "python -m bench all --minutes 1"' in (folder / "report-h200.json").read_text()
    )
    assert "python -m bench" not in capsys.readouterr().err


def test_a_tool_that_is_not_installed_is_said(folder, monkeypatch):
    assert run_gpu(folder, "sanitize", "memcheck", monkeypatch=monkeypatch) == 0
    assert run_gpu(folder, "profile", "squeezellm-w3", "24x256", monkeypatch=monkeypatch) == 0
    lines = {line["kind"]: line for line in read_lines(folder / LINES)}
    assert lines["sanitizer"]["detail"] == "compute-sanitizer is not installed"
    assert lines["ncu"]["text"] == "ncu is not installed"


def test_what_the_tools_run(folder, monkeypatch):
    """`touch` and `once`, without their tools."""
    monkeypatch.setattr(
        sanitize, "default_subjects", lambda _kind: ("fp16:library", "squeezellm-w3")
    )
    monkeypatch.setattr(sanitize, "TOUCH_SHAPES", ((3, 100),))
    assert run_gpu(folder, "touch", monkeypatch=monkeypatch) == 0
    assert [line["name"] for line in read_lines(folder / LINES) if line["kind"] == "check"] == [
        "squeezellm-w3"
    ]
    profiled = []
    profiler = SimpleNamespace(profile=lambda: profiled.append(1) or torch.no_grad())
    monkeypatch.setattr(ncu.torch.cuda, "profiler", profiler)
    assert run_gpu(folder, "once", "squeezellm-w3", "3x100", monkeypatch=monkeypatch) == 0
    assert profiled == [1]


def test_a_graph_holds_whole_rounds_of_the_copies(monkeypatch):
    calls = []
    with fake_cuda(monkeypatch):
        seconds = cuda_graph_sampler(calls.append, 7)()
    captured = calls[3:]  # after the warm-up
    assert captured == [*range(7)] * 8  # 56, the first whole round beyond 50
    assert seconds == pytest.approx(1e-3 / 56)

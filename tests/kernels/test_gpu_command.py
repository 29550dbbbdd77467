"""What of a GPU's stages can be tested without one: kernels in the interpreter, wiring, SASS."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.account import account, failures
from bench.environment import Environment
from bench.folder import LINES, ResultsFolder, read_lines, read_measurements
from bench.gpu import isolated, rates, sanitize, stages
from bench.kernels import contest
from bench.kernels.check import check
from bench.kernels.prepare import clone, prepare
from bench.kernels.subjects import default_subjects, subject

ROOT = Path(__file__).parents[2]
GPU = Environment(
    kind="cuda", device="toy", device_name="Toy", cache_bytes=1000, cores=4, threads=1, driver={},
    packages={}, python="3", system="", commit=None, dirty=False, date_utc="2026-11-22",
)  # fmt: skip


WIDE = ("squeezellm-w5-s0.45-hybrid", "squeezellm-w6:batch4", "gptq-w7:int")


@pytest.mark.parametrize("name", [*default_subjects("cuda"), *WIDE])
def test_every_subject_runs_and_is_right(name):
    prepared = prepare(subject(name), (3, 200), "cuda", device="cpu")
    found = check(prepared)
    assert found.ok, found


def test_a_wrong_kernel_is_found():
    prepared = prepare(subject("fp16:library"), (6, 300), "cuda", device="cpu")
    calls = []

    def wrong(_x, _weights, out, _counters):
        calls.append(1)
        out._base[0] = 1.0  # outside the output
        return out.copy_(torch.full_like(out, float(len(calls))))

    assert check(replace(prepared, run=wrong)).why == (
        "error, differs from run to run, wrote outside its output"
    )


def test_a_clone_shares_no_memory():
    prepared = prepare(subject("squeezellm-w3-s0.45-hybrid"), (12, 256), "cuda", device="cpu")
    weight, sparse = prepared.weights
    copy, sparse_copy = clone(weight), clone(sparse)
    assert torch.equal(copy.codes.words, weight.codes.words)
    assert copy.codes.words.data_ptr() != weight.codes.words.data_ptr()
    assert copy.codebook.table.data_ptr() != weight.codebook.table.data_ptr()
    assert sparse_copy.dense_rows.values.data_ptr() != sparse.dense_rows.values.data_ptr()
    assert sparse_copy.shape == sparse.shape


def test_kernels_between_two_flushes_belong_to_one_call():
    kernels = [("read_all", 9.0), ("a", 1.0), ("b", 2.0), ("read_all", 9.0), ("a", 4.0)]
    assert isolated.seconds_between(kernels, marker="read_all") == [3.0, 4.0]


# ---- the stages, on CPU tensors ----------------------------------------------------------------


def a_microsecond(call, _copies):
    call(0)
    return lambda: 1e-6


def two_microseconds(call, _l2_bytes, *, repeats):
    call()
    return [2e-6] * repeats


@pytest.fixture
def without_gpu(monkeypatch):
    """The stages on CPU tensors, three kernels, a microsecond per launch."""
    names = ("fp16:library", "squeezellm-w4-u7:int", "squeezellm-w3:batch4")

    def on_cpu(asked, shape, kind, **rest):
        return prepare(asked, shape, kind, **{**rest, "device": "cpu"})

    monkeypatch.setattr(stages, "prepare", on_cpu)
    monkeypatch.setattr(stages, "AIMED", names)
    monkeypatch.setattr(stages, "TUNED", ("squeezellm-w4-u7:int",))
    monkeypatch.setattr(stages, "TUNED_WARPS", (4,))
    monkeypatch.setattr(stages, "REPEATS", 1)  # the interpreter is slow
    monkeypatch.setattr(stages, "cuda_graph_sampler", a_microsecond)
    monkeypatch.setattr(stages, "isolated_s", two_microseconds)
    monkeypatch.setattr(contest, "throttle_reasons", lambda: ["hw_slowdown"])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    return names


@pytest.mark.usefixtures("without_gpu")
def test_a_check_leaves_a_line_per_shape(tmp_path):
    stages.check_subject(GPU, ResultsFolder(tmp_path), "fp16:library", shapes=((3, 200), (5, 64)))
    lines = read_lines(tmp_path / LINES)
    assert [(line["shape"], line["ok"]) for line in lines] == [("3x200", True), ("5x64", True)]
    (table,) = account(lines, [])
    assert table.head == ["correctness against FP64: 2 right, 0 wrong"]


def test_single_calls_are_kept_once_and_refused_when_throttled(without_gpu, tmp_path):
    stages.isolated(GPU, ResultsFolder(tmp_path), "3x200")
    found = read_measurements(tmp_path)
    assert [m.name for m in found] == [subject(name).weights for name in without_gpu]
    assert {m.refused for m in found} == {"throttled: hw_slowdown"}
    assert found[0].bytes_moved == 2 * (3 * 200 + 200 + 3)
    before = len(read_lines(tmp_path / LINES))
    stages.isolated(GPU, ResultsFolder(tmp_path), "3x200")
    assert len(read_lines(tmp_path / LINES)) == before


@pytest.mark.usefixtures("without_gpu")
def test_tuning_tries_both_steps_and_leaves_the_table_as_it_was(tmp_path):
    before = dict(stages.configs.LAUNCH_TABLES)
    stages.tune(GPU, ResultsFolder(tmp_path), "3x200")
    (line,) = read_lines(tmp_path / LINES)
    assert line["shipped"] in line["seconds_by_setting"]
    assert {"warps 4 u7", "warps 4 u7sum"} < set(line["seconds_by_setting"])
    assert before == stages.configs.LAUNCH_TABLES
    assert account([line], [])[0].rows[0]["kernel"] == "squeezellm-w4-u7:int"


def test_sanitizer_output_is_summed_up():
    found = sanitize.sanitizer_result(
        "touched fp16\n========= Invalid __global__ write of size 4 bytes\n"
        "=========     at exact_gemv+0x120\n========= ERROR SUMMARY: 3 errors\n"
    )
    assert found == {"errors": 3, "detail": "at exact_gemv+0x120", "touched": 1}
    assert failures([{"kind": "sanitizer", "tool": "memcheck", **found}]) == [
        "memcheck: at exact_gemv+0x120"
    ]
    assert sanitize.sanitizer_result("")["errors"] is None
    assert "stopped after 0 kernels" in sanitize.sanitizer_result("")["detail"]


# ---- the microbenchmarks' machine code ---------------------------------------------------------

COUNT_SASS = """
import json
from bench.gpu.rates import STEPS, block
from kernels.case import KernelCase
from kernels.compile_report import compile_case, run_tool
from kernels.sass import base_counts, parse
out = {}
for name, (_, opcode, _) in STEPS.items():
    case = KernelCase(
        name=name, module="bench.gpu.rates", function="instruction_loop", weight_bits=1,
        weights_per_iteration=1, signature={"out_ptr": "*i32", "in_ptr": "*i32", "trips": "i32"},
        constexprs={"TEXT": block(name), "THREADS": 256}, num_warps=8,
    )
    program = parse(run_tool("nvdisasm", compile_case(case, "sm_90").asm["cubin"], "-c"))
    (loop,) = program.innermost_loops
    body = program.instructions[loop.start : loop.stop]
    out[name] = [base_counts(body)[opcode], len(body)]
case = KernelCase(
    name="nothing", module="bench.gpu.rates", function="nothing", weight_bits=1,
    weights_per_iteration=1, signature={"x_ptr": "*i32"}, constexprs={"OVERLAP": True}, num_warps=1,
)
out["overlapped"] = compile_case(case, "sm_90").asm["ptx"]
print(json.dumps(out))
"""


def test_a_microbenchmark_runs_the_instructions_it_counts():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-c", COUNT_SASS], cwd=ROOT, env=environment, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    expected = rates.ROUNDS * rates.CHAINS
    found = json.loads(run.stdout)
    assert "griddepcontrol.wait" in found.pop("overlapped")
    for name, (count, length) in found.items():
        assert expected <= count <= expected + 8, name  # LOP3 also joins the chains at the end
        most = {"LDS": 1.55, "BMMA": 1.1}.get(name, 1.04)  # an XOR each; moves to a new round
        assert length <= most * expected, name

"""What of the GPU command can be tested without a GPU: plan, clock, table, wiring, machine code."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bench import gpu, gpu_rates, gpu_subjects, gpu_table, gpu_timing, gpu_worker

ROOT = Path(__file__).parents[2]


def run_shell(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    clean = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "OUT")}
    return subprocess.run(
        ["bash", "bench/gpu.sh", *arguments],
        cwd=ROOT,
        env={**clean, "PYTHON": sys.executable, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


# ---- the command -------------------------------------------------------------------------------


def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    run = run_shell(str(tmp_path / "results"))
    assert (run.returncode, run.stdout) == (0, "skipped: no CUDA device\n")
    assert not (tmp_path / "results").exists()


def test_the_plan_is_printed_most_important_first():
    run = run_shell("--plan", "--kernels", "lut4-fp16-exact", "--shapes", "64x128")
    jobs = [line.split(" (")[0] for line in run.stdout.splitlines()]
    assert jobs == [
        "probe", "check lut4-fp16-exact", "cold 64x128", "sanitize memcheck", "sanitize racecheck",
        "tune 64x128", "isolated 64x128",
    ]  # fmt: skip


def test_usage_errors_are_answered():
    assert "TRITON_INTERPRET=1 is set" in run_shell("--plan", TRITON_INTERPRET="1").stderr
    run = run_shell("--plan", "--kernels", "lut5")
    assert run.returncode == 2
    assert "no kernel lut5; have: cublas-fp16" in run.stderr


def test_results_go_to_the_folder_named_out(tmp_path, monkeypatch):
    monkeypatch.setenv("OUT", str(tmp_path))
    assert gpu.parser().parse_args([]).folder == tmp_path


WORKER = """
import json, sys, time
print("noise that is no JSON")
print(json.dumps({"kind": "check", "kernel": sys.argv[2], "ok": True}), flush=True)
if sys.argv[1] == "hang": time.sleep(60)
sys.exit(3 if sys.argv[1] == "crash" else 0)
"""


def run_worker(tmp_path, stage: str, seconds_left: float = 100, limit_s: float = 100) -> list[dict]:
    results = gpu.Results(tmp_path)
    job = gpu.Job(arguments=(stage, "toy"), limit_s=limit_s)
    gpu.run_job(job, results, lambda: seconds_left, (sys.executable, "-c", WORKER))
    on_disk = (tmp_path / "results.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in on_disk] == results.lines
    return results.lines


def test_lines_of_a_worker_are_kept(tmp_path):
    check, job = run_worker(tmp_path, "fine")
    assert check == {"kind": "check", "kernel": "toy", "ok": True}
    assert (job["job"], job["exit_code"]) == ("fine toy", 0)


def test_a_worker_that_crashes_leaves_its_lines_and_a_reason(tmp_path):
    check, job = run_worker(tmp_path, "crash")
    assert check["ok"]
    assert (job["exit_code"], job["reason"]) == (3, "failed")


def test_a_worker_that_hangs_is_ended_in_time(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "LEAST_S", 0.1)
    start = time.monotonic()
    _, job = run_worker(tmp_path, "hang", limit_s=2)
    assert time.monotonic() - start < 20
    assert (job["exit_code"], job["reason"]) == (-9, "stopped after 2 s")


def test_a_job_without_time_is_skipped(tmp_path):
    (line,) = run_worker(tmp_path, "fine", seconds_left=3)
    assert line == {"kind": "skipped", "job": "fine toy", "reason": "no time left"}


def a_job(*arguments: str) -> gpu.Job:
    return gpu.Job(arguments=arguments, limit_s=60)


def test_stages_run_in_order_and_leave_a_table(tmp_path):
    stages = [
        gpu.Stage(name="a", jobs=(a_job("fine", "1"), a_job("fine", "2")), width=2),
        gpu.Stage(name="b", jobs=(a_job("crash", "3"),)),
    ]
    results = gpu.Results(tmp_path)
    gpu.run(stages, results, 120, (sys.executable, "-c", WORKER))
    jobs = [line["job"] for line in results.lines if line["kind"] == "job"]
    assert set(jobs[:2]) == {"fine 1", "fine 2"}
    assert jobs[2:] == ["crash 3"]
    assert "crash 3  failed" in (tmp_path / "table.txt").read_text()


# ---- the table ---------------------------------------------------------------------------------


def timing(kernel: str, seconds: float, size: int, **changes) -> dict:
    line = {"kind": "cold", "kernel": kernel, "shape": "22016x4096", "batch": 1, "flag": ""}
    return {**line, "bytes": size, "samples_s": [seconds] * 4, **changes}


LINES = [
    {"kind": "environment", "gpu": "Toy", "dram_bytes_per_s": 4.8e12, "driver": None},
    {"kind": "read_bandwidth", "bytes_per_s": 4.4e12},
    {"kind": "rate", "instruction": "PRMT", "lanes_per_clock_per_sm": 63.9, "assumed": 64},
    {"kind": "check", "kernel": "lut4", "shape": "37x1000", "ok": True, "error": 1e-4,
     "limit": 4e-3, "why": ""},
    {"kind": "check", "kernel": "lut3", "shape": "37x1000", "ok": False, "error": 0.5,
     "limit": 4e-3, "why": "error"},
    timing("cublas-fp16", 50e-6, 180_000_000),
    timing("lut3-fp16-exact", 10e-6, 36_000_000),
    timing("lut3-fp16-exact-csr", 10.9e-6, 38_000_000, flag="unsteady"),
    {"kind": "tune", "shape": "22016x4096", "kernel": "lut3", "shipped": "warps 13 u7",
     "seconds_by_setting": {"warps 13 u7": 10e-6, "warps 20 u7": 9e-6}},
    {"kind": "sanitizer", "tool": "memcheck", "errors": 0, "detail": ""},
    {"kind": "skipped", "job": "cold 64x64", "reason": "no time left"},
]  # fmt: skip


def test_table_of_everything():
    text = gpu_table.as_table(LINES)
    rows = [line.split() for line in text.splitlines()]
    assert "gpu Toy, dram_bytes_per_s 4800000000000.0" in text
    assert "correctness against FP64: 1 right, 1 wrong" in text
    # 36 MB in 10 us: 3600 GB/s, 75 % of 4.8 TB/s, 82 % of what reading reached, 5x cuBLAS
    assert ["22016x4096", "lut3-fp16-exact", "10.00", "0.0", "3600", "75", "82", "5.00"] in rows
    assert rows[text.splitlines().index(next(t for t in text.splitlines() if "unsteady" in t))]
    assert "lut3-fp16-exact 22016x4096: share of peak" in text
    assert ["lut3-fp16-exact-csr", "over", "lut3-fp16-exact", "22016x4096", "<=", "1.10",
            "1.09"] in rows  # fmt: skip
    assert ["PRMT", "63.9", "64"] in rows
    assert ["22016x4096", "lut3", "warps", "13", "u7", "10.00", "warps", "20", "u7",
            "9.00"] in rows  # fmt: skip
    assert ["cold", "64x64", "no", "time", "left"] in rows


def test_table_of_nothing_is_empty():
    assert gpu_table.as_table([]) == ""


# ---- timing rules ------------------------------------------------------------------------------


@pytest.mark.parametrize("weight_bytes", [1000, 6_400_000, 60_000_000, 500_000_000])
def test_copies_always_exceed_twice_the_l2(weight_bytes):
    copies = gpu_timing.copies_for(weight_bytes, l2_bytes=60 << 20)
    gpu_timing.assert_cold(copies, weight_bytes, 60 << 20)
    assert copies >= 2


def test_too_few_copies_are_refused():
    with pytest.raises(gpu_timing.NotColdError, match="2 copies of 1000 bytes are 2000, expected"):
        gpu_timing.assert_cold(2, 1000, 1000)


def test_kernels_between_two_flushes_belong_to_one_call():
    kernels = [("read_all", 9.0), ("a", 1.0), ("b", 2.0), ("read_all", 9.0), ("a", 4.0)]
    assert gpu_timing.seconds_between(kernels, "read_all") == [3.0, 4.0]


def test_a_clone_shares_no_memory():
    prepared = gpu_subjects.prepare(gpu_subjects.SUBJECTS["lut3-fp16-exact-csr"], (8, 256), "cpu")
    weight, sparse = prepared.weights
    copy, sparse_copy = gpu_subjects.clone(weight), gpu_subjects.clone(sparse)
    assert torch.equal(copy.codes.words, weight.codes.words)
    assert copy.codes.words.data_ptr() != weight.codes.words.data_ptr()
    assert copy.codebook.table.data_ptr() != weight.codebook.table.data_ptr()
    assert sparse_copy.dense_rows.values.data_ptr() != sparse.dense_rows.values.data_ptr()
    assert sparse_copy.shape == sparse.shape


def test_bytes_of_a_subject_are_those_it_stores():
    prepared = gpu_subjects.prepare(gpu_subjects.SUBJECTS["lut4-fp16-exact"], (8, 1024), "cpu")
    assert prepared.weight_bytes == 8 * (1024 // 2 + 16 * 2)


# ---- the wiring, in the interpreter ------------------------------------------------------------


@pytest.mark.parametrize("kernel", gpu_subjects.SUBJECTS)
def test_every_subject_runs_and_is_right(kernel, capsys, monkeypatch):
    monkeypatch.setattr(gpu_worker, "REPEATS", 1)  # the interpreter is slow
    gpu_worker.check(kernel, ((6, 300),), device="cpu")
    line = json.loads(capsys.readouterr().out)
    assert line["ok"], line


def test_a_wrong_kernel_is_found():
    prepared = gpu_subjects.prepare(gpu_subjects.SUBJECTS["cublas-fp16"], (6, 300), "cpu")
    calls = []

    def wrong(_x, _weights, out, _counters):
        calls.append(1)
        out.copy_(torch.full_like(out, float(len(calls))))
        out._base[0] = 1.0  # outside the output

    broken = gpu_subjects.Prepared(
        weights=prepared.weights, run=wrong, reference=prepared.reference
    )
    why = gpu_worker.check_one(broken, (6, 300), "cpu")["why"]
    assert why == "error, differs from run to run, wrote outside its output"


# ---- the microbenchmarks' machine code ---------------------------------------------------------

COUNT_SASS = """
import json
from bench.gpu_rates import STEPS, block
from kernels.case import KernelCase
from kernels.compile_report import compile_case, run_tool
from kernels.sass import base_counts, parse
out = {}
for name, (_, opcode, _) in STEPS.items():
    case = KernelCase(
        name=name, module="bench.gpu_rates", function="instruction_loop", weight_bits=1,
        weights_per_iteration=1, signature={"out_ptr": "*i32", "in_ptr": "*i32", "trips": "i32"},
        constexprs={"TEXT": block(name), "THREADS": 256}, num_warps=8,
    )
    program = parse(run_tool("nvdisasm", compile_case(case, "sm_90").asm["cubin"], "-c"))
    (loop,) = program.innermost_loops
    body = program.instructions[loop.start : loop.stop]
    out[name] = [base_counts(body)[opcode], len(body)]
print(json.dumps(out))
"""


def test_a_microbenchmark_runs_the_instructions_it_counts():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-c", COUNT_SASS], cwd=ROOT, env=environment, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    expected = gpu_rates.ROUNDS * gpu_rates.CHAINS
    for name, (count, length) in json.loads(run.stdout).items():
        assert expected <= count <= expected + 8, name  # LOP3 also joins the chains at the end
        assert length <= (1.55 if name == "LDS" else 1.04) * expected, name

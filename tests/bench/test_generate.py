"""The command `generate`: what it stores, what it skips and why, what its tables say."""

import json
import time

import pytest
from msgspec.structs import replace

from bench.cli import main
from bench.environment import this_environment
from bench.folder import ResultsFolder, read_lines, read_measurements
from bench.generate import measure as generate
from bench.generate.generation import Generation
from bench.generate.measure import prompt_tokens, totals
from bench.generate.source import GenerateOptions, Source, sources, workload
from bench.generate.text_check import TextCheck
from bench.generate.view import generate_table, paper_rows, paper_table, plain_name, row
from bench.measurement import Measurement
from perfmodel.errors import UsageError
from perfmodel.fit.measurement import load_measurements
from perfmodel.hardware import load_hardware
from perfmodel.models import load_model
from perfmodel.prediction import predict
from perfmodel.stack_files import load_stack
from tests.bench.test_decoder import write

LATER = float("inf")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return write(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(autouse=True)
def _compiled_kernels(monkeypatch):
    """Kernel tests ask for Triton's interpreter in the whole process."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def run(options, folder, deadline_s=LATER):
    return generate.run(options, this_environment("cpu"), ResultsFolder(folder), deadline_s)


def measured(name="fp16", seconds=3.0, **params):
    params = {
        "model": "llama-7b", "layers": 32, "prompt": 0, "new": 128, "batch": 1, "stack": "memwall",
    } | params  # fmt: skip
    facts = {
        "weights": "random weights", "peak_bytes": 3 * 10**9, "peak_counted_by": "tensors",
        "predicted_s": seconds / 2, "predicted_device": "a6000",
    }  # fmt: skip
    return Measurement(
        suite="generate", name=name, params=params, device="a6000", timing_mode="cuda-graph",
        l2_policy="cold", samples_s=(seconds,), bytes_moved=1, flops=1, facts=facts,
        environment="0",
    )  # fmt: skip


def test_every_run_and_every_step_is_kept_and_nothing_is_measured_twice(
    llama, tmp_path, monkeypatch
):
    options = GenerateOptions(
        model=str(llama), new=(3, 5), runs=2, hardware="a6000", stacks=("memwall", "hf-eager")
    )
    monkeypatch.setattr(generate, "_refusal", lambda *_: None)  # tests share the machine
    assert run(options, tmp_path) == []
    found = read_measurements(tmp_path)
    runs = [m for m in found if m.suite == "generate"]
    steps = [m for m in found if m.suite == "generate-step"]
    assert [(m.params["stack"], m.params["new"]) for m in runs] == [
        ("memwall", 3), ("memwall", 5), ("hf-eager", 3), ("hf-eager", 5),
    ]  # fmt: skip
    assert [len(m.samples_s) for m in runs] == [2] * 4
    assert [len(m.samples_s) for m in steps] == [6, 10, 6, 10]
    for whole, step in zip(runs, steps, strict=True):
        assert sum(whole.samples_s) == pytest.approx(sum(step.samples_s))
        facts = whole.facts
        assert facts["peak_bytes"] == facts["weight_bytes"] + facts["cache_bytes"]
        assert facts["predicted_s"] > 0
    monkeypatch.setattr(generate, "build", lambda *_, **__: pytest.fail("measured twice"))
    assert run(options, tmp_path) == []


def test_a_case_without_time_or_memory_is_skipped_with_the_reason(llama, tmp_path, monkeypatch):
    options = GenerateOptions(model=str(llama), new=(3,))
    monkeypatch.setattr(generate, "build", lambda *_, **__: pytest.fail("was loaded"))
    assert run(options, tmp_path, 0.0) == ["fp16, 3 new: no time left"]
    monkeypatch.setattr(generate, "free_bytes", lambda _: 1000)
    (reason,) = run(options, tmp_path)
    assert reason.startswith("fp16, 3 new: out of memory: needs 0.0 GB, 0.0 GB are free")
    kinds = [line["kind"] for line in read_lines(tmp_path / "results.jsonl")]
    assert kinds == ["environment", "skipped", "skipped"]


def test_a_case_that_would_end_too_late_is_skipped_after_its_warm_up(llama, tmp_path, monkeypatch):
    options = GenerateOptions(model=str(llama), new=(3,))
    monkeypatch.setattr(generate, "warm_up", lambda *_: 1000.0)
    (reason,) = run(options, tmp_path, time.monotonic() + 100)
    assert reason.startswith("fp16, 3 new: would take 3000 s, ")


def test_a_format_that_nothing_here_runs_is_skipped(tmp_path, monkeypatch):
    def refuse(*_args, **_options):
        raise UsageError("no numba twin reads it")

    monkeypatch.setattr(generate, "build", refuse)
    options = GenerateOptions(weights=("fp16", "gptq-w4"), layers=1, new=(1, 2))
    monkeypatch.setattr(generate, "free_bytes", lambda _: 10**12)
    skipped = run(options, tmp_path)
    assert len(skipped) == 4
    assert skipped[0] == "fp16, 1 new: no numba twin reads it"


@pytest.mark.parametrize(
    ("run_s", "waited", "refused"),
    [(1.0, 0.5, "waited for a core in 50% of a run"), (0.0, 0.0, "not positive"), (1.0, 0.0, None)],
)
def test_a_disturbed_run_is_kept_and_refused(llama, tmp_path, monkeypatch, run_s, waited, refused):
    options = GenerateOptions(model=str(llama), new=(3,), runs=2)
    found = Generation(prompt_s=0.0, run_s=run_s, step_s=(run_s,), waited=waited)
    monkeypatch.setattr(generate, "warm_up", lambda *_: 0.0)
    monkeypatch.setattr(generate, "timed_run", lambda *_: found)
    run(options, tmp_path)
    for case in read_measurements(tmp_path):
        assert ResultsFolder(tmp_path).is_done(case.key) is (refused is None)
        assert (case.refused is None) if refused is None else (refused in case.refused)


def test_traffic_is_what_the_prediction_counts():
    (source,) = sources(GenerateOptions(model="llama-7b", weights=("squeezellm-w3-s0.45",)))
    asked = workload(source, prompt=16, new=4)
    predicted = predict(asked, load_hardware("a6000"), load_stack("ideal"))
    assert totals(asked) == (predicted.bytes, predicted.flops)


def test_layers_of_several_formats_are_counted_as_loaded():
    shape = load_model("llama-7b")
    source = Source(shape=shape, format_name="mixed", origin="", load=None)
    weight_bytes = 2 * shape.parameters
    linear = workload(source, prompt=0, new=1, weight_bytes=weight_bytes).policy.linear
    assert (linear.name, linear.code_bits) == ("mixed", 16)


def test_prompts_end_in_a_pending_token_and_are_always_the_same():
    assert prompt_tokens(0, 10) == prompt_tokens(0, 10)
    assert len(prompt_tokens(5, 10)) == 6
    assert max(prompt_tokens(50, 10)) < 10


def test_speedups_compare_like_with_like():
    cases = [
        measured("fp16", 3.2),
        measured("gptq-w3", 1.4),
        measured("squeezellm-w3", 1.6),
        measured("squeezellm-w3", 1.0, stack="hf-eager"),
        measured("squeezellm-w3", 1.0, layers=2),
        replace(measured("squeezellm-w4", 1.0), refused="throttled"),
    ]
    rows = [row(case, cases) for case in cases]
    assert rows[2]["speedup_fp16"] == pytest.approx(2.0)
    assert rows[2]["speedup_gptq"] == pytest.approx(0.875)
    assert rows[2]["measured_over_predicted"] == 2.0
    assert [r["speedup_fp16"] for r in rows[3:]] == [None] * 3
    assert "squeezellm-w4, 128 new, is no result: throttled" in generate_table(cases).foot


def test_the_paper_stands_beside_ours():
    """SqueezeLLM, Table 3: LLaMA-7B, 128 tokens: FP16 3.2 s, 3-bit dense 1.5 s, 0.45 % 2.2 s."""
    cases = [
        measured("fp16", 1.0),
        measured("squeezellm-w3", 0.25),
        measured("squeezellm-w3-s0.45", 0.3),
        measured("squeezellm-w3", 0.1, layers=2),
        measured("squeezellm-w4", 0.3),
    ]
    rows = paper_rows(cases, load_measurements("squeezellm-2023"))
    assert [(r["weights"], r["paper_latency_s"]) for r in rows] == [
        ("fp16", 3.2), ("squeezellm-w3", 1.5), ("squeezellm-w3-s0.45", 2.2),
    ]  # fmt: skip
    assert rows[1]["speedup_fp16"] == 4.0
    assert rows[1]["paper_speedup_fp16"] == pytest.approx(3.2 / 1.5)
    assert paper_table(cases[3:]) is None


def test_names_are_compared_without_layout_and_accounting():
    assert plain_name("squeezellm-w3-s0.05-hybrid@released") == "squeezellm-w3-s0.05"


def test_the_command_prints_a_table_and_json(llama, tmp_path, capsys):
    command = ["generate", "--model", str(llama), "--new", "3", "--runs", "1", "--device", "cpu"]
    command += ["--out", str(tmp_path)]
    assert main(command) == 0
    shown = capsys.readouterr()
    assert "greedy decoding of one sequence, checkpoint llama" in shown.out
    assert "fp16, 3 new, memwall" in shown.err
    assert main([*command, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [r["weights"] for r in document["results"]] == ["fp16"]
    assert document["paper"] == []


def test_the_check_is_an_exit_code(llama, capsys, monkeypatch):
    assert main(["generate", "--model", str(llama), "--device", "cpu", "--check", "4"]) == 0
    assert "4 of 4 greedy tokens equal" in capsys.readouterr().out
    wrong = TextCheck(tokens=4, agreed=1, rounding=0.01, gap=1.0)
    monkeypatch.setattr("bench.generate.text_check.check_text", lambda *_, **__: wrong)
    assert main(["generate", "--model", str(llama), "--device", "cpu", "--check", "4"]) == 1
    assert "1 of 4 greedy tokens equal" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "code", "problem"),
    [
        (["--model", "llama-7"], 2, "no model 'llama-7'"),
        (["--weights", "squeezlm-w3"], 2, "no weight format"),
        (["--weights", "w4"], 2, "no kernel runs weights 'w4'"),
        (["--stack", "vllm"], 2, "no stack 'vllm' to run; have: memwall, hf-eager"),
        (["--layers", "33"], 2, "--layers 33: llama-7b has 32"),
        (["--new", "0"], 2, "found 0, expected a whole number from 1 on"),
        (["--new", "4096"], 2, "4096 tokens: llama-7b was made for 2048"),
        (["--check", "4"], 2, "--check: llama-7b is no checkpoint folder"),
        (["--hardware", "a600"], 2, "a6000"),
        (["--model", "."], 3, "config.json"),
    ],
)
def test_wrong_arguments_are_one_line(options, code, problem, tmp_path, capsys):
    command = ["generate", "--device", "cpu", "--out", str(tmp_path), *options]
    try:
        found = main(command)
    except SystemExit as stop:
        found = stop.code
    lines = capsys.readouterr().err.strip().splitlines()
    assert (found, len(lines)) == (code, 1)
    assert problem in lines[0]


def test_a_checkpoint_is_run_whole(llama):
    with pytest.raises(UsageError, match="--layers: a checkpoint is run whole"):
        list(sources(GenerateOptions(model=str(llama), new=(4,), layers=1)))

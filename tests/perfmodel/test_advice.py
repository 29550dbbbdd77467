"""Explanations, stacks side by side and recommendations, as a user would check them."""

import csv
import io
import json
import re

import pytest
from msgspec.structs import replace

from perfmodel.cli import main
from perfmodel.explain import explain
from perfmodel.hardware import load_hardware
from perfmodel.models import load_model
from perfmodel.prediction import predict
from perfmodel.quality import published
from perfmodel.stack_files import load_stack, stack_names
from perfmodel.workload import Workload
from tests.perfmodel.toys import ideal, policy, toy_workload

ASK = "recommend --gpu a5000 --model llama-13b --json"


def predicted(stack: str, weights: str, device: str = "a6000"):
    workload = Workload(model=load_model("llama-7b"), policy=policy(weights))
    return predict(workload, load_hardware(device), load_stack(stack))


@pytest.fixture
def run(capsys):
    def run_line(line: str) -> str:
        assert main(line.split()) == 0
        return capsys.readouterr().out

    return run_line


@pytest.mark.parametrize(
    ("stack", "weights"),
    [
        ("ideal", "w3"),
        ("squeezellm-2023", "squeezellm-w3-s0.45-hybrid"),
        ("squeezellm-2023", "gptq-w3-g128-act"),
        ("memwall", "squeezellm-w4"),
        ("llama.cpp", "w4.5"),
    ],
)
def test_the_parts_of_a_prediction_add_up_to_it(stack, weights):
    prediction = predicted(stack, weights, "h200")
    parts = explain(prediction).parts
    assert min(parts.values()) >= 0
    assert sum(parts.values()) == pytest.approx(prediction.time_s)


def test_the_roof_that_binds_comes_first():
    gather = explain(predicted("squeezellm-2023", "gptq-w3-g128-act"))
    assert gather.roofs[0][0] == "decode"
    assert explain(predicted("ideal", "w3")).roofs[0][0] == "memory"


def test_low_bit_stops_helping_where_arithmetic_binds_fp16_too():
    batch = explain(predicted("ideal", "w4")).helps_below_batch
    slow = Workload(model=load_model("llama-7b"), policy=policy("w4"), batch=batch)
    fp16 = Workload(model=load_model("llama-7b"), policy=policy(), batch=batch)
    hw, stack = load_hardware("a6000"), load_stack("ideal")
    assert predict(fp16, hw, stack).time_s / predict(slow, hw, stack).time_s < 1.05
    assert explain(ideal(toy_workload())).helps_below_batch == 1  # FP16 itself


def test_predict_explains_and_compares(run):
    text = run("predict --gpu a5000 --stack squeezellm-2023 --weights squeezellm-w3 --explain")
    assert "transferred to a5000" in text
    assert re.search(r"decoding +\d", text)
    assert "less than 5 % faster than FP16 from batch" in text
    table = run("predict --gpu a6000 --weights fp16,awq-w4-g128 --compare-stacks tinychat,ideal")
    assert len(re.findall(r"^ (tinychat|ideal) ", table, re.MULTILINE)) == 2
    document = json.loads(run("predict --gpu a6000 --weights w3 --explain --json"))
    parts = document["results"][0]["explain"]["parts_s"]
    assert sum(parts.values()) == pytest.approx(document["results"][0]["time_s"])


def test_every_interval_of_a_fitted_stack_grows_away_from_its_devices():
    for name in stack_names():
        stack = load_stack(name)
        if stack.devices:
            assert stack.interval.transferred > stack.interval.fitted
    here = predicted("squeezellm-2023", "squeezellm-w3")
    there = predicted("squeezellm-2023", "squeezellm-w3", "a5000")
    assert here.interval_s[1] / here.time_s < there.interval_s[1] / there.time_s
    assert (here.transferred, there.transferred) == (False, True)


def test_what_is_recommended_is_within_the_limits(run):
    line = f"{ASK} --max-memory 10GB --max-ms-per-token 15"
    rows = json.loads(run(line))["results"]
    accepted = [row for row in rows if row["accepted"]]
    assert rows[0]["weights"] == "gptq-w4-g128-act"
    assert all(row["memory_bytes"] <= 10e9 for row in accepted)
    assert all(row["time_per_token_s"] <= 0.015 for row in accepted)
    perplexities = [row["perplexity"] for row in accepted]
    assert perplexities == sorted(perplexities)
    fp16 = next(row for row in rows if row["weights"] == "fp16")
    assert fp16["verdict"].startswith("no: needs 26.1 GB, limit 10 GB; takes ")


def test_software_measured_on_the_device_goes_before_a_faster_transfer(run):
    document = json.loads(run("recommend --gpu orin --model llama-2-7b --json"))
    fp16 = next(row for row in document["results"] if row["weights"] == "fp16")
    assert "orin" in load_stack(fp16["stack"]).devices
    workload = Workload(model=load_model("llama-2-7b"), policy=policy())
    transfer = predict(workload, load_hardware("orin"), load_stack("squeezellm-2023"))
    assert transfer.transferred
    assert transfer.time_s < fp16["time_per_token_s"]


def test_with_a_limit_on_perplexity_the_fastest_comes_first(run):
    rows = json.loads(run(f"{ASK} --max-perplexity 5.2"))["results"]
    accepted = [row for row in rows if row["accepted"]]
    times = [row["time_per_token_s"] for row in accepted]
    assert times == sorted(times)
    assert all(row["perplexity"] <= 5.2 for row in accepted)


def test_a_format_that_nothing_runs_is_said_so(run):
    rows = json.loads(run("recommend --gpu rtx4090 --model llama-2-70b --json"))["results"]
    assert not any(row["accepted"] for row in rows)
    vector = next(row for row in rows if row["weights"] == "gptvq-2d-w2")
    assert vector["verdict"] == "no: no measured software runs it"
    assert vector["memory_bytes"] < 24e9
    assert "nothing is within the limits" in run("recommend --gpu rtx4090 --model llama-2-70b")


@pytest.mark.parametrize(
    ("weights", "runs"),
    [("awq-w4-g128", True), ("awq-w4-g64", True), ("awq-w4-g256", False), ("awq-w3-g128", False)],
)
def test_software_runs_the_bits_and_groups_that_it_was_measured_with(weights, runs):
    assert load_stack("tinychat").runs(policy(weights).linear) == runs


def test_own_perplexities_take_the_place_of_the_papers(tmp_path, run, capsys):
    file = tmp_path / "compare.json"
    lines = [{"format": "squeezellm-w3", "perplexity": 7.5}, {"format": "fp16", "perplexity": 7}]
    file.write_text(json.dumps({"text": "my text", "results": lines}))
    document = json.loads(run(f"{ASK} --quality {file}"))
    assert document["quality"] == "perplexity on my text"
    found = {row["weights"]: row["perplexity"] for row in document["results"]}
    assert found == {"squeezellm-w3": 7.5, "fp16": 7.0}
    file.write_text("{}")
    assert main(f"{ASK} --quality {file}".split()) == 3
    assert "expected the output of `quantizer compare --json`" in capsys.readouterr().err


def test_published_perplexities_do_not_depend_on_the_sparse_layout():
    quality = published("llama-7b", "c4")
    assert quality.of("squeezellm-w3-s0.45") == 7.56
    assert quality.of("squeezellm-w3-s0.45-hybrid") == 7.56
    assert quality.of("squeezellm-w3-s0.45@released") == 7.56
    assert quality.of("w3") is None


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (f"{ASK} --max-memory ten", "found 'ten', expected a size such as 12GB"),
        (f"{ASK} --max-ms-per-token 0", "found 0, expected a number above 0"),
        (f"{ASK} --weights kmeans-w4", "no stack runs kmeans-w4 on a5000"),
        ("predict --gpu a6000 --weights w3 --compare-stacks tinychat", "no stack of tinychat"),
        (
            "predict --gpu a6000 --stack tinychat --weights gptq-w4",
            "tinychat does not know gptq",
        ),
        ("sweep --gpu a6000 --device-axis memory.bandwidth", "expected FIELD=VALUE,VALUE"),
        ("sweep --gpu a6000 --device-axis memory.width=1,2", "no field 'memory.width'"),
    ],
)
def test_a_wrong_question_is_refused_in_one_line(capsys, line, problem):
    try:
        code: object = main(line.split())
    except SystemExit as stop:  # argparse's own way out
        code = stop.code
    error = capsys.readouterr().err
    assert code == 2
    assert problem in error
    assert error.count("\n") == 1


def test_an_axis_of_the_device_is_a_column(run):
    axis = "--device-axis memory.bandwidth_gb_per_s=2400,9600"
    text = run(f"sweep --gpu h200 --stack memwall --weights squeezellm-w4 {axis}")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["memory.bandwidth_gb_per_s"] for row in rows] == ["2400", "9600"]
    assert [row["bound"] for row in rows] == ["memory", "decode"]


@pytest.mark.parametrize(
    "line",
    [
        "pareto --gpu a5000 --model llama-13b --weights gptq-w4,awq-w4-g128 --max-ms-per-token 30",
        "validation squeezellm-2023 --only gptq-w3",
        "sweep --gpu h200 --stack memwall --weights squeezellm-w4 "
        "--device-axis memory.bandwidth_gb_per_s=2400,4800,9600",
    ],
)
def test_figures_of_forecasts_are_drawn(run, tmp_path, line):
    file = tmp_path / "figure.svg"
    run(f"plot {line} -o {file}")
    assert file.read_text().startswith("<?xml")


def test_a_405b_model_on_eight_devices(run):
    line = "predict --gpu h200 --model llama-3.1-405b --tp 8 --weights fp16,w4 --json"
    fp16, w4 = json.loads(run(line))["results"]
    assert fp16["memory"]["weights_bytes"] == pytest.approx(405.9e9 * 2 / 8, rel=0.01)
    assert fp16["memory"]["fits"]
    assert w4["memory"]["weights_bytes"] < 0.27 * fp16["memory"]["weights_bytes"]


def test_published_tensor_parallel_scaling_is_reproduced():
    """gpt-fast README: LLaMA-2 70B BF16 on 2, 4, 8 A100, 7B on 1, 2, 4, 8; tokens per second."""
    published_rates = {
        "llama-2-7b": {1: 104.9, 2: 168.84, 4: 254.02, 8: 328.43},
        "llama-2-70b": {2: 21.32, 4: 38.01, 8: 62.50},
    }
    hw, stack = load_hardware("a100-80gb-sxm"), load_stack("gpt-fast")
    for model, rates in published_rates.items():
        for devices, rate in rates.items():
            workload = Workload(
                model=load_model(model), policy=policy(), tensor_parallel=devices, context=105
            )
            found = predict(workload, hw, stack).tokens_per_s
            assert found == pytest.approx(rate, rel=0.09), (model, devices)


@pytest.mark.parametrize("changes", [{"phase": "prefill", "prompt": 64}, {"batch": 8}])
def test_where_nothing_was_measured_there_is_a_lower_bound_alone(changes):
    workload = replace(Workload(model=load_model("llama-7b"), policy=policy()), **changes)
    prediction = predict(workload, load_hardware("a6000"), load_stack("squeezellm-2023"))
    low_s, high_s = prediction.interval_s
    assert 0 < low_s < prediction.time_s
    assert high_s is None

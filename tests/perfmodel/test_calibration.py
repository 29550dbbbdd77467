"""Stacks fitted to measurements: the fit finds what made them, and forecasts the rest."""

from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from msgspec.structs import replace

from perfmodel.cli import main
from perfmodel.fit import calibration
from perfmodel.fit.fitting import Options, fit, parameters_for, stack_with
from perfmodel.fit.measurement import load_measurements
from perfmodel.fit.validation import summarise
from perfmodel.prediction import predict
from perfmodel.stack_files import load_stack, stack_names, to_stack
from perfmodel.strict_yaml import parse_yaml

ROOT = Path(__file__).parents[2]
DENSE_AND_HYBRID = ("fp16", "gptq-w3", "squeezellm-w3@released", "*-hybrid@released")
TRUTH = {"share": 0.9, "layer_us": 100.0, "decode gptq": 0.05, "decode squeezellm": 0.1}


@pytest.fixture(scope="module")
def rows():
    return load_measurements("squeezellm-2023")


def test_the_fit_finds_the_stack_that_made_the_numbers(rows):
    stack = stack_with(TRUTH, 0.0)
    names = ("fp16", "gptq-w3", "squeezellm-w3@released")
    dense = [run for run in rows if run.workload.policy.linear.name in names]
    chosen = [replace(run, workload=replace(run.workload, new=4)) for run in dense]
    made = [
        replace(run, time_s=predict(run.workload, run.hardware, stack).time_s) for run in chosen
    ]
    found = fit(made, parameters_for(made, Options()), 0.0)
    values = {e.parameter.name: e.value for e in found.estimates}
    assert {name: values[name] for name in TRUTH} == pytest.approx(TRUTH, rel=0.12)
    assert summarise(calibration.fitted_pairs(made, found)).mape < 0.01


def test_fitted_on_7b_and_13b_it_forecasts_30b(rows):
    """SqueezeLLM, Tables 3, 4, 6: dense and hybrid within 4 % on average and 8 % at worst."""
    pairs = calibration.hold_out(rows, Options(layer="clock"), "model", "llama-30b")
    main_rows = [p for p in pairs if any(fnmatchcase(p.group, x) for x in DENSE_AND_HYBRID)]
    others = [p for p in pairs if p not in main_rows]
    assert (len(main_rows), len(others)) == (8, 4)
    assert summarise(main_rows).mape < 0.04
    assert abs(summarise(main_rows).worst) < 0.08
    assert abs(summarise(others).worst) < 0.15
    plain = calibration.plain_roofline([run for run in rows if "30b" in run.label])
    assert summarise(plain).mape > 0.6


def test_what_ships_fits_the_table_that_it_was_fitted_to(rows):
    pairs = [calibration.forecast_pair(run, load_stack("squeezellm-2023")) for run in rows]
    found = summarise(pairs)
    assert found.mape < 0.03
    assert 0.7 < found.inside_interval <= 0.95


def test_a_stack_written_is_the_stack_read():
    for name in stack_names():
        stack = load_stack(name)
        again = to_stack(parse_yaml(calibration.stack_yaml(stack), source=name))
        assert again.interval == stack.interval
        assert dict(again.decode_costs) == pytest.approx(dict(stack.decode_costs), rel=1e-3)
        assert again.layer_s == pytest.approx(stack.layer_s, rel=1e-3)
        assert again.sparse_costs == stack.sparse_costs


def test_our_own_ceilings_are_those_of_the_kernels_page():
    page = (ROOT / "docs/kernels.md").read_text(encoding="utf-8")
    cells = [line.split("|") for line in page.splitlines() if line.count("|") == 15]
    ceilings = {row[1].strip(): row[7].strip() for row in cells}
    kernels = {
        "fp16": "fp16",
        "squeezellm-w3": "lut3-fp16-exact",
        "squeezellm-w4": "lut4-fp16-exact",
        "squeezellm-w4-u7": "lut4-u7-exact",
        "squeezellm-w4-sym": "lut4-sym-exact",
        "squeezellm-w5": "lut5-fp16-exact",
        "kmeans-w7": "lut7-fp16-exact",
        "gptq-w4": "uniform4-exact",
        "rtn-w6": "uniform6-exact",
        "awq-w5-g128": "uniform5-g128-exact",
        "gptq-w4-g128": "uniform4-g128-exact",
        "gptvq-1d-w3": "gptvq1d-w3",
        "gptvq-2d-w2": "gptvq2d-w2",
        "gptvq-2d-w2-n16": "gptvq2d-w2-n16",
        "gptvq-4d-w2-n64": "gptvq4d-w2-n64",
        "spqr-w3": "spqr3",
    }
    costs = dict(load_stack("memwall").decode_costs)
    for name, kernel in kernels.items():
        assert costs[name] == pytest.approx(1 / float(ceilings[kernel]), rel=1e-3)


def test_a_parameter_that_no_row_speaks_of_keeps_its_prior(rows):
    fp16 = [run for run in rows if run.workload.policy.linear.name == "fp16"][:2]
    found = fit(fp16, parameters_for(fp16, Options(decode=("gptq",))), 0.0)
    unseen = next(e for e in found.estimates if e.parameter.name == "decode gptq")
    assert unseen.value == pytest.approx(unseen.parameter.median)
    assert unseen.determined == pytest.approx(0, abs=1e-6)


def test_devices_held_out_in_turn_are_forecast_within_the_bar():
    """Published rates: half of them within 10 %, nine of ten within 25 %, 70 to 90 % inside."""
    pairs = []
    for software in ("hf-eager", "tinychat", "llama.cpp"):
        runs = [run for run in load_measurements("decode-rates") if run.stack == software]
        held_out = calibration.leave_one_out(runs, Options(), "device")
        found = summarise(held_out)
        assert (found.median <= 0.10, found.p90 <= 0.25) == (True, True), software
        pairs += held_out
    found = summarise(pairs)
    assert found.count == 52
    assert (found.median <= 0.10, found.p90 <= 0.25) == (True, True)
    assert 0.7 <= found.inside_interval <= 0.9


def test_a_device_that_no_fit_has_seen_is_forecast_within_the_bar():
    """TinyChat's RTX 4090 table, kept out of all fits."""
    runs = load_measurements("decode-rates-4090")
    assert "rtx4090" not in {
        device for name in stack_names() for device in load_stack(name).devices
    }
    found = summarise([calibration.forecast_pair(run, load_stack(run.stack)) for run in runs])
    assert found.count == 13
    assert found.median <= 0.10
    assert found.p90 <= 0.25


def test_odd_matrices_get_a_share_of_their_own_only_where_rows_have_them(rows):
    names = {p.name for p in parameters_for(rows, Options())}
    assert "ragged_share" not in names
    odd = [run for run in load_measurements("decode-rates") if run.stack == "hf-eager"]
    assert "ragged_share" in {p.name for p in parameters_for(odd, Options())}
    assert load_stack("hf-eager").ragged_share < 0.7
    assert load_stack("gpt-fast").ragged_share == 1.0  # sharded matrices are odd, and no slower


CSV = """\
device,model,weights,tokens_per_s,context
a6000,llama-7b,fp16,43.0,128
a6000,llama-13b,fp16,23.0,128
"""


def test_a_missed_bar_ends_with_1_after_the_table(tmp_path, capsys):
    file = tmp_path / "mine.csv"
    file.write_text(CSV)
    command = ["validate", str(file), "--stack", "hf-eager"]
    assert main(command) == 0
    assert main([*command, "--max-worst", "0.1"]) == 1
    said = capsys.readouterr()
    assert "a6000 llama-13b fp16, context 128" in said.out
    assert said.err.startswith("perfmodel: error: worst absolute error is ")


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("tokens_per_s", "tokens", ":1: found column 'tokens', expected of device"),
        ("a6000,llama-7b", "a6001,llama-7b", ":2: no device 'a6001'; did you mean a6000"),
        ("43.0", "-43.0", ":2: tokens_per_s: found -43.0, expected"),
        ("43.0", "nan", ':2: tokens_per_s: found "nan", expected a number'),
        ("43.0,128", "43.0", ":2: found 4 cells, expected 5"),
        ("43.0", "", ":2: expected either time_s or tokens_per_s"),
    ],
)
def test_a_wrong_measurement_is_refused_with_its_line(tmp_path, capsys, old, new, problem):
    file = tmp_path / "mine.csv"
    file.write_text(CSV.replace(old, new))
    assert main(["validate", str(file), "--stack", "hf-eager"]) == 3
    assert f"{file}{problem}" in capsys.readouterr().err


def test_calibrate_writes_a_stack_that_predict_takes(tmp_path, capsys):
    measured, stack = tmp_path / "mine.csv", tmp_path / "mine.yaml"
    measured.write_text(CSV)
    assert main(["calibrate", str(measured), "--name", "mine", "-o", str(stack)]) == 0
    assert "determined by" in capsys.readouterr().out
    assert main(["predict", "--gpu", "a6000", "--stack", str(stack), "--weights", "fp16"]) == 0
    assert "fitted on a6000 (2 rows)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ("calibrate decode-rates", "choose one with --software; it has hf-eager, tinychat"),
        ("validate squeezellm-2023 --hold-out layer", "expected device, model, device=NAME"),
        ("validate squeezellm-2023 --hold-out device", "no row is left to predict"),
        ("validate squeezellm-2023 --only w9", "no row is left to predict"),
        ("validate squeezellm-2023 --stack measured", "a6000 has no measured: group"),
    ],
)
def test_a_wrong_question_is_refused(capsys, arguments, problem):
    assert main(arguments.split()) == 2
    assert problem in capsys.readouterr().err

"""Formats per layer under a budget of bytes, or of predicted time on a device."""

import json

import pytest

from perfmodel.format_names import parse_format
from perfmodel.formats import BitPolicy
from perfmodel.hardware import load_hardware
from perfmodel.models import load_model
from perfmodel.prediction import predict
from perfmodel.stack_files import load_stack
from perfmodel.workload import Workload
from quantizer.checkpoints import checkpoint_model
from quantizer.cli import main
from quantizer.errors import UsageError
from quantizer.evaluation.evaluate import EvaluationText, window_losses
from quantizer.run.budget import check_time, least_bits
from quantizer.run.pipeline import Hooks
from quantizer.run.plan import (
    LayerCosts,
    layer_costs,
    measured_plans,
    plans_for_bits,
    plans_for_time,
)
from quantizer.run.trial import checkpoint_changes
from quantizer.sensitivity.device_time import StepTimes, step_times
from tests.quantizer.models import BLOCKS, write_model
from tests.quantizer.test_trial import trial_of

FP16 = parse_format("fp16")
# a is as large as b and twice as sensitive; b is slower in w4, on a device that decodes slowly
ROWS = [
    LayerCosts(
        layer=layer,
        shape=(10, 80),
        losses={"w3": 2 * factor, "w4": factor},
        nbytes={"w3": 300, "w4": 400},
    )
    for layer, factor in (("0.q_proj", 2.0), ("0.up_proj", 1.0))
]
TIMES = StepTimes(
    others_s=0.010,
    linear_s={"w3": {"q_proj": 0.003, "up_proj": 0.003}, "w4": {"q_proj": 0.009, "up_proj": 0.004}},
)


def least_forecast(plans):
    return min(plans, key=lambda plan: plan.forecast_loss)


@pytest.mark.parametrize(("bits", "raised"), [(3, ""), (3.49, ""), (3.5, "q"), (4, "qu")])
def test_bits_go_to_the_most_sensitive_layer(bits, raised):
    plan = least_forecast(plans_for_bits(ROWS, bits))
    assert "".join(n[2] for n, f in plan.formats.items() if f == "w4") == raised
    assert plan.bits_per_weight == 3 + len(raised) / 2
    assert plan.ms_per_token is None


@pytest.mark.parametrize(
    ("most_ms", "raised", "spent_ms"),
    [(16, "", 16), (17, "u", 17), (22.9, "u", 17), (23, "qu", 23)],
)
def test_time_goes_where_it_saves_most_loss_per_second(most_ms, raised, spent_ms):
    plan = least_forecast(plans_for_time(ROWS, TIMES, most_ms / 1e3 + 1e-9))
    assert "".join(n[2] for n, f in plan.formats.items() if f == "w4") == raised
    assert plan.ms_per_token == pytest.approx(spent_ms)


def test_ranges_that_fit_are_among_the_plans_and_equal_plans_stand_once():
    assert [plan.bits_per_weight for plan in plans_for_bits(ROWS, 3.5)] == [3, 3.5]
    assert [plan.bits_per_weight for plan in plans_for_bits(ROWS, 9)] == [3, 4]
    assert [plan.ms_per_token for plan in plans_for_time(ROWS, TIMES, 0.0171)] == [16, 17]


def test_bits_below_the_smallest_formats_are_refused_with_what_they_take():
    with pytest.raises(UsageError, match=r"take 3\.0000 bits per weight at least"):
        plans_for_bits(ROWS, 2.9)


def test_a_time_below_the_fastest_formats_is_refused_with_what_they_take():
    with pytest.raises(UsageError, match="take 16 ms per token at least, 10 ms of it outside"):
        check_time([row.layer for row in ROWS], ["w3", "w4"], TIMES, 0.015)


@pytest.mark.parametrize(
    ("budget", "needs"),
    [
        (["--bits-per-weight", "1.5"], "bits per weight at least"),
        (["--max-ms-per-token", "1e-6", "--gpu", "a6000"], "ms per token at least"),
    ],
)
def test_a_budget_is_refused_before_anything_is_quantized(budget, needs, tmp_path, capsys):
    folder = write_model(tmp_path / "model", architectures=["LlamaForCausalLM"])
    command = ["allocate", str(folder), "--formats", "squeezellm-w2-s0.45,rtn-w3", *budget]
    assert main([*command, "-o", str(tmp_path / "plan")]) == 2  # not: needs calibration text
    assert needs in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "architecture"), [("llama", "LlamaForCausalLM"), ("opt", "OPTForCausalLM")]
)
def test_layers_and_the_rest_add_up_to_the_prediction(tmp_path, kind, architecture):
    folder = write_model(tmp_path, kind, architectures=[architecture], do_layer_norm_before=True)
    hw, stack = load_hardware("a6000"), load_stack("ideal")
    times = step_times(folder, ["squeezellm-w3", "rtn-w8"], hw, stack=stack, context=7)
    names = ("q_proj", "k_proj", "v_proj")
    names += ("out_proj", "fc1", "fc2") if kind == "opt" else ()
    names += () if kind == "opt" else ("o_proj", "gate_proj", "up_proj", "down_proj")
    for name in ("squeezellm-w3", "rtn-w8"):
        policy = BitPolicy(linear=parse_format(name), lm_head=FP16, embedding=FP16)
        workload = Workload(model=load_model(str(folder)), policy=policy, context=7)
        layers_s = sum(times.layer_s(f"model.layers.0.mlp.{layer}", name) for layer in names)
        whole_s = predict(workload, hw, stack).time_s
        assert times.others_s + BLOCKS * layers_s == pytest.approx(whole_s, rel=1e-12)


def test_allocate_takes_a_time_and_says_what_it_predicts(tmp_path, ids, capsys):
    folder = write_model(tmp_path / "model", architectures=["LlamaForCausalLM"])
    command = ["allocate", folder, "--calibration", ids, "--formats", "rtn-w2,rtn-w3,rtn-w4"]
    command += ["--gpu", "a6000", "-o", tmp_path / "plan.json", "--max-ms-per-token"]
    assert main([str(word) for word in (*command, 0.000001)]) == 2
    least_ms = float(capsys.readouterr().err.partition("take ")[2].partition(" ms")[0])
    budget_ms = 1.02 * least_ms
    assert main([str(word) for word in (*command, budget_ms)]) == 0
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert least_ms * 0.999 < plan["ms_per_token"] <= budget_ms
    out = capsys.readouterr().out
    assert any(line.count(" x rtn-") > 1 for line in out.splitlines())
    assert "ms per token on a6000, stack ideal: predicted" in out


def test_plans_are_measured_on_windows_that_the_forecast_has_not_seen(
    llama, ids, tmp_path, monkeypatch
):
    trial = trial_of(llama, ids, tmp_path)
    seen, others = trial.calibration.ids[:2], trial.calibration.ids[2:]
    monkeypatch.setattr("quantizer.sensitivity.forecast_pass.FORECAST_TOKENS", seen.numel())
    costs = layer_costs(trial, ["awq-w4-g128", "rtn-w2"], Hooks())
    weights = sum(row.shape[0] * row.shape[1] for row in costs)
    stored_bits = 8 * sum(row.nbytes["rtn-w2"] for row in costs) / weights
    assert least_bits(trial.checkpoint, ["awq-w4-g128", "rtn-w2"]) == pytest.approx(stored_bits)
    plans = measured_plans(trial, plans_for_bits(costs, 15.5), Hooks())
    assert [plan.measured_loss for plan in plans] == sorted(p.measured_loss for p in plans)
    mixed = next(plan for plan in plans if len(set(plan.formats.values())) == 2)
    model = checkpoint_model.load_model(llama)
    text = EvaluationText(ids=others, label="")
    base = window_losses(model, text)
    for layer, name in mixed.formats.items():
        change = checkpoint_changes(trial.checkpoint, tmp_path / name)[f"{layer}.weight"]
        model.get_submodule(layer).weight.add_(change)
    due = window_losses(model, text) - base
    assert mixed.measured_loss == pytest.approx(float(due.mean()), abs=1e-6)
    assert mixed.measured_error == pytest.approx(float(due.std()) / 2, rel=1e-3)
    losses = {row.layer: row.losses for row in costs}
    due = sum(losses[layer][name] for layer, name in mixed.formats.items())
    assert mixed.forecast_loss == pytest.approx(due)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-ms-per-token", "4"], "--max-ms-per-token needs --gpu NAME"),
        (["--max-ms-per-token", "4", "--gpu", "a6001"], "a6000"),
        (["--max-ms-per-token", "4", "--gpu", "a6000", "--stack", "x"], "no stack 'x'"),
        (["--max-ms-per-token", "4", "--bits-per-weight", "3"], "not allowed with"),
        ([], "one of the arguments --bits-per-weight --max-ms-per-token is required"),
    ],
)
def test_wrong_budgets_take_one_line(llama, ids, capsys, tmp_path, arguments, message):
    command = ["allocate", str(llama), "--calibration", str(ids), "-o", str(tmp_path / "plan")]
    try:
        code = main([*command, *arguments])
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err
    assert code == 2
    assert message in error
    assert error.count("\n") == 1

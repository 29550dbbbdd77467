"""What quantizing did to the weights of a model, as they were: also where AWQ rescales blocks."""

import pytest
import torch

from quantizer.checkpoints.checkpoint import open_checkpoint, read_tensors
from quantizer.checkpoints.checkpoint_model import load_model
from quantizer.errors import IdentityError
from quantizer.evaluation.calibration import load_calibration
from quantizer.methods.matrix import Settings
from quantizer.run import ledger
from quantizer.run.pipeline import Hooks
from quantizer.run.trial import Trial, checkpoint_changes, forecasts, try_format
from tests.quantizer.models import CONTEXT, VOCABULARY, write_model

TOKENS = torch.arange(3, 19)[None]


def trial_of(source, ids, work) -> Trial:
    room = {"longest": CONTEXT, "vocabulary": VOCABULARY}
    return Trial(
        checkpoint=open_checkpoint(source),
        calibration=load_calibration(ids, source, "c4-100x512", **room),
        work=work,
        options=Settings(format="rtn-w4"),
    )


@torch.inference_mode()
def logits(model) -> torch.Tensor:
    return model(input_ids=TOKENS).logits


@pytest.mark.parametrize("name", ["awq-w3-g128", "gptq-w3"])
@pytest.mark.parametrize(
    ("kind", "changes", "foldings", "tolerance"),
    [
        ("llama", {"num_key_value_heads": 4}, 9, 1e-4),
        ("mistral", {}, 7, 1e-4),  # grouped queries: nothing between v_proj and o_proj
        ("opt", {"do_layer_norm_before": True}, 8, 5e-3),  # scaled biases are rounded to FP16
    ],
)
def test_the_model_with_its_changes_is_the_quantized_model(
    tmp_path, ids, kind, changes, foldings, tolerance, name
):
    source = write_model(tmp_path / "model", kind, **changes)
    ledger.prepare(tmp_path / "work")
    trial = trial_of(source, ids, tmp_path / "work")
    out = try_format(trial, name, Hooks()).summary.out
    model = load_model(source)
    before = logits(model)
    for key, change in checkpoint_changes(trial.checkpoint, out).items():
        model.get_parameter(key).add_(change)
    quantized = logits(load_model(out))
    torch.testing.assert_close(logits(model), quantized, rtol=tolerance, atol=tolerance)
    assert float((before - quantized).abs().max()) > 10 * tolerance
    folded = [part for part in read_tensors(out / "block-00000.safetensors") if "folded" in part]
    assert len(folded) == (foldings if name.startswith("awq") else 0)


def test_a_plan_is_tried_like_a_format_and_may_not_change(llama, ids, tmp_path):
    trial = trial_of(llama, ids, tmp_path)
    names = trial.checkpoint.all_linear_names()
    formats = dict.fromkeys(names, "rtn-w4") | {names[0]: "rtn-w2", names[1]: "awq-w4-g128"}
    plan = tmp_path / "mine.json"
    plan.write_bytes(ledger.as_json({"formats": formats}))
    summary = try_format(trial, str(plan), Hooks()).summary
    assert summary.out == tmp_path / "mine"
    assert {name: record.format for name, record in summary.layers.items()} == formats
    plan.write_bytes(ledger.as_json({"formats": formats | {names[0]: "rtn-w3"}}))
    with pytest.raises(IdentityError, match="finished with another settings"):
        try_format(trial, str(plan), Hooks())


def test_a_forecast_does_not_depend_on_how_many_formats_share_a_pass(
    llama, ids, tmp_path, monkeypatch
):
    trial, names = trial_of(llama, ids, tmp_path), ["rtn-w4", "awq-w4-g128", "rtn-w3"]
    for name in names:
        try_format(trial, name, Hooks())
    together = forecasts(trial, names, Hooks())
    monkeypatch.setattr("quantizer.run.trial.CHANGES_BYTES", 1)
    assert forecasts(trial, names, Hooks()) == together
    totals = {name: sum(losses.values()) for name, losses in together.items()}
    assert totals["rtn-w3"] > totals["rtn-w4"] > 0
    assert list(together["rtn-w3"]) == trial.checkpoint.all_linear_names()

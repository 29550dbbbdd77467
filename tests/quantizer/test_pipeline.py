"""From checkpoint to checkpoint: what is written, read back, kept, refused and put aside."""

import json
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace

from perfmodel.format_names import parse_format
from quantizer.checkpoints.checkpoint import open_checkpoint
from quantizer.checkpoints.checkpoint_model import PackedLinear, load_model
from quantizer.errors import (
    CheckFailedError,
    CheckpointError,
    IdentityError,
    OutputError,
    StoppedError,
    UsageError,
)
from quantizer.evaluation.calibration import load_calibration
from quantizer.methods.matrix import Settings
from quantizer.run import ledger, pipeline, work
from quantizer.run.pipeline import Hooks, Job, quantize, read_config
from quantizer.run.work import BlockResult
from quantizer.sensitivity.choose import uniform_settings
from tests.quantizer.models import BLOCKS, CONTEXT, VOCABULARY, write_model

TOKENS = torch.arange(3, 19)[None]


def job_of(source: Path, out: Path, name: str, ids: Path | None = None) -> Job:
    checkpoint = open_checkpoint(source)
    calibration = ids and load_calibration(
        ids, source, "c4-100x512", longest=CONTEXT, vocabulary=VOCABULARY
    )
    settings = uniform_settings(checkpoint, Settings(format=name))
    return Job(source=source, out=out, settings=settings, calibration=calibration or None)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def logits(folder: Path, **options) -> torch.Tensor:
    with torch.inference_mode():
        return load_model(folder, **options)(input_ids=TOKENS).logits.float()


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "opt"])
def test_every_family_survives_the_round_trip(tmp_path, kind):
    source = write_model(tmp_path / "model", kind, shards=2)
    summary = quantize(job_of(source, tmp_path / "out", "rtn-w8"))
    assert (summary.made, summary.kept) == (BLOCKS + 1, 0)
    exact, close = logits(source), logits(tmp_path / "out")
    assert not torch.equal(exact, close)
    assert torch.nn.functional.mse_loss(close, exact) < 1e-2 * exact.var()
    name = open_checkpoint(source).linear_names(2)[-1]
    before, after = (load_model(f).get_submodule(name).weight for f in (source, tmp_path / "out"))
    step = (before.amax(1) - before.amin(1)) / 255
    assert bool(((after - before).abs().amax(1) <= 0.6 * step).all())
    assert torch.equal(close, logits(tmp_path / "out", linear="packed"))


@pytest.mark.parametrize("name", ["gptq-w4", "awq-w4-g128", "squeezellm-w4-s0.45-hybrid"])
def test_calibrated_methods_make_a_model_that_generates(llama, ids, tmp_path, name):
    summary = quantize(job_of(llama, tmp_path, name, ids))
    exact, close = logits(llama), logits(tmp_path)
    assert torch.nn.functional.mse_loss(close, exact) < 0.2 * exact.var()
    model = load_model(tmp_path, linear="packed")
    assert sum(isinstance(module, PackedLinear) for module in model.modules()) == 7 * BLOCKS
    made = model.generate(TOKENS, max_new_tokens=3, do_sample=False, use_cache=True)
    assert made.shape == (1, TOKENS.shape[1] + 3)
    config = read_config(tmp_path)
    assert config.bits_per_weight == summary.bits_per_weight
    assert {parse_format(one).name for one in config.formats.values()} == {name}


def test_the_kernels_run_the_checkpoint(llama, tmp_path):
    quantize(job_of(llama, tmp_path, "kmeans-w4"))
    dense = logits(tmp_path, dtype=torch.float16)
    through_kernels = logits(tmp_path, linear="kernels")
    torch.testing.assert_close(through_kernels, dense, rtol=0.02, atol=0.02)


def test_stored_bytes_are_those_of_the_format(llama, tmp_path):
    summary = quantize(job_of(llama, tmp_path, "kmeans-w3"))
    for record in summary.layers.values():
        assert record.nbytes == parse_format("kmeans-w3").weight_bytes(*record.shape)


def test_a_second_run_keeps_everything(llama, ids, tmp_path):
    job = job_of(llama, tmp_path, "gptq-w3", ids)
    quantize(job)
    before = contents(tmp_path)
    again = quantize(job)
    assert (again.made, again.kept) == (0, BLOCKS + 1)
    assert contents(tmp_path) == before
    assert not [name for name in before if name.endswith((".lease", ".tmp"))]


@pytest.mark.parametrize("name", ["rtn-w4", "gptq-w4"])
def test_a_damaged_block_is_made_again(llama, ids, tmp_path, name):
    job = job_of(llama, tmp_path, name, ids)
    quantize(job)
    before = contents(tmp_path)
    shard = tmp_path / "block-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-7])
    (tmp_path / "ledger" / "block-00002.json").write_text("{")
    again = quantize(job)
    assert (again.made, again.kept) == (2, BLOCKS - 1)
    assert contents(tmp_path) == before


def test_other_settings_and_other_weights_are_refused(llama, ids, tmp_path):
    quantize(job_of(llama, tmp_path / "out", "rtn-w4"))
    with pytest.raises(IdentityError, match=r"finished with another settings.*use another --out"):
        quantize(job_of(llama, tmp_path / "out", "rtn-w3"))
    with pytest.raises(IdentityError, match="finished with another method"):
        quantize(job_of(llama, tmp_path / "out", "gptq-w4", ids))
    other = write_model(tmp_path / "other", hidden_size=32)
    (other / "model.safetensors").write_bytes(
        (llama / "model.safetensors").read_bytes()[:-1] + b"\x3b"
    )
    with pytest.raises(IdentityError, match="finished with another inputs"):
        quantize(job_of(other, tmp_path / "out", "rtn-w4"))


def test_another_model_cannot_use_the_fisher_file(llama, ids, tmp_path):
    job = replace(
        job_of(llama, tmp_path / "a", "squeezellm-w3", ids), fisher=tmp_path / "f.safetensors"
    )
    quantize(job)
    other = write_model(tmp_path / "other", rms_norm_eps=1e-3, shards=2)
    with pytest.raises(IdentityError, match="was made with another model_sha256"):
        quantize(replace(job, source=other, out=tmp_path / "b"))


def test_a_damaged_fisher_file_is_refused(llama, ids, tmp_path):
    job = job_of(llama, tmp_path, "squeezellm-w3", ids)
    quantize(job)
    fisher = tmp_path / "ledger" / "fisher.safetensors"
    content = fisher.read_bytes()
    fisher.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
    with pytest.raises(CheckpointError, match="is damaged: its SHA-256 is another; remove it"):
        quantize(job)
    fisher.unlink()
    assert quantize(job).kept == BLOCKS + 1


def test_a_block_that_fails_is_put_aside_and_the_rest_goes_on(llama, tmp_path, monkeypatch):
    honest = work.quantize_matrix
    poisoned = open_checkpoint(llama).linear_names(1)[2]
    weight = work.load_tensors(open_checkpoint(llama), [f"{poisoned}.weight"])

    def fails(given, statistics, settings):
        if torch.equal(given, *weight.values()):
            raise RuntimeError("no convergence")
        return honest(given, statistics, settings)

    monkeypatch.setattr(work, "quantize_matrix", fails)
    job = job_of(llama, tmp_path, "rtn-w4")
    with pytest.raises(CheckFailedError, match="1 of 4 blocks failed: block-00001: RuntimeError"):
        quantize(job)
    assert not (tmp_path / "config.json").exists()
    monkeypatch.undo()
    assert quantize(job).made == 1


def test_a_stopped_run_says_so_and_goes_on(llama, ids, tmp_path):
    for name in ("rtn-w4", "gptq-w4"):
        job = job_of(llama, tmp_path / name, name, ids)
        seen: list[BlockResult] = []
        hooks = Hooks(on_block=seen.append, stopping=lambda seen=seen: len(seen) == 2)
        with pytest.raises(StoppedError, match="stopped after 2 of 4 blocks") as stop:
            quantize(job, hooks)
        assert stop.value.exit_code == 75
        assert (quantize(job).kept, len(seen)) == (2, 2)


def test_a_full_disk_ends_the_run_cleanly(llama, tmp_path, monkeypatch):
    job = job_of(llama, tmp_path / "out", "rtn-w4")
    monkeypatch.setattr(pipeline, "free_bytes", lambda _: 100)
    with pytest.raises(OutputError, match="100 bytes are free"):
        quantize(job)
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    honest, written = ledger.write_durably, []

    def full(path, content):
        written.append(path)
        if len(written) > 4:
            raise OutputError(f"{path}: cannot be written: No space left on device")
        honest(path, content)

    monkeypatch.setattr(ledger, "write_durably", full)
    with pytest.raises(OutputError, match="No space left"):
        quantize(job)
    monkeypatch.undo()
    quantize(job)
    quantize(job_of(llama, tmp_path / "whole", "rtn-w4"))
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_wrong_places_and_inputs_are_refused(llama, tmp_path):
    with pytest.raises(UsageError, match="is the model itself"):
        quantize(job_of(llama, llama, "rtn-w4"))
    with pytest.raises(UsageError, match="gptq needs calibration text"):
        quantize(job_of(llama, tmp_path / "out", "gptq-w4"))
    with pytest.raises(OutputError, match="holds a model that is not ours"):
        quantize(job_of(llama, write_model(tmp_path / "theirs"), "rtn-w4"))
    quantize(job_of(llama, tmp_path / "done", "rtn-w4"))
    settings = job_of(llama, tmp_path, "rtn-w4").settings
    with pytest.raises(CheckpointError, match="is quantized already"):
        quantize(Job(source=tmp_path / "done", out=tmp_path / "x", settings=settings))
    with pytest.raises(CheckpointError, match="quantization_config"):
        read_config(llama)


def test_a_tensor_of_a_wrong_shape_is_named(tmp_path):
    folder = write_model(tmp_path)
    config = json.loads((folder / "config.json").read_text()) | {"vocab_size": 65}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"weight has shape \[64, 32\], expected"):
        load_model(folder)

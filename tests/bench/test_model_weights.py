"""Checkpoints as a decoder reads them: those of the quantizer, and what is wrong with others."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.generate.decoder import Decoder
from bench.generate.llama_config import Rope, read_config
from bench.generate.model_weights import load_model_weights, random_model, stored_format
from bench.generate.text_check import TextCheck, check_text
from perfmodel.errors import SpecError, UsageError
from perfmodel.models import load_model
from quantizer.cli import main as quantizer
from tests.bench.test_decoder import write


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return write(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def quantized(llama):
    out = llama.parent / "kmeans"
    options = ["--format", "kmeans-w4-s5-hybrid", "--executor", "serial", "--out", str(out)]
    assert quantizer(["quantize", str(llama), *options]) == 0
    return out


def load(folder):
    return load_model_weights(folder, device="cpu", dtype=torch.float32)


def test_a_quantized_checkpoint_says_what_its_dequantized_model_says(quantized):
    found = check_text(quantized, kind="cpu", new=16)
    assert found.ok, found.sentence
    assert (found.tokens, found.agreed) == (16, 16)


def test_a_quantized_checkpoint_keeps_its_format_and_its_bytes(quantized, llama):
    assert (stored_format(quantized), stored_format(llama)) == ("kmeans-w4-s5-hybrid", "fp16")
    weights = load(quantized)
    assert weights.format_name == "kmeans-w4-s5-hybrid"
    decoder = Decoder(weights, capacity=8)
    stored = sum(info.nbytes for info in headers(quantized))
    assert decoder.weight_bytes == stored + 2 * half_bytes(weights) - half_bytes(weights)
    assert decoder.fused


def headers(folder):
    from quantizer.checkpoints.checkpoint import open_checkpoint

    return open_checkpoint(folder).tensors.values()


def half_bytes(weights):
    """Of what is stored in FP16 and loaded in FP32 here: the tensors outside, and the norms."""
    shape = weights.config.shape
    return 2 * (2 * shape.vocab * shape.hidden + (2 * shape.layers + 1) * shape.hidden)


@pytest.mark.parametrize(
    ("gap", "ok"), [(None, True), (0.019, True), (0.021, False), (-0.1, False)]
)
def test_only_a_tie_within_rounding_may_part_two_texts(gap, ok):
    found = TextCheck(tokens=9, agreed=9 if gap is None else 4, rounding=0.01, gap=gap)
    assert found.ok is ok
    assert ("not rounding" in found.sentence) is not ok


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"hidden_act": "gelu"}, "hidden_act: found 'gelu', expected 'silu'"),
        (
            {"rope_scaling": {"type": "dynamic"}},
            "rope_type: found 'dynamic', which is not supported",
        ),
        ({"rope_scaling": "big"}, "rope_scaling: found 'big', expected an object"),
        ({"rope_parameters": {"rope_theta": -1}}, "rope_theta: found -1, expected a number above"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps: found 'small', expected a number above 0"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor: expected 1"),
        ({"architectures": ["GemmaForCausalLM"]}, "GemmaForCausalLM, which is not supported"),
        ({"vocab_size": 65}, r"embed_tokens.weight: found \[64, 32\], expected \[65, 32\]"),
        ({"attention_bias": True}, "q_proj: found no bias, expected one"),
        ({"head_dim": 16}, r"q_proj: found \[32, 32\], expected \[64, 32\]"),
    ],
)
def test_a_config_that_would_be_computed_wrongly_is_refused(tmp_path, change, problem):
    folder = write(tmp_path / "model", **change)
    with pytest.raises(SpecError, match=problem) as caught:
        Decoder(load(folder), capacity=8)
    assert "\n" not in str(caught.value)


def test_models_of_another_make_are_refused(tmp_path):
    with pytest.raises(SpecError, match="found OPTForCausalLM, expected a LLaMA-like model"):
        load(write(tmp_path / "opt", "opt"))
    with pytest.raises(UsageError, match=r"opt-1\.3b is no LLaMA-like model"):
        random_model(load_model("opt-1.3b"), "fp16", device="cpu")


def test_a_missing_tensor_a_missing_folder_and_numbers_beyond_fp16_are_named(tmp_path):
    folder = write(tmp_path / "model")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    norm = tensors.pop("model.norm.weight")
    save_file(tensors, file)
    with pytest.raises(SpecError, match=r"model\.norm\.weight: found nothing, expected \[32\]"):
        load(folder)
    save_file(tensors | {"model.norm.weight": norm.bfloat16() * 1e6}, file)
    with pytest.raises(SpecError, match="beyond the range of FP16"):
        load_model_weights(folder, device="cpu", dtype=torch.float16)
    with pytest.raises(SpecError, match="is no folder"):
        load(tmp_path / "nowhere")


def test_llama3_divides_long_wavelengths_and_keeps_short_ones():
    rope = Rope(theta=500_000.0, kind="llama3", factor=8.0)
    ratio = rope.frequencies(128) / Rope(theta=500_000.0).frequencies(128)
    assert float(ratio[0]) == 1.0
    assert float(ratio[-1]) == pytest.approx(1 / 8)
    assert bool((ratio.diff() <= 0).all())


def test_old_and_new_configs_say_the_same(tmp_path):
    new = {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0}}
    old = {"rope_theta": 5000, "rope_scaling": {"type": "linear", "factor": 2}}
    read = []
    for name, change in (("new", new), ("old", old)):
        folder = write(tmp_path / name, **change)
        read.append(read_config(folder, json.loads((folder / "config.json").read_text())).rope)
    assert read[0] == read[1]

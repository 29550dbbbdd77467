"""The decoder against transformers, whole sequences against single steps, and what it refuses.

Tolerances. Both sides compute the same numbers in FP32 in another order. A sum of K products may
differ by K units (2^-24) of its largest term; about eight operations follow each other in a block.
So logits may differ by 8 * blocks * K units of the largest logit: `fp32`. In FP16 both sides round
the result of every operation once, to 2^-11: `fp16`.
"""

import json
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bench.generate.decoder import CacheFullError, Decoder
from bench.generate.decoder_math import Cache, Functions, Heads, attention, compiled, visible
from bench.generate.hf_eager import HfEager
from bench.generate.model_weights import load_model_weights, random_model
from perfmodel.errors import UsageError
from perfmodel.models import read_model
from quantizer.checkpoints.checkpoint_model import load_model
from tests.quantizer.models import BLOCKS, HIDDEN, VOCABULARY, WIDE, config_of, write_model

LONGEST = 64
TOKENS = [1, 5, 9, 60, 33, 2, 17, 40, 8, 8, 21, 3]
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16, "rope_theta": 500.0,
}  # fmt: skip
MODELS = {
    "llama, grouped queries": {},
    "llama, tied, eps, theta": {
        "tie_word_embeddings": True, "rms_norm_eps": 1e-3, "rope_theta": 1000.0,
    },
    "llama, linear positions": {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "llama, llama3 positions": {"rope_scaling": LLAMA3},
    "mistral, window": {"kind": "mistral", "sliding_window": 5},
    "qwen2, biases": {"kind": "qwen2"},
}  # fmt: skip
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "opt": "OPTForCausalLM",
}


def write(folder, kind="llama", **changes):
    changes = {"max_position_embeddings": LONGEST, "architectures": [ARCHITECTURES[kind]]} | changes
    return write_model(folder, kind, **changes)


def decoder(folder, capacity=LONGEST, dtype=torch.float32):
    weights = load_model_weights(folder, device="cpu", dtype=dtype)
    return Decoder(weights, capacity=capacity, dtype=dtype)


def fp32(logits):
    return 8 * BLOCKS * WIDE * 2.0**-24 * float(logits.abs().max())


def fp16(logits):
    return 2 * 8 * BLOCKS * 2.0**-11 * float(logits.abs().max())


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return write(tmp_path_factory.mktemp("models") / "llama")


@pytest.mark.parametrize(("heads", "key_heads", "width"), [(4, 1, 8), (4, 4, 12), (2, 2, 16)])
def test_heads_of_any_number_and_width_are_right(tmp_path, heads, key_heads, width):
    asked = config_of(
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        head_dim=width,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**asked)).train(False)
    model.save_pretrained(tmp_path)
    with torch.inference_mode():
        expected = model(torch.tensor([TOKENS])).logits[0]
    found = decoder(tmp_path, capacity=16).logits(TOKENS)
    torch.testing.assert_close(found, expected, rtol=0, atol=fp32(expected))


@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
def test_logits_are_those_of_transformers(tmp_path, changes):
    folder = write(tmp_path / "model", **changes)
    expected = load_model(folder)(torch.tensor([TOKENS])).logits[0]
    found = decoder(folder).logits(TOKENS)
    torch.testing.assert_close(found, expected, rtol=0, atol=fp32(expected))


def test_logits_in_fp16_are_those_of_transformers_in_fp16(llama):
    reference = load_model(llama, dtype=torch.float16)
    expected = reference(torch.tensor([TOKENS])).logits[0]
    found = decoder(llama, dtype=torch.float16).logits(TOKENS)
    torch.testing.assert_close(found, expected, rtol=0, atol=fp16(expected))


def test_a_whole_sequence_and_single_steps_fill_the_same_cache(llama):
    whole, stepped = decoder(llama), decoder(llama)
    generated = stepped.generate(TOKENS[:4], 20)
    sequence = TOKENS[:4] + generated
    logits = whole.logits(sequence[:-1])
    assert logits[3:].argmax(-1).tolist() == generated
    for found, expected in zip(stepped.caches, whole.caches, strict=True):
        for a, b in zip(found, expected, strict=True):
            rows = len(sequence) - 1
            torch.testing.assert_close(a[:, :rows], b[:, :rows], rtol=0, atol=fp32(b))


def test_a_new_sequence_forgets_the_last_one(llama):
    ours = decoder(llama)
    first = ours.generate([1, 4], 10)
    ours.generate(TOKENS, 30)
    assert ours.generate([1, 4], 10) == first
    ours.reserve(12)
    assert ours.generate([1, 4], 10) == first


def test_text_is_that_of_transformers_generate(llama):
    ids = torch.tensor([[1, 4]])
    expected = load_model(llama).generate(
        ids, max_new_tokens=30, do_sample=False, eos_token_id=None
    )
    assert decoder(llama).generate([1, 4], 30) == expected[0, 2:].tolist()


def test_the_cache_can_be_filled_to_its_last_row_and_no_further(llama):
    ours = decoder(llama, capacity=8)
    assert len(ours.generate([1, 2, 3], 6)) == 6
    with pytest.raises(CacheFullError, match="9 tokens do not fit the cache of 8"):
        ours.step()
    with pytest.raises(CacheFullError, match="9 tokens do not fit the cache of 8"):
        ours.generate([1, 2, 3], 7)
    with pytest.raises(CacheFullError):
        ours.start(TOKENS)


def test_more_tokens_than_the_model_was_made_for_are_refused(llama):
    with pytest.raises(UsageError, match=r"65 tokens: this model was made for 1\.\.64"):
        decoder(llama, capacity=65)


@pytest.mark.parametrize("tokens", [[], [VOCABULARY], [-1]])
def test_tokens_that_the_model_does_not_have_are_refused(llama, tokens):
    with pytest.raises(UsageError, match=r"tokens of 0\.\.63"):
        decoder(llama).start(tokens)


def test_attention_may_read_more_rows_than_are_filled():
    torch.manual_seed(0)
    heads, capacity = Heads(query=4, key_value=2, width=6), 16
    positions = torch.tensor([5])
    out = []
    for length in (6, capacity):
        torch.manual_seed(1)
        cache = Cache(torch.randn(2, capacity, 6), torch.randn(2, capacity, 6))
        qkv = (torch.randn(1, 24), torch.randn(1, 12), torch.randn(1, 12))
        angles = (torch.randn(capacity, 6), torch.randn(capacity, 6))
        out.append(attention(qkv, cache, angles, positions, length, heads))
    torch.testing.assert_close(out[0], out[1], rtol=0, atol=2.0**-20)


def test_a_window_hides_what_is_too_far_behind():
    seen = visible(torch.tensor([2, 4]), 5, window=2)
    assert seen.tolist() == [[False, True, True, False, False], [False, False, False, True, True]]


def test_functions_are_traced_without_a_break(llama, monkeypatch):
    """What a GPU compiles, traced here without writing kernels; any break would raise."""
    real = torch.compile

    def traced(function, *, fullgraph, dynamic, options):
        assert options
        return real(function, backend="eager", fullgraph=fullgraph, dynamic=dynamic)

    monkeypatch.setattr(torch, "compile", traced)
    ours = decoder(llama)
    expected = ours.generate([1, 4], 5)
    ours.functions = compiled()
    assert all(a is not b for a, b in zip(ours.functions, Functions(), strict=True))
    assert ours.generate([1, 4], 5) == expected


def test_graphs_of_powers_of_two_say_what_exact_lengths_say(llama, monkeypatch):
    """A stand-in for a CUDA graph runs the step that was captured, for as many rows."""
    expected, ours = decoder(llama).generate([1, 4], 40), decoder(llama, capacity=41)
    captured = []

    def capture(length):
        captured.append(length)
        return SimpleNamespace(replay=lambda: ours._step(length))

    monkeypatch.setattr("bench.generate.decoder.LEAST_LENGTH", 8)
    monkeypatch.setattr(ours, "_capture", capture)
    ours.graphed = True
    ours.prepare()
    assert captured == [8, 16, 32, 41]
    assert ours.generate([1, 4], 40) == expected
    assert captured == [8, 16, 32, 41]


@pytest.mark.parametrize(
    ("name", "fused"),
    [("squeezellm-w3-s5", True), ("gptq-w4-g128-act", True)],
)
def test_both_stacks_run_packed_weights_alike(llama, name, fused):
    config = json.loads((llama / "config.json").read_text())
    path = llama.parent / "wide.json"
    path.write_text(json.dumps(config | {"hidden_size": 128, "intermediate_size": 256}))
    shape = read_model(path)
    ours = Decoder(random_model(shape, name, device="cpu"), capacity=16)
    theirs = HfEager(random_model(shape, name, device="cpu"))
    assert ours.fused is fused
    assert ours.weight_bytes == theirs.weight_bytes
    assert ours.generate([1, 4], 8) == theirs.generate([1, 4], 8)


def test_memory_is_weights_and_cache(llama):
    ours = decoder(llama, capacity=10)
    parameters = sum(p.numel() for p in load_model(llama).parameters())
    assert ours.weight_bytes == 4 * parameters
    kv_heads, width = 2, HIDDEN // 4
    assert ours.cache_bytes == 2 * BLOCKS * kv_heads * 10 * width * 4

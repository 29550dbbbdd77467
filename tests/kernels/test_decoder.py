"""The decoder on the Triton kernels, interpreted: stacked weights with their sparse part.

Four linear layers follow each other; each may be off by 0.5 % of a typical output, which is what
FP16 chains cost (tests/kernels/tolerance.py). Activations are FP16 on both sides.
"""

import json

import torch

from bench.generate import linears
from bench.generate.decoder import Decoder
from bench.generate.model_weights import random_model
from kernels.linear import QuantizedLinear
from perfmodel.models import read_model

CONFIG = {
    "architectures": ["Qwen2ForCausalLM"], "hidden_size": 128, "intermediate_size": 16,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 64,
    "max_position_embeddings": 16, "head_dim": 8,
}  # fmt: skip


def test_logits_on_the_kernels_are_those_on_the_twins(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG))
    shape = read_model(path)

    def logits():
        weights = random_model(shape, "squeezellm-w3-s5", device="cpu")
        decoder = Decoder(weights, capacity=8, dtype=torch.float16)
        assert decoder.fused
        return decoder.logits([1]), type(decoder.blocks[0].down)

    expected, _ = logits()
    monkeypatch.setattr(linears, "TwinLinear", QuantizedLinear)
    found, kind = logits()
    assert kind is QuantizedLinear
    atol = 4 * 0.005 * float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)

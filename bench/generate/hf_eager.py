"""The conditions of the papers: transformers' own LLaMA, its growing cache, no graph.

Only the linear layers are ours: the same packed weights, one launch per layer, nothing fused.
"""

from collections.abc import Sequence
from inspect import signature

import torch
from torch import Tensor, nn

from bench.generate.linears import linear_module
from bench.generate.llama_config import LlamaConfig
from bench.generate.model_weights import ATTENTION, ModelWeights, nbytes_of


class HfEager:
    """Greedy generation of one sequence with transformers' eager attention and `DynamicCache`."""

    fused = own_gemv = False

    def __init__(self, weights: ModelWeights, *, dtype: torch.dtype | None = None) -> None:
        """dtype: of activations; FP16 on a GPU, FP32 on a CPU unless said."""
        self.device = weights.device
        on_gpu = self.device.type == "cuda"
        self.dtype = dtype or (torch.float16 if on_gpu else torch.float32)
        self.weight_bytes = weights.outer_bytes
        self.model = _empty_model(weights.config, self.dtype)
        inner = self.model.model
        # Its buffers have no values either: made anew where the weights are.
        rotary = type(inner.rotary_emb)
        inner.rotary_emb = rotary(config=self.model.config).to(self.device)
        for layer, block in zip(inner.layers, weights.blocks, strict=True):
            self.weight_bytes += nbytes_of(block)
            for name, linear in block.linears.items():
                owner = layer.self_attn if name in ATTENTION else layer.mlp
                setattr(owner, name, linear_module(linear, self.dtype))
            layer.input_layernorm.weight = self._parameter(block.attention_norm)
            layer.post_attention_layernorm.weight = self._parameter(block.mlp_norm)
        inner.norm.weight = self._parameter(weights.norm)
        inner.embed_tokens = _Embedding(weights.embedding, self.dtype)
        self.model.lm_head = linear_module(weights.head, self.dtype)
        # `cache` from transformers 5.24 on, where the older name warns.
        known = signature(self.model.forward).parameters
        self.cache_argument = "cache" if "cache" in known else "past_key_values"
        self.start([weights.config.first_token])

    @property
    def cache_bytes(self) -> int:
        """Of the keys and values that are there now: the cache grows with the sequence."""
        layers = self.cache.layers
        return sum(
            layer.keys.nbytes + layer.values.nbytes for layer in layers if layer.keys is not None
        )

    def reserve(self, capacity: int) -> None:
        """Nothing: this cache grows."""

    def start(self, tokens: Sequence[int]) -> None:
        """Begin a new sequence: all but the last token go into the cache, the last is pending."""
        from transformers import DynamicCache

        self.cache = DynamicCache()
        ids = torch.tensor([tokens], device=self.device)
        if len(tokens) > 1:
            with torch.inference_mode():
                self._forward(ids[:, :-1], logits_to_keep=1)
        self.chosen = [ids[:, -1:]]

    def step(self) -> None:
        """Process the pending token and choose the next."""
        self.chosen.append(self._forward(self.chosen[-1])[:, -1:].argmax(-1))

    def _forward(self, ids: Tensor, logits_to_keep: int = 0) -> Tensor:
        """(1, T, V) logits after the (1, T) tokens, or of the last `logits_to_keep` of them."""
        given = {self.cache_argument: self.cache, "logits_to_keep": logits_to_keep}
        return self.model(input_ids=ids, **given).logits

    def generate(self, prompt: Sequence[int], new: int) -> list[int]:
        """`new` tokens after the prompt."""
        self.start(prompt)
        with torch.inference_mode():
            for _ in range(new):
                self.step()
        return torch.cat(self.chosen[1:], dim=1)[0].tolist()

    def _parameter(self, tensor: Tensor) -> nn.Parameter:
        return nn.Parameter(tensor.to(self.dtype), requires_grad=False)


class _Embedding(nn.Module):
    """Rows of a table that may be stored in fewer bytes than the activations."""

    def __init__(self, table: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.table, self.dtype = table, dtype

    def forward(self, ids: Tensor) -> Tensor:
        return nn.functional.embedding(ids, self.table).to(self.dtype)


def _empty_model(config: LlamaConfig, dtype: torch.dtype) -> nn.Module:
    """transformers' model without weights; its linear layers are all replaced afterwards."""
    from transformers import AutoModelForCausalLM, MistralConfig  # seconds, only where needed
    from transformers import LlamaConfig as HfLlamaConfig

    shape, rope = config.shape, config.rope
    window = {} if shape.sliding_window is None else {"sliding_window": shape.sliding_window}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            (MistralConfig if window else HfLlamaConfig)(
                vocab_size=shape.vocab,
                hidden_size=shape.hidden,
                intermediate_size=shape.intermediate,
                num_hidden_layers=shape.layers,
                num_attention_heads=shape.heads,
                num_key_value_heads=shape.kv_heads,
                head_dim=shape.head_dim,
                max_position_embeddings=shape.max_positions,
                rms_norm_eps=config.norm_epsilon,
                rope_parameters=rope.as_config(),
                tie_word_embeddings=False,
                **window,
            ),
            dtype=dtype,
            attn_implementation="eager",
        )
    return model.train(False)

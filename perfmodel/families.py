"""Families of models: the keys of their `config.json`, and the shape that these describe.

Other keys are ignored. A form of a family that is not modelled is refused, never approximated.
"""

from collections.abc import Callable
from typing import Annotated, Any

import msgspec

from perfmodel.errors import UsageError
from perfmodel.shape import ModelShape

Count = Annotated[int, msgspec.Meta(gt=0, le=100_000_000)]


class About(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a preset says about itself, beside the config's own keys."""

    aliases: list[str] = msgspec.field(default_factory=list)
    source: str
    verified: bool


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """Keys that every family has."""

    architectures: list[str]
    vocab_size: Count
    tie_word_embeddings: bool | None = None
    about: About | None = None  # presets only


class LlamaConfig(Config, frozen=True, kw_only=True):
    """LLaMA, Mistral and Qwen2."""

    hidden_size: Count
    num_hidden_layers: Count
    num_attention_heads: Count
    max_position_embeddings: Count
    intermediate_size: Count
    num_key_value_heads: Count | None = None
    head_dim: Count | None = None
    sliding_window: Count | None = None
    use_sliding_window: bool | None = None
    attention_bias: bool = False
    mlp_bias: bool = False


class OptConfig(Config, frozen=True, kw_only=True):
    """OPT."""

    hidden_size: Count
    num_hidden_layers: Count
    num_attention_heads: Count
    max_position_embeddings: Count
    ffn_dim: Count
    word_embed_proj_dim: Count | None = None
    do_layer_norm_before: bool = True
    enable_bias: bool = True


class MptAttention(msgspec.Struct, frozen=True, kw_only=True):
    """`attn_config` of MPT; transformers leaves out what is as by default."""

    alibi: bool = True
    attn_type: str = "multihead_attention"
    qk_ln: bool = False


class MptConfig(Config, frozen=True, kw_only=True):
    """MPT."""

    d_model: Count
    n_layers: Count
    n_heads: Count
    max_seq_len: Count
    expansion_ratio: Count = 4
    no_bias: bool = True
    attn_config: MptAttention = MptAttention()


class FalconConfig(Config, frozen=True, kw_only=True):
    """Falcon; the code before transformers had it calls layers and heads n_layer, n_head."""

    hidden_size: Count
    num_hidden_layers: Count | None = None
    num_attention_heads: Count | None = None
    n_layer: Count | None = None
    n_head: Count | None = None
    n_head_kv: Count | None = None
    ffn_hidden_size: Count | None = None
    max_position_embeddings: Count = 2048
    multi_query: bool = True
    parallel_attn: bool = True
    new_decoder_architecture: bool = False
    alibi: bool = False
    bias: bool = False


def _llama(config: LlamaConfig, name: str, source: str) -> ModelShape:
    return _decoder(
        config, name, source, qkv_bias=config.attention_bias, o_bias=config.attention_bias
    )


def _mistral(config: LlamaConfig, name: str, source: str) -> ModelShape:
    return _decoder(config, name, source, window=config.sliding_window)


def _qwen2(config: LlamaConfig, name: str, source: str) -> ModelShape:
    """Qwen2 has biases on q, k and v alone; its sliding window is off unless asked for."""
    _expect("use_sliding_window", bool(config.use_sliding_window), False, "layers would differ")
    return _decoder(config, name, source, qkv_bias=True)


def _decoder(
    config: LlamaConfig,
    name: str,
    source: str,
    *,
    qkv_bias: bool = False,
    o_bias: bool = False,
    window: int | None = None,
) -> ModelShape:
    return ModelShape(
        name=name,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        heads=config.num_attention_heads,
        kv_heads=_kv_heads(config),
        head_dim=config.head_dim or _head_dim(config.hidden_size, config.num_attention_heads),
        vocab=config.vocab_size,
        max_positions=config.max_position_embeddings,
        gated_mlp=True,
        activation="silu",
        positions="rotary",
        layer_norm=False,
        norm_bias=False,
        parallel_mlp=False,
        tied_embeddings=bool(config.tie_word_embeddings),
        qkv_bias=qkv_bias,
        o_bias=o_bias,
        mlp_bias=config.mlp_bias,
        sliding_window=window,
        source=source,
    )


def _opt(config: OptConfig, name: str, source: str) -> ModelShape:
    if config.word_embed_proj_dim not in (None, config.hidden_size):
        raise UsageError(
            f"word_embed_proj_dim: found {config.word_embed_proj_dim}, "
            f"expected hidden_size, {config.hidden_size} (projected embeddings are not modelled)"
        )
    _expect("do_layer_norm_before", config.do_layer_norm_before, True)
    return ModelShape(
        name=name,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=config.ffn_dim,
        heads=config.num_attention_heads,
        kv_heads=config.num_attention_heads,
        head_dim=_head_dim(config.hidden_size, config.num_attention_heads),
        vocab=config.vocab_size,
        max_positions=config.max_position_embeddings,
        gated_mlp=False,
        activation="relu",
        positions="learned",
        layer_norm=True,
        norm_bias=True,
        parallel_mlp=False,
        tied_embeddings=config.tie_word_embeddings is not False,  # OPT's default is tied
        qkv_bias=config.enable_bias,
        o_bias=config.enable_bias,
        mlp_bias=config.enable_bias,
        sliding_window=None,
        source=source,
    )


def _mpt(config: MptConfig, name: str, source: str) -> ModelShape:
    """ALiBi stores nothing; without biases the norms have none either."""
    attention, bias = config.attn_config, not config.no_bias
    _expect("attn_config.alibi", attention.alibi, True, "learned positions are not modelled")
    _expect("attn_config.attn_type", attention.attn_type, "multihead_attention")
    _expect("attn_config.qk_ln", attention.qk_ln, False)
    return ModelShape(
        name=name,
        layers=config.n_layers,
        hidden=config.d_model,
        intermediate=config.expansion_ratio * config.d_model,
        heads=config.n_heads,
        kv_heads=config.n_heads,
        head_dim=_head_dim(config.d_model, config.n_heads, names=("n_heads", "d_model")),
        vocab=config.vocab_size,
        max_positions=config.max_seq_len,
        gated_mlp=False,
        activation="gelu",
        positions="alibi",
        layer_norm=True,
        norm_bias=bias,
        parallel_mlp=False,
        tied_embeddings=config.tie_word_embeddings is not False,  # MPT's default is tied
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=bias,
        sliding_window=None,
        source=source,
    )


def _falcon(config: FalconConfig, name: str, source: str) -> ModelShape:
    """The 7B form: one key-value head, attention and MLP side by side behind one norm."""
    layers = config.num_hidden_layers or config.n_layer
    heads = config.num_attention_heads or config.n_head
    if layers is None or heads is None:
        raise UsageError("found no num_hidden_layers or num_attention_heads, expected both")
    only = "only Falcon-7B's form is modelled"
    _expect("new_decoder_architecture", config.new_decoder_architecture, False, only)
    _expect("multi_query", config.multi_query, True, only)
    _expect("parallel_attn", config.parallel_attn, True, only)
    _expect("alibi", config.alibi, False, only)
    if config.n_head_kv not in (None, 1, heads):  # 40B; the others' files say n_head or nothing
        raise UsageError(f"n_head_kv: found {config.n_head_kv}, expected none ({only})")
    return ModelShape(
        name=name,
        layers=layers,
        hidden=config.hidden_size,
        intermediate=config.ffn_hidden_size or 4 * config.hidden_size,
        heads=heads,
        kv_heads=1,
        head_dim=_head_dim(config.hidden_size, heads),
        vocab=config.vocab_size,
        max_positions=config.max_position_embeddings,
        gated_mlp=False,
        activation="gelu",
        positions="rotary",
        layer_norm=True,
        norm_bias=True,
        parallel_mlp=True,
        tied_embeddings=config.tie_word_embeddings is not False,  # Falcon's default is tied
        qkv_bias=config.bias,
        o_bias=config.bias,
        mlp_bias=config.bias,
        sliding_window=None,
        source=source,
    )


def _expect(key: str, found: Any, expected: Any, why: str = "") -> None:
    """Raises: UsageError if a key has another value than the one that is modelled."""
    if found != expected:
        shown = [str(v).lower() if isinstance(v, bool) else str(v) for v in (found, expected)]
        reason = f" ({why})" if why else ""
        raise UsageError(f"{key}: found {shown[0]}, expected {shown[1]}{reason}")


def _head_dim(
    hidden: int, heads: int, names: tuple[str, str] = ("num_attention_heads", "hidden_size")
) -> int:
    if hidden % heads:
        raise UsageError(
            f"{names[0]}: found {heads}, expected a divisor of {names[1]}, {hidden}, or a head_dim"
        )
    return hidden // heads


def _kv_heads(config: LlamaConfig) -> int:
    kv_heads = config.num_key_value_heads or config.num_attention_heads
    if config.num_attention_heads % kv_heads:
        raise UsageError(
            f"num_key_value_heads: found {kv_heads}, "
            f"expected a divisor of num_attention_heads, {config.num_attention_heads}"
        )
    return kv_heads


FAMILIES: dict[str, tuple[type[Config], Callable[[Any, str, str], ModelShape]]] = {
    "LlamaForCausalLM": (LlamaConfig, _llama),
    "MistralForCausalLM": (LlamaConfig, _mistral),
    "Qwen2ForCausalLM": (LlamaConfig, _qwen2),
    "OPTForCausalLM": (OptConfig, _opt),
    "MPTForCausalLM": (MptConfig, _mpt),
    "MptForCausalLM": (MptConfig, _mpt),
    "FalconForCausalLM": (FalconConfig, _falcon),
    "RWForCausalLM": (FalconConfig, _falcon),
}

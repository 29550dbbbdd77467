"""Model shapes, from Hugging Face `config.json` files; the presets are such files too."""

from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec

from perfmodel import names
from perfmodel.arrays import smallest
from perfmodel.errors import SpecError, UsageError
from perfmodel.records import to_record
from perfmodel.strict_yaml import Document, read_text

PRESETS = Path(__file__).parent / "presets"
MAX_CONFIG_BYTES = 1024 * 1024

Count = Annotated[int, msgspec.Meta(gt=0, le=100_000_000)]


class About(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a preset says about itself, beside the config's own keys."""

    aliases: list[str] = msgspec.field(default_factory=list)
    source: str
    verified: bool


class HfConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The keys of a `config.json` that decide shapes; all others are ignored."""

    architectures: list[str]
    hidden_size: Count
    num_hidden_layers: Count
    num_attention_heads: Count
    vocab_size: Count
    intermediate_size: Count | None = None
    num_key_value_heads: Count | None = None
    head_dim: Count | None = None
    max_position_embeddings: Count
    tie_word_embeddings: bool | None = None
    sliding_window: Count | None = None
    use_sliding_window: bool | None = None
    attention_bias: bool = False
    mlp_bias: bool = False
    # OPT only
    ffn_dim: Count | None = None
    word_embed_proj_dim: Count | None = None
    do_layer_norm_before: bool = True
    enable_bias: bool = True
    # presets only
    about: About | None = None


class Linear(NamedTuple):
    """One linear layer of a block: weight (out_features, in_features) = (N, K)."""

    name: str
    out_features: int
    in_features: int
    bias: bool


class ModelShape(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about a decoder-only transformer that decides bytes and FLOPs."""

    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    max_positions: int
    gated_mlp: bool  # gate, up and down (LLaMA), or up and down alone (OPT)
    rope: bool  # rotary positions, or a learned table of max_positions + 2 rows (OPT)
    layer_norm: bool  # LayerNorm with bias, or RMSNorm
    tied_embeddings: bool  # lm_head is the embedding table
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    sliding_window: int | None
    source: str

    @property
    def q_dim(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        return self.kv_heads * self.head_dim

    def linears(self) -> tuple[Linear, ...]:
        """Linear layers of one block."""
        hidden, inner = self.hidden, self.intermediate
        gate = (Linear("gate_proj", inner, hidden, self.mlp_bias),) if self.gated_mlp else ()
        return (
            Linear("q_proj", self.q_dim, hidden, self.qkv_bias),
            Linear("k_proj", self.kv_dim, hidden, self.qkv_bias),
            Linear("v_proj", self.kv_dim, hidden, self.qkv_bias),
            Linear("o_proj", hidden, self.q_dim, self.o_bias),
            *gate,
            Linear("up_proj", inner, hidden, self.mlp_bias),
            Linear("down_proj", hidden, inner, self.mlp_bias),
        )

    @property
    def norm_elements(self) -> int:
        """Weights (and biases) of one normalization layer."""
        return self.hidden * (2 if self.layer_norm else 1)

    @property
    def position_rows(self) -> int:
        """Rows of the learned position table; OPT keeps two more than positions."""
        return 0 if self.rope else self.max_positions + 2

    @property
    def parameters(self) -> int:
        """Number of weights, biases included, a tied table counted once."""
        block = sum(n * k + (n if bias else 0) for _, n, k, bias in self.linears())
        block += 2 * self.norm_elements
        tables = self.vocab * self.hidden * (1 if self.tied_embeddings else 2)
        tables += self.position_rows * self.hidden
        return self.layers * block + self.norm_elements + tables

    def attended(self, position: int) -> int:
        """Positions that a token attends to when `position` tokens, itself included, exist."""
        if self.sliding_window is None:
            return position
        return smallest(position, self.sliding_window)  # type: ignore[no-any-return]


def load_model(model: str) -> ModelShape:
    """Model by preset name, alias, or path of a `config.json` (or of its folder).

    Raises: UnknownNameError; SpecError if the file is wrong or the architecture unsupported.
    """
    if model.endswith(".json") or (model and _is_folder(model)):
        return read_model(Path(model))
    index = names.index_by_name(dict.fromkeys(model_names(), ()))
    found = index.get(names.normalised(model)) or names.resolve("model", model, _alias_index())
    return _preset(found)


def read_model(path: Path) -> ModelShape:
    """Model from a `config.json`, or from the folder that holds it and gives it its name.

    Raises: SpecError if the file is wrong or the architecture unsupported.
    """
    path = path / "config.json" if path.is_dir() else path
    name = path.parent.resolve().name if path.stem == "config" else path.stem
    return _shape(_read_config(path), name=name, source=str(path))


@lru_cache
def model_names() -> tuple[str, ...]:
    """Built-in models in order of family and size."""
    return tuple(sorted((path.stem for path in PRESETS.glob("*.json")), key=_by_size))


def preset_about(name: str) -> About:
    """Aliases, source and verification of a built-in model."""
    about = _read_config(PRESETS / f"{name}.json").about
    if about is None:
        raise SpecError(f"presets/{name}.json: found no key about, expected it in a preset")
    return about


def _by_size(name: str) -> tuple[str, float]:
    family, _, size = name.rpartition("-")
    return family, float(size.rstrip("b"))


@lru_cache
def _alias_index() -> dict[str, str]:
    return names.index_by_name({name: preset_about(name).aliases for name in model_names()})


@lru_cache
def _preset(name: str) -> ModelShape:
    return _shape(
        _read_config(PRESETS / f"{name}.json"), name=name, source=preset_about(name).source
    )


def _is_folder(text: str) -> bool:
    try:
        return Path(text).is_dir()
    except (OSError, ValueError):  # too long for a path, or with a NUL in it
        return False


def _read_config(path: Path) -> HfConfig:
    text = read_text(path, max_bytes=MAX_CONFIG_BYTES)
    try:
        raw: Any = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        problem = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise SpecError(
            f"{path}: found no valid JSON ({problem}), expected a config.json"
        ) from None
    if not isinstance(raw, dict):
        found = "a list" if isinstance(raw, list) else "a bare value"
        raise SpecError(f"{path}: found {found}, expected the object of a config.json")
    _refuse_unsupported(path, raw.get("architectures"), raw.get("model_type"))
    return to_record(Document(source=str(path), value=raw), HfConfig)


def _refuse_unsupported(path: Path, architectures: Any, model_type: Any) -> None:
    """Name the architecture before any complaint about its keys.

    Raises: SpecError.
    """
    if not isinstance(architectures, list) or len(architectures) != 1:
        found = f"{architectures!r}" if architectures else f"none (model_type {model_type!r})"
        raise SpecError(f"{path}: architectures: found {found}, expected exactly one name")
    if not isinstance(architectures[0], str):
        found = f"{architectures[0]!r}"
        raise SpecError(f"{path}: architectures: found {found}, expected a name")
    if architectures[0] not in _FAMILIES:
        raise SpecError(
            f"{path}: architectures: found {architectures[0]}, which is not supported; "
            f"expected one of {', '.join(_FAMILIES)}"
        )


def _shape(config: HfConfig, *, name: str, source: str) -> ModelShape:
    """The shape that a config describes.

    Raises: SpecError if its numbers contradict each other.
    """
    try:
        return _FAMILIES[config.architectures[0]](config, name, source)
    except UsageError as error:
        raise SpecError(f"{source}: {error}") from None


def _llama(config: HfConfig, name: str, source: str) -> ModelShape:
    return _decoder(
        config, name, source, qkv_bias=config.attention_bias, o_bias=config.attention_bias
    )


def _mistral(config: HfConfig, name: str, source: str) -> ModelShape:
    return _decoder(config, name, source, window=config.sliding_window)


def _qwen2(config: HfConfig, name: str, source: str) -> ModelShape:
    """Qwen2 has biases on q, k and v alone; its sliding window is off unless asked for."""
    if config.use_sliding_window:
        raise UsageError("use_sliding_window: found true, expected false (layers would differ)")
    return _decoder(config, name, source, qkv_bias=True)


def _decoder(
    config: HfConfig,
    name: str,
    source: str,
    *,
    qkv_bias: bool = False,
    o_bias: bool = False,
    window: int | None = None,
) -> ModelShape:
    if config.intermediate_size is None:
        raise UsageError("intermediate_size: found none, expected the width of the MLP")
    return ModelShape(
        name=name,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        heads=config.num_attention_heads,
        kv_heads=_kv_heads(config),
        head_dim=config.head_dim or _split_heads(config),
        vocab=config.vocab_size,
        max_positions=config.max_position_embeddings,
        gated_mlp=True,
        rope=True,
        layer_norm=False,
        tied_embeddings=bool(config.tie_word_embeddings),
        qkv_bias=qkv_bias,
        o_bias=o_bias,
        mlp_bias=config.mlp_bias,
        sliding_window=window,
        source=source,
    )


def _opt(config: HfConfig, name: str, source: str) -> ModelShape:
    if config.word_embed_proj_dim not in (None, config.hidden_size):
        raise UsageError(
            f"word_embed_proj_dim: found {config.word_embed_proj_dim}, "
            f"expected hidden_size, {config.hidden_size} (projected embeddings are not modelled)"
        )
    if not config.do_layer_norm_before:
        raise UsageError("do_layer_norm_before: found false, expected true")
    if config.ffn_dim is None:
        raise UsageError("ffn_dim: found none, expected the width of the MLP")
    return ModelShape(
        name=name,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=config.ffn_dim,
        heads=config.num_attention_heads,
        kv_heads=config.num_attention_heads,
        head_dim=_split_heads(config),
        vocab=config.vocab_size,
        max_positions=config.max_position_embeddings,
        gated_mlp=False,
        rope=False,
        layer_norm=True,
        tied_embeddings=config.tie_word_embeddings is not False,  # OPT's default is tied
        qkv_bias=config.enable_bias,
        o_bias=config.enable_bias,
        mlp_bias=config.enable_bias,
        sliding_window=None,
        source=source,
    )


def _split_heads(config: HfConfig) -> int:
    if config.hidden_size % config.num_attention_heads:
        raise UsageError(
            f"num_attention_heads: found {config.num_attention_heads}, "
            f"expected a divisor of hidden_size, {config.hidden_size}, or a head_dim"
        )
    return config.hidden_size // config.num_attention_heads


def _kv_heads(config: HfConfig) -> int:
    kv_heads = config.num_key_value_heads or config.num_attention_heads
    if config.num_attention_heads % kv_heads:
        raise UsageError(
            f"num_key_value_heads: found {kv_heads}, "
            f"expected a divisor of num_attention_heads, {config.num_attention_heads}"
        )
    return kv_heads


_FAMILIES = {
    "LlamaForCausalLM": _llama,
    "MistralForCausalLM": _mistral,
    "Qwen2ForCausalLM": _qwen2,
    "OPTForCausalLM": _opt,
}

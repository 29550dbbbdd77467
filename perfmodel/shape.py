"""The shape of a decoder-only transformer: everything that decides bytes and FLOPs."""

from typing import Literal, NamedTuple

import msgspec

from perfmodel.arrays import smallest

Activation = Literal["silu", "relu", "gelu"]
Positions = Literal["rotary", "learned", "alibi"]
OPT_POSITION_ROWS = 2  # its table keeps two rows more than it has positions


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
    gated_mlp: bool  # gate, up and down (LLaMA), or up and down alone (OPT, MPT, Falcon)
    activation: Activation
    positions: Positions  # a learned table (OPT), or nothing stored
    layer_norm: bool  # LayerNorm, or RMSNorm
    norm_bias: bool
    parallel_mlp: bool  # attention and MLP read one norm and are added together (Falcon)
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

    @property
    def rope(self) -> bool:
        return self.positions == "rotary"

    @property
    def norms_per_block(self) -> int:
        return 1 if self.parallel_mlp else 2

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
        return self.hidden * (2 if self.norm_bias else 1)

    @property
    def position_rows(self) -> int:
        """Rows of the learned position table."""
        return self.max_positions + OPT_POSITION_ROWS if self.positions == "learned" else 0

    @property
    def parameters(self) -> int:
        """Number of weights, biases included, a tied table counted once."""
        block = sum(n * k + (n if bias else 0) for _, n, k, bias in self.linears())
        block += self.norms_per_block * self.norm_elements
        tables = self.vocab * self.hidden * (1 if self.tied_embeddings else 2)
        tables += self.position_rows * self.hidden
        return self.layers * block + self.norm_elements + tables

    def attended(self, position: int) -> int:
        """Positions that a token attends to when `position` tokens, itself included, exist."""
        if self.sliding_window is None:
            return position
        return smallest(position, self.sliding_window)  # type: ignore[no-any-return]

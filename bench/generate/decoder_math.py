"""Everything of a decoder block but its linear layers, as plain functions of tensors.

On a CPU they run as they stand. On a GPU each is compiled by Inductor, which makes one or a few
kernels of it: between two linear layers, launches are what costs.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

MOST_SHAPES = 256  # of one function: models, sizes of cache, lengths


class Heads(NamedTuple):
    """Attention's geometry."""

    query: int
    key_value: int
    width: int
    window: int | None = None  # tokens that a token sees, itself included; None: all


class Cache(NamedTuple):
    """Keys and values of one block: (key-value heads, capacity, width) each."""

    keys: Tensor
    values: Tensor


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """x / rms(x) * weight, the mean in FP32. x (M, H)."""
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    return weight * (wide * scale).to(x.dtype)


def add_norm(x: Tensor, y: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """The residual stream x + y, and its norm."""
    total = x + y
    return total, rms_norm(total, weight, epsilon)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions, halves paired as Hugging Face stores them. x (M, heads, D); cos (M, D)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat((-second, first), dim=-1) * sin[:, None]


def attention(
    qkv: tuple[Tensor, Tensor, Tensor],
    cache: Cache,
    angles: tuple[Tensor, Tensor],
    positions: Tensor,
    length: int,
    heads: Heads,
) -> Tensor:
    """Attention of M new tokens over the first `length` rows of the cache, themselves included.

    Writes keys and values of the new tokens into the cache. qkv: (M, heads * D) each; angles: cos
    and sin, (capacity, D); positions (M,) int64, all below `length`. Returns (M, heads * D).
    """
    tokens, group = positions.shape[0], heads.query // heads.key_value
    cos, sin = (table[positions] for table in angles)
    q = rotate(qkv[0].view(tokens, heads.query, heads.width), cos, sin)
    k = rotate(qkv[1].view(tokens, heads.key_value, heads.width), cos, sin)
    v = qkv[2].view(tokens, heads.key_value, heads.width)
    cache.keys.index_copy_(1, positions, k.transpose(0, 1))
    cache.values.index_copy_(1, positions, v.transpose(0, 1))
    keys, values = cache.keys[:, :length], cache.values[:, :length]
    # Queries that share a key head stand together: nothing is repeated.
    q = q.view(tokens, heads.key_value, group, heads.width).permute(1, 2, 0, 3)
    scores = q.reshape(heads.key_value, group * tokens, heads.width) @ keys.transpose(1, 2)
    scores = scores.float().mul(heads.width**-0.5).view(heads.key_value, group, tokens, length)
    scores = scores.masked_fill(~visible(positions, length, heads.window), float("-inf"))
    weights = scores.softmax(-1).to(values.dtype).view(heads.key_value, group * tokens, length)
    out = (weights @ values).view(heads.key_value, group, tokens, heads.width)
    return out.permute(2, 0, 1, 3).reshape(tokens, heads.query * heads.width)


def visible(positions: Tensor, length: int, window: int | None) -> Tensor:
    """(M, length) bool: which rows of the cache each token may look at."""
    behind = positions[:, None] - torch.arange(length, device=positions.device)
    return behind >= 0 if window is None else (behind >= 0) & (behind < window)


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """SiLU(gate) * up."""
    return torch.nn.functional.silu(gate) * up


class Functions(NamedTuple):
    """The functions of a block, as they stand or compiled."""

    rms_norm: Callable[..., Tensor] = rms_norm
    add_norm: Callable[..., tuple[Tensor, Tensor]] = add_norm
    attention: Callable[..., Tensor] = attention
    gated: Callable[..., Tensor] = gated


@cache
def compiled() -> Functions:
    """Each compiled for the shapes that it meets, once for all decoders.

    `length` takes a few values only.
    """
    torch._dynamo.config.recompile_limit = MOST_SHAPES
    # Inductor then writes products with one row as kernels of its own, as gpt-fast found best.
    options = {"coordinate_descent_tuning": True}
    return Functions(
        *(torch.compile(f, fullgraph=True, dynamic=False, options=options) for f in Functions())
    )

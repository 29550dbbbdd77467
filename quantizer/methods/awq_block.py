"""AWQ's scales folded into a decoder block: the same function, other weights.

Scales s of the inputs of a linear layer multiply its columns, and divide whatever makes the input:
the norm before, or the rows of the linear layer before. That is exact where what lies between is
linear in each channel: v_proj to o_proj (attention mixes positions, not channels), up_proj to
down_proj (a product with the gate), fc1 to fc2 of OPT (ReLU, as s > 0).
"""

from collections.abc import Mapping

import torch
from msgspec.structs import replace
from torch import Tensor, nn

from quantizer.methods.awq import search_scale
from quantizer.methods.matrix import Settings, SettingsError, Statistics, required

# What makes the input, and the linear layers that share it, in the order of the search.
PAIRS = {
    "llama": (
        ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
        ("self_attn.v_proj", ("self_attn.o_proj",)),
        ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
        ("mlp.up_proj", ("mlp.down_proj",)),
    ),
    "opt": (
        ("self_attn_layer_norm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
        ("self_attn.v_proj", ("self_attn.out_proj",)),
        ("final_layer_norm", ("fc1",)),
        ("fc1", ("fc2",)),
    ),
}
UNCLIPPED = ("self_attn.q_proj", "self_attn.k_proj")  # as in the released code


def scale_block(
    block: nn.Module, statistics: Mapping[str, Statistics], settings: Settings
) -> dict[str, Statistics]:
    """Fold the best scales into the block, in place; the statistics of the scaled inputs.

    statistics: by name in the block, of every linear layer. A pair whose widths differ (v_proj and
    o_proj with grouped queries) keeps its scale of 1.

    Raises: SettingsError if the block is of no known family.
    """
    scaled = dict(statistics)
    for source, readers in _pairs(block):
        before = block.get_submodule(source)
        linears = [block.get_submodule(name) for name in readers]
        if before.weight.shape[0] != linears[0].weight.shape[1]:
            continue
        weights = [linear.weight.detach() for linear in linears]
        scale, _ = search_scale(weights, statistics[readers[0]], settings)
        fold_scale(before, linears, scale)
        for name in readers:
            scaled[name] = _scaled(scaled[name], scale)
    return scaled


@torch.no_grad()
def fold_scale(before: nn.Module, linears: list[nn.Module], scale: Tensor) -> None:
    """Divide what `before` gives by the (K,) scale, multiply the columns of its readers."""
    for parameter in (before.weight, getattr(before, "bias", None)):
        if parameter is not None:
            shape = (-1, *(1,) * (parameter.ndim - 1))
            parameter.copy_(parameter.float() / scale.view(shape))
    for linear in linears:
        linear.weight.copy_(linear.weight.float() * scale)


def _pairs(block: nn.Module) -> tuple[tuple[str, tuple[str, ...]], ...]:
    names = {name for name, _ in block.named_modules()}
    for pairs in PAIRS.values():
        if all(source in names and set(readers) <= names for source, readers in pairs):
            return pairs
    have = ", ".join(PAIRS)
    raise SettingsError(f"AWQ does not know how to scale a {type(block).__name__}; knows: {have}")


def _scaled(statistics: Statistics, scale: Tensor) -> Statistics:
    """Statistics of x / s: the Hessian over s s^T, the magnitudes over s."""
    columns = scale.numel()
    hessian = required(statistics, "hessian", (columns, columns))
    return replace(
        statistics,
        hessian=hessian / (scale[:, None] * scale),
        mean_abs=required(statistics, "mean_abs", (columns,)) / scale,
    )

"""AWQ's scales folded into a decoder block: the same function, other weights.

Scales s of the inputs of a linear layer multiply its columns, and divide whatever makes the input:
the norm before, or the rows of the linear layer before. That is exact where what lies between is
linear in each channel: v_proj to o_proj (attention mixes positions, not channels), up_proj to
down_proj (a product with the gate), fc1 to fc2 of OPT (ReLU, as s > 0).

What a layer's rows and columns were multiplied by is kept beside it, as `folded_rows` and
`folded_columns`. No kernel reads them: they show what quantizing did to the weights as they were
(`unfolded`), and so let the loss be forecast.
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
ROWS, COLUMNS = "folded_rows", "folded_columns"  # names in a shard, after the layer's
UNCLIPPED = ("self_attn.q_proj", "self_attn.k_proj")  # as in the released code


def scale_block(
    block: nn.Module,
    statistics: Mapping[str, Statistics],
    settings: Mapping[str, Settings],
    dtypes: Mapping[str, torch.dtype],
) -> tuple[dict[str, Statistics], dict[str, Tensor]]:
    """Fold the best scales into the block, in place.

    statistics, settings: by name in the block, of every linear layer; a scale is looked for where
    all layers that share an input are AWQ's. dtypes: by parameter name, as they will be stored. A
    pair whose widths differ (v_proj and o_proj with grouped queries) keeps its scale of 1.

    Returns: the statistics of the scaled layers; the foldings, by tensor name in the block.

    Raises: SettingsError if the block is of no known family.
    """
    scaled, foldings = dict(statistics), {}
    for source, readers in _pairs(block):
        before = block.get_submodule(source)
        linears = [block.get_submodule(name) for name in readers]
        if before.weight.shape[0] != linears[0].weight.shape[1]:
            continue
        if any(settings[name].method != "awq" for name in readers):
            continue
        layers = [(m.weight.detach(), settings[n]) for n, m in zip(readers, linears, strict=True)]
        wanted, _ = search_scale(layers, statistics[readers[0]])
        scale = fold_scale(before, linears, wanted, dtype=dtypes[f"{source}.weight"])
        for name in readers:
            scaled[name] = _of_scaled_columns(scaled[name], scale)
            foldings[f"{name}.{COLUMNS}"] = scale.clone()  # shards hold no shared memory
        if isinstance(before, nn.Linear):
            scaled[source] = _of_scaled_rows(scaled[source], 1 / scale)
            foldings[f"{source}.{ROWS}"] = 1 / scale
    return scaled, foldings


@torch.no_grad()
def fold_scale(
    before: nn.Module, linears: list[nn.Module], scale: Tensor, *, dtype: torch.dtype
) -> Tensor:
    """Divide what `before` gives by the (K,) scale, multiply the columns of its readers.

    The weight of a norm is stored in `dtype`: its rounding moves the scale, so that the product
    stays what it was, to float32. A channel whose quotient cannot be stored keeps a scale of 1.

    Returns: the scale that was folded.
    """
    if not isinstance(before, nn.Linear):
        was = before.weight.float()
        stored = (was / scale).to(dtype).float()
        usable = torch.isfinite(stored) & (stored != 0)
        scale = torch.where(usable, was / stored, torch.ones_like(scale))
    for parameter in (before.weight, getattr(before, "bias", None)):
        if parameter is not None:
            shape = (-1, *(1,) * (parameter.ndim - 1))
            parameter.copy_(parameter.float() / scale.view(shape))
    for linear in linears:
        linear.weight.copy_(linear.weight.float() * scale)
    return scale


def unfolded(weight: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
    """The (N, K) weight of a layer in terms of the block as it was before scales were folded.

    parts: the tensors stored of the layer, `folded_rows` and `folded_columns` among them if it has
    any. The layer in the rescaled block does what this weight does in the original one.
    """
    if ROWS in parts:
        weight = weight / parts[ROWS][:, None]
    return weight / parts[COLUMNS] if COLUMNS in parts else weight


def _pairs(block: nn.Module) -> tuple[tuple[str, tuple[str, ...]], ...]:
    names = {name for name, _ in block.named_modules()}
    for pairs in PAIRS.values():
        if all(source in names and set(readers) <= names for source, readers in pairs):
            return pairs
    have = ", ".join(PAIRS)
    raise SettingsError(f"AWQ does not know how to scale a {type(block).__name__}; knows: {have}")


def _of_scaled_columns(statistics: Statistics, scale: Tensor) -> Statistics:
    """Of inputs x / s and weights W diag(s): the Hessian over s s^T, the magnitudes over s."""
    columns = scale.numel()
    hessian = required(statistics, "hessian", (columns, columns))
    return replace(
        statistics,
        hessian=hessian / (scale[:, None] * scale),
        mean_abs=required(statistics, "mean_abs", (columns,)) / scale,
        fisher=None if statistics.fisher is None else statistics.fisher / scale.square(),
    )


def _of_scaled_rows(statistics: Statistics, scale: Tensor) -> Statistics:
    """Of weights diag(s) W: squared gradients over s^2, the inputs are the same."""
    fisher = statistics.fisher
    if fisher is None:
        return statistics
    return replace(statistics, fisher=fisher / scale.square()[:, None])

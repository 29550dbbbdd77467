"""Before quantizing: how sensitive each layer is, what each format will cost, what to give whom."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from quantizer.checkpoint import Checkpoint, load_tensors, read_tensors
from quantizer.choose import layer_settings
from quantizer.device_time import StepTimes
from quantizer.errors import UsageError
from quantizer.forecast import allocate, forecast_loss
from quantizer.matrix import Settings, Statistics
from quantizer.methods import needs, quantize_matrix


class Sensitivity(msgspec.Struct, frozen=True, kw_only=True):
    """How much the loss depends on one layer, and the forecast for each format."""

    layer: str
    shape: tuple[int, int]
    fisher_mean: float  # of the token Fisher: nats per token and squared unit of weight
    fisher_share: float  # of the model's sum
    top_share: float  # of the layer's own sum, held by its most sensitive 0.05 %
    losses: dict[str, float]  # format -> forecast rise of the loss, nats per token
    nbytes: dict[str, int]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A format for every layer, and what is expected of it; `quantize --formats` reads it."""

    bits_per_weight: float
    forecast_loss: float  # nats per token
    formats: dict[str, str]
    ms_per_token: float | None = None  # predicted, if time was the budget


TOP_SHARE = 0.0005


def sensitivities(
    checkpoint: Checkpoint,
    token_fisher: Path,
    formats: Sequence[str] = (),
    *,
    sequence_fisher: Path | None = None,
    on_layer: Callable[[], Any] = lambda: None,
) -> list[Sensitivity]:
    """Every linear layer of the blocks, in their order.

    Raises: UsageError for methods that see activations: their forecast needs the whole run.
    """
    for name in formats:
        if needs(Settings(format=name)) - {"fisher"}:
            raise UsageError(f"{name} depends on the layers before; `compare` prints its forecast")
    found = []
    for name in checkpoint.all_linear_names():
        found.append(_one(checkpoint, name, formats, token_fisher, sequence_fisher))
        on_layer()
    total = sum(row.fisher_share for row in found) or 1.0
    return [msgspec.structs.replace(row, fisher_share=row.fisher_share / total) for row in found]


def _one(
    checkpoint: Checkpoint,
    name: str,
    formats: Sequence[str],
    token_fisher: Path,
    sequence_fisher: Path | None,
) -> Sensitivity:
    key = f"{name}.weight"
    weight = load_tensors(checkpoint, [key])[key].float()
    fisher = read_tensors(token_fisher, [key])[key]
    own = fisher if sequence_fisher is None else read_tensors(sequence_fisher, [key])[key]
    losses, nbytes = {}, {}
    for format_name in formats:
        every = dict.fromkeys(checkpoint.all_linear_names(), format_name)
        settings = layer_settings(checkpoint, every, Settings(format=format_name))[name]
        matrix = quantize_matrix(weight, Statistics(fisher=own), settings)
        losses[format_name] = forecast_loss(weight, matrix.dequantize(), fisher)
        nbytes[format_name] = matrix.nbytes
    mass = float(fisher.double().sum())
    top = fisher.flatten().topk(max(1, int(TOP_SHARE * fisher.numel()))).values
    return Sensitivity(
        layer=name,
        shape=(weight.shape[0], weight.shape[1]),
        fisher_mean=mass / fisher.numel(),
        fisher_share=mass,
        top_share=float(top.double().sum()) / mass if mass else 0.0,
        losses=losses,
        nbytes=nbytes,
    )


def plan_for_bits(rows: Sequence[Sensitivity], bits_per_weight: float) -> Plan:
    """The least forecast loss within so many true bits per weight.

    Raises: UsageError if the smallest formats take more.
    """
    weights = sum(row.shape[0] * row.shape[1] for row in rows)
    costs = {row.layer: {name: float(row.nbytes[name]) for name in row.nbytes} for row in rows}
    least_bits = 8 * sum(min(cost.values()) for cost in costs.values()) / weights
    if least_bits > bits_per_weight:
        raise UsageError(
            f"these formats take {least_bits:.4f} bits per weight at least, found a budget of "
            f"{bits_per_weight:g}"
        )
    return _plan(rows, allocate(_choices(rows, costs), bits_per_weight * weights / 8))


def plan_for_time(rows: Sequence[Sensitivity], times: StepTimes, most_s: float) -> Plan:
    """The least forecast loss within so many predicted seconds per token, the rest included.

    Raises: UsageError if the fastest formats take longer.
    """
    costs = {
        row.layer: {name: times.layer_s(row.layer, name) for name in row.nbytes} for row in rows
    }
    least_s = times.others_s + sum(min(cost.values()) for cost in costs.values())
    if least_s > most_s:
        raise UsageError(
            f"these formats take {1e3 * least_s:.4g} ms per token at least, "
            f"{1e3 * times.others_s:.4g} ms of it outside of the linear layers; found a budget of "
            f"{1e3 * most_s:.4g} ms"
        )
    formats = allocate(_choices(rows, costs), most_s - times.others_s)
    spent_s = times.others_s + sum(costs[layer][name] for layer, name in formats.items())
    return msgspec.structs.replace(_plan(rows, formats), ms_per_token=1e3 * spent_s)


def _choices(
    rows: Sequence[Sensitivity], costs: dict[str, dict[str, float]]
) -> dict[str, dict[str, tuple[float, float]]]:
    return {
        row.layer: {name: (cost, row.losses[name]) for name, cost in costs[row.layer].items()}
        for row in rows
    }


def _plan(rows: Sequence[Sensitivity], formats: dict[str, str]) -> Plan:
    weights = sum(row.shape[0] * row.shape[1] for row in rows)
    nbytes = sum(row.nbytes[formats[row.layer]] for row in rows)
    return Plan(
        bits_per_weight=8 * nbytes / weights,
        forecast_loss=sum(row.losses[formats[row.layer]] for row in rows),
        formats=formats,
    )

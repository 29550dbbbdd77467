"""Before quantizing: how sensitive each layer is, what each format will cost, what to give whom."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from quantizer.checkpoints.checkpoint import read_tensors
from quantizer.checkpoints.checkpoint_model import load_model
from quantizer.errors import UsageError
from quantizer.evaluation.evaluate import EvaluationText, rise, window_losses
from quantizer.run.budget import check_bits
from quantizer.run.pipeline import Hooks
from quantizer.run.trial import Trial, folder_of, forecasts, original_weights, try_format
from quantizer.sensitivity.choose import layer_shape
from quantizer.sensitivity.device_time import StepTimes
from quantizer.sensitivity.forecast import allocations
from quantizer.sensitivity.forecast_pass import forecast_windows


class LayerCosts(msgspec.Struct, frozen=True, kw_only=True):
    """What each format does to the loss and takes in bytes, of one layer."""

    layer: str
    shape: tuple[int, int]
    losses: dict[str, float] = {}  # format -> forecast rise of the loss, nats per token
    nbytes: dict[str, int] = {}


class Sensitivity(LayerCosts, frozen=True, kw_only=True):
    """How much the loss depends on one layer, too."""

    fisher_mean: float  # of the token Fisher: nats per token and squared unit of weight
    fisher_share: float  # of the model's sum
    top_share: float  # of the layer's own sum, held by its most sensitive 0.05 %


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A format for every layer, and what is expected of it; `quantize --formats` reads it."""

    bits_per_weight: float
    forecast_loss: float  # nats per token
    formats: dict[str, str]
    ms_per_token: float | None = None  # predicted, if time was the budget
    measured_loss: float | None = None  # on other calibration windows than the forecast's
    measured_error: float | None = None  # its paired standard error


TOP_SHARE = 0.0005
MEASURED_TOKENS = 2**15  # per plan, at most


def layer_costs(
    trial: Trial,
    formats: Sequence[str],
    hooks: Hooks,
    *,
    on_format: Callable[[str], Any] = lambda name: None,  # noqa: ARG005
) -> list[LayerCosts]:
    """Every linear layer of the blocks, in their order; a checkpoint per format.

    Raises: what `quantize` raises, UsageError without calibration.
    """
    nbytes = {}
    for name in formats:
        records = try_format(trial, name, hooks).summary.layers
        nbytes[name] = {layer: record.nbytes for layer, record in records.items()}
        on_format(name)
    losses = forecasts(trial, formats, hooks)
    return [
        LayerCosts(
            layer=layer,
            shape=layer_shape(trial.checkpoint, layer),
            losses={name: losses[name][layer] for name in formats},
            nbytes={name: nbytes[name][layer] for name in formats},
        )
        for layer in trial.checkpoint.all_linear_names()
    ]


def sensitivities(token_fisher: Path, costs: Sequence[LayerCosts]) -> list[Sensitivity]:
    """The layers' costs with what the file of token Fisher diagonals says of them."""
    found = []
    for cost in costs:
        key = f"{cost.layer}.weight"
        fisher = read_tensors(token_fisher, [key])[key]
        mass = float(fisher.double().sum())
        top = fisher.flatten().topk(max(1, int(TOP_SHARE * fisher.numel()))).values
        found.append(
            Sensitivity(
                layer=cost.layer,
                shape=cost.shape,
                losses=cost.losses,
                nbytes=cost.nbytes,
                fisher_mean=mass / fisher.numel(),
                fisher_share=mass,
                top_share=float(top.double().sum()) / mass if mass else 0.0,
            )
        )
    total = sum(row.fisher_share for row in found) or 1.0
    return [msgspec.structs.replace(row, fisher_share=row.fisher_share / total) for row in found]


def plans_for_bits(rows: Sequence[LayerCosts], bits_per_weight: float) -> list[Plan]:
    """Plans of little forecast loss within so many true bits per weight, of several ranges.

    Raises: UsageError if the smallest formats take more.
    """
    weights = sum(row.shape[0] * row.shape[1] for row in rows)
    costs = {row.layer: {name: float(row.nbytes[name]) for name in row.nbytes} for row in rows}
    check_bits(8 * sum(min(cost.values()) for cost in costs.values()) / weights, bits_per_weight)
    found = allocations(_choices(rows, costs), bits_per_weight * weights / 8)
    return [_plan(rows, formats) for formats in found]


def plans_for_time(rows: Sequence[LayerCosts], times: StepTimes, most_s: float) -> list[Plan]:
    """The same within so many predicted seconds per token, as `check_time` found possible."""
    costs = {
        row.layer: {name: times.layer_s(row.layer, name) for name in row.nbytes} for row in rows
    }
    plans = []
    for formats in allocations(_choices(rows, costs), most_s - times.others_s):
        spent_s = times.others_s + sum(costs[layer][name] for layer, name in formats.items())
        plan = _plan(rows, formats)
        plans.append(msgspec.structs.replace(plan, ms_per_token=1e3 * spent_s))
    return plans


def measured_plans(trial: Trial, plans: Sequence[Plan], hooks: Hooks) -> list[Plan]:
    """The plans with their measured rise of the loss, the least first.

    Measured on windows of the calibration text that the forecast has not seen, if there are any:
    a forecast that a plan was chosen by is too low. Formats must have been tried.

    Raises: CheckpointError, StoppedError, UsageError without calibration.
    """
    text = _held_out(trial)
    model = load_model(trial.checkpoint.folder)
    base = window_losses(model, text, progress=hooks.check)
    found = []
    for plan in plans:
        _put(model, trial, plan.formats)
        more = rise(window_losses(model, text, progress=hooks.check), base)
        found.append(
            msgspec.structs.replace(plan, measured_loss=more.mean, measured_error=more.error)
        )
    return sorted(found, key=lambda plan: (plan.measured_loss, plan.bits_per_weight))


def _held_out(trial: Trial) -> EvaluationText:
    if trial.calibration is None:
        raise UsageError("a plan is measured on calibration text, and there is none")
    ids = trial.calibration.ids
    others = ids[len(forecast_windows(ids)) :]
    some = (others if len(others) else ids)[: max(1, MEASURED_TOKENS // ids.shape[1])]
    return EvaluationText(ids=some, label=f"{len(some)} windows of calibration text")


def _put(model: Any, trial: Trial, formats: dict[str, str]) -> None:
    """The weights that the tried formats give the layers, into the unquantized model."""
    for name in sorted(set(formats.values())):
        layers = {layer for layer, own in formats.items() if own == name}
        for layer, weight in original_weights(folder_of(trial, name), layers):
            model.get_submodule(layer).weight.copy_(weight)


def _choices(
    rows: Sequence[LayerCosts], costs: dict[str, dict[str, float]]
) -> dict[str, dict[str, tuple[float, float]]]:
    return {
        row.layer: {name: (cost, row.losses[name]) for name, cost in costs[row.layer].items()}
        for row in rows
    }


def _plan(rows: Sequence[LayerCosts], formats: dict[str, str]) -> Plan:
    weights = sum(row.shape[0] * row.shape[1] for row in rows)
    nbytes = sum(row.nbytes[formats[row.layer]] for row in rows)
    return Plan(
        bits_per_weight=8 * nbytes / weights,
        forecast_loss=sum(row.losses[formats[row.layer]] for row in rows),
        formats=formats,
    )

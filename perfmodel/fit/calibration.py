"""A stack from measurements, and how well it forecasts what it has not seen."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from msgspec.structs import replace

from perfmodel.errors import UsageError
from perfmodel.fit.fitting import Fit, Options, fit, parameters_for
from perfmodel.fit.measurement import MeasuredRun
from perfmodel.fit.validation import Pair
from perfmodel.prediction import predict
from perfmodel.stack_files import load_stack
from perfmodel.stacks import Stack
from perfmodel.units import MICRO

MOST_NAMED = 3
Split = Literal["device", "model"]
SPLITS: dict[Split, Callable[[MeasuredRun], str]] = {
    "device": lambda run: run.hardware.key,
    "model": lambda run: run.workload.model.name,
}


def forecast_pair(run: MeasuredRun, stack: Stack, *, held_out: bool = False) -> Pair:
    """A row beside what a stack predicts for it."""
    prediction = predict(run.workload, run.hardware, stack)
    return Pair(
        label=run.label,
        device=run.hardware.key,
        group=run.workload.policy.linear.name,
        predicted_s=prediction.time_s,
        measured_s=run.time_s,
        steps=run.workload.steps,
        interval_s=prediction.interval_s,
        held_out=held_out,
    )


def fitted_pairs(runs: Sequence[MeasuredRun], found: Fit) -> list[Pair]:
    """The rows that a fit has seen."""
    return [forecast_pair(run, found.stack) for run in runs]


def hold_out(runs: Sequence[MeasuredRun], options: Options, by: Split, name: str) -> list[Pair]:
    """Rows of one device or model, predicted by a fit on all others.

    Raises: UsageError if that leaves nothing to fit or nothing to predict.
    """
    train = [run for run in runs if SPLITS[by](run) != name]
    test = [run for run in runs if SPLITS[by](run) == name]
    if not train or not test:
        have = ", ".join(sorted({SPLITS[by](run) for run in runs}))
        raise UsageError(f"holding out {by} {name}: expected one of several in the rows; {have}")
    parameters = parameters_for(runs, options)  # what no training row has keeps its prior
    stack = fit(train, parameters, options.overlap).stack
    return [forecast_pair(run, stack, held_out=True) for run in test]


def leave_one_out(runs: Sequence[MeasuredRun], options: Options, by: Split) -> list[Pair]:
    """Every device (or model) held out in turn; empty if there is only one."""
    names = sorted({SPLITS[by](run) for run in runs})
    if len(names) == 1:
        return []
    return [pair for name in names for pair in hold_out(runs, options, by, name)]


def plain_roofline(runs: Sequence[MeasuredRun]) -> list[Pair]:
    """The same rows by the datasheet alone."""
    return [forecast_pair(run, load_stack("ideal")) for run in runs]


def single_efficiency(train: Sequence[MeasuredRun], test: Sequence[MeasuredRun]) -> list[Pair]:
    """The roofline over one efficiency, the best for the training rows (least mean error)."""
    seen = plain_roofline(train)

    def mape(efficiency: float) -> float:
        return sum(abs(p.predicted_s / efficiency / p.measured_s - 1) for p in seen)

    best = min((p.predicted_s / p.measured_s for p in seen), key=mape)
    return [replace(p, predicted_s=p.predicted_s / best) for p in plain_roofline(test)]


def described(found: Fit, rows: int, about: Mapping[str, str], also_runs: Sequence[str]) -> Stack:
    """The fitted stack with its name, description and source, and what it rests on."""
    names = found.stack.devices
    devices = ", ".join(names) if len(names) <= MOST_NAMED else f"{len(names)} devices"
    return replace(
        found.stack,
        **about,
        formats=(*found.stack.formats, *also_runs),
        basis=f"fitted on {devices} ({rows} rows)",
    )


def stack_yaml(stack: Stack) -> str:
    """The stack as the file that `--stack FILE` reads; four significant digits."""
    lines = [f"{key}: {_scalar(value)}" for key, value in _header(stack).items()]
    lines.append("bandwidth_efficiency:")
    for at_least_bytes, share in stack.bandwidth_steps:
        lines.append(f"  - {{at_least_bytes: {at_least_bytes}, share: {_number(share)}}}")
    for key, value in _costs(stack).items():
        lines.append(f"{key}: {_number(value)}")
    lines += ["decode:", f"  overlap: {_number(stack.decode_overlap)}"]
    lines.append("  sm_cycles_per_weight:" + ("" if stack.decode_costs else " {}"))
    lines += [f"    {key}: {_number(cost)}" for key, cost in stack.decode_costs]
    lines.append("sparse:" + ("" if stack.sparse_costs else " {}"))
    for layout, cost in stack.sparse_costs:
        lines += [
            f"  {layout}:",
            f"    launch_us: {_number(cost.launch_s / MICRO)}",
            f"    sm_cycles_per_nonzero: {_number(cost.sm_cycles_per_nonzero)}",
            f"    cycles_per_column: {_number(cost.cycles_per_column)}",
        ]
    if stack.interval:
        fitted, moved = _number(stack.interval.fitted), _number(stack.interval.transferred)
        lines.append(f"interval_80_percent: {{fitted: {fitted}, transferred: {moved}}}")
    return "\n".join(lines) + "\n"


def _header(stack: Stack) -> dict[str, Any]:
    return {
        "name": stack.name,
        "description": stack.description,
        "basis": stack.basis,
        "source": stack.source,
        "fitted_on": list(stack.devices),
        "largest_batch": stack.largest_batch,
        "runs": list(stack.formats),
    }


def _costs(stack: Stack) -> dict[str, float]:
    return {
        "ragged_share": stack.ragged_share,
        "compute_efficiency": stack.compute_efficiency,
        "launch_us": stack.launch_s / MICRO,
        "layer_us": stack.layer_s / MICRO,
        "layer_cycles": stack.layer_cycles,
        "collective_us": stack.collective_s / MICRO,
        "kv_traffic_multiplier": stack.kv_traffic_multiplier,
    }


def _scalar(value: Any) -> str:
    import json  # a JSON string or list of strings is YAML too

    return json.dumps(value, ensure_ascii=False)


def _number(value: float) -> str:
    text = f"{value:.4g}"
    return text if "." in text else f"{float(text):.1f}"

"""What each sub-command does: arguments into records, one call, the result handed on."""

import argparse
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from perfmodel.errors import CheckFailed, UsageError
from perfmodel.format_names import EXAMPLES, bits_format, parse_format
from perfmodel.formats import BitPolicy, WeightFormat
from perfmodel.hardware import HardwareSpec, device_names, load_hardware, read_device
from perfmodel.measured_stack import stack_for
from perfmodel.models import load_model, model_names, read_model
from perfmodel.output import Output, rendering_of, save_figure, text_sink, write_output
from perfmodel.prediction import OP_ORDER, Prediction, predict
from perfmodel.show import views
from perfmodel.show.report import op_rows, predictions_json, summary_row
from perfmodel.show.tables import Table, write_csv_blocks
from perfmodel.stack_files import read_stack, stack_names
from perfmodel.stacks import Stack
from perfmodel.strict_yaml import plain_scalar
from perfmodel.workload import Workload

if TYPE_CHECKING:
    from perfmodel.sweep import Grid

DEFAULT_WEIGHTS = "fp16,w8,w4,w3,w2,gptq-w4-g128,squeezellm-w4,squeezellm-w3,squeezellm-w3-s0.45"
ROOFLINE_WEIGHTS = "fp16,w8,w4,w3"
RUNTIME_BITS = "16,8,4,3,2"
DEFAULT_LENGTH = 128


def run(args: argparse.Namespace) -> None:
    """Run the chosen command and write what it returns.

    Raises: PerfmodelError; CheckFailed once everything is written.
    """
    output = args.function(args)
    if isinstance(output, Output):
        write_output(output, args.rendering, args.output)
        if output.missed:
            raise CheckFailed("; ".join(output.missed))


def cmd_predict(args: argparse.Namespace) -> Output:
    if args.compare_stacks is not None:
        from perfmodel.commands import advice as advice_commands

        return advice_commands.compare_stacks(args)
    predictions = predictions_of(args, DEFAULT_WEIGHTS)
    baseline = fp16_baseline(predictions)

    def tables() -> list[Table]:
        details = [views.ops_table(prediction) for prediction in predictions if args.ops]
        explained = _explained(predictions) if args.explain else []
        return [views.predict_table(predictions, baseline), *details, *explained]

    def rows() -> list[dict[str, Any]]:
        if not args.ops:
            return [summary_row(prediction, baseline) for prediction in predictions]
        return [
            {"weights": prediction.workload.policy.linear.name} | row
            for prediction in predictions
            for row in op_rows(prediction)
        ]

    def document() -> dict[str, Any]:
        whole = predictions_json(predictions, baseline)
        if args.explain:
            from perfmodel.explain import explain
            from perfmodel.show.advice_views import explain_json

            for result, prediction in zip(whole["results"], predictions, strict=True):
                result["explain"] = explain_json(explain(prediction))
        return whole

    return Output(document=document, rows=rows, tables=tables)


def _explained(predictions: Sequence[Prediction]) -> list[Table]:
    from perfmodel.explain import explain
    from perfmodel.show.advice_views import explain_table  # only where it is asked for

    return [explain_table(prediction, explain(prediction)) for prediction in predictions]


def cmd_sweep(args: argparse.Namespace) -> Output | None:
    """Blocks are written as they come: a sweep may be larger than memory."""
    from perfmodel import sweep

    rendering = rendering_of(args.rendering, args.output, "csv")
    columns = sweep.blocks(_grid(args))
    if rendering == "csv":
        with text_sink(args.output) as stream:
            write_csv_blocks(stream, columns)
        return None
    if rendering == "parquet":
        sweep.write_parquet(args.output, columns)
        return None
    args.rendering, listed = rendering, list(sweep.as_rows(columns))
    document = {"schema": "perfmodel.sweep/1", "results": listed}
    return Output(
        document=lambda: document, rows=lambda: listed, tables=lambda: [views.sweep_table(listed)]
    )


def cmd_plot_roofline(args: argparse.Namespace) -> None:
    from perfmodel.show import plots  # matplotlib: only where a picture is wanted

    predictions = predictions_of(args, ROOFLINE_WEIGHTS)
    save_figure(args.output, lambda: plots.roofline_figure(predictions))


def cmd_plot_runtime(args: argparse.Namespace) -> None:
    from perfmodel.show import plots

    hw = load_hardware(args.gpu, overrides=tuple(args.set))
    stack = stack_for(args.stack, hw)
    if args.weights is None and args.bits is None:
        args.bits = RUNTIME_BITS
    by_length: dict[int, Sequence[Prediction]] = {}
    for length in args.lengths:
        workloads = [
            Workload(
                model=load_model(args.model),
                policy=policy,
                phase="generate",
                batch=args.batch,
                new=length,
                accounting=args.accounting,
            )
            for policy in policies_of(args, RUNTIME_BITS)
        ]
        by_length[length] = [predict(workload, hw, stack) for workload in workloads]
    save_figure(args.output, lambda: plots.runtime_figure(by_length))


def cmd_plot_sweep(args: argparse.Namespace) -> None:
    from perfmodel import sweep
    from perfmodel.show import plots

    rows = list(sweep.sweep(_grid(args)))
    save_figure(args.output, lambda: plots.sweep_figure(rows))


def cmd_list(args: argparse.Namespace) -> Output:
    """Everything built in of one kind: devices, models or stacks."""
    from perfmodel.show import catalogue

    listings = {
        "devices": catalogue.devices,
        "models": catalogue.models,
        "stacks": catalogue.stacks,
    }
    return listings[args.kind]()


def cmd_formats(args: argparse.Namespace) -> Output:
    from perfmodel.show import catalogue

    names = split_names(args.weights, "--weights") if args.weights else list(EXAMPLES)
    return catalogue.formats(load_model(args.model), names)


def cmd_check(args: argparse.Namespace) -> Output:
    """Load every file named; the first that is wrong raises."""
    from perfmodel.show import catalogue

    readers: dict[str, Callable[[str], Any]] = {
        "device": lambda file: read_device(Path(file), source=file),
        "model": lambda file: read_model(Path(file)),
        "stack": lambda file: read_stack(Path(file), source=file),
    }
    rows = []
    for file in args.files:
        kind = args.kind or ("model" if Path(file).suffix == ".json" else "device")
        rows.append({"file": file, "kind": kind, "name": readers[kind](file).name, "ok": True})
    return catalogue.checked(rows)


def fp16_baseline(predictions: Sequence[Prediction]) -> Prediction:
    """FP16 of the same run; predicted now if it was not asked for."""
    fp16 = parse_format("fp16")
    policy = BitPolicy(linear=fp16, lm_head=fp16, embedding=fp16)
    for prediction in predictions:
        if prediction.workload.policy == policy:
            return prediction
    first = predictions[0]
    return predict(replace(first.workload, policy=policy), first.hardware, first.stack)


def predictions_of(args: argparse.Namespace, default_weights: str) -> list[Prediction]:
    """One prediction per weight format asked for, or of the default ones that the stack knows."""
    hw = load_hardware(args.gpu, overrides=tuple(args.set))
    stack = stack_for(args.stack, hw)
    policies = _known(policies_of(args, default_weights), stack, asked=_asked(args))
    return [predict(workload_of(args, policy), hw, stack) for policy in policies]


def _asked(args: argparse.Namespace) -> bool:
    return args.weights is not None or args.bits is not None


def _known(policies: list[BitPolicy], stack: Stack, *, asked: bool) -> list[BitPolicy]:
    """Of formats that nobody asked for, those that the stack runs."""
    return policies if asked else [p for p in policies if stack.runs(p.linear)]


def policies_of(args: argparse.Namespace, default_weights: str) -> list[BitPolicy]:
    """One policy per weight format asked for.

    Raises: UsageError for a format or tensor that does not exist.
    """
    if args.bits is not None:
        chosen = [bits_format(bits) for bits in split_names(args.bits, "--bits")]
    else:
        names = default_weights if args.weights is None else args.weights
        chosen = [parse_format(name) for name in split_names(names, "--weights")]
    overrides = tuple(_tensor_override(text) for text in args.tensor)
    if len({name for name, _ in overrides}) < len(overrides):
        raise UsageError(f"--tensor: found one tensor twice in {', '.join(args.tensor)}")
    lm_head, embedding = parse_format(args.lm_head), parse_format(args.embedding)
    return [
        BitPolicy(linear=linear, lm_head=lm_head, embedding=embedding, overrides=overrides)
        for linear in chosen
    ]


def workload_of(args: argparse.Namespace, policy: BitPolicy) -> Workload:
    """The one workload that `predict` and the roofline take.

    Raises: UsageError if a length is given that the phase does not have.
    """
    phase = args.phase
    _refuse_foreign_lengths(args)
    prompt = args.prompt if args.prompt is not None else DEFAULT_LENGTH * (phase == "prefill")
    return Workload(
        model=load_model(args.model),
        policy=policy,
        phase=phase,
        batch=args.batch,
        context=DEFAULT_LENGTH if args.context is None else args.context,
        prompt=prompt,
        new=(args.new or DEFAULT_LENGTH) if phase == "generate" else 0,
        tensor_parallel=args.tp,
        accounting=args.accounting,
        kv_bits=args.kv_bits,
    )


def _grid(args: argparse.Namespace) -> "Grid":
    """Axes of a sweep; `all` is every built-in device, model or stack."""
    from perfmodel.sweep import Grid

    _refuse_foreign_lengths(args)
    lengths = args.context if args.phase == "decode" else args.prompt
    devices = _devices(args)
    machines = [
        (hw, stack_for(name, hw))
        for hw, _ in devices
        for name in names_or_all("stack", args.stack, stack_names)
    ]
    per_device = len(machines) // len(devices)
    return Grid(
        machines=machines,
        what_if={
            field: [values[field] for _, values in devices for _ in range(per_device)]
            for field in devices[0][1]
        },
        models=[load_model(name) for name in names_or_all("model", args.model, model_names)],
        policies=policies_of(args, DEFAULT_WEIGHTS),
        phase=args.phase,
        accountings=args.accounting,
        batches=args.batch,
        lengths=lengths or [DEFAULT_LENGTH],
        new=(args.new or DEFAULT_LENGTH) if args.phase == "generate" else 0,
        tensor_parallel=args.tp,
        kv_bits=args.kv_bits,
    )


def _devices(args: argparse.Namespace) -> list[tuple[HardwareSpec, dict[str, Any]]]:
    """Every device with every combination of the values that --device-axis gives its fields."""
    axes = [_device_axis(text) for text in args.device_axis]
    found = []
    for gpu in names_or_all("gpu", args.gpu, device_names):
        for values in product(*(values for _, values in axes)):
            given = {field: value for (field, _), value in zip(axes, values, strict=True)}
            overrides = (*args.set, *(f"{field}={value}" for field, value in given.items()))
            numbers = {field: plain_scalar(value) for field, value in given.items()}
            found.append((load_hardware(gpu, overrides=overrides), numbers))
    return found


def _device_axis(text: str) -> tuple[str, list[str]]:
    field, equals, values = text.partition("=")
    if not equals:
        raise UsageError(f"--device-axis {text}: expected FIELD=VALUE,VALUE")
    return field, split_names(values, f"--device-axis {field}")


_LENGTHS_OF_PHASE = {"decode": ("context",), "prefill": ("prompt",), "generate": ("prompt", "new")}


def _refuse_foreign_lengths(args: argparse.Namespace) -> None:
    """Raises: UsageError for a length that the phase would ignore."""
    taken = _LENGTHS_OF_PHASE[args.phase]
    for name in ("context", "prompt", "new"):
        if getattr(args, name) is not None and name not in taken:
            have = " and ".join(f"--{other}" for other in taken)
            raise UsageError(
                f"--{name} does not belong to --phase {args.phase}, which takes {have}"
            )


def _tensor_override(text: str) -> tuple[str, WeightFormat]:
    tensor, equals, name = text.partition("=")
    known = [op for op in OP_ORDER if op.endswith("_proj")]
    if not equals or tensor not in known:
        raise UsageError(f"--tensor {text}: expected TENSOR=FORMAT with one of {', '.join(known)}")
    return tensor, parse_format(name)


def split_names(text: str, option: str) -> list[str]:
    """Names between commas.

    Raises: UsageError for an empty one.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise UsageError(f"{option} {text!r}: found an empty entry, expected names between commas")
    return parts


def names_or_all(option: str, text: str, known: Callable[[], Sequence[str]]) -> Sequence[str]:
    """Names between commas, or everything built in."""
    return known() if text == "all" else split_names(text, f"--{option}")

"""What the sub-commands on bounds and built-in data do: one call, the result handed on."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from perfmodel.commands.inputs import (
    DEFAULT_WEIGHTS,
    grid_of,
    policies_of,
    predictions_of,
    split_names,
)
from perfmodel.errors import CheckFailed
from perfmodel.format_names import EXAMPLES, parse_format
from perfmodel.formats import BitPolicy
from perfmodel.hardware import load_hardware, read_device
from perfmodel.measured_stack import stack_for
from perfmodel.models import load_model, read_model
from perfmodel.output import Output, rendering_of, save_figure, text_sink, write_output
from perfmodel.prediction import Prediction, predict
from perfmodel.show import views
from perfmodel.show.report import op_rows, predictions_json, summary_row
from perfmodel.show.tables import Table, write_csv_blocks
from perfmodel.stack_files import read_stack
from perfmodel.workload import Workload

ROOFLINE_WEIGHTS = "fp16,w8,w4,w3"
RUNTIME_BITS = "16,8,4,3,2"


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
        table = views.predict_table(predictions, baseline, ops_follow=args.ops)
        return [table, *details, *explained]

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
    columns = sweep.blocks(grid_of(args))
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

    rows = list(sweep.sweep(grid_of(args)))
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

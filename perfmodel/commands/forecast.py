"""What `calibrate` and `validate` do: measurements in, a stack or a table of errors out."""

import argparse
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from perfmodel.errors import UsageError
from perfmodel.fit import calibration
from perfmodel.fit.calibration import SPLITS
from perfmodel.fit.fitting import Options, fit, parameters_for
from perfmodel.fit.measurement import MeasuredRun, load_measurements
from perfmodel.fit.validation import Bars, Pair, summarise
from perfmodel.measured_stack import stack_for
from perfmodel.output import Output, save_figure, whole_file
from perfmodel.show import forecast_views

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def cmd_calibrate(args: argparse.Namespace) -> Output:
    """Fit a stack, say what the rows determine, and write it if there is a place for it."""
    runs = chosen_rows(args, one_software=True)
    options = _options(args)
    found = fit(runs, parameters_for(runs, options), options.overlap)
    name = args.name or runs[0].stack
    about = {
        "name": name,
        "description": args.description or f"{name}, fitted to measurements",
        "source": "; ".join(dict.fromkeys(run.source or args.measurements for run in runs)),
    }
    also_runs = args.also_runs.split(",") if args.also_runs else []
    stack = calibration.described(found, len(runs), about, also_runs)
    held = {by: calibration.leave_one_out(runs, options, by) for by in SPLITS}
    fitted = calibration.fitted_pairs(runs, found)
    if args.stack_file:
        with whole_file(args.stack_file) as temporary:
            temporary.write_text(calibration.stack_yaml(stack), encoding="utf-8")
    rows = forecast_views.estimate_rows(found)
    document = {
        "schema": "perfmodel.calibrate/1",
        "stack": stack.name,
        "parameters": rows,
        "fitted": msgspec.to_builtins(summarise(fitted)),
        "held_out": {
            by: msgspec.to_builtins(summarise(pairs)) for by, pairs in held.items() if pairs
        },
    }
    table = forecast_views.calibration_table(stack, rows, fitted, held)
    table = replace(table, foot=[*table.foot, _where(args)])
    return Output(document=lambda: document, rows=lambda: rows, tables=lambda: [table])


def cmd_validate(args: argparse.Namespace) -> Output:
    """Errors row by row and in groups, beside the roofline and the best single efficiency."""
    pairs, roofline, single = validated(args)
    by_row = forecast_views.pair_rows(pairs, roofline, single)
    groups = forecast_views.group_rows(pairs, roofline, single)
    summary = summarise(pairs)
    bars = Bars(mape=_share(args.max_mean), worst=_share(args.max_worst))
    document = {
        "schema": "perfmodel.validate/1",
        "hold_out": args.hold_out,
        "rows": by_row,
        "groups": groups,
        "total": msgspec.to_builtins(summary),
    }
    return Output(
        document=lambda: document,
        rows=lambda: by_row,
        tables=lambda: forecast_views.validation_tables(by_row, groups, _what(args)),
        missed=tuple(bars.missed(summary)),
    )


def cmd_plot_validation(args: argparse.Namespace) -> None:
    """Predicted against measured, the plain roofline beside it."""
    from perfmodel.show import forecast_plots  # matplotlib: only where a picture is wanted

    pairs, roofline, _ = validated(args)

    def draw() -> "Figure":
        return forecast_plots.validation_figure(pairs, roofline, _what(args))

    save_figure(args.output, draw)


def validated(args: argparse.Namespace) -> tuple[list[Pair], list[Pair], list[Pair]]:
    """Pairs of the stack, of the plain roofline and of the best single efficiency, row by row.

    Raises: UsageError if nothing is left to predict.
    """
    pairs: list[Pair] = []
    roofline: list[Pair] = []
    single: list[Pair] = []
    runs = chosen_rows(args)
    wanted = args.only.split(",") if args.only else ["*"]
    names = list(dict.fromkeys(run.stack for run in runs))
    for name in names:
        same = [run for run in runs if run.stack == name]
        for train, rest in _folds(args, same):
            test = [run for run in rest if _matches(run, wanted)]
            found = _forecasts(args, same, train, test)
            # Several pieces of software: one group each, else one per weight format.
            pairs += [replace(p, group=name) for p in found] if len(names) > 1 else found
            roofline += calibration.plain_roofline(test)
            single += calibration.single_efficiency(train, test)
    if not pairs:
        raise UsageError(f"{args.measurements}: no row is left to predict; {_what(args)}")
    return pairs, roofline, single


def chosen_rows(args: argparse.Namespace, *, one_software: bool = False) -> list[MeasuredRun]:
    """Rows of the file, of one software if it was named.

    Raises: SpecError; UsageError.
    """
    runs = load_measurements(args.measurements)
    names = list(dict.fromkeys(run.stack for run in runs))
    if args.software is not None:
        runs = [run for run in runs if run.stack == args.software]
    elif one_software and len(names) > 1:
        runs = []
    if not runs:
        have = ", ".join(names)
        raise UsageError(f"{args.measurements}: choose one with --software; it has {have}")
    return runs


def _folds(
    args: argparse.Namespace, runs: Sequence[MeasuredRun]
) -> list[tuple[list[MeasuredRun], list[MeasuredRun]]]:
    """(rows to fit, rows to predict); one fold with all rows on both sides without hold-out."""
    if args.hold_out is None:
        return [(list(runs), list(runs))]
    by, _, only = args.hold_out.partition("=")
    if by not in SPLITS:
        raise UsageError(
            f"--hold-out {args.hold_out}: expected device, model, device=NAME or model=NAME"
        )
    split = SPLITS[by]
    names = [only] if only else sorted({split(run) for run in runs})
    folds = [
        ([r for r in runs if split(r) != name], [r for r in runs if split(r) == name])
        for name in names
    ]
    return [fold for fold in folds if all(fold)]


def _forecasts(
    args: argparse.Namespace,
    runs: Sequence[MeasuredRun],
    train: Sequence[MeasuredRun],
    test: Sequence[MeasuredRun],
) -> list[Pair]:
    """Rows predicted by a stack of that name, or by a fit that has not seen them."""
    if args.hold_out is None:
        stacks = [stack_for(args.stack or run.stack, run.hardware) for run in test]
        pairs = zip(test, stacks, strict=True)
        return [calibration.forecast_pair(run, stack) for run, stack in pairs]
    options = _options(args)
    parameters = parameters_for(runs, options)  # what no training row has keeps its prior
    fitted = fit(train, parameters, options.overlap).stack
    return [calibration.forecast_pair(run, fitted, held_out=True) for run in test]


def _options(args: argparse.Namespace) -> Options:
    decode = None if args.decode is None else tuple(args.decode.split(","))
    return Options(decode=decode, layer=args.layer, overlap=args.overlap)


def _matches(run: MeasuredRun, patterns: Sequence[str]) -> bool:
    name = run.workload.policy.linear.name
    return any(fnmatchcase(name, pattern.strip()) for pattern in patterns)


def _where(args: argparse.Namespace) -> str:
    return f"wrote {args.stack_file}" if args.stack_file else "write it with -o STACK.yaml"


def _what(args: argparse.Namespace) -> str:
    if args.hold_out is None:
        return f"predicted by stack {args.stack}" if args.stack else "each row by its own stack"
    by, _, only = args.hold_out.partition("=")
    return f"held out: {by} {only}" if only else f"held out: every {by} in turn"


def _share(percent: float | None) -> float | None:
    return None if percent is None else percent / 100

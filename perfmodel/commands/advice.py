"""What `recommend`, `predict --compare-stacks` and their figures do."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from perfmodel import recommend
from perfmodel.commands.inputs import (
    DEFAULT_WEIGHTS,
    names_or_all,
    policies_of,
    split_names,
    workload_of,
)
from perfmodel.errors import UsageError
from perfmodel.format_names import parse_format
from perfmodel.hardware import load_hardware
from perfmodel.measured_stack import stack_for
from perfmodel.output import Output, save_figure
from perfmodel.prediction import Prediction, predict
from perfmodel.quality import Quality, published, read_quality
from perfmodel.recommend import Limits, Option
from perfmodel.show import advice_views
from perfmodel.stack_files import stack_names
from perfmodel.units import MILLI

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def compare_stacks(args: argparse.Namespace) -> Output:
    """The same formats on several stacks, side by side.

    Raises: UsageError if no stack knows any of them.
    """
    hw = load_hardware(args.gpu, overrides=tuple(args.set))
    policies = policies_of(args, DEFAULT_WEIGHTS)
    by_stack: dict[str, list[Prediction | None]] = {}
    for name in names_or_all("compare-stacks", args.compare_stacks, stack_names):
        stack = stack_for(name, hw)
        by_stack[name] = [
            predict(workload_of(args, policy), hw, stack) if stack.runs(policy.linear) else None
            for policy in policies
        ]
    rows = advice_views.stack_rows(by_stack)
    weights = [policy.linear.name for policy in policies]
    if not rows:
        raise UsageError(f"no stack of {', '.join(by_stack)} knows {', '.join(weights)}")
    document = {"schema": "perfmodel.stacks-compared/1", "results": rows}
    return Output(
        document=lambda: document,
        rows=lambda: rows,
        tables=lambda: [advice_views.stacks_table(by_stack, weights)],
    )


def cmd_recommend(args: argparse.Namespace) -> Output:
    """Formats within the limits, best first, and why the others are out."""
    found, limits, quality = recommended(args)
    rows = advice_views.option_rows(found)
    document = {"schema": "perfmodel.recommend/1", "quality": quality.what, "results": rows}
    first = _first(found, args)
    return Output(
        document=lambda: document,
        rows=lambda: rows,
        tables=lambda: [advice_views.recommend_table(found, limits, first, quality.what)],
    )


def cmd_plot_pareto(args: argparse.Namespace) -> None:
    """Perplexity against time per token."""
    from perfmodel.show import forecast_plots  # matplotlib: only where a picture is wanted

    found, limits, quality = recommended(args)
    first = _first(found, args)

    def draw() -> "Figure":
        return forecast_plots.pareto_figure(found, limits, first, quality.what)

    save_figure(args.output, draw)


def recommended(args: argparse.Namespace) -> tuple[list[Option], Limits, Quality]:
    """Judged options, best first.

    Raises: UsageError for a limit or format that makes no sense; SpecError for a wrong file.
    """
    hw = load_hardware(args.gpu, overrides=tuple(args.set))
    workload = workload_of(args, recommend.fp16_policy())
    quality = (
        read_quality(Path(args.quality))
        if args.quality
        else published(workload.model.name, args.metric)
    )
    names = split_names(args.weights, "--weights") if args.weights else None
    asked = None if names is None else [parse_format(name) for name in names]
    formats = recommend.candidates(quality, asked)
    stacks = recommend.stacks_for(args.stack, hw)
    limits = Limits(
        memory_bytes=args.max_memory,
        time_per_token_s=None if args.max_ms_per_token is None else args.max_ms_per_token * MILLI,
        perplexity=args.max_perplexity,
    )
    found = recommend.options(workload, hw, stacks, formats, quality)
    return recommend.judged(found, limits), limits, quality


def _first(found: list[Option], args: argparse.Namespace) -> Prediction:
    """Any prediction, for the lines that say device and workload.

    Raises: UsageError if no software runs any of the formats.
    """
    for option in found:
        if option.prediction is not None:
            return option.prediction
    names = ", ".join(option.weight_format.name for option in found)
    raise UsageError(f"no stack runs {names} on {args.gpu}; name one with --stack")

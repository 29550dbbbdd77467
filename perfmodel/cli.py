"""`python -m perfmodel`: arguments in, one command, output where it was asked for."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from perfmodel import __version__
from perfmodel.arguments import (
    OneLineParser,
    add_command,
    count,
    counts,
    output_options,
    size,
    sizes,
)
from perfmodel.commands import basic as commands
from perfmodel.commands.forecast_arguments import (
    add_forecasts,
    add_recommend,
    add_validation_figure,
    plot_pareto,
    recommend_options,
)
from perfmodel.errors import PerfmodelError, one_line
from perfmodel.output import discard_output
from perfmodel.workload import ACCOUNTINGS, PHASES

INTERRUPTED_EXIT = 130

_EXAMPLES = """\
examples:
  python -m perfmodel predict --gpu a6000
  python -m perfmodel predict --gpu a5000 --model llama-13b --bits 16,4,3 --context 2048
  python -m perfmodel predict --gpu h200 --model llama-2-70b --weights squeezellm-w3-s0.45 --ops
  python -m perfmodel sweep --gpu all --bits 16,8,4,3,2 --batch 1,8,64 -o sweep.csv
  python -m perfmodel plot roofline --gpu a6000 -o roofline.png
  python -m perfmodel recommend --gpu a5000 --model llama-13b --max-memory 10GB
  python -m perfmodel validate squeezellm-2023 --hold-out model=llama-30b
  python -m perfmodel devices
"""
_PREDICT_EXAMPLES = """\
examples:
  python -m perfmodel predict --gpu a6000
  python -m perfmodel predict --gpu a6000 --model ./config.json --bits 16,8,4,3,2 --json
  python -m perfmodel predict --gpu a6000 --phase prefill --prompt 2048
  python -m perfmodel predict --gpu a6000 --phase generate --prompt 128 --new 1024
  python -m perfmodel predict --gpu a100 --model llama-2-70b --tp 2 --weights fp16,gptq-w4-g128
  python -m perfmodel predict --gpu a6000 --set memory.bandwidth_gb_per_s=1000
  python -m perfmodel predict --gpu a6000 --weights w3 --lm-head w4 --tensor down_proj=w4
  python -m perfmodel predict --gpu a5000 --stack squeezellm-2023 --weights squeezellm-w3 --explain
  python -m perfmodel predict --gpu a6000 --weights fp16,awq-w4-g128 --compare-stacks all

decode is one step with --context tokens cached; generate sums the steps with P, P+1, ... P+N-1
tokens cached. Exit codes: 0 ok, 2 wrong arguments, 3 a wrong input file.
"""
_SWEEP_EXAMPLES = """\
Lists are separated by commas; `all` is every built-in device, model or stack.

examples:
  python -m perfmodel sweep --gpu a5000,a6000 --bits 16,8,4,3,2 --context 128,2048
  python -m perfmodel sweep --gpu all --model all --bits 4 --batch 1,2,4,8,16 -o sweep.parquet
  python -m perfmodel sweep --gpu h200 --bits 16,4 --device-axis memory.bandwidth_gb_per_s=2400,9600
"""
_PLOT_EXAMPLES = """\
examples:
  python -m perfmodel plot roofline --gpu a6000 --weights fp16,w4,w3 -o roofline.png
  python -m perfmodel plot runtime --gpu a5000 --bits 16,8,4,3,2 --lengths 128,2048 -o runtime.svg
  python -m perfmodel plot sweep --gpu a6000 --bits 16,4,3 --batch 1,2,4,8,16,32,64 -o batch.png
  python -m perfmodel plot validation squeezellm-2023 --hold-out model -o validation.png
  python -m perfmodel plot pareto --gpu a5000 --model llama-13b -o pareto.png
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (0, 2 wrong arguments, 3 wrong input file)."""
    try:
        args = build_parser().parse_args(argv)
        commands.run(args)
    except PerfmodelError as error:
        print(one_line(f"perfmodel: error: {error}"), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("perfmodel: interrupted", file=sys.stderr)
        return INTERRUPTED_EXIT
    except BrokenPipeError:  # the reader, `head` for example, has what it wanted
        discard_output()
    return 0


def build_parser() -> OneLineParser:
    """The whole command line."""
    parser = OneLineParser(
        prog="perfmodel",
        description="Predict from a datasheet how fast a GPU runs a LLaMA at any weight bit width.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("--version", action="version", version=f"memwall {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_predict(subparsers)
    _add_sweep(subparsers)
    _add_plot(subparsers)
    add_recommend(subparsers)
    add_forecasts(subparsers)
    _add_catalogues(subparsers)
    return parser


def _add_predict(subparsers: Any) -> None:
    summary = "time, traffic and memory of one model on one device, per weight format"
    parser = add_command(subparsers, "predict", commands.cmd_predict, summary, _PREDICT_EXAMPLES)
    _single_options(parser)
    parser.add_argument("--ops", action="store_true", help="show every operation")
    parser.add_argument(
        "--explain", action="store_true", help="where the time goes, and which roof comes next"
    )
    parser.add_argument(
        "--compare-stacks", metavar="NAMES", help="stacks side by side instead, or all"
    )
    output_options(parser)


def _add_sweep(subparsers: Any) -> None:
    summary = "every combination of the options, as CSV or Parquet"
    parser = add_command(subparsers, "sweep", commands.cmd_sweep, summary, _SWEEP_EXAMPLES)
    _list_options(parser)
    output_options(parser)


def _add_plot(subparsers: Any) -> None:
    parser = add_command(subparsers, "plot", None, "figures as PNG, SVG or PDF", _PLOT_EXAMPLES)
    figures = parser.add_subparsers(metavar="FIGURE", required=True)
    roofline = add_command(
        figures, "roofline", commands.cmd_plot_roofline, "roofline with one point per operation"
    )
    _single_options(roofline)
    runtime = add_command(
        figures,
        "runtime",
        commands.cmd_plot_runtime,
        "run time by weight bits and component, normalised (Figure 2 of the SqueezeLLM paper)",
    )
    _device_options(runtime)
    _weight_options(runtime)
    runtime.add_argument("--batch", type=count, default=1, help="sequences (1)")
    runtime.add_argument(
        "--lengths", type=counts, default=[128, 2048], metavar="N,N", help="tokens (128,2048)"
    )
    runtime.add_argument("--accounting", choices=ACCOUNTINGS, default="paper", help="(paper)")
    sweep = add_command(
        figures, "sweep", commands.cmd_plot_sweep, "time against batch, length or devices"
    )
    _list_options(sweep)
    pareto = add_command(
        figures, "pareto", plot_pareto, "perplexity against time, with the memory of each format"
    )
    recommend_options(pareto)
    validation = add_validation_figure(figures)
    for figure in (roofline, runtime, sweep, pareto, validation):
        figure.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")


def _add_catalogues(subparsers: Any) -> None:
    for kind, summary in (
        ("devices", "built-in devices and where their numbers come from"),
        ("models", "built-in model shapes"),
        ("stacks", "built-in software stacks"),
    ):
        listing = add_command(subparsers, kind, commands.cmd_list, summary)
        listing.set_defaults(kind=kind)
        output_options(listing)
    formats = add_command(subparsers, "formats", commands.cmd_formats, "weight formats, bit by bit")
    formats.add_argument("--model", default="llama-7b", help="whose layers to count (llama-7b)")
    formats.add_argument("--weights", metavar="NAMES", help="formats, separated by commas")
    output_options(formats)
    check = add_command(
        subparsers, "check", commands.cmd_check, "validate device, stack or model files"
    )
    check.add_argument("files", nargs="+", metavar="FILE")
    check.add_argument(
        "--kind", choices=("device", "stack", "model"), help="(device; model for .json)"
    )
    output_options(check)


def _single_options(parser: OneLineParser) -> None:
    """One device, one model, one workload; several weight formats."""
    _device_options(parser)
    _weight_options(parser)
    parser.add_argument("--phase", choices=PHASES, default="decode", help="(decode)")
    parser.add_argument(
        "--context", type=size, help="tokens cached when a decode step starts (128)"
    )
    parser.add_argument("--prompt", type=size, help="tokens of prompt (prefill 128, generate 0)")
    parser.add_argument("--new", type=count, help="tokens to generate (128)")
    parser.add_argument("--batch", type=count, default=1, help="sequences (1)")
    parser.add_argument("--tp", type=count, default=1, help="tensor-parallel devices (1)")
    parser.add_argument("--kv-bits", type=count, default=16, help="bits of the KV cache (16)")
    parser.add_argument("--accounting", choices=ACCOUNTINGS, default="fused", help="(fused)")


def _device_options(parser: OneLineParser) -> None:
    parser.add_argument("--gpu", required=True, help="device: name, alias or YAML file")
    parser.add_argument(
        "--model", default="llama-7b", help="model: name, alias or config.json (llama-7b)"
    )
    parser.add_argument(
        "--stack", default="ideal", help="software stack: name or YAML file (ideal)"
    )
    _set_option(parser)


def _list_options(parser: OneLineParser) -> None:
    """The same options as axes."""
    parser.add_argument(
        "--device-axis",
        action="append",
        default=[],
        metavar="FIELD=V,V",
        help="what if: a field of the device file takes each of these values",
    )
    parser.add_argument("--gpu", required=True, metavar="NAMES", help="devices, or all")
    parser.add_argument("--model", default="llama-7b", metavar="NAMES", help="(llama-7b)")
    parser.add_argument("--stack", default="ideal", metavar="NAMES", help="(ideal)")
    _set_option(parser)
    _weight_options(parser)
    parser.add_argument("--phase", choices=PHASES, default="decode", help="(decode)")
    parser.add_argument("--context", type=sizes, metavar="N,N", help="tokens cached (128)")
    parser.add_argument("--prompt", type=sizes, metavar="N,N", help="tokens of prompt (128)")
    parser.add_argument("--new", type=count, help="tokens to generate (128)")
    parser.add_argument("--batch", type=counts, default=[1], metavar="N,N", help="(1)")
    parser.add_argument("--tp", type=counts, default=[1], metavar="N,N", help="(1)")
    parser.add_argument("--kv-bits", type=count, default=16, help="bits of the KV cache (16)")
    parser.add_argument(
        "--accounting", type=_accountings, default=["fused"], metavar="NAMES", help="(fused)"
    )


def _weight_options(parser: OneLineParser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--weights", metavar="NAMES", help="weight formats, see `formats`")
    which.add_argument("--bits", metavar="B,B", help="ideal formats of so many bits; 16 is fp16")
    parser.add_argument("--lm-head", default="fp16", metavar="FORMAT", help="(fp16)")
    parser.add_argument("--embedding", default="fp16", metavar="FORMAT", help="(fp16)")
    parser.add_argument(
        "--tensor",
        action="append",
        default=[],
        metavar="NAME=FORMAT",
        help="another format for one linear layer of every block, such as down_proj=w4",
    )


def _set_option(parser: OneLineParser) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="what if: replace a field of the device file",
    )


def _accountings(text: str) -> list[str]:
    names = [part.strip() for part in text.split(",")]
    for name in names:
        if name not in ACCOUNTINGS:
            known = ", ".join(ACCOUNTINGS)
            raise argparse.ArgumentTypeError(f"found {name!r}, expected one of {known}")
    return names

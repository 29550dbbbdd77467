"""The commands of `python -m bench`: their options, and where their functions are."""

from pathlib import Path
from typing import Any

from bench.history.options import add_history, history_option
from bench.measuring_options import add_measuring
from perfmodel.arguments import OneLineParser, count, counts, output_options, size


def add_commands(subparsers: Any) -> None:
    """Every command; each adder stands below, in the order of `--help`."""
    add_measuring(subparsers, add_command)
    _add_generate(subparsers)
    _add_report(subparsers)
    _add_doctor(subparsers)
    add_history(subparsers, add_command)


def _add_report(subparsers: Any) -> None:
    summary = "a results folder as one page, as Markdown and as CSV"
    parser = add_command(subparsers, "report", summary, run=("bench.report.command", "cmd_report"))
    parser.add_argument("folder", type=Path, metavar="RESULTS", help="--out of the other commands")
    parser.add_argument("--device", metavar="NAME", help="where RESULTS has several")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE",
        help="one of them: .html, .md or .csv (all three, beside the results)",
    )  # fmt: skip
    history_option(parser)


def _add_doctor(subparsers: Any) -> None:
    summary = "what this machine can measure, and what will be skipped"
    parser = add_command(subparsers, "doctor", summary, run=("bench.doctor", "cmd_doctor"))
    output_options(parser)


def add_command(subparsers: Any, name: str, summary: str, *, run: tuple[str, str]) -> OneLineParser:
    """A command; `run` is (module, function of the parsed arguments that returns the exit code)."""
    parser: OneLineParser = subparsers.add_parser(name, help=summary, description=f"{summary}.")
    parser.set_defaults(run=run, parser=parser)
    return parser


def _add_generate(subparsers: Any) -> None:
    summary = "whole generations of a LLaMA beside their prediction, FP16, GPTQ and the paper"
    run = ("bench.generate_command", "cmd_generate")
    parser = add_command(subparsers, "generate", summary, run=run)
    parser.add_argument(
        "--model", default="llama-7b", help="preset, config.json or checkpoint folder (llama-7b)"
    )
    parser.add_argument(
        "--weights",
        metavar="NAMES",
        help="formats of random weights; default: the paper's, or a checkpoint's own weights",
    )
    parser.add_argument(
        "--new", type=counts, default=[128, 1024], metavar="N,N", help="tokens (128,1024)"
    )
    parser.add_argument("--prompt", type=size, default=0, help="tokens cached before (0)")
    parser.add_argument(
        "--stack",
        nargs="+",
        choices=("memwall", "hf-eager"),
        default=["memwall"],
        help="ours, or transformers as the papers ran it: growing cache, no graph (memwall)",
    )
    parser.add_argument("--layers", type=count, help="only so many blocks of the model")
    parser.add_argument("--runs", type=count, default=3, help="generations of each kind (3)")
    parser.add_argument(
        "--hardware", metavar="NAME", help="device to predict for (this one, where it is known)"
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), help="(cuda where there is one)")
    parser.add_argument("--minutes", type=float, default=30.0, help="stop by then (30)")
    parser.add_argument(
        "--out", type=Path, default=Path("out/generate"), help="results (out/generate)"
    )
    parser.add_argument(
        "--check",
        type=count,
        metavar="N",
        help="measure nothing: compare N tokens of a checkpoint with its dequantized model",
    )
    output_options(parser)

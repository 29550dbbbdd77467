"""The commands of `python -m bench`: their options, and where their functions are."""

from pathlib import Path
from typing import Any

from bench.generate.options import add_generate
from bench.history.options import add_history, history_option
from bench.measuring_options import add_measuring
from perfmodel.arguments import OneLineParser, output_options


def add_commands(subparsers: Any) -> None:
    """Every command; each adder stands below, in the order of `--help`."""
    add_measuring(subparsers, add_command)
    add_generate(subparsers, add_command)
    _add_report(subparsers)
    _add_aims(subparsers)
    _add_doctor(subparsers)
    _add_wheels(subparsers)
    add_history(subparsers, add_command)


def _add_report(subparsers: Any) -> None:
    summary = "a results folder as one page, as Markdown and as CSV"
    parser = add_command(subparsers, "report", summary, run=("bench.report.command", "cmd_report"))
    parser.add_argument("folder", type=Path, metavar="RESULTS", help="--out of the other commands")
    parser.add_argument("--device", metavar="NAME", help="where RESULTS has several")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE",
        help="one of them: .html, .md, .csv or .json (all, beside the results)",
    )  # fmt: skip
    history_option(parser)


def _add_aims(subparsers: Any) -> None:
    summary = "what is to be reached on an H200, beside a results folder; exit code 1 unless all is"
    parser = add_command(subparsers, "aims", summary, run=("bench.aims", "cmd_aims"))
    parser.add_argument("folder", type=Path, metavar="RESULTS", help="--out of the other commands")
    output_options(parser)


def _add_wheels(subparsers: Any) -> None:
    summary = "download the peers' packages for a machine without a network"
    parser = add_command(subparsers, "wheels", summary, run=("bench.peers.wheels", "cmd_wheels"))
    parser.add_argument(
        "--out", type=Path, default=Path("out/wheels"), metavar="DIR", help="(out/wheels)"
    )
    parser.add_argument("--python", default="3.12", metavar="VERSION", help="there (3.12)")


def _add_doctor(subparsers: Any) -> None:
    summary = "what this machine can measure, and what will be skipped"
    parser = add_command(subparsers, "doctor", summary, run=("bench.doctor", "cmd_doctor"))
    output_options(parser)


def add_command(subparsers: Any, name: str, summary: str, *, run: tuple[str, str]) -> OneLineParser:
    """A command; `run` is (module, function of the parsed arguments that returns the exit code)."""
    parser: OneLineParser = subparsers.add_parser(name, help=summary, description=f"{summary}.")
    parser.set_defaults(run=run, parser=parser)
    return parser

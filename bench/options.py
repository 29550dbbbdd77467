"""The commands of `python -m bench`: their options, and where their functions are."""

from pathlib import Path
from typing import Any

from bench.measuring_options import add_measuring
from perfmodel.arguments import OneLineParser, count, counts, output_options, size

HISTORY = Path("bench/runs")


def add_commands(subparsers: Any) -> None:
    """Every command; each adder stands below, in the order of `--help`."""
    add_measuring(subparsers, add_command)
    _add_generate(subparsers)
    _add_report(subparsers)
    _add_doctor(subparsers)
    _add_history(subparsers)
    _add_promote(subparsers)


def _add_report(subparsers: Any) -> None:
    summary = "a results folder as one page, as Markdown and as CSV"
    parser = add_command(subparsers, "report", summary, run=("bench.report.command", "cmd_report"))
    parser.add_argument("folder", type=Path, metavar="RESULTS", help="--out of the other commands")
    parser.add_argument("--device", metavar="NAME", help="where RESULTS has several")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE",
        help="one of them: .html, .md or .csv (all three, beside the results)",
    )  # fmt: skip
    _history_option(parser)


def _add_doctor(subparsers: Any) -> None:
    summary = "what this machine can measure, and what will be skipped"
    parser = add_command(subparsers, "doctor", summary, run=("bench.doctor", "cmd_doctor"))
    output_options(parser)


def _add_history(subparsers: Any) -> None:
    summary = "runs that were kept, and whether a benchmark became slower"
    parser = subparsers.add_parser("history", help=summary, description=f"{summary}.")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    commands = "bench.history.commands"
    listing = add_command(verbs, "list", "all runs", run=(commands, "cmd_list"))
    output_options(listing)
    adding = add_command(verbs, "add", "keep results as a run", run=(commands, "cmd_add"))
    adding.add_argument(
        "paths", nargs="+", type=Path, metavar="RESULTS",
        help="a results folder, or JSON of pytest bench --benchmark-json",
    )  # fmt: skip
    adding.add_argument("--confirms", metavar="RUN", help="it repeats RUN in a fresh process")
    summary = "hold a run against its past; exit code 1 if it is worse"
    checking = add_command(verbs, "check", summary, run=(commands, "cmd_check"))
    checking.add_argument("name", nargs="?", metavar="RUN", help="(the latest)")
    checking.add_argument(
        "--confirm", action="store_true", help="measure suspects again in three fresh processes"
    )
    checking.add_argument(
        "--allow-missing", action="store_true", help="for a run of some benchmarks only"
    )
    output_options(checking)
    plotting = add_command(verbs, "plot", "latency over commits", run=(commands, "cmd_plot"))
    plotting.add_argument("--match", default="", metavar="TEXT", help="benchmarks that hold TEXT")
    plotting.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    for verb in (listing, checking, plotting):
        verb.add_argument("--device", metavar="NAME", help="as its folder is called")
    for verb in (listing, adding, checking, plotting):
        _history_option(verb)


def _add_promote(subparsers: Any) -> None:
    summary = "make runs the baseline of their device"
    parser = add_command(
        subparsers, "promote", summary, run=("bench.history.commands", "cmd_promote")
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="one or more, of one device")
    parser.add_argument("--accept", metavar="REASON", help="although the check of a run fails")
    _history_option(parser)


def _history_option(parser: OneLineParser) -> None:
    parser.add_argument(
        "--history", type=Path, default=HISTORY, metavar="DIR", help=f"folder of runs ({HISTORY})"
    )


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

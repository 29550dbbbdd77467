"""`python -m quantizer`: arguments in, one command, its exit code out."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from perfmodel.arguments import OneLineParser, count, counts, size
from perfmodel.errors import PerfmodelError, missing_package, one_line
from perfmodel.output import discard_output
from quantizer.defaults import METHODS, PROFILES
from quantizer.errors import RESUMABLE_EXIT

MAX_NUMBER = 1_000_000  # of any argument; rules out infinity
_EXAMPLES = """\
examples:
  python -m quantizer quantize MODEL --method squeezellm --bits 3 --sparsity 0.45 \\
      --calibration c4.jsonl.gz --out OUT
  python -m quantizer evaluate OUT --text wiki.test.txt
  python -m quantizer compare MODEL --bits 4,3 --calibration c4.jsonl.gz --text wiki.test.txt
  python -m quantizer allocate MODEL --bits-per-weight 3.25 --calibration c4.jsonl.gz -o plan.json
  python -m quantizer allocate MODEL --max-ms-per-token 4 --gpu a6000 --calibration c4.jsonl.gz \\
      -o plan.json
  python -m quantizer verify OUT

Exit codes: 0 ok, 1 damaged or failed blocks, 2 wrong arguments, 3 a wrong input file, 75 stopped,
run the same command to go on.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    args = build_parser().parse_args(argv)
    try:
        _run(args)
    except PerfmodelError as error:
        print(one_line(f"quantizer: error: {error}"), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("quantizer: interrupted; finished blocks are kept", file=sys.stderr)
        return RESUMABLE_EXIT
    except BrokenPipeError:  # the reader, `head` for example, has what it wanted
        discard_output()
    return 0


def _run(args: argparse.Namespace) -> None:
    """The command's function, imported only now: torch takes seconds, not for --help."""
    try:
        from quantizer import commands
    except ImportError as error:
        raise missing_package(error, "quantizer") from None
    getattr(commands, f"cmd_{args.command}")(args)


def build_parser() -> OneLineParser:
    """The whole command line."""
    parser = OneLineParser(
        prog="quantizer",
        description="Quantize LLaMA-type checkpoints, and see what it costs.",
        epilog=_EXAMPLES,
    )
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_quantize(subparsers)
    _add_evaluate(subparsers)
    _add_compare(subparsers)
    _add_sensitivity(subparsers)
    _add_allocate(subparsers)
    inspect = _add(subparsers, "inspect", "what a quantized checkpoint holds, layer by layer")
    verify = _add(subparsers, "verify", "recompute every hash of a quantized checkpoint")
    for command in (inspect, verify):
        command.add_argument("folder", type=Path, metavar="DIR")
        _json_option(command)
    return parser


def _add(subparsers: Any, name: str, summary: str) -> OneLineParser:
    parser: OneLineParser = subparsers.add_parser(name, help=summary, description=f"{summary}.")
    parser.set_defaults(command=name, parser=parser)
    return parser


def _add_quantize(subparsers: Any) -> None:
    parser = _add(subparsers, "quantize", "quantize a checkpoint, or go on with one")
    parser.add_argument("model", type=Path, metavar="MODEL_DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--method", choices=METHODS)
    parser.add_argument("--bits", type=count, help="of a code: 2 to 8")
    parser.add_argument("--group", type=count, help="weights per scale (one per row; awq 128)")
    parser.add_argument("--sparsity", type=_percent, help="sparse values, percent (0)")
    parser.add_argument("--format", metavar="NAME", help="instead: a name as perfmodel knows it")
    parser.add_argument("--formats", type=Path, metavar="FILE", help="instead: what allocate wrote")
    _method_options(parser)
    _calibration_options(parser)
    parser.add_argument(
        "--fisher", type=Path, metavar="FILE", help="Fisher diagonals to use or make"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what it would take, and stop")
    _executor_option(parser)


def _add_evaluate(subparsers: Any) -> None:
    parser = _add(subparsers, "evaluate", "perplexity by the papers' protocol, or scores of tasks")
    parser.add_argument("model", type=Path, metavar="DIR")
    _text_options(parser, required=False)
    parser.add_argument(
        "--tasks", type=_names, metavar="NAMES", help="instead: of the lm-evaluation-harness, mmlu"
    )
    parser.add_argument(
        "--tasks-dir", type=Path, metavar="FOLDER", help="its task files (those it comes with)"
    )
    parser.add_argument("--shots", type=size, help="examples in the prompt (as the task says)")
    parser.add_argument(
        "--linear",
        choices=("dense", "packed", "kernels"),
        default="dense",
        help="dequantize once, in every call, or run the kernels (dense)",
    )
    _json_option(parser)


def _add_compare(subparsers: Any) -> None:
    parser = _add(subparsers, "compare", "several formats of a model in one table")
    parser.add_argument("model", type=Path, metavar="MODEL_DIR")
    parser.add_argument(
        "--formats", type=_names, metavar="NAMES", help="also files of allocate (every method)"
    )
    parser.add_argument("--bits", type=counts, default=[4, 3], metavar="B,B", help="(4,3)")
    parser.add_argument("--methods", type=_names, metavar="NAMES", help="for --bits-per-weight")
    parser.add_argument(
        "--bits-per-weight", type=_positive, help="every method at so many true bits"
    )
    parser.add_argument(
        "--against", metavar="NAME", help="count rises of the loss from this format (the model)"
    )
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep the checkpoints there")
    _method_options(parser)
    _calibration_options(parser)
    _text_options(parser)
    _executor_option(parser)
    _json_option(parser)


def _add_sensitivity(subparsers: Any) -> None:
    parser = _add(subparsers, "sensitivity", "how much the loss depends on each layer")
    parser.add_argument("model", type=Path, metavar="MODEL_DIR")
    parser.add_argument(
        "--forecast",
        type=_names,
        nargs="?",
        const=["rtn-w4", "rtn-w3", "squeezellm-w4", "squeezellm-w3"],
        default=[],
        metavar="NAMES",
        help="forecast the loss of these formats, per layer",
    )
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep the checkpoints there")
    _calibration_options(parser)
    _json_option(parser)


def _add_allocate(subparsers: Any) -> None:
    parser = _add(subparsers, "allocate", "a format per layer, of least forecast loss in a budget")
    parser.add_argument("model", type=Path, metavar="MODEL_DIR")
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--bits-per-weight", type=_positive, help="true bits")
    budget.add_argument(
        "--max-ms-per-token", type=_positive, metavar="MS", help="predicted for --gpu, batch 1"
    )
    parser.add_argument("--gpu", metavar="NAME", help="as perfmodel knows it, or a YAML file")
    parser.add_argument("--stack", default="ideal", metavar="NAME", help="of perfmodel (ideal)")
    parser.add_argument("--context", type=size, default=128, help="tokens in the cache (128)")
    parser.add_argument(
        "--formats",
        type=_names,
        default=["squeezellm-w2", "squeezellm-w3", "squeezellm-w4"],
        metavar="NAMES",
        help="to choose from (squeezellm-w2,squeezellm-w3,squeezellm-w4)",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep the checkpoints there")
    _calibration_options(parser)


def _method_options(parser: OneLineParser) -> None:
    parser.add_argument(
        "--weighting", choices=("fisher", "activation", "none"), help="of the clustering"
    )
    parser.add_argument(
        "--selection",
        choices=("paper", "gain", "sensitive", "outliers"),
        default="paper",
        help="which values the sparse part holds (paper)",
    )
    parser.add_argument(
        "--outliers",
        choices=("global", "percentile"),
        default="global",
        help="one threshold for the model, or the same share of every layer (global)",
    )
    parser.add_argument("--damping", type=_positive, default=0.01, help="of the Hessian (0.01)")


def _calibration_options(parser: OneLineParser) -> None:
    parser.add_argument(
        "--calibration", type=Path, metavar="FILE", help=".txt, .jsonl (.gz), .npy or .u16"
    )
    parser.add_argument("--profile", choices=PROFILES, default=PROFILES[0], help="(c4-100x512)")


def _text_options(parser: OneLineParser, *, required: bool = True) -> None:
    parser.add_argument(
        "--text", type=Path, required=required, metavar="FILE", help="as --calibration"
    )
    parser.add_argument("--window", type=count, default=2048, help="tokens (2048)")
    parser.add_argument("--bos", type=size, metavar="TOKEN", help="put it first in every window")
    parser.add_argument("--limit", type=count, help="only so many windows, or questions of a task")


def _executor_option(parser: OneLineParser) -> None:
    parser.add_argument(
        "--executor",
        default="local",
        metavar="WHERE",
        help="serial, local, local:N or dask://HOST:PORT (local)",
    )


def _json_option(parser: OneLineParser) -> None:
    parser.add_argument("--json", action="store_true")


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < MAX_NUMBER:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a number above 0")
    return value


def _percent(text: str) -> float:
    return 0.0 if text in ("0", "0.0") else _positive(text)


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]

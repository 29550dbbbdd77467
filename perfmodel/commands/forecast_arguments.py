"""Arguments of `calibrate`, `validate` and `recommend`; what they run is imported on use."""

import argparse
import re
from pathlib import Path
from typing import Any

from perfmodel.arguments import (
    OneLineParser,
    add_command,
    count,
    output_options,
    rendering_options,
    size,
)
from perfmodel.quality import METRICS
from perfmodel.units import GIB, GIGA

_MEASUREMENTS = """\
MEASUREMENTS is a CSV or JSON file with the columns device, model, weights, time_s or tokens_per_s,
and as needed context, prompt, new, batch, tensor_parallel, lm_head, kv_bits, stack, source, note;
or the name of a published set: squeezellm-2023, decode-rates,
decode-rates-4090.
"""
_CALIBRATE = f"""\
{_MEASUREMENTS}
examples:
  python -m perfmodel calibrate squeezellm-2023 --layer clock -o my-stack.yaml
  python -m perfmodel calibrate decode-rates --software llama.cpp
  python -m perfmodel predict --gpu a5000 --stack my-stack.yaml --weights fp16,squeezellm-w3
"""
_RECOMMEND = """\
examples:
  python -m perfmodel recommend --gpu a5000 --model llama-13b --max-memory 10GB
  python -m perfmodel recommend --gpu rtx3090 --model llama-2-13b --max-perplexity 5.0
  python -m perfmodel recommend --gpu host --model ./my-model --quality compare.json

Of the formats within the limits the one with the lowest perplexity comes first. Times are those of
the fastest software that has run formats of the method and was measured, here if any was.
"""
_VALIDATE = f"""\
{_MEASUREMENTS}
examples:
  python -m perfmodel validate squeezellm-2023
  python -m perfmodel validate squeezellm-2023 --hold-out model=llama-30b --max-mean 4 --max-worst 8
  python -m perfmodel validate decode-rates --hold-out device
  python -m perfmodel validate mine.csv --stack tinychat

Exit codes: 0 ok, 1 a bar is missed, 2 wrong arguments, 3 a wrong input file.
"""


def _calibrate(args: argparse.Namespace) -> Any:
    from perfmodel.commands import forecast as forecast_commands  # `predict` starts without it

    return forecast_commands.cmd_calibrate(args)


def _validate(args: argparse.Namespace) -> Any:
    from perfmodel.commands import forecast as forecast_commands

    return forecast_commands.cmd_validate(args)


def _recommend(args: argparse.Namespace) -> Any:
    from perfmodel.commands import advice as advice_commands

    return advice_commands.cmd_recommend(args)


def plot_pareto(args: argparse.Namespace) -> Any:
    """Deferred like the others."""
    from perfmodel.commands import advice as advice_commands

    return advice_commands.cmd_plot_pareto(args)


def _plot_validation(args: argparse.Namespace) -> Any:
    from perfmodel.commands import forecast as forecast_commands

    return forecast_commands.cmd_plot_validation(args)


def add_forecasts(subparsers: Any) -> None:
    """The sub-commands that work from measurements."""
    summary = "fit a stack to measurements, and show what they determine"
    calibrate = add_command(subparsers, "calibrate", _calibrate, summary, _CALIBRATE)
    _row_options(calibrate)
    calibrate.add_argument("--name", help="of the stack (the software's)")
    calibrate.add_argument("--description", help="of the stack, one line")
    calibrate.add_argument(
        "--also-runs", metavar="NAMES", help="formats that it runs beside those in the rows"
    )
    calibrate.add_argument(
        "-o", dest="stack_file", type=Path, metavar="STACK.yaml", help="write the stack there"
    )
    calibrate.set_defaults(output=None)  # the tables go to standard output
    rendering_options(calibrate)
    summary = "predictions against measurements, with what was held out"
    validate = add_command(subparsers, "validate", _validate, summary, _VALIDATE)
    validation_options(validate)
    validate.add_argument("--max-mean", type=percent, metavar="P", help="bar of the mean, percent")
    validate.add_argument(
        "--max-worst", type=percent, metavar="P", help="bar of every row, percent"
    )
    output_options(validate)


def validation_options(parser: OneLineParser) -> None:
    """Which rows, and what predicts them."""
    _row_options(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--stack", help="predict with this stack (each row's own, or measured)")
    which.add_argument(
        "--hold-out",
        metavar="WHAT",
        help="fit without and predict: device, model (each in turn), device=NAME, model=NAME",
    )
    parser.add_argument("--only", metavar="PATTERNS", help="predict only these weights: w4*,fp16")


def _row_options(parser: OneLineParser) -> None:
    parser.add_argument("measurements", metavar="MEASUREMENTS")
    parser.add_argument("--software", metavar="NAME", help="only rows whose stack is this")
    parser.add_argument(
        "--decode", metavar="KEYS", help="words of formats that get a decode cost (one per method)"
    )
    parser.add_argument(
        "--layer",
        choices=("host", "clock"),
        default="host",
        help="what sets the time per layer: the host that launches, or the device's clock (host)",
    )
    parser.add_argument(
        "--overlap",
        type=share,
        default=0.0,
        metavar="SHARE",
        help="how much of decoding hides behind DRAM, 0 to 1 (0)",
    )


def add_recommend(subparsers: Any) -> None:
    """The sub-command that chooses a format."""
    summary = "weight formats within your limits, ranked, with the reason for every refusal"
    parser = add_command(subparsers, "recommend", _recommend, summary, _RECOMMEND)
    recommend_options(parser)
    output_options(parser)


def recommend_options(parser: OneLineParser) -> None:
    """Device, workload, limits, and what says how good a format is."""
    parser.add_argument("--gpu", required=True, help="device: name, alias or YAML file")
    parser.add_argument("--model", default="llama-7b", help="name, alias or config.json (llama-7b)")
    parser.add_argument(
        "--stack", help="software that runs it (the fastest of all fitted ones that can)"
    )
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="what if")
    parser.add_argument("--weights", metavar="NAMES", help="only these formats")
    parser.add_argument("--context", type=size, help="tokens cached (128)")
    parser.add_argument("--batch", type=count, default=1, help="sequences (1)")
    parser.add_argument("--tp", type=count, default=1, help="tensor-parallel devices (1)")
    parser.add_argument("--kv-bits", type=count, default=16, help="bits of the KV cache (16)")
    parser.add_argument("--max-memory", type=memory_size, metavar="SIZE", help="such as 10GB")
    parser.add_argument("--max-ms-per-token", type=percent, metavar="MS")
    parser.add_argument("--max-perplexity", type=percent, metavar="PPL")
    parser.add_argument(
        "--quality", metavar="FILE", help="perplexities from `quantizer compare --json`"
    )
    parser.add_argument(
        "--metric", choices=METRICS, default="wikitext2", help="of the papers (wikitext2)"
    )
    parser.set_defaults(phase="decode", prompt=None, new=None, accounting="fused")


def add_validation_figure(figures: Any) -> OneLineParser:
    """The figure of predicted against measured."""
    summary = "predicted against measured, with intervals"
    parser = add_command(figures, "validation", _plot_validation, summary, _MEASUREMENTS)
    validation_options(parser)
    return parser


def memory_size(text: str) -> float:
    """Bytes of "12GB", "10GiB" or a bare number of GB."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) *(GB|GiB)?", text.strip())
    if match is None or not float(match[1]):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a size such as 12GB or 10GiB")
    return float(match[1]) * (GIB if match[2] == "GiB" else GIGA)


def percent(text: str) -> float:
    """A positive number."""
    value = _number(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"found {text}, expected a number above 0")
    return value


def share(text: str) -> float:
    """A number from 0 to 1."""
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"found {text}, expected a number from 0 to 1")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a number") from None

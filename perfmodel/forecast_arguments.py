"""Arguments of `calibrate` and `validate`."""

import argparse
from pathlib import Path
from typing import Any

from perfmodel.arguments import OneLineParser, add_command, output_options, rendering_options

_MEASUREMENTS = """\
MEASUREMENTS is a CSV or JSON file with the columns device, model, weights, time_s or tokens_per_s,
and as needed context, prompt, new, batch, tensor_parallel, lm_head, kv_bits, stack, source, note;
or the name of a published set: squeezellm-2023, decode-rates.
"""
_CALIBRATE = f"""\
{_MEASUREMENTS}
examples:
  python -m perfmodel calibrate squeezellm-2023 --layer clock -o my-stack.yaml
  python -m perfmodel calibrate decode-rates --software llama.cpp
  python -m perfmodel predict --gpu a5000 --stack my-stack.yaml --weights fp16,squeezellm-w3
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
    from perfmodel import forecast_commands  # `predict` starts without it

    return forecast_commands.cmd_calibrate(args)


def _validate(args: argparse.Namespace) -> Any:
    from perfmodel import forecast_commands

    return forecast_commands.cmd_validate(args)


def add_forecasts(subparsers: Any) -> None:
    """The sub-commands that work from measurements."""
    summary = "fit a stack to measurements, and show what they determine"
    calibrate = add_command(subparsers, "calibrate", _calibrate, summary, _CALIBRATE)
    _row_options(calibrate)
    calibrate.add_argument("--name", help="of the stack (the software's)")
    calibrate.add_argument("--description", help="of the stack, one line")
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
    which.add_argument("--stack", help="predict with this stack (each row's own)")
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

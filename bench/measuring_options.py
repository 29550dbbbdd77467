"""The options of the commands that measure: probe, kernels, validate, doctor, all."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from perfmodel.arguments import OneLineParser, count, counts, output_options, rendering_options

DEFAULT_FOLDER = Path("out/bench")
AddCommand = Callable[..., OneLineParser]  # bench.options.add_command


def add_measuring(subparsers: Any, add_command: AddCommand) -> None:
    """Every command of this file, in the order of `--help`."""
    _add_probe(subparsers, add_command)
    _add_kernels(subparsers, add_command)
    _add_validate(subparsers, add_command)
    _add_all(subparsers, add_command)


def _add_probe(subparsers: Any, add_command: AddCommand) -> None:
    summary = "measure this device's roofs and write them as a hardware file"
    parser = add_command(subparsers, "probe", summary, run=("bench.commands", "cmd_probe"))
    device_options(parser)
    rendering_options(parser)
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE",
        help="the hardware file (by default the one that `perfmodel --gpu host` reads)",
    )  # fmt: skip


def _add_kernels(subparsers: Any, add_command: AddCommand) -> None:
    summary = "check and time every weight format on the shapes of LLaMA, peers beside them"
    parser = add_command(subparsers, "kernels", summary, run=("bench.commands", "cmd_kernels"))
    device_options(parser)
    parser.add_argument(
        "--layers", type=words, metavar="NAMES", help="llama-7b, llama-13b/down_proj, ..."
    )
    parser.add_argument(
        "--subjects", type=words, metavar="NAMES",
        help="weight formats, kernel options after colons: squeezellm-w3,gptq-w4-g128-act:gather",
    )  # fmt: skip
    parser.add_argument("--batch", type=counts, metavar="N,N", help="tokens at once (1)")
    parser.add_argument("--no-peers", action="store_true", help="ours alone")
    output_options(parser)


def _add_validate(subparsers: Any, add_command: AddCommand) -> None:
    summary = "hold measured kernels against their predictions; exit code 1 above a roof"
    parser = add_command(
        subparsers, "validate", summary, run=("bench.validate_command", "cmd_validate")
    )
    folder_option(parser)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="predicted over measured")
    parser.add_argument(
        "--bar", type=float, metavar="PERCENT",
        help="exit code 1 if the median error on held-out shapes is more",
    )  # fmt: skip
    output_options(parser)


def _add_all(subparsers: Any, add_command: AddCommand) -> None:
    summary = "all of it within one budget of time; the same command goes on where it stopped"
    parser = add_command(subparsers, "all", summary, run=("bench.all_command", "cmd_all"))
    parser.add_argument("--minutes", type=minutes, default=9.0, help="stop by then (9)")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="(the GPU where there is one)")
    parser.add_argument("--threads", type=count, metavar="N", help="of a CPU, as for kernels")
    parser.add_argument("--plan", action="store_true", help="print the jobs and stop")
    folder_option(parser)


def device_options(parser: OneLineParser) -> None:
    """Which device is measured, and the folder that holds the results."""
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), help="(the GPU where there is one, else the CPU)"
    )
    parser.add_argument(
        "--threads", type=count, metavar="N",
        help="of a CPU, one per core (all); 1 is steady even while others use the machine",
    )  # fmt: skip
    folder_option(parser)
    parser.add_argument(
        "--fresh", action="store_true", help="measure again what the folder already holds"
    )


def folder_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, default=DEFAULT_FOLDER, metavar="DIR",
        help=f"folder of results ({DEFAULT_FOLDER})",
    )  # fmt: skip


def minutes(text: str) -> float:
    """A positive number."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"found {text}, expected minutes above 0")
    return value


def words(text: str) -> list[str]:
    """Names separated by commas."""
    return [part.strip() for part in text.split(",") if part.strip()]

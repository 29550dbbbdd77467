"""Arguments of the command line into the records that the library takes."""

import argparse
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from perfmodel.hardware import load_hardware
from perfmodel.measured_stack import stack_for
from quantizer.checkpoints.checkpoint import Checkpoint, open_checkpoint
from quantizer.defaults import COMPARED, DEFAULT_FORMATS
from quantizer.errors import CheckpointError, UsageError
from quantizer.evaluation.calibration import Calibration, in_domain, load_calibration, source_of
from quantizer.evaluation.evaluate import EvaluationText, Protocol, load_evaluation
from quantizer.methods.matrix import Settings
from quantizer.methods.registry import needs
from quantizer.run.pipeline import Hooks
from quantizer.run.trial import is_plan
from quantizer.sensitivity.choose import (
    format_name,
    format_of_bits,
    layer_settings,
    layer_shapes,
    read_formats,
    uniform_settings,
)
from quantizer.sensitivity.device_time import StepTimes, step_times

SMALL_MATRIX = 2**20  # weights; below, starting threads takes longer than they save


def open_model(folder: Path) -> Checkpoint:
    checkpoint = open_checkpoint(folder)
    largest = max(torch.Size(info.shape).numel() for info in checkpoint.tensors.values())
    if largest < SMALL_MATRIX:
        torch.set_num_threads(1)
    return checkpoint


def settings_of(checkpoint: Checkpoint, args: argparse.Namespace) -> dict[str, Settings]:
    ways = [args.method or args.bits, args.format, args.formats]
    if sum(way is not None for way in ways) != 1:
        raise UsageError("give one of --method with --bits, --format, or --formats")
    if args.formats is not None:
        formats = read_formats(args.formats)
        options = options_of(args, next(iter(formats.values()), "rtn-w4"))
        return layer_settings(checkpoint, formats, options, args.outliers)
    if args.format is None and (args.method is None or args.bits is None):
        raise UsageError("--method needs --bits, and --bits needs --method")
    name = args.format or format_name(
        args.method, args.bits, group=args.group, sparsity=args.sparsity
    )
    return uniform_settings(checkpoint, options_of(args, name), args.outliers)


def options_of(args: argparse.Namespace, name: str) -> Settings:
    return Settings(
        format=name,
        weighting=args.weighting,
        selection=args.selection,
        damping=args.damping,
    )


def formats_to_compare(checkpoint: Checkpoint, args: argparse.Namespace) -> list[str]:
    if args.formats:
        formats = args.formats
    elif args.bits_per_weight is None:
        formats = [name.format(b=bits) for bits in args.bits for name in DEFAULT_FORMATS]
    else:
        shapes = layer_shapes(checkpoint)
        methods = args.methods or COMPARED
        formats = [format_of_bits(method, args.bits_per_weight, shapes) for method in methods]
    for name in formats:
        check_formats(read_formats(Path(name)).values() if is_plan(name) else [name])
    return formats


def check_formats(names: Iterable[str]) -> None:
    """What is wrong is said before an hour of work. Raises: SettingsError, UsageError."""
    for name in names:
        needs(Settings(format=name))


def calibration_of(checkpoint: Checkpoint, args: argparse.Namespace) -> Calibration | None:
    if args.calibration is None:
        return None
    return load_calibration(
        args.calibration,
        checkpoint.folder,
        args.profile,
        longest=_longest(checkpoint),
        vocabulary=checkpoint.config["vocab_size"],
    )


def evaluation_of(checkpoint: Checkpoint, args: argparse.Namespace) -> EvaluationText:
    return load_evaluation(
        args.text,
        checkpoint.folder,
        Protocol(window=args.window, bos=args.bos, limit=args.limit),
        longest=_longest(checkpoint),
        vocabulary=checkpoint.config["vocab_size"],
    )


def _longest(checkpoint: Checkpoint) -> int:
    longest = checkpoint.config.get("max_position_embeddings", 2048)
    if type(longest) is not int or longest < 2:
        raise CheckpointError(f"{checkpoint.folder}: max_position_embeddings is {longest!r}")
    return longest


def step_times_of(args: argparse.Namespace) -> StepTimes | None:
    """Predicted times of the formats to choose from, if time is the budget.

    Raises: UsageError, SpecError.
    """
    if args.max_ms_per_token is None:
        return None
    if args.gpu is None:
        raise UsageError("--max-ms-per-token needs --gpu NAME, the device that it is predicted for")
    hw = load_hardware(args.gpu)
    stack = stack_for(args.stack, hw)
    return step_times(args.model, args.formats, hw, stack=stack, context=args.context)


def warn_in_domain(calibration: Any, text: Path) -> None:
    reason = None if calibration is None else in_domain(calibration, source_of(text))
    if reason:
        print(f"quantizer: warning: in-domain: {reason}; perplexity may flatter", file=sys.stderr)


@contextmanager
def stoppable() -> Iterator[Hooks]:
    """Hooks whose `stopping` is true after Ctrl-C or SIGTERM; a second one interrupts at once."""
    asked: list[int] = []

    def ask(number: int, _frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        print("quantizer: finishing the block in work; again to stop at once", file=sys.stderr)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield Hooks(stopping=lambda: bool(asked))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""What each sub-command does: arguments into records, one call, the result printed."""

import argparse
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec
import torch

from perfmodel.output import as_json
from quantizer import ledger
from quantizer.calibration import Calibration, in_domain, load_calibration, source_of
from quantizer.checkpoint import OUTSIDE, Checkpoint, open_checkpoint
from quantizer.checkpoint_model import load_model, quantized_blocks
from quantizer.choose import (
    format_name,
    format_of_bits,
    layer_settings,
    layer_shapes,
    read_formats,
    uniform_settings,
)
from quantizer.cli import DEFAULT_FORMATS, METHODS
from quantizer.compare import FORECAST_FISHER, Comparison, Setting, compare
from quantizer.errors import (
    RESUMABLE_EXIT,
    CheckFailedError,
    CheckpointError,
    StoppedError,
    UsageError,
)
from quantizer.estimate import Estimate, estimate, free_bytes
from quantizer.evaluate import EvaluationText, Protocol, load_evaluation, perplexity
from quantizer.executors import check_executor, workers_of
from quantizer.fisher_file import NAME as FISHER_NAME
from quantizer.fisher_file import ensure_fisher
from quantizer.forecast import allocate, beyond_quadratic
from quantizer.matrix import Settings
from quantizer.methods import needs
from quantizer.pipeline import Hooks, Job, check_job, quantize, read_config
from quantizer.plan import Sensitivity, sensitivities
from quantizer.progress import Progress, duration
from quantizer.tables import as_table, human_bytes

__all__ = ["RESUMABLE_EXIT"]  # the command line's; the commands are found by name
SMALL_MATRIX = 2**20  # weights; below, starting threads takes longer than they save


def cmd_quantize(args: argparse.Namespace) -> None:
    """Raises: whatever `quantize` raises, UsageError."""
    check_executor(args.executor)
    checkpoint = _open(args.model)
    settings = _settings(checkpoint, args)
    calibration = _calibration(checkpoint, args)
    job = Job(
        source=args.model,
        out=args.out,
        settings=settings,
        calibration=calibration,
        fisher=args.fisher,
        executor=args.executor,
    )
    check_job(checkpoint, job)
    workers = workers_of(args.executor)
    expected = estimate(checkpoint, settings, calibration, workers=workers)
    _say_estimate(expected, args.out)
    if args.dry_run:
        return
    with _stoppable() as hooks:
        summary = quantize(job, _with_progress(hooks, checkpoint.blocks + 1))
    print(
        f"{args.out}: {len(summary.layers)} layers, {summary.bits_per_weight:.4f} bits per weight, "
        f"{human_bytes(summary.packed_bytes)} packed; {summary.made} blocks made, "
        f"{summary.kept} were done"
    )


def cmd_evaluate(args: argparse.Namespace) -> None:
    """Raises: CheckpointError, UsageError."""
    checkpoint = _open(args.model)
    text = _evaluation(checkpoint, args)
    if checkpoint.quantized:
        _warn_in_domain(read_config(args.model).calibration, args.text)
    progress = Progress("windows", len(text.ids))
    model = load_model(args.model, linear=args.linear)
    result = perplexity(model, text, progress=progress.to)
    if args.json:
        print(as_json(result), end="")
    else:
        print(f"perplexity per token {result.value:.4f}")
        print(f"{result.label}; {result.predictions} predictions, linear layers {args.linear}")


def cmd_compare(args: argparse.Namespace) -> None:
    """Raises: what `compare` raises."""
    check_executor(args.executor)
    checkpoint = _open(args.model)
    formats = _formats_to_compare(checkpoint, args)
    calibration = _calibration(checkpoint, args)
    if calibration is not None:
        _warn_in_domain(calibration.source, args.text)
    progress = Progress("formats", len(formats) + 1)
    with ExitStack() as stack:
        work = args.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ledger.prepare(work)
        hooks = stack.enter_context(_stoppable())
        setting = Setting(
            checkpoint=checkpoint,
            calibration=calibration,
            text=_evaluation(checkpoint, args),
            work=work,
            options=_options(args, formats[0]),
            executor=args.executor,
            outliers=args.outliers,
        )
        try:
            lines = compare(setting, formats, hooks, lambda line: progress.step(line.format))
        except StoppedError as stop:
            kept = stop if args.work else "stopped; nothing is kept without --work DIR"
            raise StoppedError(str(kept)) from None
    _print_comparison(lines, setting.text.label, args)


def cmd_sensitivity(args: argparse.Namespace) -> None:
    """Raises: UsageError, CheckpointError, OutputError."""
    checkpoint = _open(args.model)
    with _statistics(checkpoint, args, args.forecast) as (token, sequence):
        rows = _sensitivities(checkpoint, token, args.forecast, sequence)
    if args.json:
        print(as_json(rows), end="")
        return
    headings = ["layer", "shape", "Fisher share", "top 0.05 %", *args.forecast]
    cells = [
        [
            row.layer,
            "x".join(map(str, row.shape)),
            row.fisher_share,
            row.top_share,
            *(row.losses[name] for name in args.forecast),
        ]
        for row in rows
    ]
    totals = {name: sum(row.losses[name] for row in rows) for name in args.forecast}
    cells.append(["all", "", 1.0, None, *totals.values()])
    print(as_table(headings, cells), end="")
    for name, loss in totals.items():
        if beyond_quadratic(loss):
            print(f"{name}: forecast beyond the quadratic regime; the true loss is higher")


def cmd_allocate(args: argparse.Namespace) -> None:
    """Raises: UsageError, CheckpointError, OutputError."""
    checkpoint = _open(args.model)
    with _statistics(checkpoint, args, args.formats) as (token, sequence):
        rows = _sensitivities(checkpoint, token, args.formats, sequence)
    weights = sum(row.shape[0] * row.shape[1] for row in rows)
    choices = {row.layer: {n: (row.nbytes[n], row.losses[n]) for n in args.formats} for row in rows}
    formats = allocate(choices, int(args.bits_per_weight * weights / 8))
    spent = sum(choices[layer][name][0] for layer, name in formats.items())
    loss = sum(choices[layer][name][1] for layer, name in formats.items())
    plan = {"bits_per_weight": 8 * spent / weights, "forecast_loss": loss, "formats": formats}
    ledger.write_durably(args.output, ledger.as_json(plan))
    counts = {name: [*formats.values()].count(name) for name in args.formats}
    shares = ", ".join(f"{count} x {name}" for name, count in counts.items() if count)
    print(f"{8 * spent / weights:.4f} bits per weight, forecast loss +{loss:.4f} nats: {shares}")
    print(f"next: python -m quantizer quantize {args.model} --formats {args.output} --out DIR")


def cmd_inspect(args: argparse.Namespace) -> None:
    """Raises: CheckpointError."""
    config = read_config(args.folder)
    checkpoint = open_checkpoint(args.folder)
    records = {name: r for _, found in quantized_blocks(checkpoint) for name, r in found.items()}
    if args.json:
        print(as_json({"config": config, "layers": records}), end="")
        return
    rows = [
        [
            name,
            record.format,
            "x".join(map(str, record.shape)),
            8 * record.nbytes / (record.shape[0] * record.shape[1]),
            ", ".join(f"{key} {_short(value)}" for key, value in record.notes.items()),
        ]
        for name, record in records.items()
    ]
    print(as_table(["layer", "format", "shape", "bits", "notes"], rows), end="")
    print(f"{config.method}, {config.bits_per_weight:.4f} bits per weight over the linear layers")


def cmd_verify(args: argparse.Namespace) -> None:
    """Raises: CheckFailedError, CheckpointError."""
    manifests, problems = ledger.verify(args.folder)
    if not problems:
        checkpoint = open_checkpoint(args.folder)
        expected = {f"block-{block:05d}" for block in range(checkpoint.blocks)} | {OUTSIDE}
        missing = sorted(expected - {manifest.identity.block for manifest in manifests})
        problems = [f"{args.folder}: block {name} is missing" for name in missing]
    if args.json:
        print(as_json({"shards": len(manifests), "problems": problems}), end="")
    if problems:
        raise CheckFailedError("; ".join(problems))
    if not args.json:
        print(f"{args.folder}: {len(manifests)} shards are what their manifests say")


def _open(folder: Path) -> Checkpoint:
    checkpoint = open_checkpoint(folder)
    largest = max(torch.Size(info.shape).numel() for info in checkpoint.tensors.values())
    if largest < SMALL_MATRIX:
        torch.set_num_threads(1)
    return checkpoint


def _settings(checkpoint: Checkpoint, args: argparse.Namespace) -> dict[str, Settings]:
    ways = [args.method or args.bits, args.format, args.formats]
    if sum(way is not None for way in ways) != 1:
        raise UsageError("give one of --method with --bits, --format, or --formats")
    if args.formats is not None:
        formats = read_formats(args.formats)
        options = _options(args, next(iter(formats.values()), "rtn-w4"))
        return layer_settings(checkpoint, formats, options, args.outliers)
    if args.format is None and (args.method is None or args.bits is None):
        raise UsageError("--method needs --bits, and --bits needs --method")
    name = args.format or format_name(
        args.method, args.bits, group=args.group, sparsity=args.sparsity
    )
    return uniform_settings(checkpoint, _options(args, name), args.outliers)


def _options(args: argparse.Namespace, name: str) -> Settings:
    return Settings(
        format=name,
        weighting=args.weighting,
        selection=args.selection,
        damping=args.damping,
    )


def _formats_to_compare(checkpoint: Checkpoint, args: argparse.Namespace) -> list[str]:
    if args.formats:
        formats = args.formats
    elif args.bits_per_weight is None:
        formats = [name.format(b=bits) for bits in args.bits for name in DEFAULT_FORMATS]
    else:
        shapes = layer_shapes(checkpoint)
        methods = args.methods or METHODS
        formats = [format_of_bits(method, args.bits_per_weight, shapes) for method in methods]
    for name in formats:
        needs(Settings(format=name))  # a wrong name is said before an hour of work
    return formats


def _calibration(checkpoint: Checkpoint, args: argparse.Namespace) -> Calibration | None:
    if args.calibration is None:
        return None
    return load_calibration(
        args.calibration,
        checkpoint.folder,
        args.profile,
        longest=_longest(checkpoint),
        vocabulary=checkpoint.config["vocab_size"],
    )


def _evaluation(checkpoint: Checkpoint, args: argparse.Namespace) -> EvaluationText:
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


def _warn_in_domain(calibration: Any, text: Path) -> None:
    reason = None if calibration is None else in_domain(calibration, source_of(text))
    if reason:
        print(f"quantizer: warning: in-domain: {reason}; perplexity may flatter", file=sys.stderr)


@contextmanager
def _statistics(
    checkpoint: Checkpoint, args: argparse.Namespace, formats: list[str]
) -> Iterator[tuple[Path, Path | None]]:
    """Files of token and, where a format needs them, sequence Fisher diagonals."""
    calibration = _calibration(checkpoint, args)
    if calibration is None:
        raise UsageError(f"{args.command} needs calibration text; give --calibration FILE")
    wanted = any("fisher" in needs(Settings(format=name)) for name in formats)
    with ExitStack() as stack:
        work = args.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ledger.prepare(work)
        progress = Progress("Fisher passes", len(calibration.ids))
        token, sequence = work / FORECAST_FISHER, work / FISHER_NAME
        ensure_fisher(token, checkpoint, calibration, "token", progress=progress.to)
        if wanted:
            ensure_fisher(sequence, checkpoint, calibration, "sequence", progress=progress.to)
        yield token, sequence if wanted else None


def _sensitivities(
    checkpoint: Checkpoint, token: Path, formats: list[str], sequence: Path | None
) -> list[Sensitivity]:
    progress = Progress("layers", len(checkpoint.all_linear_names()))
    return sensitivities(
        checkpoint, token, formats, sequence_fisher=sequence, on_layer=progress.step
    )


@contextmanager
def _stoppable() -> Iterator[Hooks]:
    """Hooks whose `stopping` is true after Ctrl-C or SIGTERM; a second one interrupts at once."""
    asked: list[int] = []

    def ask(number: int, _frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        print("quantizer: finishing the block in work; again to stop now", file=sys.stderr)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield Hooks(stopping=lambda: bool(asked))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _with_progress(hooks: Hooks, blocks: int) -> Hooks:
    work, passes = Progress("blocks", blocks), Progress("Fisher passes", 1)
    return msgspec.structs.replace(
        hooks, on_block=lambda result: work.step(result.block), on_fisher=passes.to
    )


def _say_estimate(expected: Estimate, out: Path) -> None:
    print(
        f"{expected.layers} layers at {expected.bits_per_weight:.3f} bits per weight: output "
        f"{human_bytes(expected.output_bytes)} ({human_bytes(free_bytes(out))} free), about "
        f"{duration(expected.time_s)}, about {human_bytes(expected.peak_memory_bytes)} of memory"
    )


def _print_comparison(lines: list[Comparison], label: str, args: argparse.Namespace) -> None:
    if args.json:
        print(as_json({"text": label, "results": lines}), end="")
        return
    rows = [
        [
            line.format,
            line.bits_per_weight,
            line.perplexity,
            None if line.forecast is None else f"{line.forecast:.3f}{'*' * line.beyond_quadratic}",
            line.seconds,
        ]
        for line in lines
    ]
    print(as_table(["format", "true bits", "perplexity", "forecast", "seconds"], rows), end="")
    print(f"\nperplexity per token on {label}")
    print(
        "true bits: bytes of the packed layers; seconds without the statistics that formats share"
    )
    if any(line.beyond_quadratic for line in lines):
        print("* beyond the quadratic regime: not to be trusted; GPTQ is overestimated even before")


def _short(value: float | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

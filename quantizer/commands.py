"""What each sub-command does: arguments into records, one call, the result printed."""

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec

from perfmodel.output import as_json
from quantizer.checkpoints.checkpoint import OUTSIDE, Checkpoint, open_checkpoint
from quantizer.checkpoints.checkpoint_model import load_model, quantized_blocks
from quantizer.errors import CheckFailedError, StoppedError, UsageError
from quantizer.evaluation import harness
from quantizer.evaluation.calibration import Calibration
from quantizer.evaluation.compare import Comparison, compare
from quantizer.evaluation.evaluate import perplexity
from quantizer.inputs import (
    calibration_of,
    check_formats,
    evaluation_of,
    formats_to_compare,
    open_model,
    options_of,
    settings_of,
    step_times_of,
    stoppable,
    warn_in_domain,
)
from quantizer.methods.matrix import Settings
from quantizer.progress import Progress, duration
from quantizer.run import ledger
from quantizer.run.budget import check_bits, check_time, least_bits
from quantizer.run.estimate import Estimate, estimate, free_bytes
from quantizer.run.executors import check_executor, workers_of
from quantizer.run.pipeline import Hooks, Job, check_job, quantize, read_config
from quantizer.run.plan import (
    LayerCosts,
    Plan,
    layer_costs,
    measured_plans,
    plans_for_bits,
    plans_for_time,
    sensitivities,
)
from quantizer.run.trial import Trial
from quantizer.sensitivity.fisher_file import ensure_fisher
from quantizer.sensitivity.forecast import beyond_quadratic
from quantizer.tables import as_table, human_bytes

FORECAST_NAME = "fisher-token.safetensors"


def cmd_quantize(args: argparse.Namespace) -> None:
    """Raises: whatever `quantize` raises, UsageError."""
    check_executor(args.executor)
    checkpoint = open_model(args.model)
    settings = settings_of(checkpoint, args)
    calibration = calibration_of(checkpoint, args)
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
    begin = time.monotonic()
    with stoppable() as hooks:
        summary = quantize(job, _with_progress(hooks, checkpoint.blocks + 1))
    print(
        f"{args.out}: {len(summary.layers)} layers, {summary.bits_per_weight:.4f} bits per weight, "
        f"{human_bytes(summary.packed_bytes)} packed; {summary.made} blocks made, "
        f"{summary.kept} were done; {duration(time.monotonic() - begin)}"
    )


def cmd_evaluate(args: argparse.Namespace) -> None:
    """Raises: CheckpointError, UsageError."""
    if (args.text is None) == (args.tasks is None):
        raise UsageError("give one of --text FILE and --tasks NAMES")
    if args.tasks:
        _evaluate_tasks(args)
        return
    checkpoint = open_model(args.model)
    text = evaluation_of(checkpoint, args)
    if checkpoint.quantized:
        warn_in_domain(read_config(args.model).calibration, args.text)
    progress = Progress("windows", len(text.ids))
    model = load_model(args.model, linear=args.linear)
    result = perplexity(model, text, progress=progress.to)
    if args.json:
        print(as_json(result), end="")
    else:
        print(f"perplexity per token {result.value:.4f}")
        print(f"{result.label}; {result.predictions} predictions, linear layers {args.linear}")


def _evaluate_tasks(args: argparse.Namespace) -> None:
    open_model(args.model)
    harness.go_offline()
    tasks = harness.Tasks(
        names=args.tasks, folder=args.tasks_dir, shots=args.shots, limit=args.limit
    )
    scores = harness.evaluate_tasks(load_model(args.model, linear=args.linear), args.model, tasks)
    if args.json:
        print(as_json(scores), end="")
        return
    headings = ["task", "metric", "value", "standard error", "questions", "shots"]
    rows = [msgspec.structs.astuple(score) for score in scores]
    print(as_table(headings, rows), end="")


def cmd_compare(args: argparse.Namespace) -> None:
    """Raises: what `compare` raises."""
    check_executor(args.executor)
    checkpoint = open_model(args.model)
    formats = formats_to_compare(checkpoint, args)
    calibration = calibration_of(checkpoint, args)
    if calibration is not None:
        warn_in_domain(calibration.source, args.text)
    text = evaluation_of(checkpoint, args)
    progress = Progress("formats", len(formats) + 1)
    with _work(args.work) as (work, hooks):
        trial = Trial(
            checkpoint=checkpoint,
            calibration=calibration,
            work=work,
            options=options_of(args, "rtn-w4"),
            executor=args.executor,
            outliers=args.outliers,
        )
        lines = compare(trial, text, formats, hooks, base=args.against, on_line=progress.step)
    _print_comparison(lines, text.label, args)


def cmd_sensitivity(args: argparse.Namespace) -> None:
    """Raises: UsageError, CheckpointError, OutputError."""
    check_formats(args.forecast)
    checkpoint = open_model(args.model)
    calibration = _required_calibration(checkpoint, args)
    with _work(args.work) as (work, hooks):
        costs = _costs(_trial(checkpoint, calibration, work), args.forecast, hooks)
        token = work / FORECAST_NAME
        ensure_fisher(token, checkpoint, calibration, "token", progress=hooks.fisher_pass)
        rows = sensitivities(token, costs)
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
    """Raises: UsageError, CheckpointError, OutputError; SpecError for a device or stack."""
    check_formats(args.formats)
    checkpoint = open_model(args.model)
    times = step_times_of(args)
    if times is None:
        check_bits(least_bits(checkpoint, args.formats), args.bits_per_weight)
    else:
        most_s = args.max_ms_per_token / 1e3
        check_time(checkpoint.all_linear_names(), args.formats, times, most_s)
    calibration = _required_calibration(checkpoint, args)
    with _work(args.work) as (work, hooks):
        trial = _trial(checkpoint, calibration, work)
        costs = _costs(trial, args.formats, hooks)
        if times is None:
            plans = plans_for_bits(costs, args.bits_per_weight)
        else:
            plans = plans_for_time(costs, times, most_s)
        plans = measured_plans(trial, plans, hooks)
    ledger.write_durably(args.output, ledger.as_json(plans[0]))
    _print_plans(plans, args)


def _print_plans(plans: list[Plan], args: argparse.Namespace) -> None:
    headings = ["layers and formats", "bits", "forecast", "measured", "+-"]
    headings += ["ms per token"] if args.max_ms_per_token else []
    rows = []
    for plan in plans:
        used = [*plan.formats.values()]
        shares = ", ".join(f"{used.count(n)} x {n}" for n in args.formats if n in used)
        losses = (plan.forecast_loss, plan.measured_loss, plan.measured_error)
        thousandths = [None if loss is None else f"{1e3 * loss:.1f}" for loss in losses]
        rows.append([shares, f"{plan.bits_per_weight:.4f}", *thousandths])
        rows[-1] += [f"{plan.ms_per_token:.4g}"] if plan.ms_per_token is not None else []
    print(as_table(headings, rows), end="")
    print(
        "\nrise of the loss in thousandths of a nat per token, the least measured one is the plan; "
        "measured on other calibration windows than the forecast, if there are any"
    )
    if args.max_ms_per_token:
        print(f"ms per token on {args.gpu}, stack {args.stack}: predicted")
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


@contextmanager
def _work(folder: Path | None) -> Iterator[tuple[Path, Hooks]]:
    """The folder for checkpoints and statistics, or one that goes away, and hooks to stop by.

    Raises: StoppedError that says what is kept.
    """
    with ExitStack() as stack:
        work = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ledger.prepare(work)
        hooks, passes = stack.enter_context(stoppable()), Progress("Fisher passes", 1)
        try:
            yield work, msgspec.structs.replace(hooks, on_fisher=passes.to)
        except StoppedError:
            if folder is not None:
                raise
            raise StoppedError("stopped; nothing is kept without --work DIR") from None


def _required_calibration(checkpoint: Checkpoint, args: argparse.Namespace) -> Calibration:
    calibration = calibration_of(checkpoint, args)
    if calibration is None:
        raise UsageError(f"{args.command} needs calibration text; give --calibration FILE")
    return calibration


def _trial(checkpoint: Checkpoint, calibration: Calibration, work: Path) -> Trial:
    """Formats with the options that `quantize` has by default."""
    options = Settings(format="rtn-w4")  # each trial has its own format
    return Trial(checkpoint=checkpoint, calibration=calibration, work=work, options=options)


def _costs(trial: Trial, formats: list[str], hooks: Hooks) -> list[LayerCosts]:
    return layer_costs(trial, formats, hooks, on_format=Progress("formats", len(formats)).step)


def _with_progress(hooks: Hooks, blocks: int) -> Hooks:
    work, passes = Progress("blocks", blocks), Progress("Fisher passes", 1)
    return msgspec.structs.replace(
        hooks, on_block=lambda result: work.step(result.block), on_fisher=passes.to
    )


def _say_estimate(expected: Estimate, out: Path) -> None:
    low, high = (duration(seconds) for seconds in expected.time_s)
    print(
        f"{expected.layers} layers at {expected.bits_per_weight:.3f} bits per weight: output "
        f"{human_bytes(expected.output_bytes)} ({human_bytes(free_bytes(out))} free), about "
        f"{human_bytes(expected.peak_memory_bytes)} of memory, "
        f"{low if low == high else f'{low} to {high}'} if the machine stays as free as it is"
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
            f"{1e3 * line.rise:+.1f}",
            None if line.rise_error is None else f"{1e3 * line.rise_error:.1f}",
            line.seconds,
        ]
        for line in lines
    ]
    headings = ["format", "true bits", "perplexity", "forecast", "rise", "+-", "seconds"]
    print(as_table(headings, rows), end="")
    print(f"\nperplexity per token on {label}")
    print(
        f"rise: of the loss over {args.against or lines[0].format}, in thousandths of a nat per "
        "token, and the standard error of the windows' differences"
    )
    print(
        "true bits: bytes of the packed layers; seconds without the statistics that formats share"
    )
    if any(line.beyond_quadratic for line in lines):
        print("* beyond the quadratic regime: not to be trusted")


def _short(value: float | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

"""Quantize a checkpoint: statistics, blocks through the ledger, then config.json last."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from quantizer.checkpoints.checkpoint import CONFIG, INDEX, OUTSIDE, Checkpoint, open_checkpoint
from quantizer.checkpoints.safe_files import read_header, read_json
from quantizer.errors import (
    CheckFailedError,
    CheckpointError,
    OutputError,
    StoppedError,
    UsageError,
)
from quantizer.evaluation.calibration import Calibration, Source
from quantizer.methods.matrix import Settings
from quantizer.run import ledger
from quantizer.run.estimate import free_bytes
from quantizer.run.executors import Outcome, run_tasks
from quantizer.run.lease import lease_path, patiently_leased, wait_until_free
from quantizer.run.sequence import run_sequence
from quantizer.run.work import (
    BlockResult,
    BlockTask,
    LayerRecord,
    code_version,
    layer_records,
    needed,
    packed_bits,
    run_block,
    settings_by_block,
)
from quantizer.sensitivity.fisher_file import NAME as FISHER_NAME
from quantizer.sensitivity.fisher_file import ensure_fisher

QUANT_METHOD = "memwall"
FINISH = "finish"  # lease of the files that come last
COPIED = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint to quantize, where to and how."""

    source: Path
    out: Path
    settings: dict[str, Settings]  # by name of the linear layer
    calibration: Calibration | None = None
    fisher: Path | None = None  # statistics to use or make; None: in the ledger
    executor: str = "serial"


class Hooks(msgspec.Struct, frozen=True, kw_only=True):
    """How the caller sees progress and asks to stop."""

    on_block: Callable[[BlockResult], None] = lambda result: None  # noqa: ARG005
    on_fisher: Callable[[int, int], None] = lambda done, total: None  # noqa: ARG005
    stopping: Callable[[], bool] = lambda: False

    def check(self, *_done: int) -> None:
        """To be called between steps that keep nothing. Raises: StoppedError."""
        if self.stopping():
            raise StoppedError("stopped; finished blocks are kept; run the same command to go on")

    def fisher_pass(self, done: int, total: int) -> None:
        """After a sequence; a finished pass is worth keeping. Raises: StoppedError."""
        self.on_fisher(done, total)
        if done < total:
            self.check()


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """A finished checkpoint."""

    out: Path
    bits_per_weight: float
    packed_bytes: int
    made: int
    kept: int
    layers: dict[str, LayerRecord]


class QuantizationConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`quantization_config` of config.json."""

    quant_method: str  # tells other loaders that this is not theirs
    method: str
    bits: float  # of a code; the most of all layers
    format: str  # of most layers
    formats: dict[str, str]  # of every layer, names that perfmodel knows
    bits_per_weight: float  # true: bytes of the packed tensors
    calibration: Source | None = None


def quantize(job: Job, hooks: Hooks | None = None) -> Summary:
    """Run the job, or what is left of it.

    Raises: StoppedError, CheckFailedError with the blocks that failed, IdentityError,
    CheckpointError, OutputError, UsageError.
    """
    hooks = hooks or Hooks()
    checkpoint = open_checkpoint(job.source)
    check_job(checkpoint, job)
    ledger.prepare(job.out)
    wanted = needed(job.settings)
    fisher = None
    if "fisher" in wanted and job.calibration is not None:
        fisher = job.fisher or job.out / ledger.FOLDER / FISHER_NAME
        ensure_fisher(fisher, checkpoint, job.calibration, "sequence", progress=hooks.fisher_pass)
    tasks = [
        BlockTask(
            source=str(job.source.resolve()),
            out=str(job.out.resolve()),
            block=block,
            settings=settings,
            code=code_version(),
            fisher=None if fisher is None else str(fisher.resolve()),
        )
        for block, settings in settings_by_block(checkpoint, job.settings).items()
    ]
    if wanted - {"fisher"} and job.calibration is not None:
        outcome = _in_sequence(checkpoint, tasks, job.calibration, hooks)
    else:
        outcome = _independently(job.executor, tasks, hooks)
    _check_outcome(outcome, len(tasks), job.out)
    return finish(checkpoint, job, outcome.results)


def check_job(checkpoint: Checkpoint, job: Job) -> None:
    """Refuse what cannot work before anything is written.

    Raises: UsageError, CheckpointError, OutputError.
    """
    if checkpoint.quantized:
        raise CheckpointError(f"{job.source}: is quantized already")
    if job.out.resolve() == job.source.resolve():
        raise UsageError(f"{job.out}: is the model itself; give another folder to --out")
    if (job.out / CONFIG).exists() and not (job.out / ledger.FOLDER).is_dir():
        raise OutputError(f"{job.out}: holds a model that is not ours; give another folder")
    unknown = [*(set(checkpoint.all_linear_names()) ^ set(job.settings))]
    if unknown:
        raise UsageError(f"settings do not match the layers of the model, as {unknown[0]}")
    wanted = needed(job.settings)
    if wanted and job.calibration is None:
        methods = ", ".join(sorted({settings.method for settings in job.settings.values()}))
        raise UsageError(f"{methods} needs calibration text; give --calibration FILE")
    size, free = checkpoint.nbytes, free_bytes(job.out)
    if free < size // 2:
        raise OutputError(f"{job.out}: {free} bytes are free, expected {size // 2} at least")


def finish(checkpoint: Checkpoint, job: Job, results: Sequence[BlockResult]) -> Summary:
    """Index, tokenizer and, as the mark that all is there, config.json.

    Raises: OutputError, CheckpointError.
    """
    weight_map: dict[str, str] = {}
    layers: dict[str, LayerRecord] = {}
    total = 0
    for block in settings_by_block(checkpoint, job.settings):
        path = job.out / f"{block}.safetensors"
        header, metadata = read_header(path)
        weight_map |= dict.fromkeys(header, path.name)
        total += sum(info.nbytes for info in header.values())
        layers |= layer_records(metadata, path)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    config = dict(checkpoint.config) | {"quantization_config": _config(job, layers)}
    files = {INDEX: ledger.as_json(index)}
    files |= {
        name: (job.source / name).read_bytes() for name in COPIED if (job.source / name).is_file()
    }
    files[CONFIG] = ledger.as_json(config)
    with patiently_leased(lease_path(job.out, FINISH)):
        ledger.sweep(job.out / ledger.FOLDER, FINISH)
        for name, content in files.items():
            ledger.sweep(job.out, name.split(".")[0])
            ledger.write_durably(job.out / name, content)
    return Summary(
        out=job.out,
        bits_per_weight=packed_bits(layers),
        packed_bytes=sum(record.nbytes for record in layers.values()),
        made=sum(result.state == "made" for result in results),
        kept=sum(result.state == "kept" for result in results),
        layers=layers,
    )


def read_config(folder: Path) -> QuantizationConfig:
    """Raises: CheckpointError if the folder holds no checkpoint of ours."""
    found = read_json(folder / CONFIG, max_bytes=ledger.MAX_HEADER_BYTES)
    try:
        config = msgspec.convert(found.get("quantization_config"), QuantizationConfig)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{folder / CONFIG}: quantization_config: {error}") from None
    if config.quant_method != QUANT_METHOD:
        raise CheckpointError(f"{folder}: was quantized by {config.quant_method}, not by us")
    return config


def _config(job: Job, layers: dict[str, LayerRecord]) -> QuantizationConfig:
    formats = {name: layers[name].format for name in sorted(layers)}
    names = [*formats.values()]
    return QuantizationConfig(
        quant_method=QUANT_METHOD,
        method=",".join(sorted({settings.method for settings in job.settings.values()})),
        bits=max(settings.bits for settings in job.settings.values()),
        format=max(sorted(set(names)), key=names.count),
        formats=formats,
        bits_per_weight=packed_bits(layers),
        calibration=job.calibration.source if job.calibration else None,
    )


def _in_sequence(
    checkpoint: Checkpoint, tasks: Sequence[BlockTask], calibration: Calibration, hooks: Hooks
) -> Outcome:
    outside = [task for task in tasks if task.block == OUTSIDE]
    blocks = [task for task in tasks if task.block != OUTSIDE]
    first = _independently("serial", outside, hooks)
    if first.stopped:
        return first
    rest = run_sequence(
        checkpoint, blocks, calibration.ids, on_result=hooks.on_block, stopping=hooks.stopping
    )
    return msgspec.structs.replace(rest, results=[*first.results, *rest.results])


def _independently(executor: str, tasks: Sequence[BlockTask], hooks: Hooks) -> Outcome:
    """All tasks; those that another writer holds are waited for, then looked at again."""
    results: list[Any] = []
    failures: list[Any] = []
    while True:
        outcome = run_tasks(
            executor, run_block, tasks, on_result=_unless_busy(hooks), stopping=hooks.stopping
        )
        results += [result for result in outcome.results if result.state != "busy"]
        failures += outcome.failures
        busy = {result.block for result in outcome.results if result.state == "busy"}
        tasks = [task for task in tasks if task.block in busy]
        if outcome.stopped or not tasks:
            return Outcome(results=results, failures=failures, stopped=outcome.stopped)
        wait_until_free(lease_path(Path(tasks[0].out), tasks[0].block))


def _unless_busy(hooks: Hooks) -> Callable[[BlockResult], None]:
    def on_result(result: BlockResult) -> None:
        if result.state != "busy":
            hooks.on_block(result)

    return on_result


def _check_outcome(outcome: Outcome, tasks: int, out: Path) -> None:
    if outcome.failures:
        reasons = "; ".join(
            f"{failure.task.block}: {failure.reason}" for failure in outcome.failures
        )
        raise CheckFailedError(f"{len(outcome.failures)} of {tasks} blocks failed: {reasons}")
    if outcome.stopped:
        done = len(outcome.results)
        raise StoppedError(
            f"stopped after {done} of {tasks} blocks, which are kept in {out}; "
            "run the same command to go on"
        )

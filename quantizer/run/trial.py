"""Formats tried on a model: a checkpoint of each in a folder of its own, and what it did to the
weights. `compare`, `sensitivity --forecast` and `allocate` all look at these checkpoints."""

import time
from collections.abc import Container, Iterator, Sequence
from pathlib import Path

import msgspec
from torch import Tensor

from quantizer.checkpoints.checkpoint import Checkpoint, load_tensors, open_checkpoint
from quantizer.checkpoints.checkpoint_model import dense_layer, quantized_blocks
from quantizer.errors import UsageError
from quantizer.evaluation.calibration import Calibration
from quantizer.methods.awq_block import unfolded
from quantizer.methods.matrix import Settings
from quantizer.run.pipeline import Hooks, Job, Summary, quantize
from quantizer.run.work import needed
from quantizer.sensitivity.choose import (
    OutlierRule,
    layer_settings,
    layer_shape,
    read_formats,
    uniform_settings,
)
from quantizer.sensitivity.fisher_file import NAME as FISHER_NAME
from quantizer.sensitivity.fisher_file import ensure_fisher
from quantizer.sensitivity.forecast_pass import forecast_losses

PLAN_SUFFIX = ".json"
CHANGES_BYTES = 2**32  # of changed weights, held at once for a forecast


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """What all formats tried on a model share."""

    checkpoint: Checkpoint
    calibration: Calibration | None
    work: Path  # the checkpoints are kept here
    options: Settings
    executor: str = "serial"
    outliers: OutlierRule = "global"


class Tried(msgspec.Struct, frozen=True, kw_only=True):
    """One format: its checkpoint and how long it took."""

    summary: Summary
    seconds: float | None  # without shared statistics; None: some of it was done before
    statistics_seconds: float


def is_plan(name: str) -> bool:
    """Whether a format is the name of a file that `allocate` wrote."""
    return name.endswith(PLAN_SUFFIX)


def try_format(trial: Trial, name: str, hooks: Hooks) -> Tried:
    """Quantize to a format, or to a plan of `allocate`, unless that is done.

    Raises: what `quantize` raises.
    """
    settings = _settings(trial, name)
    begin = time.perf_counter()
    fisher = trial.work / FISHER_NAME
    if "fisher" in needed(settings) and trial.calibration is not None:
        ensure_fisher(
            fisher, trial.checkpoint, trial.calibration, "sequence", progress=hooks.fisher_pass
        )
    between = time.perf_counter()
    job = Job(
        source=trial.checkpoint.folder,
        out=folder_of(trial, name),
        settings=settings,
        calibration=trial.calibration,
        fisher=fisher,
        executor=trial.executor,
    )
    summary = quantize(job, hooks)
    seconds = time.perf_counter() - between
    return Tried(
        summary=summary,
        seconds=seconds if summary.kept == 0 else None,
        statistics_seconds=between - begin,
    )


def forecasts(trial: Trial, names: Sequence[str], hooks: Hooks) -> dict[str, dict[str, float]]:
    """By format and layer, the forecast rise of the loss of formats that have been tried.

    One backward pass for as many formats as fit into memory: 4 bytes per weight and format.

    Raises: UsageError without calibration, CheckpointError, StoppedError.
    """
    checkpoint, calibration = trial.checkpoint, trial.calibration
    if calibration is None:
        raise UsageError("a forecast needs calibration text")
    layers = checkpoint.all_linear_names()
    weights = sum(n * k for n, k in (layer_shape(checkpoint, layer) for layer in layers))
    at_once = max(1, CHANGES_BYTES // (4 * weights))
    found: dict[str, dict[str, float]] = {}
    for start in range(0, len(names), at_once):
        changes = {
            name: checkpoint_changes(checkpoint, folder_of(trial, name))
            for name in names[start : start + at_once]
        }
        losses = forecast_losses(checkpoint, changes, calibration.ids, hooks.check)
        for name, own in losses.items():
            found[name] = {layer: own[f"{layer}.weight"] for layer in layers}
    return found


def folder_of(trial: Trial, name: str) -> Path:
    """Where the checkpoint of a format, or of a plan, is kept."""
    return trial.work / Path(name).name.removesuffix(PLAN_SUFFIX)


def checkpoint_changes(checkpoint: Checkpoint, folder: Path) -> dict[str, Tensor]:
    """What quantizing has added to each linear weight of the model, by parameter name.

    Raises: CheckpointError.
    """
    changes = {}
    for layer, weight in original_weights(folder, checkpoint.all_linear_names()):
        key = f"{layer}.weight"
        changes[key] = weight - load_tensors(checkpoint, [key])[key].float()
    return changes


def original_weights(folder: Path, layers: Container[str]) -> Iterator[tuple[str, Tensor]]:
    """Names and (N, K) float32 weights of quantized layers, to be put into the original model.

    A layer of a block that AWQ has rescaled becomes the one that does the same before.

    Raises: CheckpointError.
    """
    for tensors, records in quantized_blocks(open_checkpoint(folder)):
        for name, record in records.items():
            if name in layers:
                start = f"{name}."
                parts = {
                    n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)
                }
                yield name, unfolded(dense_layer(name, parts, record), parts)


def _settings(trial: Trial, name: str) -> dict[str, Settings]:
    if is_plan(name):
        formats = read_formats(Path(name))
        return layer_settings(trial.checkpoint, formats, trial.options, trial.outliers)
    options = msgspec.structs.replace(trial.options, format=name)
    return uniform_settings(trial.checkpoint, options, trial.outliers)

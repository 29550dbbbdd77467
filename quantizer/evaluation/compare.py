"""Several formats of one model side by side: perplexity, forecast, true bits, seconds."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from torch import Tensor

from quantizer.checkpoints.checkpoint import Checkpoint, load_tensors, open_checkpoint
from quantizer.checkpoints.checkpoint_model import dense_layer, load_model, quantized_blocks
from quantizer.evaluation.calibration import Calibration
from quantizer.evaluation.evaluate import EvaluationText, Perplexity, perplexity
from quantizer.methods.matrix import Settings
from quantizer.run import ledger
from quantizer.run.pipeline import Hooks, Job, Summary, quantize
from quantizer.run.work import needed
from quantizer.sensitivity.choose import OutlierRule, uniform_settings
from quantizer.sensitivity.fisher_file import NAME as FISHER_NAME
from quantizer.sensitivity.fisher_file import ensure_fisher
from quantizer.sensitivity.forecast import beyond_quadratic, forecast_perplexity
from quantizer.sensitivity.forecast_pass import forecast_losses


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the table."""

    format: str
    perplexity: float
    forecast: float | None  # None: AWQ rescales the weights, and FP16 changes nothing
    beyond_quadratic: bool  # the forecast is too far to be trusted
    bits_per_weight: float  # true bytes of the packed layers
    seconds: float | None  # quantizing, without shared statistics; None: was done before
    statistics_seconds: float = 0.0


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """What all formats of a comparison share."""

    checkpoint: Checkpoint
    calibration: Calibration | None
    text: EvaluationText
    work: Path
    options: Settings
    executor: str = "serial"
    outliers: OutlierRule = "global"


def compare(
    setting: Setting,
    formats: Sequence[str],
    hooks: Hooks,
    on_line: Callable[[Comparison], None] = lambda line: None,  # noqa: ARG005
) -> list[Comparison]:
    """The unquantized model first, then every format in a folder of its own under `work`.

    Raises: what `quantize` and `perplexity` raise.
    """
    reference = perplexity(
        load_model(setting.checkpoint.folder), setting.text, progress=hooks.check
    )
    lines = [_reference_line(setting.checkpoint, reference)]
    on_line(lines[0])
    ledger.prepare(setting.work)
    for name in formats:
        lines.append(_line(setting, name, reference, hooks))
        on_line(lines[-1])
    return lines


def checkpoint_changes(checkpoint: Checkpoint, folder: Path) -> dict[str, Tensor]:
    """What quantizing has added to each linear weight, by parameter name.

    Raises: CheckpointError.
    """
    changes = {}
    for tensors, records in quantized_blocks(open_checkpoint(folder)):
        for name, record in records.items():
            prefix = f"{name}."
            parts = {p.removeprefix(prefix): t for p, t in tensors.items() if p.startswith(prefix)}
            key = f"{name}.weight"
            weight = load_tensors(checkpoint, [key])[key].float()
            changes[key] = dense_layer(name, parts, record) - weight
    return changes


def _reference_line(checkpoint: Checkpoint, reference: Perplexity) -> Comparison:
    dtype = checkpoint.tensors[f"{checkpoint.all_linear_names()[0]}.weight"].dtype
    return Comparison(
        format=dtype.lower(),
        perplexity=reference.value,
        forecast=None,
        beyond_quadratic=False,
        bits_per_weight=float(dtype.strip("BF")),
        seconds=None,
    )


def _line(setting: Setting, name: str, reference: Perplexity, hooks: Hooks) -> Comparison:
    checkpoint, calibration = setting.checkpoint, setting.calibration
    options = msgspec.structs.replace(setting.options, format=name)
    settings = uniform_settings(checkpoint, options, setting.outliers)
    begin = time.perf_counter()
    fisher = setting.work / FISHER_NAME
    if "fisher" in needed(settings) and calibration is not None:
        ensure_fisher(fisher, checkpoint, calibration, "sequence", progress=hooks.fisher_pass)
    between = time.perf_counter()
    job = Job(
        source=checkpoint.folder,
        out=setting.work / name,
        settings=settings,
        calibration=calibration,
        fisher=fisher,
        executor=setting.executor,
    )
    summary = quantize(job, hooks)
    seconds = time.perf_counter() - between
    measured = perplexity(load_model(summary.out), setting.text, progress=hooks.check)
    loss = _forecast(setting, settings, summary, hooks)
    return Comparison(
        format=name,
        perplexity=measured.value,
        forecast=None if loss is None else forecast_perplexity(reference.value, loss),
        beyond_quadratic=loss is not None and beyond_quadratic(loss),
        bits_per_weight=summary.bits_per_weight,
        seconds=seconds if summary.kept == 0 else None,
        statistics_seconds=between - begin,
    )


def _forecast(
    setting: Setting, settings: dict[str, Settings], summary: Summary, hooks: Hooks
) -> float | None:
    """None without calibration, and for AWQ, whose weights are those of a rescaled block."""
    calibration = setting.calibration
    if calibration is None or any(one.method == "awq" for one in settings.values()):
        return None
    changes = checkpoint_changes(setting.checkpoint, summary.out)
    losses = forecast_losses(setting.checkpoint, changes, calibration.ids, hooks.check)
    return sum(losses.values())

"""Several formats of one model side by side: perplexity, forecast, true bits, seconds."""

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from torch import Tensor

from quantizer.checkpoints.checkpoint import Checkpoint
from quantizer.checkpoints.checkpoint_model import load_model
from quantizer.errors import UsageError
from quantizer.evaluation.evaluate import (
    EvaluationText,
    Perplexity,
    perplexity_of,
    rise,
    window_losses,
)
from quantizer.run import ledger
from quantizer.run.pipeline import Hooks
from quantizer.run.trial import Trial, checkpoint_changes, try_format
from quantizer.sensitivity.forecast import beyond_quadratic, forecast_perplexity
from quantizer.sensitivity.forecast_pass import forecast_losses


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the table."""

    format: str
    perplexity: float
    rise: float  # of the loss over the base's, nats per token
    rise_error: float | None  # paired standard error; None: one window
    forecast: float | None  # perplexity; None: without calibration, and for the model itself
    beyond_quadratic: bool  # the forecast is too far to be trusted
    bits_per_weight: float  # true bytes of the packed layers
    seconds: float | None  # quantizing, without shared statistics; None: was done before
    statistics_seconds: float = 0.0


def compare(
    trial: Trial,
    text: EvaluationText,
    formats: Sequence[str],
    hooks: Hooks,
    *,
    base: str | None = None,
    on_line: Callable[[str], None] = lambda name: None,  # noqa: ARG005
) -> list[Comparison]:
    """The unquantized model first, then every format in a folder of its own.

    base: the format that rises of the loss are counted from; None: the unquantized model.

    Raises: what `quantize` and `perplexity` raise, UsageError for a base that is not compared.
    """
    if base is not None and base not in formats:
        raise UsageError(f"no format {base!r} to count from in this table; have: {formats}")
    unquantized = _losses(trial.checkpoint.folder, text, hooks)
    reference = perplexity_of(unquantized, text)
    lines, losses = [_reference_line(trial.checkpoint, reference)], [unquantized]
    on_line(lines[0].format)
    ledger.prepare(trial.work)
    for name in formats:
        line, own = _line(trial, name, text, hooks, reference)
        lines.append(line)
        losses.append(own)
        on_line(name)
    from_ = losses[0 if base is None else 1 + formats.index(base)]
    return [_with_rise(line, own, from_) for line, own in zip(lines, losses, strict=True)]


def _losses(folder: Path, text: EvaluationText, hooks: Hooks) -> Tensor:
    return window_losses(load_model(folder), text, progress=hooks.check)


def _with_rise(line: Comparison, losses: Tensor, base: Tensor) -> Comparison:
    found = rise(losses, base)
    return msgspec.structs.replace(line, rise=found.mean, rise_error=found.error)


def _reference_line(checkpoint: Checkpoint, reference: Perplexity) -> Comparison:
    dtype = checkpoint.tensors[f"{checkpoint.all_linear_names()[0]}.weight"].dtype
    return Comparison(
        format=dtype.lower(),
        perplexity=reference.value,
        rise=0.0,
        rise_error=None,
        forecast=None,
        beyond_quadratic=False,
        bits_per_weight=float(dtype.strip("BF")),
        seconds=None,
    )


def _line(
    trial: Trial, name: str, text: EvaluationText, hooks: Hooks, reference: Perplexity
) -> tuple[Comparison, Tensor]:
    """A line whose rise is still open, and the losses of its windows."""
    tried = try_format(trial, name, hooks)
    losses = _losses(tried.summary.out, text, hooks)
    loss = _forecast(trial, tried.summary.out, hooks)
    line = Comparison(
        format=name,
        perplexity=perplexity_of(losses, text).value,
        rise=0.0,
        rise_error=None,
        forecast=None if loss is None else forecast_perplexity(reference.value, loss),
        beyond_quadratic=loss is not None and beyond_quadratic(loss),
        bits_per_weight=tried.summary.bits_per_weight,
        seconds=tried.seconds,
        statistics_seconds=tried.statistics_seconds,
    )
    return line, losses


def _forecast(trial: Trial, folder: Path, hooks: Hooks) -> float | None:
    """None without calibration."""
    if trial.calibration is None:
        return None
    changes = checkpoint_changes(trial.checkpoint, folder)
    losses = forecast_losses(trial.checkpoint, changes, trial.calibration.ids, hooks.check)
    return sum(losses.values())

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
    Rise,
    perplexity_of,
    rise,
    window_losses,
)
from quantizer.run import ledger
from quantizer.run.pipeline import Hooks
from quantizer.run.trial import Trial, forecasts, try_format
from quantizer.sensitivity.forecast import beyond_quadratic, forecast_perplexity

REFERENCE = "the model"  # the line of the unquantized one


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
    losses = {REFERENCE: _losses(trial.checkpoint.folder, text, hooks)}
    on_line(REFERENCE)
    ledger.prepare(trial.work)
    tried = {}
    for name in formats:
        tried[name] = try_format(trial, name, hooks)
        losses[name] = _losses(tried[name].summary.out, text, hooks)
        on_line(name)
    expected = forecasts(trial, formats, hooks) if trial.calibration is not None else {}
    perplexities = {name: perplexity_of(own, text).value for name, own in losses.items()}
    rises = {name: rise(own, losses[base or REFERENCE]) for name, own in losses.items()}
    first = _reference_line(trial.checkpoint, perplexities[REFERENCE], rises[REFERENCE])
    lines = [first]
    for name in formats:
        loss = sum(expected[name].values()) if name in expected else None
        forecast = None if loss is None else forecast_perplexity(first.perplexity, loss)
        lines.append(
            Comparison(
                format=name,
                perplexity=perplexities[name],
                rise=rises[name].mean,
                rise_error=rises[name].error,
                forecast=forecast,
                beyond_quadratic=loss is not None and beyond_quadratic(loss),
                bits_per_weight=tried[name].summary.bits_per_weight,
                seconds=tried[name].seconds,
                statistics_seconds=tried[name].statistics_seconds,
            )
        )
    return lines


def _losses(folder: Path, text: EvaluationText, hooks: Hooks) -> Tensor:
    return window_losses(load_model(folder), text, progress=hooks.check)


def _reference_line(checkpoint: Checkpoint, value: float, found: Rise) -> Comparison:
    dtype = checkpoint.tensors[f"{checkpoint.all_linear_names()[0]}.weight"].dtype
    return Comparison(
        format=dtype.lower(),
        perplexity=value,
        rise=found.mean,
        rise_error=found.error,
        forecast=None,
        beyond_quadratic=False,
        bits_per_weight=float(dtype.strip("BF")),
        seconds=None,
    )

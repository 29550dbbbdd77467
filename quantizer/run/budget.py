"""Whether any plan fits a budget, said before hours go into the formats to choose from."""

from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from perfmodel.format_names import parse_format
from quantizer.checkpoints.checkpoint import Checkpoint
from quantizer.errors import UsageError
from quantizer.sensitivity.choose import layer_shapes
from quantizer.sensitivity.device_time import StepTimes


def least_bits(checkpoint: Checkpoint, formats: Sequence[str]) -> float:
    """True bits per weight of the smallest formats without sparse values, which vary."""
    shapes = layer_shapes(checkpoint)
    plain = [replace(parse_format(name), sparse=None) for name in formats]
    nbytes = sum(min(one.weight_bytes(*shape) for one in plain) for shape in shapes)
    return 8 * nbytes / sum(rows * columns for rows, columns in shapes)


def check_bits(least: float, bits_per_weight: float) -> None:
    """Raises: UsageError if the smallest formats take more."""
    if least > bits_per_weight:
        raise UsageError(
            f"these formats take {least:.4f} bits per weight at least, found a budget of "
            f"{bits_per_weight:g}"
        )


def check_time(
    layers: Iterable[str], formats: Sequence[str], times: StepTimes, most_s: float
) -> None:
    """Raises: UsageError if the fastest formats take longer, the rest of the step included."""
    fastest_s = sum(min(times.layer_s(layer, name) for name in formats) for layer in layers)
    least_s = times.others_s + fastest_s
    if least_s > most_s:
        raise UsageError(
            f"these formats take {1e3 * least_s:.4g} ms per token at least, "
            f"{1e3 * times.others_s:.4g} ms of it outside of the linear layers; found a budget of "
            f"{1e3 * most_s:.4g} ms"
        )

"""Settings of every layer from what a command line says: formats, rules, equal true bytes."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Literal

import msgspec
from msgspec.structs import replace

from kernels.layouts.bilevel import BITS as BILEVEL_BITS
from kernels.layouts.bilevel import GROUP as BILEVEL_GROUP
from kernels.layouts.codes import BITS, K_ALIGN
from kernels.layouts.uniform import group_sizes
from kernels.layouts.vector import FORMS
from perfmodel.format_names import parse_format
from quantizer.checkpoints.checkpoint import Checkpoint, load_tensors
from quantizer.checkpoints.safe_files import MAX_HEADER_BYTES, read_json
from quantizer.errors import CheckpointError, UsageError
from quantizer.methods.awq_block import UNCLIPPED
from quantizer.methods.matrix import Settings
from quantizer.methods.outliers import global_iqr_range
from quantizer.methods.squeezellm import weighting_of

OutlierRule = Literal["global", "percentile"]
UNIFORM = ("rtn", "gptq", "awq")
VECTOR_WIDTHS = {
    f"gptvq-{dim}d": tuple(bits / dim for own, bits in FORMS if own == dim) for dim in (1, 2, 4)
}
LEAST_TABLE_BITS = 1 / 16  # per weight: what vector codebooks get at least
SPARSE_NAMES_PER_PERCENT = 10_000  # a sparse share in a name has at most four decimals


def uniform_settings(
    checkpoint: Checkpoint, options: Settings, outliers: OutlierRule = "percentile"
) -> dict[str, Settings]:
    """The same options for every layer; one global outlier threshold if the rule asks for it."""
    return layer_settings(
        checkpoint, dict.fromkeys(checkpoint.all_linear_names(), options.format), options, outliers
    )


def layer_settings(
    checkpoint: Checkpoint,
    formats: dict[str, str],
    options: Settings,
    outliers: OutlierRule = "percentile",
) -> dict[str, Settings]:
    """A format for every layer, other options as given.

    Raises: UsageError for formats that are wrong, CheckpointError for layers that do not exist.
    """
    names = checkpoint.all_linear_names()
    strange = sorted(set(names) ^ set(formats))
    if strange:
        raise CheckpointError(f"formats do not match the layers of the model, as {strange[0]}")
    settings = {name: replace(options, format=formats[name]) for name in names}
    ranges = _iqr_ranges(checkpoint, settings.values()) if outliers == "global" else {}
    for name, one in settings.items():
        if one.method == "awq" and name.endswith(UNCLIPPED):
            settings[name] = replace(one, clip=False)
        elif outlier_share(one) in ranges:
            settings[name] = replace(one, iqr_range=ranges[outlier_share(one)])
    return settings


def outlier_share(settings: Settings) -> float:
    """Share of the values that leave for their magnitude, after the sensitive ones."""
    if settings.selection not in ("paper", "outliers"):
        return 0.0
    first = settings.selection == "paper" and weighting_of(settings) != "none"
    return max(settings.share - settings.sensitive_share * first, 0.0)


def read_formats(path: Path) -> dict[str, str]:
    """Layer -> format, as `allocate` writes it.

    Raises: CheckpointError.
    """
    try:
        return msgspec.convert(read_json(path, MAX_HEADER_BYTES).get("formats"), dict[str, str])
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{path}: formats: {error}") from None


def format_name(
    method: str, bits: int, *, group: int | None = None, sparsity: float | None = None
) -> str:
    """The perfmodel name of `--method M --bits B [--group G] [--sparsity PERCENT]`.

    Raises: UsageError.
    """
    if group is None:
        group = {"awq": 128, "spqr": BILEVEL_GROUP}.get(method)
    parts = [method, f"w{bits}"]
    parts += [f"g{group}"] if group is not None else []
    parts += [f"s{sparsity:g}"] if sparsity else []
    return parse_format("-".join(parts)).name


def format_of_bits(method: str, bits_per_weight: float, shapes: Sequence[tuple[int, int]]) -> str:
    """The format of a method that comes nearest to so many true bits, from below.

    Codebooks spend what is left on sparse values, as SpQR does, grids on smaller groups, and vector
    codebooks (`gptvq-2d`, with blockwise scales `gptvq-2d-n64`) on tables for fewer weights.

    Raises: UsageError if no format of the method is small enough.
    """
    is_vector = method.partition("-n")[0] in VECTOR_WIDTHS
    if is_vector:
        names = _vector_names(method, bits_per_weight)
    elif method == "spqr":
        names = [f"spqr-w{bits}-g{BILEVEL_GROUP}" for bits in BILEVEL_BITS]
    elif method in UNIFORM:
        names = [
            f"{method}-w{bits}{group}"
            for bits in BITS
            for group in (*(f"-g{size}" for size in reversed(group_sizes(bits))), "")
            if group or method != "awq"
        ]
    else:
        names = [f"{method}-w{bits}" for bits in BITS]
    sizes = {name: true_bits(name, shapes) for name in names}
    fitting = {name: bits for name, bits in sizes.items() if bits <= bits_per_weight}
    if not fitting:
        least = min(sizes, key=lambda name: sizes[name])
        raise UsageError(
            f"{method} takes {sizes[least]:.3f} bits per weight at least ({least}), found "
            f"{bits_per_weight:g}"
        )
    best = max(fitting, key=lambda name: fitting[name])
    if method in UNIFORM or is_vector:
        return best
    percent = _sparse_percent(best, bits_per_weight, shapes)
    return f"{best}-s{percent:g}" if percent else best


def true_bits(name: str, shapes: Sequence[tuple[int, int]]) -> float:
    """Stored bits per weight of a format over layers of these shapes."""
    known, counts = parse_format(name), Counter(shapes).items()
    stored = sum(count * known.weight_bytes(n, k) for (n, k), count in counts)
    return 8 * stored / sum(count * n * k for (n, k), count in counts)


def layer_shapes(checkpoint: Checkpoint) -> list[tuple[int, int]]:
    """(N, K) of every linear layer of the blocks."""
    return [layer_shape(checkpoint, name) for name in checkpoint.all_linear_names()]


def layer_shape(checkpoint: Checkpoint, name: str) -> tuple[int, int]:
    """(N, K) of a linear layer."""
    rows, columns = checkpoint.tensors[f"{name}.weight"].shape
    return rows, columns


def _vector_names(method: str, bits_per_weight: float) -> list[str]:
    """Formats of the widest indices that leave something for tables, by size of the group."""
    base, _, subrow = method.partition("-n")
    columns = int(subrow) if subrow.isdigit() else 0
    left = bits_per_weight - (4 / columns if columns else 0)
    widths = VECTOR_WIDTHS[base]
    fitting = [bits for bits in widths if bits + LEAST_TABLE_BITS <= left]
    suffix = f"-n{subrow}" if subrow else ""
    if not fitting:
        return [f"{base}-w{min(widths):g}{suffix}"]
    bits, dim = max(fitting), int(base[-2])
    entry_bits = 2 ** round(bits * dim) * dim * 8
    most = int(2 * entry_bits / (left - bits))  # weights: half of the budget
    step = max(K_ALIGN, columns)
    return [f"{base}-w{bits:g}-g{group}{suffix}" for group in range(step, most + step, step)]


def _sparse_percent(name: str, bits_per_weight: float, shapes: Sequence[tuple[int, int]]) -> float:
    """The largest sparse percentage, of four decimals, that keeps the format within the bits."""
    low, high = 0, 50 * SPARSE_NAMES_PER_PERCENT
    while low < high:
        middle = (low + high + 1) // 2
        percent = float(Fraction(middle, SPARSE_NAMES_PER_PERCENT))
        if true_bits(f"{name}-s{percent:f}", shapes) <= bits_per_weight:
            low = middle
        else:
            high = middle - 1
    return math.floor(low) / SPARSE_NAMES_PER_PERCENT


def _iqr_ranges(checkpoint: Checkpoint, settings: Iterable[Settings]) -> dict[float, float]:
    """Per share of outliers in use, SqueezeLLM's one threshold of the whole model."""
    ranges = {}
    for share in {outlier_share(one) for one in settings} - {0.0}:
        weights = (
            load_tensors(checkpoint, [f"{name}.weight"])[f"{name}.weight"].float()
            for name in checkpoint.all_linear_names()
        )
        ranges[share] = global_iqr_range(weights, share)
    return ranges

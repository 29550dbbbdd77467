"""What a job will take, before it starts: output bytes exactly, memory by formula, time by probe.

Time is measured, not assumed: the methods run on a few rows of one real layer, a matrix product
gives this machine's rate for the passes over the model, and both are scaled up.
"""

import time
from pathlib import Path

import msgspec
import torch

from quantizer.calibration import Calibration
from quantizer.checkpoint import OUTSIDE, Checkpoint, load_tensors
from quantizer.matrix import Settings, Statistics
from quantizer.methods import needs, quantize_matrix

PROBE_ROWS = 64
PROBE_SIZE = 512  # of the matrix product
FLOAT_BYTES = 4
WORKING_COPIES = 6  # of a block's weights in float32 while it is quantized: a generous guess
ACTIVATION_COPIES = 24  # of the hidden states, for the backward pass of one block


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """What to expect. Bytes of the output are exact but for the number of sparse values."""

    output_bytes: int
    peak_memory_bytes: int
    time_s: float
    layers: int
    bits_per_weight: float


def estimate(
    checkpoint: Checkpoint,
    settings: dict[str, Settings],
    calibration: Calibration | None,
    *,
    workers: int = 1,
) -> Estimate:
    """What quantizing will take on this machine with so many workers."""
    shapes = {name: checkpoint.tensors[f"{name}.weight"].shape for name in settings}
    weights = sum(n * k for n, k in shapes.values())
    packed = sum(settings[name].weight_format.weight_bytes(*shapes[name]) for name in settings)
    kept = checkpoint.nbytes - sum(checkpoint.tensors[f"{name}.weight"].nbytes for name in settings)
    wanted = frozenset().union(*(needs(one) for one in settings.values()))
    return Estimate(
        output_bytes=packed + kept,
        peak_memory_bytes=_peak_bytes(checkpoint, calibration, wanted, workers),
        time_s=_clustering_s(checkpoint, settings, wanted) / workers
        + _passes_s(weights, calibration, wanted),
        layers=len(settings),
        bits_per_weight=8 * packed / weights,
    )


def free_bytes(folder: Path) -> int:
    """Free space where `folder` is or will be."""
    import shutil

    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def _peak_bytes(
    checkpoint: Checkpoint, calibration: Calibration | None, wanted: frozenset[str], workers: int
) -> int:
    def elements(names: list[str]) -> int:
        return sum(torch.Size(checkpoint.tensors[name].shape).numel() for name in names)

    blocks = [elements(checkpoint.names_of(block)) for block in range(checkpoint.blocks)]
    outside = elements(checkpoint.names_of(OUTSIDE))
    block_bytes = max(blocks) * FLOAT_BYTES * WORKING_COPIES
    if calibration is None or not wanted:
        return block_bytes * workers
    windows, tokens = calibration.ids.shape
    width = int(checkpoint.config["hidden_size"])
    states = windows * tokens * width * FLOAT_BYTES
    if "fisher" in wanted:
        model = (sum(blocks) * 2 + outside) * FLOAT_BYTES  # weights, and their diagonals
        logits = 3 * tokens * int(checkpoint.config["vocab_size"]) * FLOAT_BYTES
        pass_bytes = model + max(blocks) * FLOAT_BYTES + logits
        pass_bytes += tokens * width * FLOAT_BYTES * (ACTIVATION_COPIES + checkpoint.blocks)
        return max(pass_bytes, block_bytes * workers)
    widest = max(checkpoint.tensors[f"{n}.weight"].shape[1] for n in checkpoint.linear_names(0))
    hessians = len(checkpoint.family.linears) * widest**2 * FLOAT_BYTES
    return block_bytes + 2 * states + 2 * hessians + outside * FLOAT_BYTES


def _clustering_s(
    checkpoint: Checkpoint, settings: dict[str, Settings], wanted: frozenset[str]
) -> float:
    """Seconds of the methods alone: a few rows of the first layer, scaled by weights."""
    name, one = next(iter(settings.items()))
    weight = load_tensors(checkpoint, [f"{name}.weight"])[f"{name}.weight"].float()[:PROBE_ROWS]
    rows, columns = weight.shape
    statistics = Statistics(
        fisher=weight.square() if "fisher" in wanted else None,
        hessian=torch.eye(columns) if "hessian" in wanted else None,
        mean_abs=weight.abs().mean(dim=0) if "mean_abs" in wanted else None,
    )
    quantize_matrix(weight[:8], statistics_of_rows(statistics, 8), one)  # compiles what there is
    begin = time.perf_counter()
    quantize_matrix(weight, statistics, one)
    seconds = time.perf_counter() - begin
    shapes = [checkpoint.tensors[f"{layer}.weight"].shape for layer in settings]
    return seconds * sum(n * k for n, k in shapes) / (rows * columns)


def statistics_of_rows(statistics: Statistics, rows: int) -> Statistics:
    """The same statistics for the first rows of the weight."""
    fisher = statistics.fisher
    return msgspec.structs.replace(statistics, fisher=None if fisher is None else fisher[:rows])


def _passes_s(weights: int, calibration: Calibration | None, wanted: frozenset[str]) -> float:
    """Seconds of the passes over the model: forward 2 FLOPs per weight and token, backward 4.

    Blocks are recomputed in the backward pass (+2); the statistics of activations take two
    forward passes and one product of the same size.
    """
    if calibration is None or not wanted:
        return 0.0
    flops_per_weight = (8 if "fisher" in wanted else 0) + (6 if wanted - {"fisher"} else 0)
    matrix = torch.ones(PROBE_SIZE, PROBE_SIZE)
    matrix @ matrix
    begin = time.perf_counter()
    matrix @ matrix
    rate = 2 * PROBE_SIZE**3 / (time.perf_counter() - begin)
    return flops_per_weight * weights * calibration.ids.numel() / rate
